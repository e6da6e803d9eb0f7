"""Every kernel in plain NumPy: what the native ones are compared with, and what runs where they are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hearthlm.kernels.cache_batch import SCALE_BYTES, CacheBatch
from hearthlm.kernels.checks import (
    INT8,
    INT32,
    check,
    check_attention,
    check_block_shape,
    check_draw,
    check_each,
    check_gated,
    check_ids,
    check_lora,
    check_rounding,
)
from hearthlm.kernels.interface import Activation, Floats, LoraRows, QuantizedRows
from hearthlm.kernels.thread_pool import ThreadPool
from hearthlm.quantization import WeightMatrix, dequantize, unpack_int4

instruction_set = "reference"

_erf = np.frompyfunc(math.erf, 1, 1)


def record() -> None:
    return None  # each call makes its result anew


def quantize_rows(x: Floats, pool: ThreadPool) -> QuantizedRows:
    check("x", x, (None, None))
    return _quantized(x)


def _quantized(x: Floats) -> QuantizedRows:
    bound = np.max(np.abs(x), axis=1, initial=0.0)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(127) / bound
    inverse[np.isinf(inverse)] = 0
    scales = np.where(inverse == 0, np.float32(0), bound / np.float32(127))
    values = np.rint(x * inverse[:, None]).astype(np.int8)
    return QuantizedRows(values, scales, values.sum(axis=1, dtype=np.int32))


def linear(x: Floats | QuantizedRows, weight: WeightMatrix, bias: Floats | None, pool: ThreadPool) -> Floats:
    rows, columns = weight.shape
    if bias is not None:
        check("bias", bias, (rows,))
    if isinstance(x, QuantizedRows):
        y = _linear_int8(x, weight)
    else:
        check("x", x, (None, columns))
        w = dequantize(weight)
        y = np.empty((len(x), rows), dtype=np.float32)
        for i, row in enumerate(x):  # one by one: the order of a sum in BLAS depends on the number of rows
            y[i] = w @ row
    if bias is not None:
        y += bias
    return y


def _linear_int8(x: QuantizedRows, weight: WeightMatrix) -> Floats:
    if weight.scales is None:
        raise ValueError(f"weight: expected int8 or int4 for quantised rows, got {weight.dtype}")
    check("x.values", x.values, (None, weight.shape[1]), INT8)
    q = weight.data if weight.dtype == "int8" else unpack_int4(weight.data, weight.shape[1])
    # Exact in any order: every partial sum is an integer far below 2^53.
    acc = x.values.astype(np.float64) @ q.astype(np.float64).T
    if weight.zero_points is not None:
        acc -= x.sums.astype(np.float64)[:, None] * weight.zero_points.astype(np.float64)
    return acc.astype(np.float32) * (x.scales[:, None] * weight.scales)


def linear_each(
    x: QuantizedRows, linears: Sequence[tuple[WeightMatrix, Floats | None]], pool: ThreadPool
) -> list[Floats]:
    check_each(linears)
    return [linear(x, weight, bias, pool) for weight, bias in linears]


def linear_gated(
    x: QuantizedRows,
    gate: WeightMatrix,
    gate_bias: Floats | None,
    up: WeightMatrix,
    up_bias: Floats | None,
    kind: Activation,
    pool: ThreadPool,
) -> Floats:
    check_gated(gate, gate_bias, up, up_bias)
    y = linear(x, gate, gate_bias, pool)
    gated_activation(y, linear(x, up, up_bias, pool), kind, pool)
    return y


def lora_add(x: Floats, adapted: Sequence[LoraRows], y: Floats, pool: ThreadPool) -> None:
    check_lora(x, adapted, y)
    for begin, end, factors in adapted:
        down, up = dequantize(factors.down), dequantize(factors.up_transposed)
        for i in range(begin, end):  # one by one, as in `linear`
            y[i] += (down @ x[i] * np.float32(factors.scale)) @ up


def embed_rows(ids: NDArray[np.int32], weight: WeightMatrix, scale: float) -> Floats:
    check("ids", ids, (None,), INT32)
    check_ids(ids, weight.shape[0])
    return dequantize(weight, ids) * np.float32(scale)


def rms_norm(x: Floats, weight: Floats, eps: float, pool: ThreadPool) -> Floats:
    check("x", x, (None, None))
    check("weight", weight, (x.shape[1],))
    mean = np.mean(np.square(x), axis=1, dtype=np.float32, keepdims=True)
    inverse: Floats = (1 / np.sqrt(mean + np.float32(eps))).astype(np.float32)
    return x * inverse * weight


def rms_norm_add(x: Floats, weight: Floats, eps: float, residual: Floats, pool: ThreadPool) -> Floats:
    y = rms_norm(x, weight, eps, pool)
    check("residual", residual, y.shape)
    y += residual
    return y


def rms_norm_quantize(x: Floats, weight: Floats, eps: float, pool: ThreadPool) -> QuantizedRows:
    return quantize_rows(rms_norm(x, weight, eps, pool), pool)


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, eps: float, pool: ThreadPool) -> Floats:
    check("x", x, (None, None))
    check("weight", weight, (x.shape[1],))
    centred = x - np.mean(x, axis=1, dtype=np.float32, keepdims=True)
    variance = np.mean(np.square(centred), axis=1, dtype=np.float32, keepdims=True)
    inverse: Floats = (1 / np.sqrt(variance + np.float32(eps))).astype(np.float32)
    y = centred * inverse * weight
    if bias is not None:
        check("bias", bias, (x.shape[1],))
        y += bias
    return y


def rope(x: Floats, cos: Floats, sin: Floats) -> None:
    check("x", x, (None, None, None))
    r = cos.shape[-1]
    check("cos", cos, (x.shape[0], r))
    check("sin", sin, (x.shape[0], r))
    if 2 * r > x.shape[2]:
        raise ValueError(f"cos: expected at most {x.shape[2] // 2} columns for head_dim {x.shape[2]}, got {r}")
    first, second = x[..., :r].copy(), x[..., r : 2 * r].copy()
    cos, sin = cos[:, None], sin[:, None]
    x[..., :r] = first * cos - second * sin
    x[..., r : 2 * r] = second * cos + first * sin


def gated_activation(gate: Floats, up: Floats, kind: Activation, pool: ThreadPool) -> None:
    check("gate", gate, (None, None))
    check("up", up, gate.shape)
    activation(gate, kind, pool)
    gate *= up


def activation(x: Floats, kind: Activation, pool: ThreadPool) -> None:
    check("x", x, (None,) * x.ndim)
    if kind == "gelu_tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        x *= np.float32(0.5) * (1 + np.tanh(inner))
    elif kind == "gelu":
        x *= np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5))).astype(np.float32))
    elif kind == "silu":
        with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit
            x /= 1 + np.exp(-x)
    elif kind == "relu":
        np.maximum(x, 0, out=x)
    else:
        raise ValueError(f"kind: expected one of {', '.join(get_args(Activation))}, got {kind!r}")


def add(x: Floats, y: Floats, pool: ThreadPool) -> None:
    check("x", x, x.shape)
    check("y", y, x.shape)
    x += y


def soft_cap(x: Floats, cap: float, pool: ThreadPool) -> None:
    check("x", x, (None,) * x.ndim)
    if not cap > 0:
        raise ValueError(f"cap: expected more than 0, got {cap}")
    x[...] = np.tanh(x / np.float32(cap)) * np.float32(cap)


def kv_append(keys: Floats, values: Floats, batch: CacheBatch, layer: int) -> None:
    check("keys", keys, (batch.num_rows, None, None))
    check("values", values, keys.shape)
    check_block_shape(batch, layer, keys.shape[1], keys.shape[2])
    for i in range(len(batch.first_positions)):
        table = batch.tables[i].blocks
        for row in range(batch.row_begin[i], batch.row_begin[i + 1]):
            position = int(batch.first_positions[i] + row - batch.row_begin[i])
            block = _present(table, position // batch.block_size, i)
            for which, rows in enumerate((keys[row], values[row])):
                block[layer, which, :, position % batch.block_size] = _stored(rows, batch.dtype)


def attention(
    queries: Floats,
    batch: CacheBatch,
    layer: int,
    num_kv_heads: int,
    scale: float,
    soft_cap: float,
    window: int,
    key_bias: Floats | None,
    pool: ThreadPool,
) -> Floats:
    check("queries", queries, (batch.num_rows, None, None))
    num_heads, head_dim = queries.shape[1:]
    check_attention(batch, num_heads, num_kv_heads, soft_cap, window, key_bias)
    check_block_shape(batch, layer, num_kv_heads, head_dim)
    kv_heads = np.arange(num_heads) // (num_heads // num_kv_heads)
    y = np.empty_like(queries)
    for i in range(len(batch.first_positions)):
        table = batch.tables[i].blocks
        for row in range(batch.row_begin[i], batch.row_begin[i + 1]):
            last = int(batch.first_positions[i] + row - batch.row_begin[i])
            first = max(0, last - window + 1) if window else 0
            k, v = _keys_and_values(table, first, last, batch.block_size, layer, i)  # [kv_heads, keys, head_dim]
            scores = np.einsum("hc,hjc->hj", queries[row], k[kv_heads]) * np.float32(scale)
            if soft_cap:
                scores = np.tanh(scores / np.float32(soft_cap)) * np.float32(soft_cap)
            if key_bias is not None:
                scores = scores + key_bias[:, first : last + 1]
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            y[row] = np.einsum("hj,hjc->hc", weights, v[kv_heads])
    return y


def top_k(logits: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
    check("logits", logits, (None,))
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    values = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    ids = np.argsort(-values, kind="stable")[:k].astype(np.int32)
    return ids, values[ids]


def draw(logits: Floats, temperature: float, top_p: float, min_p: float, number: float) -> int:
    check_draw(logits, temperature, top_p, min_p, number)
    highest = float(np.fmax.reduce(logits, initial=-np.inf))
    if not math.isfinite(highest):
        return -1
    with np.errstate(over="ignore", invalid="ignore"):
        weights = _exp((logits.astype(np.float64) - highest) / temperature)
    if top_p == 1:
        weights[weights < min_p] = 0
        sums = _block_sums(weights)
        wanted = number * sum(sums)
        block, before = _pick(sums, wanted, 0.0)
        begin = block * _DRAW_BLOCK
        return begin + _pick(weights[begin : begin + _DRAW_BLOCK].tolist(), wanted, before)[0]
    total = sum(_block_sums(weights))
    order = np.argsort(-logits[logits > -np.inf], kind="stable")
    ids = np.flatnonzero(logits > -np.inf)[order]
    kept: list[float] = []
    reached = 0.0
    for weight in weights[ids].tolist():
        if weight < min_p or reached >= top_p * total:
            break
        kept.append(weight)
        reached += weight
    return int(ids[_pick(kept, number * reached, 0.0)[0]])


_DRAW_BLOCK = 4096


def _exp(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return e^v for v <= 0, step by step as in sampling.cc; 0 below -708 and for NaN."""
    clamped = np.where(v >= -708, v, -708.0)
    n = np.rint(clamped * 1.4426950408889634)
    r = (clamped - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    p = r * (1 / math.factorial(13)) + 1 / math.factorial(12)
    for power in range(11, -1, -1):
        p = p * r + 1 / math.factorial(power)
    result: NDArray[np.float64] = np.where(v >= -708, np.ldexp(p, n.astype(np.int64)), 0.0)
    return result


def _block_sums(weights: NDArray[np.float64]) -> list[float]:
    blocks = -(-len(weights) // _DRAW_BLOCK)
    padded = np.zeros((blocks, _DRAW_BLOCK // 8, 8))
    padded.reshape(-1)[: len(weights)] = weights
    lanes = np.zeros((blocks, 8))
    for step in range(padded.shape[1]):
        lanes += padded[:, step]
    for half in (4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    sums: list[float] = lanes[:, 0].tolist()
    return sums


def _pick(weights: list[float], wanted: float, reached: float) -> tuple[int, float]:
    """Return the first index with which `reached` exceeds `wanted`, or the last of weight; and the sum before it."""
    chosen, before = 0, reached
    for index, weight in enumerate(weights):
        if reached > wanted:
            break
        if weight > 0:
            chosen, before = index, reached
        reached += weight
    return chosen, before


def log_softmax_at(logits: Floats, ids: NDArray[np.int32], pool: ThreadPool) -> Floats:
    check("logits", logits, (None, None))
    check("ids", ids, (len(logits),), INT32)
    check_ids(ids, logits.shape[1])
    highest = logits.max(axis=1)
    total = np.sum(np.exp(logits - highest[:, None]), axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(ids)), ids]
    log_probability: Floats = (chosen - highest - np.log(total)).astype(np.float32)
    return log_probability


def _stored(rows: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return rows [kv_heads, head_dim] as they lie in a block."""
    if dtype == np.int8:
        quantized = _quantized(rows)
        return np.concatenate([quantized.values, quantized.scales[:, None].view(np.int8)], axis=1)
    with np.errstate(over="ignore"):  # beyond float16 is infinity, as in hardware
        return rows.astype(dtype)


def _widened(rows: NDArray[Any]) -> Floats:
    """Return what the rows [..., head_dim] of blocks stand for."""
    if rows.dtype == np.int8:
        scales = np.ascontiguousarray(rows[..., -SCALE_BYTES:]).view(np.float32)
        return rows[..., :-SCALE_BYTES] * scales
    return rows.astype(np.float32)


def _keys_and_values(
    table: tuple[NDArray[Any] | None, ...], first: int, last: int, block_size: int, layer: int, sequence: int
) -> tuple[Floats, Floats]:
    first_block = first // block_size
    blocks = [_present(table, b, sequence)[layer] for b in range(first_block, last // block_size + 1)]
    both = np.concatenate(blocks, axis=2)[:, :, first - first_block * block_size : last + 1 - first_block * block_size]
    return _widened(both[0]), _widened(both[1])


def _present(table: tuple[NDArray[Any] | None, ...], index: int, sequence: int) -> NDArray[Any]:
    block = table[index]
    if block is None:
        raise ValueError(f"block {index} of sequence {sequence} was dropped, but is needed")
    return block


def round_compensated(
    w: Floats, factor: Floats, scales: Floats, lowest: int, highest: int, pool: ThreadPool
) -> tuple[NDArray[np.int8], Floats]:
    check_rounding(w, factor, scales, lowest, highest)
    left = w.T.copy()  # one column of w is one row
    q = np.empty(left.shape, INT8)
    losses = np.zeros(len(w), np.float32)
    for j, column in enumerate(left):
        rounded = np.rint(np.clip(column / scales, lowest, highest))
        q[j] = rounded
        error = (column - rounded * scales) / factor[j, j]
        losses += error * error
        left[j + 1 :] -= factor[j, j + 1 :, None] * error
    return np.ascontiguousarray(q.T), losses
