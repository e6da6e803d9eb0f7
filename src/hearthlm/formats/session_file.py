"""A saved session: the ids of a context, what the model has computed of them, and options beside both.

A safetensors file whose `__metadata__` holds `format` "hearthlm-session", `version`, `fingerprint` (of the model that
computed the arrays), `extra` (JSON) and `checksum`. The tensor `ids` is I32 [tokens]; the arrays of the state are
called `state.<name>`. The checksum is BLAKE2b-256 of the whole file with zeros ("0") in the place of its own digits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import CorruptFileError, SessionFileError
from hearthlm.formats.atomic_file import replace_file
from hearthlm.formats.json_document import parse_json_object
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.safetensors_file import MAX_HEADER_BYTES, SafetensorsEntry, SafetensorsFile

FORMAT = "hearthlm-session"
VERSION = 1
MAX_EXTRA_BYTES = 16 << 20
_CHECKSUM_BYTES = 32
_NO_CHECKSUM = "0" * 2 * _CHECKSUM_BYTES
_METADATA = {"format", "version", "fingerprint", "extra", "checksum"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, eq=False)
class SessionFile:
    """Hold a saved session; arrays are read-only and share the file's pages."""

    ids: NDArray[np.int32]  # [tokens], none below 0
    arrays: dict[str, NDArray[Any]]
    extra: dict[str, Any]


def write_session_file(
    path: str | os.PathLike[str],
    *,
    fingerprint: str,
    ids: Sequence[int],
    arrays: Mapping[str, NDArray[Any]],
    extra: Mapping[str, Any],
) -> None:
    """Write a session file: the same bytes for the same session, whole or not at all.

    `extra` is made of what JSON knows (a tuple comes back as a list). Raises ValueError for ids that do not fit into
    31 bits, arrays of a type that the format has not, and `extra` that could not be read back.
    """
    text = _json(extra)
    tensors = {"ids": _ids_array(ids)}
    for name, values in arrays.items():
        if values.dtype not in _DTYPE_NAMES:
            raise ValueError(f"arrays[{name!r}]: expected {', '.join(map(str, _DTYPE_NAMES))}, got {values.dtype}")
        tensors[f"state.{name}"] = values
    # Wide types first, so that every tensor is aligned for its own.
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    metadata = {"format": FORMAT, "version": str(VERSION), "fingerprint": fingerprint, "extra": text}
    header: dict[str, Any] = {"__metadata__": {"checksum": _NO_CHECKSUM, **metadata}}
    end = 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[values.dtype], "shape": list(values.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER_BYTES:
        raise ValueError(f"arrays: expected names that fit into {MAX_HEADER_BYTES} bytes, got {len(head)}")
    head = len(head).to_bytes(8, "little") + head
    digest = hashlib.blake2b(head, digest_size=_CHECKSUM_BYTES)
    with replace_file(path) as file:
        file.write(head)
        for values in tensors.values():
            data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
            digest.update(data)
            file.write(data)
        file.seek(head.index(_NO_CHECKSUM.encode()))  # the first: the checksum is the first value of the header
        file.write(digest.hexdigest().encode())


def read_session_file(path: str | os.PathLike[str], *, expected_fingerprint: str) -> SessionFile:
    """Map the session file at `path`, every byte of it checked.

    Raises SessionFileError for a file of another kind, of a newer version, or of a model with another fingerprint;
    CorruptFileError for a wrong checksum; TruncatedFileError and CorruptFileError as SafetensorsFile does.
    """
    with MappedFile(path) as file:
        container = SafetensorsFile(file)
        metadata = container.metadata
        if metadata.get("format") != FORMAT:
            raise SessionFileError(
                f"{path}: expected a saved session, got a safetensors file of "
                f"{len(container.tensors)} tensors without the mark of one"
            )
        _check_version(path, metadata.get("version", ""))
        if metadata.keys() != _METADATA:
            raise CorruptFileError(
                f"{path}: __metadata__: expected {', '.join(sorted(_METADATA))}, "
                f"got {', '.join(sorted(metadata))[:200]!r}"
            )
        _check_checksum(file, metadata["checksum"])
        if metadata["fingerprint"] != expected_fingerprint:
            raise SessionFileError(
                f"{path}: the session was saved with another model, or with other types of weights, cache or "
                f"activations (fingerprint {metadata['fingerprint'][:12]!r}, the loaded model's is "
                f"{expected_fingerprint[:12]!r}); load the model that it was saved with"
            )
        extra = parse_json_object(_encoded(path, metadata["extra"]), f"{path}: extra", MAX_EXTRA_BYTES)
        tensors = {name: _array(file, entry) for name, entry in container.tensors.items()}
        ids = tensors.pop("ids", None)
        if ids is None or ids.dtype != np.int32 or ids.ndim != 1 or ids.min(initial=0) < 0:
            raise CorruptFileError(f"{path}: tensor 'ids': expected I32 [tokens], none below 0")
        arrays = {}
        for name, values in tensors.items():
            if not name.startswith("state."):
                raise CorruptFileError(f"{path}: tensor {name[:120]!r}: expected 'ids' or 'state.<name>'")
            arrays[name.removeprefix("state.")] = values
        return SessionFile(ids, arrays, extra)


def _json(extra: Mapping[str, Any]) -> str:
    """Return `extra` as JSON that `read_session_file` accepts."""
    try:
        text = json.dumps(dict(extra), sort_keys=True, separators=(",", ":"), allow_nan=False)
        parse_json_object(text.encode(), "extra", MAX_EXTRA_BYTES)
    except (TypeError, ValueError, RecursionError, CorruptFileError) as error:
        raise ValueError(f"extra: expected what JSON can hold: {error}") from None
    return text


def _ids_array(ids: Sequence[int]) -> NDArray[np.int32]:
    wide = np.asarray(ids, dtype=np.int64)
    if wide.ndim != 1 or wide.min(initial=0) < 0 or wide.max(initial=0) >= 1 << 31:
        raise ValueError("ids: expected a sequence of 0 to 2^31 - 1")
    return wide.astype(np.int32)


def _check_version(path: str | os.PathLike[str], version: str) -> None:
    if version == str(VERSION):
        return
    if version.isascii() and version.isdecimal() and version[0] != "0":
        raise SessionFileError(
            f"{path}: the session was saved by a newer hearthlm (version {version[:20]} of the format, this one reads "
            f"{VERSION}); update hearthlm"
        )
    raise CorruptFileError(f"{path}: version: expected a number, got {version[:80]!r}")


def _check_checksum(file: MappedFile, checksum: str) -> None:
    """Raise CorruptFileError unless `checksum`, which the header holds, is that of the whole file."""
    header_end = 8 + int.from_bytes(file.read(0, 8, "size of the header"), "little")
    head = bytes(file.read(0, header_end, "header"))
    digits = checksum.encode(errors="replace")
    if len(digits) != len(_NO_CHECKSUM) or head.count(digits) != 1:
        raise CorruptFileError(f"{file.path}: checksum: expected {len(_NO_CHECKSUM)} digits, once in the header")
    digest = hashlib.blake2b(head.replace(digits, _NO_CHECKSUM.encode()), digest_size=_CHECKSUM_BYTES)
    digest.update(file.read(header_end, file.size - header_end, "data"))
    if digest.hexdigest() != checksum:
        raise CorruptFileError(
            f"{file.path}: the checksum is {digest.hexdigest()[:12]}..., but the file declares "
            f"{checksum[:12]!r}...: it was changed after it was written"
        )


def _encoded(path: str | os.PathLike[str], text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise CorruptFileError(f"{path}: extra: expected text in UTF-8") from None


def _array(file: MappedFile, entry: SafetensorsEntry) -> NDArray[Any]:
    if entry.dtype not in _DTYPES:
        raise CorruptFileError(
            f"{file.path}: tensor {entry.name[:120]!r}: expected {', '.join(_DTYPES)}, got {entry.dtype}"
        )
    return file.array(entry.offset, _DTYPES[entry.dtype], entry.shape, f"tensor {entry.name[:120]!r}")
