"""JSON from a file, bounded in size, depth and number of values before Python objects are made of it."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from hearthlm.errors import CorruptFileError

MAX_DEPTH = 32
MAX_VALUES = 200_000
_OUTSIDE_STRINGS = re.compile(rb'[\[\]{},"]')
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive: it may be 60 MiB


def parse_json_object(data: bytes, where: str, max_bytes: int, *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Return the JSON object in UTF-8 `data`.

    Raises CorruptFileError, which begins with `where`, for more than `max_bytes`, for arrays and objects nested more
    than 32 deep, more than `max_values` values (commas and opening brackets are counted), a key that appears twice in
    one object, NaN and Infinity, and for anything that is not one JSON object.
    """
    if len(data) > max_bytes:
        raise CorruptFileError(f"{where}: expected at most {max_bytes} bytes of JSON, got {len(data)}")
    _check_extent(data, where, max_values)
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CorruptFileError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise CorruptFileError(f"{where}: expected a JSON object, got {type(document).__name__}")
    return document


def _check_extent(data: bytes, where: str, max_values: int) -> None:
    depth = values = position = 0
    while (found := _OUTSIDE_STRINGS.search(data, position)) is not None:
        position = found.end()
        token = found.group()
        if token == b'"':
            rest = _REST_OF_STRING.match(data, position)
            position = rest.end() if rest else position  # it matches anything, even nothing
        elif token in b"]}":
            depth -= 1
        else:
            values += 1
            if token != b",":
                depth += 1
        if depth > MAX_DEPTH:
            raise CorruptFileError(f"{where}: the JSON is nested more than {MAX_DEPTH} deep")
        if values > max_values:
            raise CorruptFileError(f"{where}: the JSON has more than {max_values} values")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} appears twice")
            seen.add(key)
    return document


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
