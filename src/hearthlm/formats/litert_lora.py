"""MediaPipe's LoRA adapters for LiteRT models: a flatbuffer that holds matrices and no operator.

One subgraph names the inputs of a `..._lora_r<rank>` signature, such as `lora_atten_q_a_prime_weight_0`; each tensor
has its values in a buffer. The metadata entry `lora_rank` has the rank in the place of the index of a buffer.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats.flatbuffer import FlatbufferReader, Table
from hearthlm.formats.litert_model import IDENTIFIER

MAX_RANK = 4096
MAX_TENSORS = 16_384

_RANK = "lora_rank"
_DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}  # FLOAT32, FLOAT16
_UINT8, _UINT32, _UINT64 = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, eq=False)
class LiteRtLora:
    """Hold an adapter's matrices, float32, by the names of the inputs that they are for."""

    rank: int
    matrices: Mapping[str, NDArray[np.float32]]


def is_litert_lora(data: bytes | memoryview) -> bool:
    """Say whether a flatbuffer says of itself that it is an adapter."""
    model = FlatbufferReader(data, "file").root(IDENTIFIER)
    return any(entry.text(0) == _RANK for entry in model.tables(6, "metadata entry"))


def read_litert_lora(data: bytes | memoryview, where: str) -> LiteRtLora:
    """Return the adapter in `data`; `where` begins every error.

    Raises TruncatedFileError and CorruptFileError for bytes that contradict the format or themselves, and
    UnsupportedModelError for a flatbuffer that is no adapter.
    """
    data = memoryview(data)
    reader = FlatbufferReader(data, where)
    model = reader.root(IDENTIFIER)
    ranks = [entry.scalar(1, _UINT32) for entry in model.tables(6, "metadata entry") if entry.text(0) == _RANK]
    subgraphs = list(model.tables(2, "subgraph"))
    if len(ranks) != 1 or len(subgraphs) != 1 or subgraphs[0].count(3):
        raise UnsupportedModelError(
            f"{where}: expected a LoRA adapter: one entry {_RANK} and one subgraph without operators, got "
            f"{len(ranks)}, {len(subgraphs)} and {sum(subgraph.count(3) for subgraph in subgraphs)} operators"
        )
    if not 1 <= ranks[0] <= MAX_RANK:
        raise CorruptFileError(f"{where}: {_RANK}: expected 1 to {MAX_RANK}, got {ranks[0]}")
    if subgraphs[0].count(0) > MAX_TENSORS:
        raise CorruptFileError(f"{where}: expected at most {MAX_TENSORS} tensors, got {subgraphs[0].count(0)}")
    buffers = list(model.tables(4, "buffer"))
    matrices: dict[str, NDArray[np.float32]] = {}
    for tensor in subgraphs[0].tables(0, "tensor"):
        name = tensor.text(3)
        if name in matrices:
            raise CorruptFileError(f"{where}: tensor {name[:120]!r} appears twice")
        matrices[name] = _values(reader, tensor, buffers, f"{where}: tensor {name[:120]!r}")
    return LiteRtLora(ranks[0], matrices)


def _values(reader: FlatbufferReader, tensor: Table, buffers: list[Table], what: str) -> NDArray[np.float32]:
    code, index, shape = tensor.scalar(1, _UINT8), tensor.scalar(2, _UINT32), tensor.integers(0)
    if code not in _DTYPES:
        raise UnsupportedModelError(f"{what}: expected FLOAT32 or FLOAT16, got type {code}")
    if len(shape) != 2 or min(shape) < 1:
        raise CorruptFileError(f"{what}: expected a matrix, got the shape {list(shape[:9])}")
    if index >= len(buffers):
        raise CorruptFileError(f"{what}: buffer {index} is out of range, there are {len(buffers)}")
    begin, size = buffers[index].byte_range(0)
    if not size:
        begin, size = buffers[index].scalar(1, _UINT64), buffers[index].scalar(2, _UINT64)
        reader.need(begin, size, what)
    dtype = _DTYPES[code]
    if size != math.prod(shape) * dtype.itemsize:
        raise CorruptFileError(
            f"{what}: expected {math.prod(shape) * dtype.itemsize} bytes for {list(shape)}, got {size}"
        )
    values = np.frombuffer(reader.data[begin : begin + size], dtype).reshape(shape)
    return np.array(values, dtype=np.float32)
