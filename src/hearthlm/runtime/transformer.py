"""The one network: a forward pass for every family, driven by its Architecture.

Rows of all sequences go through the matrices together; attention looks at each sequence's own cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.errors import SessionFileError
from hearthlm.kernels.cache_batch import CacheBatch
from hearthlm.models.params import Architecture, Llama3Scaling, Norm, Rope
from hearthlm.quantization import bfloat16_to_float32, float32_to_bfloat16
from hearthlm.runtime.executor import ForwardRequest, RowCost, Wanted
from hearthlm.runtime.kv_cache import BlockCache, CacheLayout, cache_layouts
from hearthlm.runtime.linear import Activations, AdaptedRows, Linear, Observer
from hearthlm.runtime.lora import LoraAdapter
from hearthlm.runtime.weights import LinearWeights, NormWeights, Weights, update_with_samples

ActivationDataType = Literal["int8", "float32"]
CacheDataType = Literal["float32", "float16", "int8"]

Rows = NDArray[np.float32]

MAX_RECORDED_ROWS = 16  # beyond it, calls from Python cost nothing beside what they compute

_MAX_LENGTH = 1 << 24  # tokens of a state that is loaded: windows keep so few that its arrays do not bound it


class TransformerState:
    """Hold the caches of one sequence, one for each group of layers, and the adapter that it goes through."""

    def __init__(self, layouts: Sequence[CacheLayout], adapter: LoraAdapter | None = None) -> None:
        self.length = 0
        self.adapter = adapter
        self._layouts = layouts
        self.caches = [BlockCache(layout) for layout in layouts]

    def truncate(self, length: int) -> int:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 to {self.length}, got {length}")
        if not all(cache.can_truncate(length) for cache in self.caches):
            length = 0
        for cache in self.caches:
            cache.truncate(length)
        self.length = length
        return length

    def fork(self) -> TransformerState:
        copy = TransformerState.__new__(TransformerState)
        copy.length = self.length
        copy.adapter = self.adapter
        copy._layouts = self._layouts
        copy.caches = [cache.fork() for cache in self.caches]
        return copy

    @classmethod
    def load(cls, layouts: Sequence[CacheLayout], length: int, arrays: Mapping[str, NDArray[Any]]) -> TransformerState:
        """Rebuild a state from what `save` returned; see `Executor.load_state`."""
        if not 0 <= length <= _MAX_LENGTH:
            raise SessionFileError(f"the saved state's length: expected 0 to {_MAX_LENGTH} tokens, got {length}")
        names = {layout.name for layout in layouts}
        if arrays.keys() != names:
            raise SessionFileError(
                f"the saved state: expected the arrays {', '.join(sorted(names))}, "
                f"got {', '.join(sorted(arrays))[:200] or 'none'}"
            )
        for layout in layouts:
            layout.check_saved(length, arrays[layout.name])
        state = cls(())
        state._layouts = layouts
        state.caches = [BlockCache.load(layout, length, arrays[layout.name]) for layout in layouts]
        state.length = length
        return state

    def save(self) -> dict[str, NDArray[Any]]:
        return {layout.name: cache.save(self.length) for layout, cache in zip(self._layouts, self.caches, strict=True)}

    def memory(self) -> dict[int, int]:
        blocks = (block for cache in self.caches for block in cache.blocks if block is not None)
        return {block.address: block.array.nbytes for block in blocks}

    def close(self) -> None:
        for cache in self.caches:
            cache.truncate(0)
        self.length = 0

    def __del__(self) -> None:  # what is shared must know that one owner is gone
        if hasattr(self, "caches"):
            self.close()

    @property
    def num_bytes(self) -> int:
        """Count the bytes of all blocks listed, shared ones included."""
        return sum(cache.num_bytes for cache in self.caches)


class RotaryTable:
    """Hold cosines and sines of one kind of rotary positions, float32 [positions, rotary_dim / 2], growing on demand.

    Angles are float32 products as transformers computes them, so that long texts agree.
    """

    def __init__(self, rope: Rope) -> None:
        exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / np.float32(rope.rotary_dim)
        frequencies = np.float32(1.0) / np.float32(rope.base) ** exponents / np.float32(rope.linear_factor)
        if rope.llama3 is not None:
            frequencies = _llama3_frequencies(frequencies, rope.llama3)
        self.frequencies: Rows = frequencies.astype(np.float32)  # radians a position, [rotary_dim / 2]
        self._cos: Rows = np.empty((0, exponents.size), np.float32)
        self._sin: Rows = self._cos

    def rows(self, positions: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Return (cos, sin), float32 [len(positions), rotary_dim / 2] each."""
        needed = int(positions.max(initial=-1)) + 1
        if needed > len(self._cos):
            angles = (
                np.arange(max(needed, 2 * len(self._cos), 256), dtype=np.float32)[:, None] * (self.frequencies[None, :])
            )
            self._cos, self._sin = np.cos(angles), np.sin(angles)
        return self._cos[positions], self._sin[positions]

    def copy_rows(self, positions: NDArray[np.int64], cos: Rows, sin: Rows) -> None:
        """Write into `cos` and `sin` what `rows` returns."""
        rows = positions.tolist()
        if max(rows) >= len(self._cos):
            self.rows(positions)
        for i, position in enumerate(rows):  # one by one: numpy's take would give the interpreter lock away
            cos[i] = self._cos[position]
            sin[i] = self._sin[position]


def _llama3_frequencies(frequencies: Rows, scaling: Llama3Scaling) -> Rows:
    """Stretch the long wavelengths; see Llama3Scaling."""
    turns = scaling.original_context_length * frequencies / np.float32(2 * np.pi)  # within the original context
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    share = np.clip((turns - low) / (high - low), 0.0, 1.0).astype(np.float32)  # of the unstretched frequency
    stretched: Rows = (1 - share) * frequencies / np.float32(scaling.factor) + share * frequencies
    return stretched


class AlibiTable:
    """Hold ALiBi's bias per head and key position, float32 [num_heads, positions], growing on demand.

    Slopes after https://arxiv.org/abs/2108.12409; the product of slope and position is rounded to bfloat16 and scaled
    with the scores, as transformers' Falcon does.
    """

    def __init__(self, num_heads: int, attention_scale: float) -> None:
        power = 1 << (num_heads.bit_length() - 1)  # the largest power of two up to num_heads
        slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
        slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(num_heads - power)]
        self._slopes = _rounded_to_bfloat16(np.array(slopes, dtype=np.float32))
        self._scale = np.float32(attention_scale)
        self._bias: Rows = np.empty((num_heads, 0), np.float32)

    def columns(self, num_positions: int) -> Rows:
        """Return float32 [num_heads, num_positions or more]."""
        if num_positions > self._bias.shape[1]:
            count = max(num_positions, 2 * self._bias.shape[1], 256)
            positions = _rounded_to_bfloat16(np.arange(count, dtype=np.float32))
            self._bias = _rounded_to_bfloat16(self._slopes[:, None] * positions[None, :]) * self._scale
        return self._bias


def _rounded_to_bfloat16(values: Rows) -> Rows:
    return bfloat16_to_float32(float32_to_bfloat16(values))


@dataclass(frozen=True)
class _Layer:
    """Bind one layer's weights to the kernels, with everything that a forward pass looks up."""

    group: int  # which cache
    index: int  # which layer of that cache
    window: int
    rope: RotaryTable | None
    attention_norm: NormWeights | None
    query: Linear
    key: Linear
    value: Linear
    query_norm: NormWeights | None
    key_norm: NormWeights | None
    output: Linear
    post_attention_norm: NormWeights | None
    feed_forward_norm: NormWeights | None
    gate: Linear | None
    up: Linear
    down: Linear
    post_feed_forward_norm: NormWeights | None


class TransformerExecutor:
    """Run one model's weights on this package's kernels.

    `activation_data_type` None means int8 where weights are quantised and float32 elsewhere; `kv_cache_dtype` None
    means float16 for quantised weights and float32 for float ones. `observe` is shown the inputs of every matrix.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        *,
        num_threads: int,
        activation_data_type: ActivationDataType | None = None,
        kv_cache_dtype: CacheDataType | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.architecture = architecture
        self._weights = weights
        self._pool = kernels.ThreadPool(num_threads)
        is_quantized = weights.layers[0].query.weight.is_quantized
        cache_dtype = kv_cache_dtype or ("float16" if is_quantized else "float32")
        float_activations = activation_data_type == "float32"
        self._quantizes_activations = False

        def linear(w: LinearWeights, role: str) -> Linear:
            self._quantizes_activations |= w.weight.is_quantized and not float_activations
            return Linear(w.weight, w.bias, self._pool, role=role, float_activations=float_activations, observe=observe)

        a = architecture
        self._layouts = cache_layouts(a, cache_dtype)
        windows = [layout.window or 0 for layout in self._layouts]
        self._tables = {layer.rope: RotaryTable(layer.rope) for layer in a.layers if layer.rope is not None}
        self._alibi = AlibiTable(a.num_heads, a.attention_scale) if a.alibi else None
        self._layers: list[_Layer] = []
        num_in_group = [0] * len(windows)
        for i, (layer, w) in enumerate(zip(a.layers, weights.layers, strict=True)):
            p = f"layers.{i}."
            group = windows.index(layer.window or 0)
            self._layers.append(
                _Layer(
                    group=group,
                    index=num_in_group[group],
                    window=layer.window or 0,
                    rope=self._tables[layer.rope] if layer.rope is not None else None,
                    attention_norm=w.attention_norm,
                    query=linear(w.query, f"{p}attention.query"),
                    key=linear(w.key, f"{p}attention.key"),
                    value=linear(w.value, f"{p}attention.value"),
                    query_norm=w.query_norm,
                    key_norm=w.key_norm,
                    output=linear(w.output, f"{p}attention.output"),
                    post_attention_norm=w.post_attention_norm,
                    feed_forward_norm=w.feed_forward_norm,
                    gate=linear(w.gate, f"{p}feed_forward.gate") if w.gate is not None else None,
                    up=linear(w.up, f"{p}feed_forward.up"),
                    down=linear(w.down, f"{p}feed_forward.down"),
                    post_feed_forward_norm=w.post_feed_forward_norm,
                )
            )
            num_in_group[group] += 1
        self._logits = linear(weights.logits, "logits")
        self._records = observe is None and kernels.record() is not None
        self._recorded: dict[tuple[int, bool], _RecordedStep] = {}  # by the number of rows, and whether any is adapted

    @property
    def vocab_size(self) -> int:
        return self.architecture.vocab_size

    @property
    def pool(self) -> kernels.ThreadPool:
        return self._pool

    @property
    def has_cheap_rows(self) -> bool:
        return True  # the weights are read once for all of them

    @property
    def row_cost(self) -> RowCost:
        layers = self._weights.layer_matrices()
        return RowCost(
            weight_bytes=sum(matrix.num_bytes for matrix in layers) + self._weights.logits.weight.num_bytes,
            num_layer_weights=sum(rows * columns for rows, columns in (matrix.shape for matrix in layers)),
            is_int8=self._quantizes_activations,
            cache_bytes=lambda position: sum(layout.read_bytes(position) for layout in self._layouts),
        )

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(b"hearthlm-state-1", digest_size=32)  # the number: what the arrays of a state mean
        settings = {
            "architecture": self.architecture.to_json(),
            "cache": str(self._layouts[0].dtype),
            "activations": "int8" if self._quantizes_activations else "float32",
        }
        digest.update(json.dumps(settings, sort_keys=True).encode())
        update_with_samples(digest, self._weights)
        return digest.hexdigest()

    def new_state(self, adapter: LoraAdapter | None = None) -> TransformerState:
        return TransformerState(self._layouts, adapter)

    def load_state(
        self, length: int, arrays: Mapping[str, NDArray[Any]], adapter: LoraAdapter | None = None
    ) -> TransformerState:
        state = TransformerState.load(self._layouts, length, arrays)
        state.adapter = adapter
        return state

    def chunk_length(self, state: TransformerState, num_ids: int, wanted: Wanted, budget: int) -> int:
        return min(num_ids, budget)

    def forward(self, requests: Sequence[ForwardRequest]) -> list[Rows | None]:
        a = self.architecture
        for request in requests:
            if not request.ids:
                raise ValueError("ids: expected at least one")
        ids = np.array([token for request in requests for token in request.ids], dtype=np.int32)
        if ids.min() < 0 or ids.max() >= a.vocab_size:
            raise ValueError(f"ids: expected 0 to {a.vocab_size - 1}, got {ids.min()} to {ids.max()}")
        step = _Step(requests, self._layouts)
        if len(ids) <= MAX_RECORDED_ROWS and step.can_repeat and self._records:
            hidden = self._hidden_by_repeating(ids, step)
        else:
            x = self._run_layers(self._embed(ids, step), step)
            if not len(x):
                return [None] * len(requests)
            hidden = self.normalize(x)
        x = step.select_for_logits(hidden)
        logits = x
        if len(x):
            logits = self._logits(Activations(x, self._pool))
            if a.final_soft_cap is not None:
                kernels.soft_cap(logits, a.final_soft_cap, self._pool)
        return step.split(hidden, logits)

    def embed(self, requests: Sequence[ForwardRequest]) -> Rows:
        """Return the rows before the first layer, [m, embedding_dim], of all ids of `requests`."""
        ids = np.array([token for request in requests for token in request.ids], dtype=np.int32)
        return self._embed(ids, _Step(requests, self._layouts))

    def _embed(self, ids: NDArray[np.int32], step: _Step) -> Rows:
        k = step.kernels
        x = k.embed_rows(ids, self._weights.embedding, self.architecture.embedding_scale)
        if self._weights.position_embedding is not None:
            k.add(x, k.embed_rows(step.position_ids, self._weights.position_embedding, 1.0), self._pool)
        return x

    def normalize(self, x: Rows, using: kernels.Kernels = kernels.chosen) -> Rows:
        """Return the rows that the logits are computed from, for rows x [m, embedding_dim] after the last layer."""
        return self._norm(x, self.architecture.final_norm, self._weights.final_norm, using)

    def _hidden_by_repeating(self, ids: NDArray[np.int32], step: _Step) -> Rows:
        """Return the rows that the logits are computed from, valid until the next call.

        The calls of kernels are the same for every step of as many rows: they are recorded once, and the next step of
        this kind changes their inputs and makes them all at once.
        """
        bias = None if self._alibi is None else self._alibi.columns(step.num_positions)
        kind = len(ids), bool(step.adapted)
        recorded = self._recorded.get(kind)
        if recorded is None or recorded.bias is not bias or recorded.adapted != step.adapted:
            recording = kernels.record()
            assert recording is not None  # `_records`
            step.kernels = recording.kernels
            rotations = {table: table.rows(step.positions) for table in self._tables.values()}
            x = self._run_layers(self._embed(ids, step), step, rotations)
            hidden = self.normalize(x, step.kernels)
            self._recorded[kind] = _RecordedStep(recording, ids, step, rotations, bias, hidden)
            return hidden
        recorded.repeat(ids, step, self._pool)
        return recorded.hidden

    def run_layers(self, x: Rows, requests: Sequence[ForwardRequest]) -> Rows:
        """Return the rows after the last layer, before the final norm, for rows x [m, embedding_dim] before the first.

        The ids of `requests` count, their values do not; all rows must be wanted.
        """
        return self._run_layers(x, _Step(requests, self._layouts))

    def _run_layers(self, x: Rows, step: _Step, rotations: dict[RotaryTable, tuple[Rows, Rows]] | None = None) -> Rows:
        if rotations is None:
            rotations = {table: table.rows(step.positions) for table in self._tables.values()}
        last = len(self._layers) - 1
        for i, layer in enumerate(self._layers):
            x = self._layer(layer, x, step, rotations, only_wanted=i == last)
            if not len(x):
                break
        step.finish()
        return x

    def _layer(
        self,
        layer: _Layer,
        x: Rows,
        step: _Step,
        rotations: dict[RotaryTable, tuple[Rows, Rows]],
        only_wanted: bool,
    ) -> Rows:
        """Return the rows after one layer; after the last one only those that are wanted."""
        a = self.architecture
        pool, k = self._pool, step.kernels
        adapted = step.adapted
        hidden = self._normalized(x, a.attention_norm, layer.attention_norm, adapted, k)
        is_cut = only_wanted and not step.all_wanted
        if is_cut:
            key, value = layer.key.with_others((layer.value,), hidden)
        else:
            query, key, value = layer.query.with_others((layer.key, layer.value), hidden)
        if layer.key_norm is not None:
            key = self._norm(key.reshape(-1, layer.key_norm.scale.size), a.query_key_norm, layer.key_norm, k)
        key = key.reshape(-1, a.num_kv_heads, a.head_dim)
        if layer.rope is not None:
            cos, sin = rotations[layer.rope]
            k.rope(key, cos, sin)
        k.kv_append(key, value.reshape(key.shape), step.batches[layer.group], layer.index)

        batch = step.batches[layer.group]
        if is_cut:
            rows = step.wanted_rows
            if not len(rows):
                return x[:0]
            x = x[rows]
            adapted = step.wanted_adapted
            hidden = self._normalized(x, a.attention_norm, layer.attention_norm, adapted, k)
            batch = step.wanted_batch(layer.group)
            if layer.rope is not None:
                cos, sin = cos[rows], sin[rows]
            query = layer.query(hidden)
        if layer.query_norm is not None:
            query = self._norm(query.reshape(-1, layer.query_norm.scale.size), a.query_key_norm, layer.query_norm, k)
        query = query.reshape(-1, a.num_heads, a.head_dim)
        if layer.rope is not None:
            k.rope(query, cos, sin)
        attended = k.attention(
            query,
            batch,
            layer.index,
            a.num_kv_heads,
            a.attention_scale,
            a.attention_soft_cap or 0.0,
            layer.window,
            None if self._alibi is None else self._alibi.columns(step.num_positions),
            pool,
        )
        attended = layer.output(Activations(attended.reshape(-1, a.query_dim), pool, adapted, k))
        if a.parallel_residual:
            if layer.post_attention_norm is not None:
                attended = self._norm(attended, a.post_attention_norm, layer.post_attention_norm, k)
            k.add(attended, self._feed_forward(layer, hidden), pool)
            k.add(attended, x, pool)
            return attended
        x = self._added(attended, a.post_attention_norm, layer.post_attention_norm, x, k)
        h = self._feed_forward(layer, self._normalized(x, a.feed_forward_norm, layer.feed_forward_norm, adapted, k))
        return self._added(h, a.post_feed_forward_norm, layer.post_feed_forward_norm, x, k)

    def _feed_forward(self, layer: _Layer, x: Activations) -> Rows:
        if layer.gate is None:
            h = layer.up(x)
            x.using.activation(h, self.architecture.activation, self._pool)
        else:
            h = layer.gate.gating(layer.up, x, self.architecture.activation)
        return layer.down(Activations(h, self._pool, x.adapted, x.using))

    def _norm(self, x: Rows, norm: Norm | None, weights: NormWeights, using: kernels.Kernels) -> Rows:
        assert norm is not None  # the weights exist because the architecture says so
        if norm.kind == "rms":
            return using.rms_norm(x, weights.scale, norm.eps, self._pool)
        return using.layer_norm(x, weights.scale, weights.bias, norm.eps, self._pool)

    def _normalized(
        self,
        x: Rows,
        norm: Norm | None,
        weights: NormWeights | None,
        adapted: Sequence[AdaptedRows],
        using: kernels.Kernels,
    ) -> Activations:
        """Return the rows that matrices read, of x before their norm, if there is one."""
        if weights is None or norm is None:
            return Activations(x, self._pool, adapted, using)
        if norm.kind == "rms":
            return Activations(x, self._pool, adapted, using, rms_norm=(weights.scale, norm.eps))
        return Activations(self._norm(x, norm, weights, using), self._pool, adapted, using)

    def _added(
        self, y: Rows, norm: Norm | None, weights: NormWeights | None, residual: Rows, using: kernels.Kernels
    ) -> Rows:
        """Return y, through its norm if there is one, plus the rows that went around it; y may be the result."""
        if weights is not None and norm is not None and norm.kind == "rms":
            return using.rms_norm_add(y, weights.scale, norm.eps, residual, self._pool)
        if weights is not None:
            y = self._norm(y, norm, weights, using)
        using.add(y, residual, self._pool)
        return y

    def close(self) -> None:
        self._pool.close()


class _RecordedStep:
    """Hold the recorded calls of a step, the arrays that they read, and the rows that come out."""

    def __init__(
        self,
        recording: kernels.Recording,
        ids: NDArray[np.int32],
        step: _Step,
        rotations: dict[RotaryTable, tuple[Rows, Rows]],
        bias: Rows | None,
        hidden: Rows,
    ) -> None:
        self.adapted = step.adapted  # also keeps the factors alive
        self.bias = bias
        self.hidden = hidden
        self._recording = recording
        self._ids = ids
        self._position_ids = step.position_ids
        self._rotations = rotations
        self._places = [recording.place_of(batch) for batch in step.batches]

    def repeat(self, ids: NDArray[np.int32], step: _Step, pool: kernels.ThreadPool) -> None:
        """Make the calls again for other rows, as many as were recorded."""
        self._ids[:] = ids
        self._position_ids[:] = step.position_ids
        for table, (cos, sin) in self._rotations.items():
            table.copy_rows(step.positions, cos, sin)
        for place, batch, layout in zip(self._places, step.batches, step.layouts, strict=True):
            self._recording.fill(place, batch, layout.window or 0)
        self._recording.repeat(pool)
        step.finish()


class _Step:
    """Lay out the rows of one forward call: which belong to which sequence, position and block."""

    def __init__(self, requests: Sequence[ForwardRequest], layouts: Sequence[CacheLayout]) -> None:
        self.kernels: kernels.Kernels = kernels.chosen
        self._requests = requests
        self.layouts = layouts
        lengths = [len(request.ids) for request in requests]
        starts = [request.state.length for request in requests]
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        for request, start, end in zip(requests, starts, ends, strict=True):
            for cache in request.state.caches:
                cache.reserve(start, end)
        positions = [position for start, end in zip(starts, ends, strict=True) for position in range(start, end)]
        self.positions = np.array(positions, dtype=np.int64)
        self.position_ids = self.positions.astype(np.int32)
        self.num_positions = max(ends)
        self._row_begin = [0, *accumulate(lengths)]
        self._num_wanted = [
            {"none": 0, "last": 1, "all": length, "hidden": length}[request.wanted]
            for request, length in zip(requests, lengths, strict=True)
        ]
        self.all_wanted = self._num_wanted == lengths
        self.adapted = self._adapted(lengths)
        self.wanted_adapted = self.adapted if self.all_wanted else self._adapted(self._num_wanted)
        self.batches = [self._batch(group, self._row_begin, starts) for group in range(len(layouts))]

    @property
    def wanted_rows(self) -> NDArray[np.intp]:
        """The indices of the rows that something is wanted of."""
        wanted = zip(self._row_begin[1:], self._num_wanted, strict=True)
        return np.array([row for end, n in wanted for row in range(end - n, end)], dtype=np.intp)

    @property
    def can_repeat(self) -> bool:
        """Whether the calls are those of every step of as many rows with the same adapters: all logits are wanted."""
        return self.all_wanted and not self._wants_hidden

    @property
    def _wants_hidden(self) -> bool:
        return any(request.wanted == "hidden" for request in self._requests)

    def _adapted(self, counts: Sequence[int]) -> list[AdaptedRows]:
        """Return the runs of rows, `counts` of them for each request, that go through an adapter."""
        runs: list[AdaptedRows] = []
        end = 0
        for request, count in zip(self._requests, counts, strict=True):
            begin, end = end, end + count
            adapter = request.state.adapter
            if adapter is None or not count:
                continue
            if runs and runs[-1].end == begin and runs[-1].adapter is adapter:
                begin = runs.pop().begin
            runs.append(AdaptedRows(begin, end, adapter))
        return runs

    def finish(self) -> None:
        """Note in every state that its rows have gone through all layers."""
        for request in self._requests:
            request.state.length += len(request.ids)
            for cache in request.state.caches:
                cache.drop_outside_window(request.state.length)

    def wanted_batch(self, group: int) -> CacheBatch:
        """Return the batch of the wanted rows."""
        wanted = zip(self._requests, self._num_wanted, strict=True)
        first = [request.state.length + len(request.ids) - n for request, n in wanted]
        return self._batch(group, [0, *accumulate(self._num_wanted)], first)

    def _batch(self, group: int, row_begin: Sequence[int], first: Sequence[int]) -> CacheBatch:
        return CacheBatch(row_begin, first, [request.state.caches[group].table for request in self._requests])

    def select_for_logits(self, hidden: Rows) -> Rows:
        """Return those of the wanted rows whose logits are wanted."""
        if not self._wants_hidden:
            return hidden
        is_for_logits = np.repeat([request.wanted != "hidden" for request in self._requests], self._num_wanted)
        return np.compress(is_for_logits, hidden, axis=0)

    def split(self, hidden: Rows, logits: Rows) -> list[Rows | None]:
        """Give each request its rows of `hidden` (all wanted rows) or of `logits` (those selected)."""
        results: list[Rows | None] = []
        begin = begin_logits = 0
        for request, n in zip(self._requests, self._num_wanted, strict=True):
            if request.wanted == "hidden":
                results.append(hidden[begin : begin + n])
            else:
                results.append(logits[begin_logits : begin_logits + n] if n else None)
                begin_logits += n
            begin += n
        return results
