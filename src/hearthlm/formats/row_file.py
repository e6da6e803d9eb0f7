"""The rows of a JSONL, CSV or text file, one at a time, and the results of some of them, line by line, in another.

A row that cannot be read is an error in its place, never the end of the file. Memory is bounded by one row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

from hearthlm.errors import CorruptFileError
from hearthlm.formats.json_document import parse_json_object

RowFormat = Literal["jsonl", "csv", "txt"]
ROW_FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)

MAX_ROW_BYTES = 16 << 20
_MAX_RESULT_BYTES = 8 * MAX_ROW_BYTES  # it holds what the row carried along, perhaps in escapes, and the answer

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """Hold one row: its fields by name, or what is wrong with it.

    `number` is that of the line (JSONL, text) or of the record after the header (CSV), from 1. `end` is how many bytes
    of the file have been read up to here.
    """

    number: int
    end: int
    fields: dict[str, Any] | None = None
    error: str | None = None


def read_rows(file: BinaryIO, format: RowFormat, where: str) -> Iterator[Row]:
    """Yield the rows of `file`; empty lines are none.

    JSONL: an object in each line. CSV: a header that names the columns, then records; every value is a str, and one
    that is empty is left out. Text: each line is a row with the one field "prompt". Raises CorruptFileError, which
    begins with `where`, only for a CSV header that cannot be understood.
    """
    if format == "jsonl":
        return _json_rows(file)
    return _csv_rows(file, where) if format == "csv" else _text_rows(file)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (bytes read so far, line) without line breaks; None stands for one that is longer than a row may be."""
    end = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        is_first = end == 0
        end += len(line)
        is_too_long = len(line) > MAX_ROW_BYTES
        while is_too_long and not line.endswith(b"\n") and (line := file.readline(MAX_ROW_BYTES)):
            end += len(line)
        if is_first:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        yield end, None if is_too_long else line.rstrip(b"\r\n")


_TOO_LONG = f"expected at most {MAX_ROW_BYTES} bytes in a row"


def _json_rows(file: BinaryIO) -> Iterator[Row]:
    for number, (end, line) in enumerate(_lines(file), 1):
        if line is None:
            yield Row(number, end, error=f"line {number}: {_TOO_LONG}")
        elif line.strip():
            try:
                yield Row(number, end, parse_json_object(line, f"line {number}", MAX_ROW_BYTES))
            except CorruptFileError as error:
                yield Row(number, end, error=str(error))


def _text_rows(file: BinaryIO) -> Iterator[Row]:
    for number, (end, line) in enumerate(_lines(file), 1):
        if line is None:
            yield Row(number, end, error=f"line {number}: {_TOO_LONG}")
        elif line.strip():
            try:
                yield Row(number, end, {"prompt": line.decode()})
            except UnicodeDecodeError as error:
                yield Row(number, end, error=_not_utf8(f"line {number}", error))


class _CsvLines:
    """Give the lines of a file to Python's CSV reader, and remember what was wrong with those of the record so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _lines(file)
        self.end = 0
        self.error: str | None = None

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        self.end, line = next(self._lines)
        if line is None:
            self.error = _TOO_LONG
            return "\n"
        try:
            return line.decode() + "\n"
        except UnicodeDecodeError as error:
            self.error = _not_utf8("", error).removeprefix(": ")
            return line.decode(errors="replace") + "\n"


def _csv_rows(file: BinaryIO, where: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))  # one limit for the process: only ever raised
    lines = _CsvLines(file)
    reader = csv.reader(lines)
    names: list[str] | None = None
    number = 0
    while True:
        lines.error = None
        record: list[str] | None = None
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.error = lines.error or str(error)
        if record == [] and lines.error is None:
            continue
        if names is None:
            names = _header(record or [], lines.error, where)
            continue
        number += 1
        if lines.error is None and record is not None and len(record) != len(names):
            lines.error = f"expected {len(names)} values, as the header has, got {len(record)}"
        if lines.error is not None or record is None:
            yield Row(number, lines.end, error=f"record {number}: {lines.error}")
        else:
            fields = {name: value for name, value in zip(names, record, strict=True) if value}
            yield Row(number, lines.end, fields)


def _header(names: list[str], error: str | None, where: str) -> list[str]:
    names = [name.strip() for name in names]
    if error is None and not all(names):
        error = f"column {names.index('') + 1} has no name"
    if error is None and len(set(names)) < len(names):
        error = f"the column {next(name for name in names if names.count(name) > 1)!r} appears twice"
    if error is not None:
        raise CorruptFileError(f"{where}: the header: {error}")
    return names


def _not_utf8(where: str, error: UnicodeDecodeError) -> str:
    return f"{where}: expected UTF-8, got {error.reason} at byte {error.start}"


def result_line(result: dict[str, Any]) -> bytes:
    """Return one result as a line of JSON; text that is no Unicode (lone surrogates) is written as escapes."""
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(result, allow_nan=False).encode() + b"\n"


def read_results(file: BinaryIO, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (where it ends, result) for each line that `result_line` wrote, up to one that was cut short.

    The last line is cut short where it does not end, or is no JSON (a power cut can leave zeros). Raises
    CorruptFileError for any other line that is no result.
    """
    end = number = 0
    while line := file.readline(_MAX_RESULT_BYTES):
        number += 1
        if not line.endswith(b"\n"):
            if len(line) == _MAX_RESULT_BYTES:
                raise CorruptFileError(f"{where}: line {number}: expected at most {_MAX_RESULT_BYTES} bytes")
            return
        try:
            result = parse_json_object(line, f"{where}: line {number}", _MAX_RESULT_BYTES, max_values=10_000_000)
        except CorruptFileError:
            if not file.read(1):
                return
            raise
        end += len(line)
        yield end, result
