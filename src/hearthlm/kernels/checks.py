"""The refusals that every set of kernels shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.kernels.cache_batch import CacheBatch
from hearthlm.kernels.interface import Floats, LoraRows
from hearthlm.quantization import WeightMatrix

FLOAT32 = np.dtype(np.float32)
INT32 = np.dtype(np.int32)
INT8 = np.dtype(np.int8)


def check(name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: np.dtype[Any] = FLOAT32) -> None:
    """Refuse an array of another type or shape, or not C-contiguous; None in `shape` allows any length."""
    if array.shape == shape and array.dtype is dtype and array.flags.c_contiguous:
        return  # a quarter of a microsecond; what follows takes four times as long
    fits = len(array.shape) == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != dtype or not array.flags.c_contiguous:
        wanted = ["any" if length is None else length for length in shape]
        raise ValueError(
            f"{name}: expected C-contiguous {dtype} {wanted}, got "
            f"{'' if array.flags.c_contiguous else 'strided '}{array.dtype} {list(array.shape)}"
        )


def check_ids(ids: NDArray[np.int32], limit: int) -> None:
    if len(ids) and not (ids.min() >= 0 and ids.max() < limit):
        raise ValueError(f"ids: expected 0 to {limit - 1}, got {ids.min()} to {ids.max()}")


def check_block_shape(batch: CacheBatch, layer: int, kv_heads: int, head_dim: int) -> None:
    shape = batch.block_shape
    if shape and not (0 <= layer < shape[0] and shape[2] == kv_heads and batch.head_dim == head_dim):
        raise ValueError(
            f"layer {layer} with {kv_heads} kv heads of {head_dim}: the blocks are {batch.dtype} {list(shape)}, "
            "that is [num_layers, 2, kv_heads, block_size, head_dim], with 4 more in a row of int8"
        )


def check_attention(
    batch: CacheBatch, num_heads: int, num_kv_heads: int, soft_cap: float, window: int, key_bias: Floats | None
) -> None:
    if num_kv_heads < 1 or num_heads < num_kv_heads or num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads: expected a divisor of {num_heads} heads, got {num_kv_heads}")
    if not soft_cap >= 0 or window < 0:
        raise ValueError(f"soft_cap and window: expected 0 or more, got {soft_cap} and {window}")
    if key_bias is not None:
        check("key_bias", key_bias, (num_heads, None))
        positions = int(np.max(batch.first_positions + np.diff(batch.row_begin), initial=0))
        if key_bias.shape[1] < positions:
            raise ValueError(f"key_bias: expected {positions} positions, got {key_bias.shape[1]}")


def check_each(linears: Sequence[tuple[WeightMatrix, Floats | None]]) -> None:
    if not linears:
        raise ValueError("linears: expected at least one")
    dtype, columns = linears[0][0].dtype, linears[0][0].shape[1]
    for weight, bias in linears:
        if weight.scales is None:
            raise ValueError(f"weight: expected int8 or int4 for quantised rows, got {weight.dtype}")
        if weight.dtype != dtype or weight.shape[1] != columns:
            raise ValueError(
                f"linears: expected {dtype} of {columns} columns, as the first is, got {weight.dtype} of "
                f"{weight.shape[1]}"
            )
        if bias is not None:
            check("bias", bias, weight.shape[:1])


def check_gated(gate: WeightMatrix, gate_bias: Floats | None, up: WeightMatrix, up_bias: Floats | None) -> None:
    if gate.scales is None or (up.dtype, up.shape) != (gate.dtype, gate.shape):
        raise ValueError(
            f"gate and up: expected int8 or int4 of one type and shape, got {gate.dtype} {list(gate.shape)} and "
            f"{up.dtype} {list(up.shape)}"
        )
    for name, bias in (("gate_bias", gate_bias), ("up_bias", up_bias)):
        if bias is not None:
            check(name, bias, gate.shape[:1])


def check_lora(x: Floats, adapted: Sequence[LoraRows], y: Floats) -> None:
    check("x", x, x.shape if x.ndim == 2 else (None, None))
    check("y", y, y.shape if y.ndim == 2 and len(y) == len(x) else (len(x), None))
    for begin, end, factors in adapted:
        down, up = factors.down, factors.up_transposed
        if not 0 <= begin <= end <= len(x):
            raise ValueError(f"adapted: expected rows within 0 to {len(x)}, got {begin} to {end}")
        if down.shape != (up.shape[0], x.shape[1]) or up.shape[1] != y.shape[1]:
            raise ValueError(
                f"adapted: expected factors [rank, {x.shape[1]}] and [rank, {y.shape[1]}], got {list(down.shape)} and "
                f"{list(up.shape)}"
            )
        if down.is_quantized or up.is_quantized:
            raise ValueError(f"adapted: expected factors of float types, got {down.dtype} and {up.dtype}")


def check_draw(logits: Floats, temperature: float, top_p: float, min_p: float, number: float) -> None:
    check("logits", logits, (len(logits),))
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
    if not 0 < top_p <= 1 or not 0 <= min_p < 1 or not 0 <= number < 1:
        raise ValueError(
            f"top_p, min_p and number: expected them in (0, 1], [0, 1) and [0, 1), got {top_p}, {min_p} and {number}"
        )


def check_rounding(w: Floats, factor: Floats, scales: Floats, lowest: int, highest: int) -> None:
    check("w", w, w.shape if w.ndim == 2 else (None, None))
    check("factor", factor, (w.shape[1], w.shape[1]))
    check("scales", scales, (len(w),))
    if not -128 <= lowest < highest <= 127:
        raise ValueError(f"lowest and highest: expected a range within -128 to 127, got {lowest} to {highest}")
