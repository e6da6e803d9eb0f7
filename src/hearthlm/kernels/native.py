"""The compiled kernels behind the interface of `interface.Kernels`: checks arguments, allocates results, calls."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hearthlm.kernels import _native
from hearthlm.kernels.cache_batch import CACHE_DTYPES, CacheBatch
from hearthlm.kernels.checks import (
    FLOAT32,
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
from hearthlm.kernels.interface import Activation, Floats, LoraFactors, LoraRows, QuantizedRows
from hearthlm.kernels.thread_pool import ThreadPool
from hearthlm.quantization import WeightMatrix, WeightType

# In the order of the enums in kernels.h.
_WEIGHT_TYPES = {name: i for i, name in enumerate(get_args(WeightType))}
_ACTIVATIONS = {name: i for i, name in enumerate(get_args(Activation))}

instruction_sets = _native.instruction_sets


class NativeKernels:
    """Offer the kernels compiled for one instruction set."""

    def __init__(self, instruction_set: str, recording: NativeRecording | None = None) -> None:
        if instruction_set not in instruction_sets():
            raise ValueError(f"instruction_set: this CPU has {', '.join(instruction_sets())}; got {instruction_set!r}")
        self.instruction_set = instruction_set
        self._native = _native.Kernels(instruction_set, None if recording is None else recording.native)
        self._empty = np.empty if recording is None else recording.empty

    def record(self) -> NativeRecording:
        return NativeRecording(self.instruction_set)

    def quantize_rows(self, x: Floats, pool: ThreadPool) -> QuantizedRows:
        shape = x.shape
        check("x", x, shape if len(shape) == 2 else (None, None))
        rows = self._empty_rows(shape)
        self._native.quantize_rows(x, rows.values, rows.scales, rows.sums, pool.native)
        return rows

    def _empty_rows(self, shape: tuple[int, int]) -> QuantizedRows:
        return QuantizedRows(self._empty(shape, INT8), self._empty(shape[0], FLOAT32), self._empty(shape[0], INT32))

    def linear(self, x: Floats | QuantizedRows, weight: WeightMatrix, bias: Floats | None, pool: ThreadPool) -> Floats:
        if isinstance(x, QuantizedRows):
            return self.linear_each(x, ((weight, bias),), pool)[0]
        n, k = weight.shape
        if bias is not None:
            check("bias", bias, (n,))
        m = len(x)
        check("x", x, (m, k))
        y = self._empty((m, n), FLOAT32)
        matrix = (weight.data, _WEIGHT_TYPES[weight.dtype], n, k, weight.scales, weight.zero_points)
        self._native.linear_float(x, *matrix, bias, y, pool.native)
        return y

    def linear_each(
        self, x: QuantizedRows, linears: Sequence[tuple[WeightMatrix, Floats | None]], pool: ThreadPool
    ) -> list[Floats]:
        check_each(linears)
        weight = linears[0][0]
        k = weight.shape[1]
        m = _num_rows(x, k)
        results = [self._empty((m, w.shape[0]), FLOAT32) for w, _ in linears]
        arrays: list[Any] = [
            (w.data, w.scales, w.zero_points, bias, y) for (w, bias), y in zip(linears, results, strict=True)
        ]
        self._native.linear_int8(x.values, x.scales, x.sums, _WEIGHT_TYPES[weight.dtype], k, arrays, pool.native)
        return results

    def linear_gated(
        self,
        x: QuantizedRows,
        gate: WeightMatrix,
        gate_bias: Floats | None,
        up: WeightMatrix,
        up_bias: Floats | None,
        kind: Activation,
        pool: ThreadPool,
    ) -> Floats:
        check_gated(gate, gate_bias, up, up_bias)
        assert gate.scales is not None and up.scales is not None  # `check_gated`
        n, k = gate.shape
        m = _num_rows(x, k)
        y = self._empty((m, n), FLOAT32)
        self._native.linear_gated(
            x.values,
            x.scales,
            x.sums,
            _WEIGHT_TYPES[gate.dtype],
            k,
            (gate.data, gate.scales, gate.zero_points, gate_bias, y),
            *(up.data, up.scales, up.zero_points, up_bias),
            _activation_index(kind),
            pool.native,
        )
        return y

    def lora_add(self, x: Floats, adapted: Sequence[LoraRows], y: Floats, pool: ThreadPool) -> None:
        check_lora(x, adapted, y)
        self._native.lora_add(x, [(begin, end, _lora_view(factors)) for begin, end, factors in adapted], y, pool.native)

    def embed_rows(self, ids: NDArray[np.int32], weight: WeightMatrix, scale: float) -> Floats:
        n, k = weight.shape
        check("ids", ids, (len(ids),), INT32)
        if _native.first_id_outside(ids, n) >= 0:
            check_ids(ids, n)
        y = self._empty((len(ids), k), FLOAT32)
        matrix = (weight.data, _WEIGHT_TYPES[weight.dtype], n, k, weight.scales, weight.zero_points)
        self._native.embed_rows(ids, *matrix, scale, y)
        return y

    def rms_norm(self, x: Floats, weight: Floats, eps: float, pool: ThreadPool) -> Floats:
        shape = _norm_shape(x, weight)
        y = self._empty(shape, FLOAT32)
        self._native.rms_norm(x, weight, eps, y, pool.native)
        return y

    def rms_norm_add(self, x: Floats, weight: Floats, eps: float, residual: Floats, pool: ThreadPool) -> Floats:
        shape = _norm_shape(x, weight)
        check("residual", residual, shape)
        y = self._empty(shape, FLOAT32)
        self._native.rms_norm_add(x, weight, eps, residual, y, pool.native)
        return y

    def rms_norm_quantize(self, x: Floats, weight: Floats, eps: float, pool: ThreadPool) -> QuantizedRows:
        shape = _norm_shape(x, weight)
        rows = self._empty_rows(shape)
        self._native.rms_norm_quantize(x, weight, eps, rows.values, rows.scales, rows.sums, pool.native)
        return rows

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats | None, eps: float, pool: ThreadPool) -> Floats:
        shape = _norm_shape(x, weight)
        if bias is not None:
            check("bias", bias, shape[1:])
        y = self._empty(shape, FLOAT32)
        self._native.layer_norm(x, weight, bias, eps, y, pool.native)
        return y

    def rope(self, x: Floats, cos: Floats, sin: Floats) -> None:
        shape = x.shape
        check("x", x, shape if len(shape) == 3 else (None, None, None))
        r = cos.shape[-1]
        check("cos", cos, (shape[0], r))
        check("sin", sin, (shape[0], r))
        if 2 * r > shape[2]:
            raise ValueError(f"cos: expected at most {shape[2] // 2} columns for head_dim {shape[2]}, got {r}")
        self._native.rope(x, cos, sin)

    def gated_activation(self, gate: Floats, up: Floats, kind: Activation, pool: ThreadPool) -> None:
        shape = gate.shape
        check("gate", gate, shape if len(shape) == 2 else (None, None))
        check("up", up, shape)
        self._native.activation(gate, up, _activation_index(kind), pool.native)

    def activation(self, x: Floats, kind: Activation, pool: ThreadPool) -> None:
        check("x", x, x.shape)
        self._native.activation(x, None, _activation_index(kind), pool.native)

    def add(self, x: Floats, y: Floats, pool: ThreadPool) -> None:
        shape = x.shape
        check("x", x, shape)
        check("y", y, shape)
        self._native.add(x, y, pool.native)

    def soft_cap(self, x: Floats, cap: float, pool: ThreadPool) -> None:
        check("x", x, x.shape)
        if not cap > 0:
            raise ValueError(f"cap: expected more than 0, got {cap}")
        self._native.soft_cap(x, cap, pool.native)

    def kv_append(self, keys: Floats, values: Floats, batch: CacheBatch, layer: int) -> None:
        view, num_rows = _view(batch)
        shape = keys.shape
        check("keys", keys, shape if len(shape) == 3 and shape[0] == num_rows else (num_rows, None, None))
        check("values", values, shape)
        if not view.fits(layer, shape[1], shape[2]):
            check_block_shape(batch, layer, shape[1], shape[2])
        _check_complete(view, False, 0)
        self._native.kv_append(keys, values, view, layer)

    def attention(
        self,
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
        view, num_rows = _view(batch)
        shape = queries.shape
        check("queries", queries, shape if len(shape) == 3 and shape[0] == num_rows else (num_rows, None, None))
        check_attention(batch, shape[1], num_kv_heads, soft_cap, window, key_bias)
        if not view.fits(layer, num_kv_heads, shape[2]):
            check_block_shape(batch, layer, num_kv_heads, shape[2])
        _check_complete(view, True, window)
        y = self._empty(shape, FLOAT32)
        self._native.attention(queries, view, layer, scale, soft_cap, window, key_bias, y, pool.native)
        return y

    def top_k(self, logits: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
        check("logits", logits, (len(logits),))
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        k = min(k, len(logits))
        ids = np.empty(k, INT32)
        values = np.empty(k, FLOAT32)
        self._native.top_k(logits, ids, values)
        return ids, values

    def draw(self, logits: Floats, temperature: float, top_p: float, min_p: float, number: float) -> int:
        check_draw(logits, temperature, top_p, min_p, number)
        return self._native.draw(logits, temperature, top_p, min_p, number)

    def log_softmax_at(self, logits: Floats, ids: NDArray[np.int32], pool: ThreadPool) -> Floats:
        check("logits", logits, logits.shape if logits.ndim == 2 else (None, None))
        check("ids", ids, (len(logits),), INT32)
        if _native.first_id_outside(ids, logits.shape[1]) >= 0:
            check_ids(ids, logits.shape[1])
        y = np.empty(len(ids), FLOAT32)
        self._native.log_softmax_at(logits, ids, y, pool.native)
        return y

    def round_compensated(
        self, w: Floats, factor: Floats, scales: Floats, lowest: int, highest: int, pool: ThreadPool
    ) -> tuple[NDArray[np.int8], Floats]:
        check_rounding(w, factor, scales, lowest, highest)
        q = np.empty(w.shape, INT8)
        losses = np.empty(len(w), FLOAT32)
        self._native.round_compensated(w, factor, scales, lowest, highest, q, losses, pool.native)
        return q, losses


class _Place(NamedTuple):
    view: _native.CacheView
    num_rows: int
    block_shape: tuple[int, ...]
    dtype: np.dtype[Any]


class NativeRecording:
    """Note calls natively, and lend memory to their results; see `interface.Recording`."""

    def __init__(self, instruction_set: str) -> None:
        self.native = _native.Recording()
        self._chunks: list[NDArray[np.uint8]] = []
        self.kernels = NativeKernels(instruction_set, self)

    def empty(self, shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array in memory of the recording that no other array uses."""
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        for index in range(len(self._chunks)):
            # Views of views refer to the chunk itself: listed here and passed on, it has two references without them.
            if len(self._chunks[index]) >= num_bytes and sys.getrefcount(self._chunks[index]) == 2:
                break
        else:
            index = len(self._chunks)
            self._chunks.append(np.empty(-(-max(num_bytes, 1) // 4096) * 4096, np.uint8))
        return self._chunks[index][:num_bytes].view(dtype).reshape(shape)

    def place_of(self, batch: CacheBatch) -> _Place:
        return _Place(*_view(batch), batch.block_shape, batch.dtype)

    def fill(self, place: _Place, batch: CacheBatch, window: int) -> None:
        view, num_rows = _view(batch)
        if num_rows != place.num_rows or batch.block_shape != place.block_shape or batch.dtype != place.dtype:
            raise ValueError(
                f"batch: expected {place.num_rows} rows with {place.dtype} blocks {list(place.block_shape)}, got "
                f"{num_rows} with {batch.dtype} blocks {list(batch.block_shape)}"
            )
        _check_complete(view, True, window)
        place.view.rebind(view)

    def repeat(self, pool: ThreadPool) -> None:
        self.native.repeat(pool.native)


def _norm_shape(x: Floats, weight: Floats) -> tuple[int, int]:
    shape = (len(x), len(weight))
    check("x", x, shape)
    check("weight", weight, shape[1:])
    return shape


def _num_rows(x: QuantizedRows, k: int) -> int:
    m = len(x.values)
    check("x.values", x.values, (m, k), INT8)
    if x.scales.shape != (m,) or x.sums.shape != (m,):
        raise ValueError(f"x: expected {m} scales and sums, got {len(x.scales)} and {len(x.sums)}")
    return m


def _activation_index(kind: Activation) -> int:
    index = _ACTIVATIONS.get(kind)
    if index is None:
        raise ValueError(f"kind: expected one of {', '.join(_ACTIVATIONS)}, got {kind!r}")
    return index


def _view(batch: CacheBatch) -> tuple[_native.CacheView, int]:
    """Return the native view of a batch and its rows, made once: every layer of one forward call asks for it."""
    made: tuple[_native.CacheView, int] | None = batch.__dict__.get("native_view")
    if made is None:
        layers, _, kv_heads, _, _ = batch.block_shape or (0, 2, 0, 0, 0)
        view = _native.CacheView(
            batch.row_begin,
            batch.first_positions,
            batch.addresses,
            batch.block_begin,
            batch.block_size,
            layers,
            kv_heads,
            batch.head_dim,
            CACHE_DTYPES.index(batch.dtype),
        )
        made = batch.__dict__["native_view"] = (view, batch.num_rows)
    return made


def _lora_view(factors: LoraFactors) -> _native.LoraView:
    """Return the native view of an adapter's factors, made once."""
    made: _native.LoraView | None = factors.__dict__.get("native_view")
    if made is None:
        down, up = factors.down, factors.up_transposed
        types = _WEIGHT_TYPES[down.dtype], _WEIGHT_TYPES[up.dtype]
        view = _native.LoraView(down.data, types[0], up.data, types[1], *down.shape, up.shape[1], factors.scale)
        made = factors.__dict__["native_view"] = view
    return made


def _check_complete(view: _native.CacheView, reads: bool, window: int) -> None:
    sequence = view.first_incomplete_sequence(reads, window)
    if sequence >= 0:
        raise ValueError(f"a block of sequence {sequence} was dropped, but is needed")
