"""A safetensors file: a JSON header that names tensors, and their bytes.

Format: https://github.com/huggingface/safetensors#format. u64 size of the header; the header; the data, of which every
byte belongs to exactly one tensor, so that a file cannot be something else at the same time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from hearthlm.errors import CorruptFileError, TensorMismatchError, TruncatedFileError, UnsupportedModelError
from hearthlm.formats.json_document import parse_json_object
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.stored_float import STORED_FLOATS, StoredFloat

MAX_HEADER_BYTES = 100_000_000
MAX_HEADER_VALUES = 300_000  # some 37,000 tensors
_DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_FLOATS: dict[str, StoredFloat] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class SafetensorsEntry:
    """Say where a tensor lies: `dtype` by the format's name, `offset` from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsFile:
    """An open safetensors file with its `tensors` and the text entries of its header's `__metadata__`."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self._file = file
        header_bytes = _header_size(file)
        where = f"{file.path}: header"
        header = parse_json_object(
            bytes(file.read(8, header_bytes, "header")), where, MAX_HEADER_BYTES, max_values=MAX_HEADER_VALUES
        )
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise CorruptFileError(f"{where}: __metadata__: expected an object of texts")
        self.metadata: dict[str, str] = metadata
        tensors = {name: _entry(name, value, 8 + header_bytes, where) for name, value in header.items()}
        self.tensors: Mapping[str, SafetensorsEntry] = MappingProxyType(tensors)
        self._check_coverage(8 + header_bytes)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Open the file at `path`, reading its header only.

        Raises TruncatedFileError and CorruptFileError for bytes that contradict the format, UnsupportedModelError for
        a dtype that the format does not know.
        """
        file = MappedFile(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Let go of the file; arrays that it gave out stay valid."""
        self._file.close()

    def release_pages(self) -> None:
        """Let the system take back the memory of what has been read."""
        self._file.release_pages()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the tensor `name`."""
        return self._tensor(name).shape

    def array(self, name: str) -> tuple[StoredFloat, NDArray[Any]]:
        """Return the type and the values of `name` as they lie in the file (uint16 bits for bfloat16)."""
        tensor = self._tensor(name)
        if tensor.dtype not in _FLOATS:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name[:120]!r}: expected F32, F16 or BF16, got {tensor.dtype}"
            )
        dtype = _FLOATS[tensor.dtype]
        return dtype, self._file.array(tensor.offset, STORED_FLOATS[dtype], tensor.shape, f"tensor {name[:120]!r}")

    def _tensor(self, name: str) -> SafetensorsEntry:
        if name not in self.tensors:
            raise TensorMismatchError(f"{self.path}: there is no tensor {name[:120]!r} among its {len(self.tensors)}")
        return self.tensors[name]

    def _check_coverage(self, begin: int) -> None:
        end = begin
        for tensor in sorted(self.tensors.values(), key=lambda t: (t.offset, t.num_bytes)):
            if tensor.offset != end:
                problem = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
                raise CorruptFileError(
                    f"{self.path}: tensor {tensor.name[:120]!r}: {problem}: expected it at offset {end}, "
                    f"got {tensor.offset}"
                )
            end += tensor.num_bytes
        if end > self._file.size:
            raise TruncatedFileError(f"{self.path}: expected {end} bytes, got {self._file.size}")
        if end < self._file.size:
            raise CorruptFileError(f"{self.path}: {self._file.size - end} bytes after the last tensor belong to none")


def _header_size(file: MappedFile) -> int:
    size = int.from_bytes(file.read(0, 8, "size of the header"), "little")
    if size > MAX_HEADER_BYTES:
        raise CorruptFileError(f"{file.path}: header: expected at most {MAX_HEADER_BYTES} bytes, got {size}")
    file.check_range(8, size, "header")
    if size < 2 or bytes(file.read(8, 1, "header")) != b"{":
        raise CorruptFileError(f"{file.path}: header: expected a JSON object of {size} bytes")
    return size


def _entry(name: str, value: Any, data_offset: int, where: str) -> SafetensorsEntry:
    where = f"{where}: tensor {name[:120]!r}"
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CorruptFileError(f"{where}: expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise UnsupportedModelError(f"{where}: dtype: {str(dtype)[:80]!r} is not known")
    if not _is_list_of_sizes(shape) or len(shape) > 64:
        raise CorruptFileError(f"{where}: shape: expected at most 64 sizes, got {str(shape)[:80]}")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptFileError(f"{where}: data_offsets: expected begin and end, got {str(offsets)[:80]}")
    num_bits = math.prod(shape) * _DTYPE_BITS[dtype]
    if num_bits != 8 * (offsets[1] - offsets[0]):
        raise CorruptFileError(
            f"{where}: {dtype} {shape[:8]} takes {num_bits // 8} bytes, but data_offsets span {offsets[1] - offsets[0]}"
        )
    return SafetensorsEntry(name, dtype, tuple(shape), data_offset + offsets[0], offsets[1] - offsets[0])


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
