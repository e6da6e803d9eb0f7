"""Weight matrices as they lie on disk, and the arithmetic between floats and 8 or 4 bits.

One scale per output row (specs of MediaPipe's converter): `w = (q - zero_point) * scale`, q in [-128, 127] or [-8, 7].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

WeightType = Literal["float32", "float16", "bfloat16", "int8", "int4"]
QuantizationMethod = Literal["minmax", "mse", "mediapipe_mse", "gptq"]

_STORED_AS: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int8": np.int8,
    "int4": np.uint8,
}

_BLOCK_VALUES = 1 << 16  # of a block of rows that is worked on in the cache
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_PARTS = {8: (1.0, 0.95, 0.9, 0.8), 4: (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.42, 0.3)}  # of minmax's scale
_NUM_FITS = 3


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


class Compensation(Protocol):
    """Round so that later columns make up for errors of earlier ones; see runtime/error_compensation.py."""

    second_moments: NDArray[np.float32]  # mean squares of the inputs, [in]

    def round(
        self, weights: NDArray[np.float32], scales: NDArray[np.float32], lowest: int, highest: int
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return q [out, in] in [lowest, highest] and its scales [out], near the given ones; each row alone."""


def quantize(
    weights: NDArray[np.float32],
    bits: int,
    *,
    method: QuantizationMethod = "minmax",
    symmetric: bool = True,
    second_moments: NDArray[np.float32] | None = None,
    compensation: Compensation | None = None,
) -> WeightMatrix:
    """Quantise float32 [out, in] to 8 or 4 bits, each row alone: a panel of rows gives what the whole matrix gives.

    "minmax" and "mediapipe_mse" (its `use_mse_quant`) are the arithmetic of MediaPipe's converter; `symmetric=False`,
    for minmax only, adds zero points. "mse" searches the scale with the least squared error of each row, that of column
    i weighted by `second_moments[i]`, float32 [in], the mean square of the i-th input, if given. "gptq" rounds with
    the `compensation` of the matrix's inputs, the scales found by "mse".
    Rows of zeros, and rows so small that their scale would be no normal float32, get scale 1. Raises ValueError for a
    value that is not finite.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits: expected 4 or 8, got {bits}")
    if method not in get_args(QuantizationMethod):
        raise ValueError(f"method: expected one of {', '.join(get_args(QuantizationMethod))}, got {method!r}")
    if not symmetric and method != "minmax":
        raise ValueError(f"symmetric: expected True for the method {method!r}, which has no zero points")
    if (compensation is None) == (method == "gptq"):
        raise ValueError(f"compensation: {'missing' if compensation is None else 'not allowed'} for {method!r}")
    out, columns = weights.shape
    if compensation is not None and second_moments is None:
        second_moments = compensation.second_moments
    if second_moments is not None and second_moments.shape != (columns,):
        raise ValueError(f"second_moments: expected [{columns}], got {list(second_moments.shape)}")
    bounds = np.maximum(weights.max(axis=1, initial=0.0), -weights.min(axis=1, initial=0.0))
    if not np.all(np.isfinite(bounds)):
        row = int(np.argmin(np.isfinite(bounds)))
        raise ValueError(f"weights: row {row} holds a value that is not finite")

    q = np.empty((out, columns), np.int8)
    scales = np.empty(out, np.float32)
    zero_points = None if symmetric else np.empty(out, np.float32)
    step = max(1, _BLOCK_VALUES // max(1, columns))
    for first in range(0, out, step):
        rows = slice(first, first + step)
        w = weights[rows]
        if method == "minmax" and zero_points is None:
            scales[rows] = _usable(bounds[rows] / np.float32(2 ** (bits - 1) - 1))
            q[rows] = _rounded(w, scales[rows], bits)
        elif zero_points is not None:
            q[rows], scales[rows], zero_points[rows] = _asymmetric(w, bits)
        elif method == "mediapipe_mse":
            q[rows], scales[rows] = _scaled_by_rms(w, bits)
        else:
            scales[rows] = _search_scales(w, bounds[rows], bits, second_moments)
            if compensation is None:
                q[rows] = _rounded(w, scales[rows], bits)
    if compensation is not None:
        q, scales = compensation.round(weights, scales, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    stored = q if bits == 8 else pack_int4(q)
    return WeightMatrix("int8" if bits == 8 else "int4", (out, columns), stored, scales, zero_points)


def quantize_blocks(blocks: NDArray[np.float32], *, method: QuantizationMethod = "minmax") -> WeightMatrix:
    """Quantise float32 [num_blocks, block size] to int4, each block alone, as LiteRT's blockwise weights are.

    The scales are those of `quantize` by "minmax" or "mse", rounded: they are float16 in the file and bfloat16 in
    XNNPACK, and both must hold them exactly. Raises ValueError for a value that is not finite, or too large for such a
    scale.
    """
    found = quantize(blocks, 4, method=method).scales
    assert found is not None
    with np.errstate(over="ignore"):
        scales = bfloat16_to_float32(float32_to_bfloat16(found)).astype(np.float16).astype(np.float32)
    if not np.all(np.isfinite(scales)):
        block = int(np.argmin(np.isfinite(scales)))
        raise ValueError(f"weights: block {block} holds a value that is larger than a float16 scale allows")
    scales[scales == 0] = 1.0  # so small that float16 has no scale for them
    return WeightMatrix("int4", blocks.shape, pack_int4(_rounded(blocks, scales, 4).astype(np.int8)), scales)


def _usable(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace zeros, and scales whose reciprocal may overflow, by 1."""
    scales[scales < _SMALLEST_SCALE] = 1.0
    return scales


def _rounded(w: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    q = w / scales[:, None]
    np.rint(q, out=q)
    return np.clip(q, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, out=q)


def _asymmetric(
    w: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return q, scales and zero points: scale = (max - min) / (2^bits - 1), zero point = -2^(bits-1) - min / scale.

    The converter rounds with this zero point and stores (zero point * scale) / scale, which may differ by an ulp.
    """
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least, greatest = w.min(axis=1, initial=np.inf), w.max(axis=1, initial=-np.inf)
    with np.errstate(over="ignore"):
        scales = _usable((greatest - least) / np.float32(2**bits - 1))
    if not np.all(np.isfinite(scales)):
        raise ValueError("weights: the difference of two values of a row is no finite float32")
    zero_points = np.float32(lowest) - least / scales
    q = w / scales[:, None]
    q += zero_points[:, None]
    np.rint(q, out=q)
    np.clip(q, lowest, highest, out=q)
    return q, scales, zero_points * scales / scales


def _scaled_by_rms(w: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return q in [-(2^(bits-1) - 1), 2^(bits-1) - 1] and scales = m * rms(row) + 1e-12.

    The squares are summed one after the other, as the converter does; only so are its scales met to the last bit.
    """
    multiplier = {8: np.float32(0.05408), 4: np.float32(0.37755)}[bits]
    highest = np.float32(2 ** (bits - 1) - 1)
    mean = np.cumsum(np.square(w), axis=1, dtype=np.float32)[:, -1] / np.float32(w.shape[1])
    scales = multiplier * np.sqrt(mean) + np.float32(1e-12)
    q = w / scales[:, None]
    q += highest
    np.rint(q, out=q)
    np.clip(q, 0, 2 * highest, out=q)
    q -= highest
    return q, scales


def _search_scales(
    w: NDArray[np.float32], bounds: NDArray[np.float32], bits: int, second_moments: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return for each row the scale with the least squared error among those tried, that of minmax included.

    Tried are parts of minmax's scale, and then, from the best of them, the scale that fits the rounded values best
    (least squares), a few times over: rounding anew and fitting anew can only get better.
    """
    scales = _usable(bounds / np.float32(2 ** (bits - 1) - 1))
    root = None if second_moments is None else np.sqrt(second_moments, dtype=np.float32)
    best, least = scales.copy(), np.full(len(w), np.inf, np.float32)
    buffer, residual = np.empty_like(w), np.empty_like(w)

    def try_scales(tried: NDArray[np.float32]) -> NDArray[np.float32]:
        """Note where `tried` is better and return the scale that fits its rounded values."""
        nonlocal best, least
        q = np.multiply(w, (np.float32(1) / tried)[:, None], out=buffer)
        np.rint(q, out=q)
        np.clip(q, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, out=q)
        np.multiply(q, tried[:, None], out=residual)
        np.subtract(w, residual, out=residual)
        if root is not None:
            np.multiply(residual, root, out=residual)
            np.multiply(q, root, out=q)
        error = np.einsum("ij,ij->i", residual, residual)
        is_better = error < least
        least = np.where(is_better, error, least)
        best = np.where(is_better, tried, best)
        # Of the residual, not of w: where all is rounded well the correction is small and its rounding too.
        size = np.einsum("ij,ij->i", q, q)
        correction = np.einsum("ij,ij->i", residual, q) / np.maximum(size, np.float32(1e-30))
        return _usable_or(tried + correction, tried)

    for part in _PARTS[bits]:
        try_scales(_usable_or(scales * np.float32(part), scales))
    fitted = try_scales(best)
    for _ in range(_NUM_FITS):
        fitted = try_scales(fitted)
    return best


def _usable_or(scales: NDArray[np.float32], otherwise: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(scales >= _SMALLEST_SCALE, scales, otherwise)


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
