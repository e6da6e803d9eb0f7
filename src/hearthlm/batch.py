"""Many prompts from a file, many answers into another: decoded side by side, one bad row losing nothing.

Results stand in the order of the rows, one line of JSON each, so that the output is at any moment what the beginning
of the input gives: that is all that going on after a kill needs to know.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

from hearthlm.answer import GenerationResult
from hearthlm.errors import CorruptFileError
from hearthlm.formats.row_file import ROW_FORMATS, Row, RowFormat, read_results, read_rows, result_line
from hearthlm.llm_inference import (
    MAX_CALLS_AT_ONCE,
    LlmInference,
    LlmInferenceOptions,
    LlmInferenceSessionOptions,
    Prompt,
)

_ROW_OPTIONS: dict[str, type] = {
    "top_k": int,
    "top_p": float,
    "temperature": float,
    "random_seed": int,
    "max_output_tokens": int,
    "stop": str,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "logit_bias": dict,
    "logprobs": int,
    "response_format": dict,
}
_ROW_FIELDS = ("key", "prompt", "messages", "metadata")

_SUFFIXES: dict[str, RowFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "txt"}


@dataclass(frozen=True)
class BatchConfig:
    """Say what `run_batch` reads, computes and writes.

    `input_file` holds a prompt in each row: JSONL, CSV or text, told by its name or by `input_format`; "-" is stdin.
    `output_file` gets a line of JSON for each row, in their order; "-" is stdout. `options` are those of a row that
    sets none, except that `random_seed` and the row's key make the row's own seed, see `row_seed`. `shard` (i, n)
    takes the rows i, i + n, i + 2n, ... of the input, i from 1 to n. `resume` goes on where an output that is there
    ends; `overwrite` replaces it. `max_at_once` rows are decoded together.
    """

    input_file: str | PathLike[str]
    output_file: str | PathLike[str]
    model: LlmInferenceOptions
    options: LlmInferenceSessionOptions = field(default_factory=LlmInferenceSessionOptions)
    input_format: RowFormat | None = None
    shard: tuple[int, int] = (1, 1)
    resume: bool = False
    overwrite: bool = False
    max_at_once: int = MAX_CALLS_AT_ONCE

    def __post_init__(self) -> None:
        if self.input_format not in (None, *ROW_FORMATS):
            raise ValueError(f"input_format: expected one of {', '.join(ROW_FORMATS)}, got {self.input_format!r}")
        index, count = self.shard
        if not 1 <= index <= count:
            raise ValueError(f"shard: expected (i, n) with i from 1 to n, got {self.shard}")
        if self.max_at_once < 1:
            raise ValueError(f"max_at_once: expected at least 1, got {self.max_at_once}")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other: the first keeps what the second replaces")
        if self.resume and os.fspath(self.output_file) == "-":
            raise ValueError("resume: expected output_file to be a file, got stdout")
        if self.model.num_responses != 1:
            raise ValueError(
                f"num_responses: expected 1, got {self.model.num_responses}; for several answers to a prompt, give it "
                "several rows with keys of their own"
            )


@dataclass(frozen=True)
class RowResult:
    """Hold what became of one row: an answer, or the `error` that it has instead.

    `metadata` is the row's, unchanged. `logprobs`, where the row asked for them, is a list with a mapping for each
    token: `token_id`, `logprob` and `top`, a list of [token id, logprob].
    """

    key: str | int
    text: str | None = None
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    seed: int | None = None
    error: str | None = None
    metadata: Any = None
    logprobs: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what stands in the output file: the same keys for every row, `metadata` and `logprobs` where given."""
        usage = {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": self.num_output_tokens}
        document: dict[str, Any] = {
            "key": self.key,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": None if self.error is not None else usage,
            "seed": self.seed,
            "error": self.error,
        }
        if self.metadata is not None:
            document["metadata"] = self.metadata
        if self.logprobs is not None:
            document["logprobs"] = self.logprobs
        return document


@dataclass(frozen=True)
class BatchProgress:
    """Say how far a batch is; counts are of this run alone, without what an earlier one had done.

    `part` of the input is done, 0 to 1, of which `part_before` by an earlier run; None where the input has no length.
    """

    num_rows: int
    num_errors: int
    num_prompt_tokens: int
    num_output_tokens: int
    elapsed_s: float
    part: float | None
    part_before: float | None

    @property
    def tokens_per_s(self) -> float:
        return self.num_output_tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """The time that is left at the pace so far; None while there is no telling."""
        if self.part is None or self.part_before is None or self.part <= self.part_before:
            return None
        return self.elapsed_s * (1 - self.part) / (self.part - self.part_before)


@dataclass(frozen=True)
class BatchSummary:
    """Say what a batch did: rows answered in this run and by an earlier one, rows with an error, tokens."""

    num_rows: int
    num_rows_before: int
    num_errors: int
    num_prompt_tokens: int
    num_output_tokens: int


def row_seed(random_seed: int, key: str | int) -> int:
    """Return the seed of the row called `key` in a batch with `random_seed`, 0 to 2**64 - 1.

    It is the BLAKE2b hash of str(key), 8 bytes, keyed with the 8 bytes of `random_seed`, both numbers little-endian:
    whatever is computed beside a row, before it or again, on whichever machine, its random numbers are the same.
    """
    text = str(key).encode("utf-8", "surrogatepass")
    digest = blake2b(text, digest_size=8, key=random_seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def answer_rows(
    llm: LlmInference,
    rows: Iterable[Mapping[str, Any]],
    options: LlmInferenceSessionOptions | None = None,
    *,
    max_at_once: int = MAX_CALLS_AT_ONCE,
) -> Generator[RowResult, None, None]:
    """Yield a result for each of `rows`, in their order, computed side by side; an error is one row's, never raised.

    A row is a mapping with `prompt` (a str, or token ids) or `messages` (see `chat`), and if it likes with `key`
    (default: its number, from 1), `metadata`, and options of `LlmInferenceSessionOptions` that hold for it alone.
    `options` are the others'; without a `random_seed` of its own a row gets `row_seed(options.random_seed, key)`.
    """
    numbered = (Row(number, 0, dict(row)) for number, row in enumerate(rows, 1))
    with closing(_answered(llm, numbered, options or LlmInferenceSessionOptions(), max_at_once)) as results:
        for _, result in results:
            yield result


def run_batch(config: BatchConfig, progress: Callable[[BatchProgress], None] | None = None) -> BatchSummary:
    """Answer every row of a file; `progress` is called after each row.

    A row that cannot be understood or answered becomes a result with an `error`. Each line is written at once, and
    whole: after a kill, with `resume`, the same results come out as without it. Raises FileExistsError where the
    output is there, CorruptFileError where it is not this input's, and what `LlmInference.create_from_options` raises.
    """
    with ExitStack() as stack:
        source = _open_input(config.input_file, stack)
        num_bytes = _size(source)
        name = "stdin" if os.fspath(config.input_file) == "-" else os.fspath(config.input_file)
        format = config.input_format or _format_of(config.input_file)
        rows = read_rows(source, format, name)
        if format == "csv":
            rows = map(_with_other_columns_as_metadata, rows)
        index, count = config.shard
        rows = (row for ordinal, row in enumerate(rows) if ordinal % count == index - 1)
        output = _open_output(config, stack)
        num_before, end_before = _skip_done(config, rows, output) if config.resume else (0, 0)
        counts = {"num_rows": 0, "num_errors": 0, "num_prompt_tokens": 0, "num_output_tokens": 0}
        rows, is_empty = _peek(rows)
        if not is_empty:
            llm = stack.enter_context(LlmInference.create_from_options(config.model))
            started = time.perf_counter()
            results = stack.enter_context(closing(_answered(llm, rows, config.options, config.max_at_once)))
            for row, result in results:
                _write(output, result_line(result.to_json()))
                counts["num_rows"] += 1
                counts["num_errors"] += result.error is not None
                counts["num_prompt_tokens"] += result.num_prompt_tokens
                counts["num_output_tokens"] += result.num_output_tokens
                if progress is not None:
                    part = min(1.0, row.end / num_bytes) if num_bytes else None
                    before = end_before / num_bytes if num_bytes else None
                    elapsed_s = time.perf_counter() - started
                    progress(BatchProgress(**counts, elapsed_s=elapsed_s, part=part, part_before=before))
        with suppress(OSError):  # a pipe
            os.fsync(output.fileno())
        return BatchSummary(num_rows_before=num_before, **counts)


def _answered(
    llm: LlmInference, rows: Iterable[Row], options: LlmInferenceSessionOptions, max_at_once: int
) -> Generator[tuple[Row, RowResult], None, None]:
    """Yield every row with its result, in order."""
    waiting: deque[tuple[Row, RowResult]] = deque()  # what has been asked for

    def requests() -> Iterator[tuple[Prompt, LlmInferenceSessionOptions] | Exception]:
        for row in rows:
            request = _Request(row, options)
            waiting.append((row, request.result))
            yield request.error or (request.prompt, request.options)

    with closing(llm.generate_each(requests(), max_at_once=max_at_once)) as outcomes:
        for outcome in outcomes:
            row, result = waiting.popleft()
            yield row, _filled(result, outcome)


class _Request:
    """What a row asks for, with as much of its result as is known; `error` is what is wrong with it."""

    def __init__(self, row: Row, defaults: LlmInferenceSessionOptions) -> None:
        self.prompt: Prompt = ""
        self.options = defaults
        self.error: Exception | None = None
        fields = row.fields or {}
        key = fields.get("key")
        is_key = isinstance(key, (str, int)) and not isinstance(key, bool)
        self.result = RowResult(cast("str | int", key) if is_key else row.number, metadata=_metadata(fields))
        try:
            if row.error is not None:
                raise ValueError(row.error)
            if key is not None and not is_key:
                raise TypeError(f"key: expected a string or an integer, got {key!r:.80}")
            self.prompt = _prompt(fields)
            given = {name: _option(name, fields[name]) for name in _ROW_OPTIONS if fields.get(name) is not None}
            given.setdefault("random_seed", row_seed(defaults.random_seed, self.result.key))
            self.options = replace(defaults, **given)
            self.result = replace(self.result, seed=self.options.random_seed)
        except Exception as error:  # whatever a stranger's row may hold
            self.error = error


def _prompt(fields: Mapping[str, Any]) -> Prompt:
    unknown = [name for name in fields if name not in _ROW_FIELDS and name not in _ROW_OPTIONS]
    if unknown:
        raise ValueError(
            f"unknown field {unknown[0]!r:.80}: expected {', '.join((*_ROW_FIELDS, *_ROW_OPTIONS))}; what is only "
            "carried along belongs into metadata"
        )
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise ValueError(f"expected either prompt or messages, got {'neither' if prompt is None else 'both'}")
    if messages is not None:
        if not isinstance(messages, (list, tuple)) or not all(isinstance(message, Mapping) for message in messages):
            raise TypeError(f"messages: expected a list of objects, got {messages!r:.80}")
        if not messages:
            raise ValueError("messages: expected at least one")
        return messages
    if not isinstance(prompt, (str, list, tuple)):
        raise TypeError(f"prompt: expected a string or token ids, got {prompt!r:.80}")
    return prompt


def _metadata(fields: Mapping[str, Any]) -> Any:
    try:
        result_line({"metadata": fields.get("metadata")})
    except (ValueError, TypeError):  # a number that JSON has no name for
        return None
    return fields.get("metadata")


def _option(name: str, value: Any) -> Any:
    """Return the value of an option as `LlmInferenceSessionOptions` has it; a CSV file knows only strings."""
    kind = _ROW_OPTIONS[name]
    if isinstance(value, str) and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            wanted = "an integer" if kind is int else "a number"
            raise ValueError(f"{name}: expected {wanted}, got {value!r:.80}") from None
    if name == "stop":
        return (value,) if isinstance(value, str) else value
    if isinstance(value, str) and kind is dict:
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{name}: expected a JSON object, got {value!r:.80}") from None
    if name == "logit_bias" and isinstance(value, Mapping):
        return {int(token_id): bias for token_id, bias in value.items()}
    return value


def _filled(result: RowResult, outcome: GenerationResult | Exception) -> RowResult:
    if isinstance(outcome, Exception):
        return replace(result, error=_message(outcome))
    logprobs = None
    if outcome.logprobs is not None:
        logprobs = [
            {"token_id": token.token_id, "logprob": token.logprob, "top": [list(pair) for pair in token.top]}
            for token in outcome.logprobs[0]
        ]
    return replace(
        result,
        text=outcome.texts[0],
        finish_reason=outcome.finish_reason,
        num_prompt_tokens=outcome.num_prompt_tokens,
        num_output_tokens=outcome.num_output_tokens,
        logprobs=logprobs,
    )


def _message(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _format_of(path: str | PathLike[str]) -> RowFormat:
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"input_format: {os.fspath(path)!r} does not say; expected one of {', '.join(ROW_FORMATS)}")
    return _SUFFIXES[suffix]


def _open_input(path: str | PathLike[str], stack: ExitStack) -> BinaryIO:
    if os.fspath(path) == "-":
        return sys.stdin.buffer
    return stack.enter_context(Path(path).open("rb"))


def _with_other_columns_as_metadata(row: Row) -> Row:
    """Return a row of a table as a row of a batch: a column that means nothing here is carried along."""
    if row.fields is None:
        return row
    known = {name: value for name, value in row.fields.items() if name in ("key", "prompt", *_ROW_OPTIONS)}
    others = {name: value for name, value in row.fields.items() if name not in known}
    return replace(row, fields=known | {"metadata": others} if others else known)


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`; an unbuffered file may take a part of it."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _size(file: BinaryIO) -> int:
    """Return the length of a file, 0 for what has none."""
    try:
        return os.fstat(file.fileno()).st_size
    except OSError:
        return 0


def _open_output(config: BatchConfig, stack: ExitStack) -> BinaryIO:
    """Open the output for single writes at its end; two processes cannot have the same one at a time."""
    if os.fspath(config.output_file) == "-":
        sys.stdout.flush()
        return stack.enter_context(os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0))
    path = Path(config.output_file)
    if not os.fspath(config.input_file) == "-" and path.exists() and path.samefile(config.input_file):
        raise ValueError(f"output_file: {path} is the input")
    if path.exists() and not config.resume and not config.overwrite:
        raise FileExistsError(f"{path}: the file is there; resume goes on with it, overwrite (--force) replaces it")
    # Neither "x" nor "w": whose file it is, the lock decides.
    output = stack.enter_context(path.open("ab+", buffering=0))
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{path}: another process is writing it") from None
    if config.overwrite:
        output.truncate(0)
    return cast("BinaryIO", output)


def _skip_done(config: BatchConfig, rows: Iterator[Row], output: BinaryIO) -> tuple[int, int]:
    """Take from `rows` those that have a result, cut off a torn one, and return how many they were and where they end.

    Raises CorruptFileError where a result is not that of its row.
    """
    where = os.fspath(config.output_file)
    num_done = end_of_rows = end = 0
    with Path(config.output_file).open("rb") as file:
        for end_of_line, result in read_results(file, where):
            row = next(rows, None)
            wanted = None if row is None else _Request(row, config.options).result
            number = num_done + 1
            if row is None or wanted is None:
                raise CorruptFileError(f"{where}: line {number}: the input has no row for it: it is another input's")
            if result.get("key") != wanted.key:
                raise CorruptFileError(
                    f"{where}: line {number}: expected the result of the row {wanted.key!r:.80}, got that of "
                    f"{result.get('key')!r:.80}: it is another input's or another shard's"
                )
            if result.get("seed") != wanted.seed:
                raise CorruptFileError(
                    f"{where}: line {number}: expected the seed {wanted.seed}, got {result.get('seed')!r:.80}: it was "
                    "made with another random seed"
                )
            num_done, end_of_rows, end = number, row.end, end_of_line
    output.truncate(end)
    return num_done, end_of_rows


def _peek(rows: Iterator[Row]) -> tuple[Iterator[Row], bool]:
    """Return the same rows and whether there are none: then no model has to be loaded."""
    first = next(rows, None)
    if first is None:
        return rows, True

    def all_rows() -> Iterator[Row]:
        yield first
        yield from rows

    return all_rows(), False
