"""What an answer's form allows as its next token: a JSON schema or a regular expression, followed id by id.

The grammar runs in llguidance, over the exact bytes that each token of the model adds to a text. Special tokens are no
text and are never allowed; the model's stop tokens are, exactly where the text so far is a whole answer. Where the form
leaves no choice of text, the tokens that the model itself would write it with are the only ones. What cannot be
enforced is an error before the first token, and never an answer without the form.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import ResponseFormatError
from hearthlm.tokenizers import Tokenizer

MAX_SOURCE_BYTES = 64 << 10
MAX_DEPTH = 64
MAX_COMPILE_S = 2
MAX_CACHED_BYTES = 1 << 20  # of the sources of grammars that are kept
# Between the tokens of JSON: enough for any indentation, and no room for a model that has lost its way to fill.
WHITE_SPACE = r"( |\n {0,16}|\n\t{0,8})?"
_LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


@dataclass(frozen=True)
class ResponseFormat:
    """Hold a form that is sound in itself.

    `kind` is "json_schema" with the schema's JSON, "regex" with the pattern, or "lark" with a grammar of ours, which
    may name special tokens by their ids, as <[7]>; nothing else ever allows one.
    """

    kind: str
    source: str

    @classmethod
    def parse(cls, value: Any) -> ResponseFormat | None:
        """Return the form that an option describes, None for plain text.

        {"type": "text"}; {"type": "json_object"}; {"type": "json_schema", "json_schema": {"schema": {...}}}, as in
        OpenAI's API; {"type": "regex", "pattern": "..."}. Raises ResponseFormatError, naming the field, for another.
        """
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ResponseFormatError(f"response_format: expected a mapping with a type, got {type(value).__name__}")
        kind = value.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return cls("json_schema", '{"type": "object"}')
        if kind == "json_schema":
            inner = value.get("json_schema")
            if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), (Mapping, bool)):
                raise ResponseFormatError('response_format: json_schema: expected {"schema": {...}}')
            return cls("json_schema", _checked_schema(inner["schema"]))
        if kind == "regex":
            pattern = value.get("pattern")
            if not isinstance(pattern, str) or not pattern:
                raise ResponseFormatError("response_format: pattern: expected a regular expression")
            _check_size(pattern)
            return cls("regex", pattern)
        raise ResponseFormatError(
            f"response_format: type: expected text, json_object, json_schema or regex, got {kind!r:.80}"
        )

    @classmethod
    def of_grammar(cls, source: str) -> ResponseFormat:
        """Return a form that is a grammar of ours; raises ResponseFormatError for one that is too long."""
        _check_size(source)
        return cls("lark", source)


def _checked_schema(schema: Any) -> str:
    _check_depth(schema)
    try:
        source = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ResponseFormatError(f"response_format: schema: expected JSON: {error}") from None
    _check_size(source)
    return source


def _check_size(source: str) -> None:
    if (size := len(source.encode("utf-8", "surrogatepass"))) > MAX_SOURCE_BYTES:
        raise ResponseFormatError(f"response_format: expected at most {MAX_SOURCE_BYTES} bytes, got {size}")


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ResponseFormatError(f"response_format: schema: expected at most {MAX_DEPTH} levels")


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


class ConstraintCompiler:
    """Make grammars for one model, and keep the latest; any thread may call.

    The tables of the vocabulary are made with the first grammar, which takes about a second for 250,000 tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_ids = tuple(sorted(i for i in stop_ids if i < vocab_size))
        self._lock = threading.Lock()
        self._vocabularies: dict[bool, _Vocabulary] = {}
        self._cache: OrderedDict[ResponseFormat, Constraint] = OrderedDict()

    def compile(self, response_format: ResponseFormat) -> Constraint:
        """Return the grammar of a form.

        Raises ResponseFormatError for one that cannot be enforced or is too complex, ImportError without llguidance.
        """
        with self._lock:
            if (known := self._cache.get(response_format)) is not None:
                self._cache.move_to_end(response_format)
                return known
        _check_cost(response_format)
        constraint = Constraint(self, response_format)
        constraint.matcher(at_start=False).mask()  # some forms show only there that they are too complex
        with self._lock:
            self._cache[response_format] = constraint
            while sum(len(kept.source) for kept in self._cache) > MAX_CACHED_BYTES:
                self._cache.popitem(last=False)
        return constraint

    def vocabulary(self, *, at_start: bool) -> _Vocabulary:
        with self._lock:
            if at_start not in self._vocabularies:
                self._vocabularies[at_start] = _Vocabulary(
                    self._tokenizer, self._vocab_size, self._stop_ids, at_start=at_start
                )
            return self._vocabularies[at_start]

    def is_at_start(self, context_ids: Sequence[int]) -> bool:
        """Tell whether an answer to this context begins a text, where tokenizers drop the space of its first word."""
        start_id = self._tokenizer.start_id
        return all(token_id == start_id for token_id in context_ids)


class _Vocabulary:
    """Spell a model's tokens out for llguidance: the bytes each adds to a text that has begun, or that it begins."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: tuple[int, ...], *, at_start: bool) -> None:
        llguidance = _llguidance()
        self.vocab_size = vocab_size
        self.stop_ids = stop_ids
        # An id of its own stands for the end where the model has no stop token.
        self.num_ids = vocab_size if stop_ids else vocab_size + 1
        self._encode = tokenizer.encode
        self.tokens = [b""] * self.num_ids
        for token_id in range(min(vocab_size, tokenizer.vocab_size)):
            if not tokenizer.is_special(token_id) and token_id not in stop_ids:
                self.tokens[token_id] = (
                    tokenizer.first_bytes(token_id)[0] if at_start else tokenizer.token_bytes(token_id)
                )
        self._ids = {token: i for i, token in reversed(list(enumerate(self.tokens))) if token}
        self._longest = max(map(len, self._ids), default=1)
        special = {
            i: tokenizer.piece(i).encode("utf-8")
            for i in range(min(vocab_size, tokenizer.vocab_size))
            if tokenizer.is_special(i) and tokenizer.piece(i) and i not in stop_ids
        }
        spelled = [special.get(i, token) for i, token in enumerate(self.tokens)]
        self.handle = llguidance.LLTokenizer(
            _Spelled(spelled, list(special), self.encode, self.stop_ids[0] if stop_ids else vocab_size),
            n_vocab=self.num_ids,
            eos_token=list(stop_ids) if stop_ids else vocab_size,
        )

    def encode(self, text: str) -> list[int]:
        """Return ids whose bytes are exactly those of a text: the tokenizer's own, or else the longest ones.

        Raises ValueError where the vocabulary has no token for a byte.
        """
        data = text.encode("utf-8")
        ids = self._encode(text, parse_special=False)
        if all(i < self.num_ids for i in ids) and b"".join(self.tokens[i] for i in ids) == data:
            return ids
        return self.ids_of(data)

    def ids_of(self, data: bytes) -> list[int]:
        """Return the longest tokens, one after the other, that make up some bytes."""
        ids, begin = [], 0
        while begin < len(data):
            for length in range(min(self._longest, len(data) - begin), 0, -1):
                if (token_id := self._ids.get(data[begin : begin + length])) is not None:
                    break
            else:
                raise ValueError(f"no token of the model spells {data[begin : begin + 1]!r}")
            ids.append(token_id)
            begin += length
        return ids


class _Spelled:
    """A vocabulary as llguidance asks for one."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: Sequence[bytes], special_ids: list[int], encode: Any, end_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.bos_token_id = None
        self.eos_token_id = end_id
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._encode(text)
        return ids


class Constraint:
    """Hold one compiled form for one model; immutable, and safe to use from several threads."""

    def __init__(self, compiler: ConstraintCompiler, response_format: ResponseFormat) -> None:
        self._compiler = compiler
        self._format = response_format
        self._lock = threading.Lock()
        self._templates: dict[bool, Any] = {}

    def matcher(self, *, at_start: bool) -> Matcher:
        """Return what follows one answer, from its beginning."""
        vocabulary = self._compiler.vocabulary(at_start=False)
        later = self._handle(vocabulary, at_start=False)
        if not at_start:
            return Matcher(vocabulary, later)
        beginning = self._compiler.vocabulary(at_start=True)
        return Matcher(vocabulary, later, beginning, self._handle(beginning, at_start=True))

    def matcher_after(self, context_ids: Sequence[int]) -> Matcher:
        """Return what follows one answer to a context."""
        return self.matcher(at_start=self._compiler.is_at_start(context_ids))

    def _handle(self, vocabulary: _Vocabulary, *, at_start: bool) -> Any:
        """Return a matcher of llguidance at its beginning."""
        with self._lock:
            if at_start not in self._templates:
                self._templates[at_start] = _compiled(self._format, vocabulary)
            return self._templates[at_start].deep_copy()


def _check_cost(response_format: ResponseFormat) -> None:
    """Raise ResponseFormatError for a schema that takes too long to compile.

    llguidance bounds everything but the meeting of several schemas in one place, whose cost may double with each of
    them. Such a schema is tried in a process of its own first, which may take two seconds of a processor.
    """
    if response_format.kind == "regex" or not any(word in response_format.source for word in _MEETING):
        return
    command = [sys.executable, "-c", _TRIAL, str(MAX_COMPILE_S), response_format.kind]
    try:
        done = subprocess.run(
            command, input=response_format.source.encode(), capture_output=True, check=False, timeout=20 * MAX_COMPILE_S
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode < 0:
        raise ResponseFormatError(
            f"response_format: it cannot be enforced: it takes more than {MAX_COMPILE_S} s to compile"
        )


_MEETING = ("allOf", "oneOf", "anyOf", "$ref", "patternProperties")
_TRIAL = """
import sys
try:
    import resource
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 1, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
from llguidance import LLMatcher
source = sys.stdin.buffer.read().decode()
if sys.argv[2] == "lark":
    grammar = LLMatcher.grammar_from_lark(source)
else:
    grammar = LLMatcher.grammar_from_json_schema(source)
LLMatcher.validate_grammar(grammar)
"""


def _compiled(response_format: ResponseFormat, vocabulary: _Vocabulary) -> Any:
    llguidance = _llguidance()
    limits = llguidance.LLParserLimits(**_LIMITS)
    try:
        if response_format.kind == "lark":
            grammar = llguidance.LLMatcher.grammar_from_lark(response_format.source)
        elif response_format.kind == "regex":
            grammar = llguidance.LLMatcher.grammar_from_regex(response_format.source)
        else:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                response_format.source, overrides={"whitespace_pattern": WHITE_SPACE, "lenient": False}
            )
        is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            grammar, vocabulary.handle, limits=limits
        )
        if is_error or messages:
            raise ResponseFormatError(f"response_format: it cannot be enforced: {_line(messages[0])}")
        matcher = llguidance.LLMatcher(vocabulary.handle, grammar, log_level=0, limits=limits)
    except ValueError as error:
        if isinstance(error, ResponseFormatError):
            raise
        raise ResponseFormatError(f"response_format: it cannot be enforced: {_line(str(error))}") from None
    if matcher.is_error():
        raise ResponseFormatError(f"response_format: it cannot be enforced: {_line(matcher.get_error())}")
    return matcher


class Matcher:
    """Follow one answer: what may come next, and whether it may end; one thread at a time."""

    def __init__(
        self, vocabulary: _Vocabulary, handle: Any, beginning: _Vocabulary | None = None, first_handle: Any = None
    ) -> None:
        self._vocabulary = vocabulary
        self._handle = handle
        self._beginning = beginning
        self._first_handle = first_handle

    def mask(self) -> NDArray[np.bool_]:
        """Return which ids may come next, bool [vocab_size]; at least one of them may.

        Raises ResponseFormatError where the form has become too complex to follow, or the vocabulary cannot spell it.
        """
        handle = self._handle if self._beginning is None else self._first_handle
        bits = np.frombuffer(handle.compute_bitmask(), np.uint8)
        self._check(handle)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary.vocab_size].view(np.bool_)
        if not allowed.any():
            raise ResponseFormatError("response_format: no token of the model can go on with it")
        return allowed

    def take(self, token_id: int) -> None:
        """Go on with an id that was allowed and is no stop token."""
        if self._beginning is not None:
            token = self._beginning.tokens[token_id]
            self._beginning = self._first_handle = None
            # A special token has no bytes, and is the same at the beginning.
            self._handle.consume_tokens(self._vocabulary.ids_of(token) if token else [token_id])
        else:
            self._handle.consume_token(token_id)
        self._check(self._handle)

    @property
    def is_over(self) -> bool:
        """Whether the answer is whole and nothing can be added to it."""
        return self._beginning is None and bool(self._handle.is_stopped())

    @property
    def is_whole(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._handle.is_accepting())

    def _check(self, handle: Any) -> None:
        if handle.is_error():
            raise ResponseFormatError(f"response_format: it cannot be followed: {_line(handle.get_error())}")


def _line(message: str) -> str:
    """Return the first lines of what llguidance says, as one, without the traces of its own state."""
    message = message.partition("<backtrace>")[0].partition("<state>")[0]
    return " ".join(message.split())[:300]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ImportError('response_format needs llguidance: pip install "hearthlm[grammar]"') from None
    return llguidance
