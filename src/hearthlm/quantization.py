"""Weight matrices as they lie on disk, and the arithmetic between floats and 8 or 4 bits.

One scale per output row (specs of MediaPipe's converter): `w = (q - zero_point) * scale`, q in [-128, 127] or [-8, 7].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

WeightType = Literal["float32", "float16", "bfloat16", "int8", "int4"]

_STORED_AS: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int8": np.int8,
    "int4": np.uint8,
}


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """Hold one matrix [out, in] in the type in which it is stored.

    `data` is C-contiguous: float32, float16, uint16 (the bits of bfloat16) or int8 [out, in]; for int4 uint8
    [out, ceil(in / 2)] with `q + 8` in each nibble, the even column in the low one (the unused nibble of an odd
    `in` is ignored). `scales` and `zero_points` are float32 [out], for int8 and int4 only; no `zero_points`
    means zeros.
    """

    dtype: WeightType
    shape: tuple[int, int]
    data: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    zero_points: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(WeightType):
            raise ValueError(f"dtype: expected one of {', '.join(get_args(WeightType))}, got {self.dtype!r}")
        rows, columns = self.shape
        stored_columns = (columns + 1) // 2 if self.dtype == "int4" else columns
        if self.data.shape != (rows, stored_columns) or self.data.dtype != _STORED_AS[self.dtype]:
            raise ValueError(
                f"data of a {self.dtype} matrix {list(self.shape)}: expected {_STORED_AS[self.dtype].__name__} "
                f"{[rows, stored_columns]}, got {self.data.dtype} {list(self.data.shape)}"
            )
        if not self.data.flags.c_contiguous:
            raise ValueError("data: expected a C-contiguous array")
        if self.is_quantized != (self.scales is not None):
            raise ValueError(f"scales: {'missing' if self.is_quantized else 'not allowed'} for {self.dtype}")
        for name, values in (("scales", self.scales), ("zero_points", self.zero_points)):
            if values is not None and (values.shape != (rows,) or values.dtype != np.float32):
                raise ValueError(f"{name}: expected float32 [{rows}], got {values.dtype} {list(values.shape)}")

    @property
    def is_quantized(self) -> bool:
        return self.dtype in ("int8", "int4")

    def rows(self, first: int, last: int) -> WeightMatrix:
        """Return the rows [first, last) as a view."""
        scales = None if self.scales is None else self.scales[first:last]
        zero_points = None if self.zero_points is None else self.zero_points[first:last]
        return WeightMatrix(self.dtype, (last - first, self.shape[1]), self.data[first:last], scales, zero_points)

    @property
    def num_bytes(self) -> int:
        return sum(a.nbytes for a in (self.data, self.scales, self.zero_points) if a is not None)


def dequantize(matrix: WeightMatrix, rows: slice | NDArray[np.integer[Any]] | None = None) -> NDArray[np.float32]:
    """Return the rows of `matrix` (all by default) as float32 [rows, in]."""
    selected = slice(None) if rows is None else rows
    stored = matrix.data[selected]
    if matrix.dtype == "float32":
        return np.array(stored, dtype=np.float32)
    if matrix.dtype == "float16":
        return stored.astype(np.float32)
    if matrix.dtype == "bfloat16":
        return bfloat16_to_float32(stored)
    assert matrix.scales is not None  # held by WeightMatrix
    q = stored if matrix.dtype == "int8" else unpack_int4(stored, matrix.shape[1])
    values = q.astype(np.float32)
    if matrix.zero_points is not None:
        values -= matrix.zero_points[selected][:, None]
    values *= matrix.scales[selected][:, None]
    return values


def quantize(weights: NDArray[np.float32], bits: int) -> WeightMatrix:
    """Quantise float32 [out, in] symmetrically to 8 or 4 bits, as MediaPipe's converter does.

    scale = max|row| / (2^(bits-1) - 1), 1 for a row of zeros; q = round half to even. Raises ValueError for a
    value that is not finite.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits: expected 4 or 8, got {bits}")
    highest = np.float32(2 ** (bits - 1) - 1)
    bound = np.max(np.abs(weights), axis=1, initial=0.0)
    if not np.all(np.isfinite(bound)):
        row = int(np.argmin(np.isfinite(bound)))
        raise ValueError(f"weights: row {row} holds a value that is not finite")
    scales = (bound / highest).astype(np.float32)
    scales[scales == 0] = 1.0
    q = np.clip(np.rint(weights / scales[:, None]), -highest - 1, highest).astype(np.int8)
    out, columns = weights.shape
    if bits == 8:
        return WeightMatrix("int8", (out, columns), q, scales)
    return WeightMatrix("int4", (out, columns), pack_int4(q), scales)


def pack_int4(q: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack int8 values in [-8, 7], [out, in], into uint8 [out, ceil(in / 2)]: q + 8, even column in the low nibble."""
    rows, columns = q.shape
    nibbles = np.full((rows, columns + columns % 2), 8, dtype=np.uint8)
    nibbles[:, :columns] = (q + np.int8(8)).view(np.uint8)
    packed: NDArray[np.uint8] = nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4))
    return packed


def unpack_int4(packed: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """Unpack uint8 [out, ceil(columns / 2)] into int8 [out, columns] in [-8, 7]."""
    nibbles = np.empty((packed.shape[0], packed.shape[1] * 2), dtype=np.int8)
    nibbles[:, 0::2] = (packed & np.uint8(0x0F)).view(np.int8)
    nibbles[:, 1::2] = (packed >> np.uint8(4)).view(np.int8)
    nibbles -= np.int8(8)
    return nibbles[:, :columns]


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen the bits of bfloat16 values to float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
