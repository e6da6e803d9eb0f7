"""A tokenizer on huggingface/tokenizers, for checkpoints with a `tokenizer.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hearthlm.errors import TokenizerFormatError, UnsupportedModelError
from hearthlm.tokenizers import byte_alphabet, stream
from hearthlm.tokenizers.markup import alternation, is_markup

MAX_JSON_BYTES = 64 << 20
MAX_TOKEN_ID = 1 << 24

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class HuggingFaceTokenizer:
    """Encode and decode as the tokenizers library does.

    `parse_special=False` leaves out of the search the added tokens that are declared special, and those shaped like
    markup (`markup.is_markup`), such as `<think>`, which vocabularies often declare as ordinary.

    The start token is what `config` (the content of tokenizer_config.json) says: with `add_bos_token` true it is
    `bos_token`, with false there is none; without that field it is what the tokenizer itself puts before a text.
    As in transformers, tokens that `config` names (`eos_token` ...) are special.
    """

    def __init__(self, tokenizer_json: bytes, config: Mapping[str, Any] | None = None) -> None:
        _check_size(tokenizer_json)
        self._tokenizer = _guarded("the tokenizer.json cannot be loaded", lambda: _load(tokenizer_json))
        config = config or {}
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        largest = max(vocabulary.values(), default=-1)
        if not 0 <= largest < MAX_TOKEN_ID:
            raise TokenizerFormatError(
                f"the largest token id of the tokenizer.json is {largest}, expected 0 to {MAX_TOKEN_ID - 1}"
            )
        self._vocab_size = largest + 1
        named = [token for token in _named_tokens(config) if token in vocabulary]
        if named:
            _guarded("the special tokens cannot be set", lambda: self._tokenizer.add_special_tokens(named))
        added = {
            token_id: token
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if self._tokenizer.id_to_token(token_id) == token.content
        }
        self._skipped = frozenset(i for i, token in added.items() if token.special or token.content in named)
        markup = {i for i, token in added.items() if is_markup(token.content)}
        self._special = self._skipped | markup
        self._special_pieces = [added[i].content for i in self._special]
        self._pieces_bytes = _decoder(self._tokenizer.decoder)
        self._start_id = self._find_start(config, vocabulary)

    @property
    def kind(self) -> str:
        """What it was made from."""
        return "hugging_face"

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    @property
    def start_id(self) -> int | None:
        """The id before every text, if any; see the class."""
        return self._start_id

    @property
    def byte_errors(self) -> str:
        """One U+FFFD per beginning of a character for byte-level vocabularies, per byte where bytes are tokens."""
        return self._pieces_bytes.byte_errors

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the ids of `text`, without a start token; raises ValueError for a lone surrogate."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate at character {error.start}, which is not Unicode"
            ) from None
        ids = _ids(self._tokenizer, text)
        if parse_special or self._special.isdisjoint(ids):
            return ids
        ids = _ids(self._plain_tokenizer, text)
        if self._special.isdisjoint(ids):
            return ids
        # The model itself holds a special token as a word: nothing is left but to break the word.
        parts = alternation(self._special_pieces).split(text)
        broken = (half for i, part in enumerate(parts) for half in ((part[:1], part[1:]) if i % 2 else (part,)))
        return [i for part in broken for i in _ids(self._plain_tokenizer, part)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, at_start: bool = True) -> str:
        """Return the text of `ids`; see `Tokenizer.decode`.

        It is the library's, but for bytes that are no character among byte tokens: there the library replaces good
        characters next to them too, here they stay.
        """
        joined = stream.join_bytes(self, ids, skip_special=skip_special, at_start=at_start)
        return joined.decode("utf-8", self.byte_errors)

    def token_id(self, piece: str) -> int | None:
        """Return the id of `piece`, None if there is none."""
        token_id: int | None = self._tokenizer.token_to_id(piece)
        return token_id

    def piece(self, token_id: int) -> str:
        """Return the token as the vocabulary spells it; "" for an id that it leaves out."""
        if token_id < 0:
            raise ValueError(f"a token id must be at least 0, got {token_id}")
        return (self._tokenizer.id_to_token(token_id) or "") if token_id < self._vocab_size else ""

    def is_special(self, token_id: int) -> bool:
        """Tell whether this is declared special, is markup, or is no token."""
        return not self.piece(token_id) or token_id in self._special

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """Return what the token adds to a text that has begun."""
        piece = self.piece(token_id)
        if not piece or (skip_special and token_id in self._skipped):
            return b""
        return self._pieces_bytes.later(piece)

    def first_bytes(self, token_id: int, *, skip_special: bool = True) -> tuple[bytes, bool]:
        """Return what the token adds at the start of a text, and whether the next is still at its start."""
        piece = self.piece(token_id)
        if not piece or (skip_special and token_id in self._skipped):
            return b"", True
        return self._pieces_bytes.first(piece)

    @cached_property
    def _plain_tokenizer(self) -> Any:
        """The same tokenizer, which takes special tokens in a text for text."""
        plain = _load(self._tokenizer.to_str().encode("utf-8"))
        plain.add_special_tokens(self._special_pieces)
        plain.encode_special_tokens = True
        return plain

    def _find_start(self, config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
        """Return the start token; see the class."""
        adds = config.get("add_bos_token")
        if isinstance(adds, bool):
            start = token_content(config.get("bos_token"))
            return vocabulary.get(start) if adds and start is not None else None
        whole = _ids(self._tokenizer, "a", add_special_tokens=True)
        text = _ids(self._tokenizer, "a")
        begins = len(whole) > len(text) and whole[1 : 1 + len(text)] == text
        return whole[0] if begins and text else None


def document(tokenizer_json: bytes) -> dict[str, Any]:
    """Return a `tokenizer.json` as the library understands it: every field there is, ids as the library counts them.

    Raises TokenizerFormatError if the library refuses the bytes or there are more than 64 MiB.
    """
    _check_size(tokenizer_json)
    read: dict[str, Any] = _guarded(
        "the tokenizer.json cannot be loaded", lambda: json.loads(_load(tokenizer_json).to_str())
    )
    return read


def token_content(value: Any) -> str | None:
    """Return the text of a token in tokenizer_config.json, where it is a string or an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


@dataclass(frozen=True)
class _Decoder:
    """How a token becomes bytes: `later` in the middle of a text, `first` at its start."""

    later: Callable[[str], bytes]
    first: Callable[[str], tuple[bytes, bool]]
    byte_errors: str = "replace"


def _decoder(decoder: Any) -> _Decoder:
    """Return the per-token form of the library's decoder.

    Raises UnsupportedModelError if there is none, because what it prints for a token depends on those that follow.
    """
    if decoder is None:
        return _Decoder(lambda piece: b" " + piece.encode("utf-8"), lambda piece: (piece.encode("utf-8"), False))
    stages = _stages(json.loads(decoder.__getstate__()))
    kinds = [stage["type"] for stage in stages]
    fuse = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    for stage in stages[fuse + 1 :]:
        if stage["type"] != "Fuse" and not (stage["type"] == "Strip" and stage["start"] <= 1 and stage["stop"] == 0):
            raise UnsupportedModelError(
                f"the tokenizer's decoder has {stage['type']} after Fuse, which is not supported"
            )
    strips = [
        stage["content"].encode("utf-8") for stage in stages[fuse + 1 :] if stage["type"] == "Strip" and stage["start"]
    ]
    if len(strips) > 1:
        raise UnsupportedModelError("the tokenizer's decoder strips the start of a text more than once")
    stages = stages[:fuse]
    whole_first = any(s["type"] == "Metaspace" and s["prepend_scheme"] != "never" for s in stages)

    def apply(piece: str, first: bool) -> bytes:
        for stage in stages:
            kind = stage["type"]
            if kind == "ByteLevel":
                return byte_alphabet.spelled_bytes(piece)
            if kind == "ByteFallback" and _BYTE_TOKEN.fullmatch(piece):
                return bytes([int(piece[3:5], 16)])
            if kind == "Replace":
                piece = piece.replace(stage["pattern"]["String"], stage["content"])
            elif kind == "Strip":
                piece = _strip(piece, stage["content"], stage["start"], stage["stop"])
            elif kind == "Metaspace":
                dropped = first and stage["prepend_scheme"] != "never"
                piece = piece.replace(stage["replacement"], "" if dropped else " ")
        return piece.encode("utf-8")

    def first(piece: str) -> tuple[bytes, bool]:
        text = apply(piece, True)
        if strips and text.startswith(strips[0]):
            return text[len(strips[0]) :], False
        return text, bool(strips) and not text and not whole_first

    errors = stream.EACH_BYTE if "ByteFallback" in kinds else "replace"
    return _Decoder(lambda piece: apply(piece, False), first, errors)


def _stages(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the flat list of a decoder's steps; raises UnsupportedModelError for one that is not known."""
    kind = state["type"]
    if kind == "Sequence":
        return [stage for inner in state["decoders"] for stage in _stages(inner)]
    known = kind in ("ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace")
    if known or (kind == "Replace" and state["pattern"].get("String")):
        return [state]
    raise UnsupportedModelError(
        f"the tokenizer's decoder is {kind}; supported are ByteLevel, ByteFallback, Fuse, Metaspace, Strip, "
        "and Replace of a fixed string"
    )


def _strip(piece: str, content: str, start: int, stop: int) -> str:
    """Remove at most `start` times `content` from the start of a piece and `stop` times from its end."""
    for _ in range(start):
        piece = piece.removeprefix(content)
    for _ in range(stop):
        piece = piece.removesuffix(content)
    return piece


def _named_tokens(config: Mapping[str, Any]) -> list[str]:
    """Return the special tokens that tokenizer_config.json names."""
    values = [value for key, value in config.items() if key in ("bos_token", "eos_token", "pad_token", "unk_token")]
    more = config.get("additional_special_tokens")
    values += more if isinstance(more, list) else []
    return [content for value in values if (content := token_content(value))]


def _check_size(tokenizer_json: bytes) -> None:
    """Raise TokenizerFormatError for more bytes than any tokenizer has."""
    if len(tokenizer_json) > MAX_JSON_BYTES:
        raise TokenizerFormatError(
            f"the tokenizer.json has {len(tokenizer_json)} bytes, more than the {MAX_JSON_BYTES} allowed"
        )


def _load(tokenizer_json: bytes) -> Any:
    """Return the library's tokenizer, which neither truncates nor pads."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Return the library's ids; raises TokenizerFormatError if the vocabulary cannot express the text."""
    encoding = _guarded(
        "the text cannot be encoded", lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens)
    )
    ids: list[int] = encoding.ids
    return ids


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    """Return `call()`; what the library raises becomes TokenizerFormatError, a panic of its Rust code too."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerFormatError(f"{what}: {error}") from error
        raise
