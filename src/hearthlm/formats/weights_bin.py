"""MediaPipe's `.bin`: a TFLite flatbuffer that names weights, and their bytes after it.

The head is a TFLite `Model` with one subgraph that has tensors and no operators; a tensor's buffer gives the absolute
offset and size of its data in the file. Metadata entries lead to an `LlmParameters` message, a SentencePiece model and
the backend; of `odml.infra.LlmModelType` and `lora_rank` the buffer's index itself is the value. Readers map only the
first 1 MiB as the head. Files for the CPU hold rows as they are multiplied; files for the GPU, and all LoRA files, hold
4 x 4 blocks (gpu_layout.py) and state the number of bytes as every tensor's shape.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from hearthlm.errors import (
    CorruptFileError,
    HearthLMError,
    ModelFormatError,
    TensorMismatchError,
    UnsupportedModelError,
)
from hearthlm.formats.atomic_file import replace_file
from hearthlm.formats.flatbuffer import Fields, FlatbufferReader, Scalar, Table, build_flatbuffer
from hearthlm.formats.gpu_layout import blocks_from_rows, rows_from_blocks
from hearthlm.formats.json_document import parse_json_object
from hearthlm.formats.llm_parameters_pb2 import LlmModelType, LlmParameters
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.tensor_plan import TensorPlan, produced_pieces, write_at
from hearthlm.quantization import WeightMatrix, WeightType, unpack_int4

IDENTIFIER = b"TFL3"
MAX_HEAD_BYTES = 1 << 20
MAX_PARAMETERS_BYTES = 1 << 20
MAX_EXTRA_BYTES = 64 << 20
EXTRA_VERSION = 1
# MediaPipe's web runtime waits for ever for a model of less than 1 MiB, and ignores an adapter of 1 MiB without a word.
WEB_MIN_BYTES = 2 << 20

_PARAMETERS = "odml.infra.proto.LlmParameters"
_TOKENIZER = "spm_vocab_model"
_MODEL_TYPE = "odml.infra.LlmModelType"
_BACKEND = "backend"
_LORA_RANK = "lora_rank"
_EXTRA = "hearthlm"

_TYPE_NAMES = {0: "FLOAT32", 1: "FLOAT16", 2: "INT32", 3: "UINT8", 4: "INT64", 7: "INT16", 9: "INT8", 17: "INT4"}
_TYPE_CODES = {name: code for code, name in _TYPE_NAMES.items()}
_TYPE_BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT32": 32, "UINT8": 8, "INT64": 64, "INT16": 16, "INT8": 8, "INT4": 4}

_UINT8 = struct.Struct("<B")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_PANEL_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorEntry:
    """Say where a tensor lies: `type` by TFLite's name, `shape` as the file declares it."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def is_weights_bin(head: bytes | memoryview) -> bool:
    """Tell whether a file that begins with `head` (its first 1 MiB, or all of it) is a `.bin`, whatever its name.

    A broken head with the name of the entry that only such files have is one, too: opening it says what is wrong.
    """
    if head[4:8] != IDENTIFIER:
        return False
    try:
        model = FlatbufferReader(head, "").root(IDENTIFIER)
        return any(entry.text(0) == _PARAMETERS for entry in model.tables(6, "metadata entry"))
    except ModelFormatError:
        return _PARAMETERS.encode() in bytes(head)


class WeightsBin:
    """An open `.bin`. What `matrix` and `vector` return keeps the mapping alive after `close`.

    Asymmetrically quantised files for the CPU: MediaPipe's converter drops their zero points, its engine multiplies
    them as if they were symmetric, and so does this reader. See `lost_zero_points`.
    """

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        head = _Head(file)
        self.tensors: Mapping[str, TensorEntry] = MappingProxyType(head.tensors)
        self._entries = head.entries
        self.model_type: int = head.values.get(_MODEL_TYPE, 0)
        self.lora_rank: int | None = head.values.get(_LORA_RANK)
        self.backend: str = self._read_backend()
        self.parameters: LlmParameters = self._read_parameters()
        self.extra: dict[str, Any] | None = self._read_extra()
        if self.backend == "cpu":
            for tensor in self.tensors.values():
                self._check_declared_size(tensor)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the file at `path`, reading its head and metadata only.

        Raises TruncatedFileError and CorruptFileError for bytes that contradict the format or the size of the file,
        UnsupportedModelError for a TFLite model of another kind.
        """
        file = MappedFile(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def release_pages(self) -> None:
        """Let the system take back the memory of what has been read; what is read again comes from the file again."""
        self._file.release_pages()

    @property
    def tokenizer(self) -> bytes | None:
        """The serialised SentencePiece model, or None where there is none."""
        return self._entry_bytes(_TOKENIZER)

    def vector(self, name: str, length: int) -> NDArray[np.float32]:
        """Return the tensor `name` as float32 [length], as it lies in the file."""
        tensor = self._tensor(name)
        if tensor.type != "FLOAT32" or tensor.num_bytes != 4 * length:
            raise self._mismatch(name, f"FLOAT32 [{length}], {4 * length} bytes", tensor)
        return self._file.array(tensor.offset, np.float32, (length,), f"tensor {name}")

    def matrix(self, name: str, shape: tuple[int, int]) -> WeightMatrix:
        """Return the tensor `name` as a matrix `shape` = (out, in).

        INT8 and INT4 take their scales from `<name>_quantized_scale` and, where it exists, their zero points from
        `<name>_quantized_zp`. FLOAT32 is float32, or, where the file is in the GPU layout and the bytes are half as
        many, float16, as in LoRA files. The CPU layout is returned as it lies in the file, except int4 rows of odd
        length, which are packed without gaps there; the GPU layout is put back into rows.
        """
        tensor = self._tensor(name)
        out, columns = shape
        if out < 1 or columns < 1:
            raise ValueError(f"shape: expected two positive numbers, got {shape}")
        dtype, num_bytes = self._stored_as(tensor, out * columns)
        is_gpu = self._is_gpu_layout(tensor)
        wanted = f"a matrix [{out}, {columns}]"
        if tensor.num_bytes != num_bytes or not (is_gpu or tensor.shape == shape):
            raise self._mismatch(name, f"{wanted}, {num_bytes} bytes", tensor)
        if is_gpu and (out % 4 or columns % 4):
            raise self._mismatch(name, f"{wanted} in the GPU layout to have multiples of 4", tensor)
        what = f"tensor {name}"
        scales = zero_points = None
        if dtype in ("int8", "int4"):
            scales = self._per_row(name, "_quantized_scale", out)
            zero_points = self._per_row(name, "_quantized_zp", out) if f"{name}_quantized_zp" in self.tensors else None
        stored = np.uint8 if dtype == "int4" else np.dtype(dtype)
        if is_gpu:
            count = num_bytes // np.dtype(stored).itemsize
            blocks = self._file.array(tensor.offset, stored, (count,), what)
            data = rows_from_blocks(blocks, shape, lambda a, b: self._file.drop_pages(tensor.offset + a, b - a))
            return WeightMatrix(dtype, shape, np.ascontiguousarray(data), scales, zero_points)
        if dtype == "int4" and columns % 2:
            data = _rows_from_gapless(self._file.array(tensor.offset, np.uint8, (num_bytes,), what), shape)
        else:
            stored_columns = columns // 2 if dtype == "int4" else columns
            data = self._file.array(tensor.offset, stored, (out, stored_columns), what)
        return WeightMatrix(dtype, shape, data, scales, zero_points)

    def verify(self) -> None:
        """Read every quantised matrix that has a `.sum_i` and check the sums of its rows.

        Raises CorruptFileError for the first that differ. `matrix` does not do this, as it would read the whole file.
        """
        for name, tensor in self.tensors.items():
            sums_name = f"{name}.sum_i"
            if sums_name not in self.tensors:
                continue
            sums_tensor = self.tensors[sums_name]
            out = sums_tensor.num_bytes // 4
            if sums_tensor.type != "INT32" or out == 0 or sums_tensor.num_bytes % 4:
                raise self._mismatch(sums_name, "INT32 [out]", sums_tensor)
            columns = tensor.num_bytes * (2 if tensor.type == "INT4" else 1) // out
            if tensor.type not in ("INT8", "INT4") or columns == 0:
                raise self._mismatch(name, f"INT8 or INT4 of {out} rows", tensor)
            declared = self._file.array(sums_tensor.offset, np.int32, (out,), f"tensor {sums_name}")
            differing = np.flatnonzero(_row_sums(self.matrix(name, (out, columns))) != declared)
            if differing.size:
                raise CorruptFileError(
                    f"{self._file.path}: tensor {_quoted(name)}: {differing.size} of {out} rows do not add up to "
                    f"{_quoted(sums_name)}; the first is row {differing[0]}"
                )

    def lost_zero_points(self) -> list[str]:
        """Return the names of int8 and int4 matrices that look as if their zero points had been dropped.

        Nothing in a file says so. But MediaPipe's symmetric values never reach -128 (or -8), while its asymmetric
        ones reach both ends of the range in every row; where all of up to 64 rows do, the name is returned. For int8
        that is as good as certain; other tools' int4 values that were clipped to [-8, 7] can look the same. Such a
        model answers wrongly in every engine and must be converted again, symmetrically.
        """
        found = []
        for name, tensor in self.tensors.items():
            if tensor.type not in ("INT8", "INT4") or len(tensor.shape) != 2 or self._is_gpu_layout(tensor):
                continue
            if f"{name}_quantized_scale" not in self.tensors or f"{name}_quantized_zp" in self.tensors:
                continue
            matrix = self.matrix(name, (tensor.shape[0], tensor.shape[1]))
            data = matrix.data[:: max(1, matrix.shape[0] // 64)]
            lowest = -128 if tensor.type == "INT8" else -8
            for rows in (data[:2], data):  # two rows nearly always tell
                q = rows if tensor.type == "INT8" else unpack_int4(rows, matrix.shape[1])
                if np.any(q.min(axis=1) != lowest) or np.any(q.max(axis=1) != -lowest - 1):
                    break
            else:
                found.append(name)
        return found

    def _read_backend(self) -> str:
        entry = self._entry_bytes(_BACKEND)
        if entry not in (None, b"cpu", b"gpu"):
            raise UnsupportedModelError(f"{self._file.path}: backend: expected 'cpu' or 'gpu', got {entry[:16]!r}")
        return "" if entry is None else entry.decode()

    def _read_parameters(self) -> LlmParameters:
        entry = self._entry_bytes(_PARAMETERS, MAX_PARAMETERS_BYTES)
        try:
            return LlmParameters.FromString(entry or b"")
        except DecodeError as error:
            raise CorruptFileError(f"{self._file.path}: {_PARAMETERS} cannot be decoded: {error}") from None

    def _read_extra(self) -> dict[str, Any] | None:
        entry = self._entry_bytes(_EXTRA, MAX_EXTRA_BYTES)
        if entry is None:
            return None
        where = f"{self._file.path}: metadata entry {_EXTRA}"
        extra = parse_json_object(entry, where, MAX_EXTRA_BYTES)
        version = extra.pop("version", None)
        if type(version) is not int or version < 1:
            raise CorruptFileError(f"{where}: version: expected a positive integer, got {str(version)[:80]!r}")
        if version > EXTRA_VERSION:
            raise UnsupportedModelError(
                f"{where}: version: expected at most {EXTRA_VERSION}, got {version}; a newer hearthlm wrote this file"
            )
        return extra

    def _entry_bytes(self, name: str, max_bytes: int | None = None) -> bytes | None:
        if name not in self._entries:
            return None
        offset, size = self._entries[name]
        if max_bytes is not None and size > max_bytes:
            raise CorruptFileError(f"{self._file.path}: {name}: expected at most {max_bytes} bytes, got {size}")
        return bytes(self._file.read(offset, size, name))

    def _tensor(self, name: str) -> TensorEntry:
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorMismatchError(
                f"{self._file.path}: there is no tensor {_quoted(name)} among its {len(self.tensors)}"
            ) from None

    def _mismatch(self, name: str, wanted: str, got: TensorEntry) -> TensorMismatchError:
        return TensorMismatchError(
            f"{self._file.path}: tensor {_quoted(name)}: expected {wanted}, got {got.type} {list(got.shape[:8])}, "
            f"{got.num_bytes} bytes"
        )

    def _stored_as(self, tensor: TensorEntry, count: int) -> tuple[WeightType, int]:
        """Return the type of a matrix with `count` values that is stored as `tensor`, and its size in bytes."""
        if tensor.type == "INT8":
            return "int8", count
        if tensor.type == "INT4":
            return "int4", (count + 1) // 2
        if tensor.type != "FLOAT32":
            raise self._mismatch(tensor.name, "FLOAT32, INT8 or INT4", tensor)
        if tensor.num_bytes == 2 * count and self._is_gpu_layout(tensor):
            return "float16", 2 * count
        return "float32", 4 * count

    def _is_gpu_layout(self, tensor: TensorEntry) -> bool:
        return self.backend == "gpu" or (self.backend == "" and len(tensor.shape) == 1)

    def _per_row(self, name: str, suffix: str, rows: int) -> NDArray[np.float32]:
        if name + suffix not in self.tensors:
            raise TensorMismatchError(
                f"{self._file.path}: tensor {_quoted(name)}: its {suffix.removeprefix('_quantized_')} tensor "
                f"{_quoted(name + suffix)} is missing"
            )
        values = self.vector(name + suffix, rows)
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise CorruptFileError(f"{self._file.path}: tensor {_quoted(name + suffix)}: row {row} is {values[row]}")
        return values

    def _check_declared_size(self, tensor: TensorEntry) -> None:
        bits = _TYPE_BITS.get(tensor.type)
        if bits is None:  # refused by name when it is used
            return
        declared = (math.prod(tensor.shape) * bits + 7) // 8
        if declared != tensor.num_bytes:
            raise CorruptFileError(
                f"{self._file.path}: tensor {_quoted(tensor.name)}: {tensor.type} {list(tensor.shape[:8])} takes "
                f"{declared} bytes, but its buffer has {tensor.num_bytes}"
            )


class _Head:
    """The head's content, checked: names are unique, ranges are in the file, apart from each other and after the head.

    `values` are the metadata entries whose buffer index is their meaning, `entries` the ranges of the others.
    """

    def __init__(self, file: MappedFile) -> None:
        where = str(file.path)
        if file.size > MAX_HEAD_BYTES:
            where += f" (its first {MAX_HEAD_BYTES} bytes, which must hold the head)"
        self._where = where
        reader = FlatbufferReader(file.read(0, min(file.size, MAX_HEAD_BYTES), "head"), where)
        model = reader.root(IDENTIFIER)
        self.values: dict[str, int] = {}
        self.entries: dict[str, tuple[int, int]] = {}
        self.tensors: dict[str, TensorEntry] = {}
        buffers = [(buffer.scalar(1, _UINT64), buffer.scalar(2, _UINT64)) for buffer in model.tables(4, "buffer")]
        self._read_metadata(model, buffers)
        has_operators = model.count(1) > 0
        subgraphs = list(model.tables(2, "subgraph")) if model.count(2) == 1 else []
        if has_operators or any(subgraph.count(3) for subgraph in subgraphs):
            raise UnsupportedModelError(f"{where}: this is a LiteRT model with operators, not a file of weights")
        if _PARAMETERS not in self.entries:
            raise CorruptFileError(f"{where}: there is no metadata entry {_PARAMETERS}")
        if not subgraphs:
            raise CorruptFileError(f"{where}: expected 1 subgraph, got {model.count(2)}")
        self._read_tensors(subgraphs[0], buffers, file)
        self._check_ranges(reader.end, file)

    def _read_metadata(self, model: Table, buffers: Sequence[tuple[int, int]]) -> None:
        for entry in model.tables(6, "metadata entry"):
            name, index = entry.text(0), entry.scalar(1, _UINT32)
            if name in self.values or name in self.entries:
                raise CorruptFileError(f"{self._where}: metadata entry {_quoted(name)} appears twice")
            if name in (_MODEL_TYPE, _LORA_RANK):
                self.values[name] = index
            elif name in (_PARAMETERS, _TOKENIZER, _BACKEND, _EXTRA):
                self.entries[name] = self._buffer(buffers, index, f"metadata entry {name}")

    def _read_tensors(self, subgraph: Table, buffers: Sequence[tuple[int, int]], file: MappedFile) -> None:
        name_bytes = 0
        for tensor in subgraph.tables(0, "tensor"):
            name = tensor.text(3)
            name_bytes += len(name)
            if name in self.tensors:
                raise CorruptFileError(f"{self._where}: tensor {_quoted(name)} appears twice")
            if name_bytes > MAX_HEAD_BYTES:
                raise CorruptFileError(f"{self._where}: the names of tensors are longer than the head that holds them")
            what = f"tensor {_quoted(name)}"
            code = tensor.scalar(1, _UINT8)
            shape = tensor.integers(0)
            if len(shape) > 8 or min(shape, default=0) < 0:
                raise CorruptFileError(
                    f"{self._where}: {what}: expected at most 8 dimensions, none negative, got {list(shape[:9])}"
                )
            if math.prod(shape) > file.size * 2:  # two int4 values to the byte are the most
                raise CorruptFileError(
                    f"{self._where}: {what}: shape {list(shape)} is {math.prod(shape)} values, more than the file's "
                    f"{file.size} bytes hold"
                )
            offset, size = self._buffer(buffers, tensor.scalar(2, _UINT32), what)
            self.tensors[name] = TensorEntry(name, _TYPE_NAMES.get(code, f"TYPE_{code}"), shape, offset, size)

    def _buffer(self, buffers: Sequence[tuple[int, int]], index: int, what: str) -> tuple[int, int]:
        if index >= len(buffers):
            raise CorruptFileError(
                f"{self._where}: {what}: buffer index {index} is out of range, there are {len(buffers)} buffers"
            )
        return buffers[index]

    def _check_ranges(self, head_bytes: int, file: MappedFile) -> None:
        ranges = [(offset, size, f"metadata entry {name}") for name, (offset, size) in self.entries.items()]
        ranges += [(t.offset, t.num_bytes, f"tensor {_quoted(t.name)}") for t in self.tensors.values()]
        end, previous = head_bytes, "the head"
        for offset, size, what in sorted(ranges):
            if size == 0:
                continue
            file.check_range(offset, size, what)
            if offset < end:
                raise CorruptFileError(
                    f"{self._where}: {what}: bytes {offset} to {offset + size} overlap {previous}, which ends at {end}"
                )
            end, previous = offset + size, what


def write_weights_bin(
    path: str | os.PathLike[str],
    parameters: LlmParameters,
    model_type: int,
    tensors: Iterable[TensorPlan],
    *,
    tokenizer: bytes | None,
    backend: Literal["cpu", "gpu"] = "cpu",
    lora_rank: int | None = None,
    with_sum: bool | None = None,
    extra: Mapping[str, Any] | None = None,
    min_bytes: int = 0,
    num_threads: int = 1,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write a `.bin` for `backend`, a few MiB at a time, in the order of `tensors`.

    The file appears at `path` whole or not at all, and the same content gives the same bytes. `with_sum` adds the
    sums of the rows of quantised matrices (by default in GPU files, as MediaPipe does since 0.10.21); `lora_rank`
    marks a LoRA file; `extra` is JSON-serialisable and becomes the metadata entry `hearthlm` with a version. A file
    smaller than `min_bytes` is filled up with zeros.
    `num_threads` produce pieces of a tensor side by side; `progress(name, num_bytes)` is called, in this thread, after
    each piece with how many bytes of the weights it was. Raises ValueError for a plan that the layout cannot hold or a
    producer that breaks its plan, and UnsupportedModelError where the head would not fit into the 1 MiB that readers
    look at.
    """
    if backend not in ("cpu", "gpu"):
        raise ValueError(f"backend: expected 'cpu' or 'gpu', got {backend!r}")
    for name, value in ((_MODEL_TYPE, model_type), (_LORA_RANK, lora_rank)):
        if value is not None and not 0 <= value < 2**32:
            raise ValueError(f"{name}: expected an integer of 32 bits, got {value}")
    layout = _Layout(backend, backend == "gpu" if with_sum is None else with_sum)
    plans = list(tensors)
    stored = [layout.stored_tensors(plan) for plan in plans]
    entries = [(_PARAMETERS, parameters.SerializeToString(deterministic=True))]
    if tokenizer is not None:
        entries.append((_TOKENIZER, tokenizer))
    entries.append((_BACKEND, backend.encode()))
    if extra is not None:
        entries.append((_EXTRA, _serialize_extra(extra)))
    names = [tensor.name for group in stored for tensor in group]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"tensors: {twice!r} appears twice")

    flat = [tensor for group in stored for tensor in group]
    sizes, entry_sizes = [tensor.num_bytes for tensor in flat], [len(data) for _, data in entries]
    in_order = entry_sizes + sizes if backend == "gpu" else sizes + entry_sizes
    first_entry, first_tensor = (1, 1 + len(entries)) if backend == "gpu" else (1 + len(flat), 1)
    metadata = [(name, first_entry + i) for i, (name, _) in enumerate(entries)]
    after_backend = next(i for i, (name, _) in enumerate(metadata) if name == _BACKEND) + 1
    if lora_rank is not None:
        metadata.insert(after_backend, (_LORA_RANK, lora_rank))
    metadata.insert(after_backend - 1, (_MODEL_TYPE, model_type))

    def build_head(offsets: Sequence[int]) -> bytes:
        ranges = zip(offsets, in_order, strict=True)
        tables: list[Fields] = [
            {0: t.shape, 1: Scalar("B", _TYPE_CODES[t.type]), 2: Scalar("I", first_tensor + i), 3: t.name}
            for i, t in enumerate(flat)
        ]
        root: Fields = {
            0: Scalar("I", 3),
            2: [{0: tables, 4: _model_type_name(model_type)}],
            4: [{}, *({1: Scalar("Q", offset), 2: Scalar("Q", size)} for offset, size in ranges)],
            6: [{0: name, 1: Scalar("I", index)} for name, index in metadata],
        }
        return build_flatbuffer(root, IDENTIFIER)

    head_bytes = len(build_head([0] * len(in_order)))  # the offsets do not change it
    if head_bytes > MAX_HEAD_BYTES:
        raise UnsupportedModelError(
            f"{os.fspath(path)}: the head for {len(flat)} tensors takes {head_bytes} bytes, but readers look at the "
            f"first {MAX_HEAD_BYTES} only"
        )
    offsets, end = layout.place(head_bytes, in_order)
    entry_offsets = offsets[: len(entries)] if backend == "gpu" else offsets[len(flat) :]
    tensor_offsets = iter(offsets[len(entries) :] if backend == "gpu" else offsets[: len(flat)])
    with replace_file(path) as file, ThreadPoolExecutor(num_threads) as pool:
        file.truncate(max(end, min_bytes))
        write_at(file, 0, build_head(offsets))
        for (_, data), offset in zip(entries, entry_offsets, strict=True):
            write_at(file, offset, data)
        for plan, group in zip(plans, stored, strict=True):
            where = {tensor.part: (next(tensor_offsets), tensor) for tensor in group}
            for num_bytes in _write_plan(file, layout, plan, where, pool, num_threads):
                if progress is not None:
                    progress(plan.name, num_bytes)


_Part = Literal["weight", "scales", "zero_points", "sums"]


@dataclass(frozen=True)
class _StoredTensor:
    name: str
    type: str
    shape: tuple[int, ...]
    num_bytes: int
    part: _Part = "weight"


@dataclass(frozen=True)
class _Layout:
    """How plans become tensors of a file for `backend`."""

    backend: Literal["cpu", "gpu"]
    with_sum: bool

    def place(self, head_bytes: int, sizes: Sequence[int]) -> tuple[list[int], int]:
        """Return the offset of each buffer and the size of the file."""
        start, align, end = (65536, 256, 65536) if self.backend == "gpu" else (64, 64, 64)
        offsets = []
        position = _round_up(head_bytes, start)
        for size in sizes:
            offsets.append(position)
            position = _round_up(position + size, align)
        return offsets, _round_up(position, end)

    def stored_tensors(self, plan: TensorPlan) -> list[_StoredTensor]:
        """Return the tensors that `plan` becomes, in the order in which they lie in the file."""
        count = math.prod(plan.shape)
        if not plan.is_matrix:
            return [self._stored(plan.name, "FLOAT32", plan.shape, 4 * count)]
        out, columns = plan.shape
        if self.backend == "gpu" and (out % 4 or columns % 4):
            raise ValueError(f"{plan.name}: the GPU layout needs multiples of 4, got {list(plan.shape)}")
        if self.backend == "cpu" and (plan.has_zero_points or plan.dtype == "float16"):
            what = "zero points" if plan.has_zero_points else "float16"
            raise ValueError(f"{plan.name}: the CPU layout cannot hold {what}")
        if plan.dtype in ("float32", "float16"):
            return [self._stored(plan.name, "FLOAT32", plan.shape, (4 if plan.dtype == "float32" else 2) * count)]
        weight = (
            self._stored(plan.name, "INT8", plan.shape, count)
            if plan.dtype == "int8"
            else self._stored(plan.name, "INT4", plan.shape, (count + 1) // 2)
        )
        scales = self._stored(f"{plan.name}_quantized_scale", "FLOAT32", (out,), 4 * out, "scales")
        if self.backend == "cpu":
            stored = [weight, scales]
        else:
            stored = [scales, weight]
        if plan.has_zero_points:
            stored.append(self._stored(f"{plan.name}_quantized_zp", "FLOAT32", (out,), 4 * out, "zero_points"))
        if self.with_sum:
            stored.append(self._stored(f"{plan.name}.sum_i", "INT32", (out,), 4 * out, "sums"))
        return stored

    def pieces(
        self, plan: TensorPlan, value: WeightMatrix | NDArray[np.float32], first: int, last: int
    ) -> Iterator[tuple[_Part, int, NDArray[Any]]]:
        """Yield what rows [first, last) of `plan` are in the file: of which tensor, at which offset in it, the data."""
        if not plan.is_matrix:
            if isinstance(value, WeightMatrix) or value.dtype != np.float32 or value.size != last - first:
                raise ValueError(f"{plan.name}: expected a float32 array {list(plan.shape)}, got {_described(value)}")
            yield "weight", 0, value
            return
        shape = (last - first, plan.shape[1])
        if (
            not isinstance(value, WeightMatrix)
            or (value.dtype, value.shape) != (plan.dtype, shape)
            or (value.zero_points is not None) != plan.has_zero_points
        ):
            zero_points = "with" if plan.has_zero_points else "without"
            raise ValueError(
                f"{plan.name}: expected a {plan.dtype} matrix {list(shape)} {zero_points} zero points, "
                f"got {_described(value)}"
            )
        if self.backend == "gpu":
            yield from self._blocks(plan, value, first)
        elif plan.dtype == "int4" and shape[1] % 2:
            yield "weight", first * shape[1] // 2, _gapless_from_rows(value.data, shape[1])
        else:
            yield "weight", first * value.data.shape[1] * value.data.itemsize, value.data
        if value.scales is not None:
            yield "scales", 4 * first, value.scales
            if value.zero_points is not None:
                yield "zero_points", 4 * first, value.zero_points
            if self.with_sum:
                yield "sums", 4 * first, _row_sums(value)

    def _blocks(self, plan: TensorPlan, value: WeightMatrix, first: int) -> Iterator[tuple[_Part, int, NDArray[Any]]]:
        """Yield the 4 x 4 blocks of some rows: one run of them for every four columns, or one run if it is all rows."""
        rows, out = value.shape[0], plan.shape[0]
        run_bytes = value.data.nbytes * 4 // value.shape[1]
        column_bytes = run_bytes // rows * out  # of four columns of the whole matrix
        position = first * (column_bytes // out)
        for blocks in blocks_from_rows(value.data):
            if rows == out:
                yield "weight", position, blocks
                position += blocks.nbytes
                continue
            for run in blocks.reshape(-1, run_bytes // blocks.itemsize):
                yield "weight", position, run
                position += column_bytes

    def _stored(
        self, name: str, type_name: str, shape: tuple[int, ...], num_bytes: int, part: _Part = "weight"
    ) -> _StoredTensor:
        return _StoredTensor(name, type_name, (num_bytes,) if self.backend == "gpu" else shape, num_bytes, part)


def _write_plan(
    file: BinaryIO,
    layout: _Layout,
    plan: TensorPlan,
    where: Mapping[_Part, tuple[int, _StoredTensor]],
    pool: ThreadPoolExecutor,
    num_threads: int,
) -> Iterator[int]:
    """Write a tensor piece by piece and yield how many bytes of the weights each was."""
    written: dict[_Part, int] = dict.fromkeys(where, 0)
    for first, last, produced in produced_pieces(plan, pool, num_threads):
        before = written["weight"]
        for part, offset, data in layout.pieces(plan, produced(), first, last):
            write_at(file, where[part][0] + offset, data)
            written[part] += data.nbytes
        yield written["weight"] - before
    for part, (_, tensor) in where.items():
        if written[part] != tensor.num_bytes:
            raise ValueError(f"{tensor.name}: expected {tensor.num_bytes} bytes, got {written[part]}")


def _serialize_extra(extra: Mapping[str, Any]) -> bytes:
    if "version" in extra:
        raise ValueError("extra: 'version' is the format's own key")
    document = {"version": EXTRA_VERSION, **extra}
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    try:
        parse_json_object(data, "extra", MAX_EXTRA_BYTES)
    except HearthLMError as error:
        raise ValueError(str(error)) from None
    return data


def _model_type_name(model_type: int) -> str:
    if model_type not in LlmModelType.values():
        return f"TYPE_{model_type}"
    return LlmModelType.Name(model_type).removeprefix("LLM_MODEL_TYPE_")


def _row_sums(matrix: WeightMatrix) -> NDArray[np.int32]:
    """Return the sum of the signed values of each row, a few MiB at a time."""
    sums = np.empty(matrix.shape[0], np.int32)
    step = max(1, _PANEL_BYTES // matrix.shape[1])
    for first in range(0, matrix.shape[0], step):
        data = matrix.data[first : first + step]
        q = unpack_int4(data, matrix.shape[1]) if matrix.dtype == "int4" else data
        np.sum(q, axis=1, dtype=np.int32, out=sums[first : first + step])
    return sums


def _rows_from_gapless(packed: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return int4 rows of odd length, packed one after the other without gaps, as uint8 [out, ceil(in / 2)]."""
    rows, columns = shape
    result = np.empty((rows, (columns + 1) // 2), np.uint8)
    step = 2 * max(1, _PANEL_BYTES // columns)  # an even number of rows ends on a whole byte
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part = packed[first * columns // 2 : (last * columns + 1) // 2]
        nibbles = np.stack((part & 0x0F, part >> 4), axis=-1).ravel()[: (last - first) * columns]
        padded = np.pad(nibbles.reshape(last - first, columns), ((0, 0), (0, 1)), constant_values=8)
        result[first:last] = padded[:, 0::2] | padded[:, 1::2] << 4
    return result


def _gapless_from_rows(data: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Pack int4 rows of odd length one after the other without gaps; the last nibble of an odd count is zero."""
    nibbles = np.stack((data & 0x0F, data >> 4), axis=-1).reshape(len(data), -1)[:, :columns].ravel()
    padded = np.pad(nibbles, (0, nibbles.size % 2))
    packed: NDArray[np.uint8] = padded[0::2] | padded[1::2] << 4
    return packed


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:117] + "...")


def _described(value: WeightMatrix | NDArray[Any]) -> str:
    if isinstance(value, WeightMatrix):
        zero_points = "with" if value.zero_points is not None else "without"
        return f"a {value.dtype} matrix {list(value.shape)} {zero_points} zero points"
    return f"an array {value.dtype} {list(value.shape)}"
