"""The one network once more, in LiteRT's operators: what runtime/transformer.py computes, for every family.

Signatures, names and shapes are those that LiteRT-LM drives: tokens int32 [1, T], input_pos int32 [T], mask float32
[1, 1, T, S] (0 where a position is seen, far below 0 elsewhere), and keys and values of every layer in and out. The
runtime fills a last prefill up with token 0 at position 0; those rows are overwritten before any mask shows them. Every
operator that is run for each layer is one that XNNPACK delegates, but for the update of the caches.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np

from hearthlm.formats.litert_graph import Graph, Tensor, Weight
from hearthlm.models.params import Architecture, Layer, Norm, Rope
from hearthlm.runtime.transformer import AlibiTable, RotaryTable

KvLayout = Literal["transposed", "default"]

_BLOCKED = float(np.float32(-0.7) * np.finfo(np.float32).max)  # what runtimes write into a mask, too


class NetworkWeights(Protocol):
    """Give out the weights of a network by their roles, each as one and the same object whenever it is asked for."""

    def matrix(self, *roles: str) -> Weight:
        """Return matrices [out, in] that lie one below the other."""

    def vector(self, *roles: str, offset: float = 0.0, shape: tuple[int, ...] | None = None) -> Weight:
        """Return vectors one after the other, a number added to all, as float32 of `shape`."""


def build_graph(
    name: str,
    num_tokens: int,
    architecture: Architecture,
    weights: NetworkWeights,
    *,
    cache_length: int,
    kv_layout: KvLayout,
    with_logits: bool,
) -> Graph:
    """Return the graph of the signature `name`, which takes `num_tokens` tokens.

    `cache_length` is S, how many tokens the caches hold. Their layout is "transposed", keys [1, heads, S, size] and
    values [1, heads, size, S], which multiply as they lie; or "default", both [1, S, heads, size]. The output `logits`,
    float32 [1, T, vocabulary], is there only `with_logits`; without, nothing after the last layer's keys and values is
    computed.
    """
    if kv_layout not in get_args(KvLayout):
        raise ValueError(f"kv_layout: expected one of {', '.join(get_args(KvLayout))}, got {kv_layout!r}")
    return _Network(name, num_tokens, architecture, weights, cache_length, kv_layout).build(with_logits)


class _Network:
    def __init__(
        self,
        name: str,
        num_tokens: int,
        architecture: Architecture,
        weights: NetworkWeights,
        cache_length: int,
        kv_layout: KvLayout,
    ) -> None:
        self._a = a = architecture
        self._weights = weights
        self._num_tokens = num_tokens
        self._cache_length = cache_length
        self._is_transposed = kv_layout == "transposed"
        self._graph = g = Graph(name)
        self._tokens = g.input("tokens", "INT32", (1, num_tokens))
        self._positions = g.input("input_pos", "INT32", (num_tokens,))
        default = (1, cache_length, a.num_kv_heads, a.head_dim)
        key_shape = (1, a.num_kv_heads, cache_length, a.head_dim) if self._is_transposed else default
        value_shape = (1, a.num_kv_heads, a.head_dim, cache_length) if self._is_transposed else default
        self._keys = [g.input(f"kv_cache_k_{i}", "FLOAT32", key_shape) for i in range(a.num_layers)]
        self._values = [g.input(f"kv_cache_v_{i}", "FLOAT32", value_shape) for i in range(a.num_layers)]
        self._mask = g.input("mask", "FLOAT32", (1, 1, num_tokens, cache_length))

    def build(self, with_logits: bool) -> Graph:
        a, g = self._a, self._graph
        x = self._embed()
        rotations = {rope: self._rotation(rope) for rope in dict.fromkeys(layer.rope for layer in a.layers) if rope}
        masks = {window: self._window_mask(window) for window in dict.fromkeys(layer.window for layer in a.layers)}
        begins = {axis: self._begin(axis) for axis in ((2, 3) if self._is_transposed else (1,))}
        for i, layer in enumerate(a.layers):
            h = self._norm(x, a.attention_norm, f"layers.{i}.attention_norm")
            query, key, value = self._project(i, layer, h, rotations)
            key_axis, value_axis = (2, 3) if self._is_transposed else (1, 1)
            key = g.update(self._keys[i], key, begins[key_axis])
            value = g.update(self._values[i], value, begins[value_axis])
            g.output(f"kv_cache_k_{i}", key)
            g.output(f"kv_cache_v_{i}", value)
            if i == a.num_layers - 1 and not with_logits:
                return g
            attended = self._attend(i, query, key, value, masks[layer.window])
            attended = self._norm(attended, a.post_attention_norm, f"layers.{i}.post_attention_norm")
            if a.parallel_residual:
                x = g.add(g.add(attended, self._feed_forward(i, h)), x)
                continue
            x = g.add(attended, x)
            h = self._norm(x, a.feed_forward_norm, f"layers.{i}.feed_forward_norm")
            h = self._norm(self._feed_forward(i, h), a.post_feed_forward_norm, f"layers.{i}.post_feed_forward_norm")
            x = g.add(h, x)
        x = self._norm(x, a.final_norm, "final_norm")
        logits = self._linear(x, ("embedding" if a.tied_embedding else "logits",), a.logits_bias)
        if a.final_soft_cap is not None:
            logits = self._soft_cap(logits, a.final_soft_cap)
        g.output("logits", logits)
        return g

    def _embed(self) -> Tensor:
        """Return the rows before the first layer, [1, T, embedding_dim]."""
        a, g, t = self._a, self._graph, self._num_tokens
        x = g.lookup(g.reshape(self._tokens, (t,)), g.weight(self._weights.matrix("embedding")))
        if a.embedding_scale != 1.0:
            x = g.mul(x, g.floats(a.embedding_scale))
        if a.learned_positions:
            x = g.add(x, g.lookup(self._positions, g.weight(self._weights.matrix("position_embedding"))))
        return g.reshape(x, (1, t, a.embedding_dim))

    def _rotation(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines [1, T, 1, head_dim]: x * cos + halves of x swapped * sin is x turned.

        Channels beyond rotary_dim have the angle 0: they stay.
        """
        g, rest = self._graph, self._a.head_dim - rope.rotary_dim
        frequencies = RotaryTable(rope).frequencies
        unturned = np.zeros(rest, np.float32)
        cosines = np.concatenate([frequencies, frequencies, unturned]).reshape(1, 1, 1, -1)
        sines = np.concatenate([-frequencies, frequencies, unturned]).reshape(1, 1, 1, -1)
        positions = g.to_float(g.reshape(self._positions, (1, self._num_tokens, 1, 1)))
        return g.cos(g.mul(positions, g.floats(cosines))), g.sin(g.mul(positions, g.floats(sines)))

    def _window_mask(self, window: int | None) -> Tensor:
        """Return the mask of layers that see only the last `window` positions, the own one included."""
        if window is None or window >= self._cache_length:
            return self._mask
        g = self._graph
        positions = g.reshape(self._positions, (1, 1, self._num_tokens, 1))
        last_hidden = g.sub(positions, g.integers([window]))
        key_positions = g.integers(np.arange(self._cache_length, dtype=np.int32).reshape(1, 1, 1, -1))
        is_seen = g.greater(key_positions, last_hidden)
        return g.minimum(self._mask, g.select(is_seen, g.floats(0.0), g.floats(_BLOCKED)))

    def _begin(self, axis: int) -> Tensor:
        """Return where the new rows begin in a cache whose tokens are counted by `axis`: int32 [4]."""
        g = self._graph
        first = g.slice(self._positions, 0, 0, 1)
        zeros = (g.integers([0] * n) for n in (axis, 3 - axis) if n)
        before = next(zeros)
        return g.concatenate([before, first, *zeros], 0)

    def _project(
        self, i: int, layer: Layer, h: Tensor, rotations: dict[Rope, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [1, heads, T, size], and keys and values as they lie in the cache."""
        a, g, t = self._a, self._graph, self._num_tokens
        p = f"layers.{i}.attention."
        joined = self._linear(h, (f"{p}query", f"{p}key", f"{p}value"), a.qkv_bias)
        num_heads = a.num_heads + a.num_kv_heads
        turned = g.slice(joined, 2, 0, num_heads * a.head_dim)
        norm = a.query_key_norm
        if norm is not None and a.query_key_norm_axis == "projection":
            query = self._norm(g.slice(turned, 2, 0, a.query_dim), norm, f"{p}query_norm")
            key = self._norm(g.slice(turned, 2, a.query_dim, a.query_dim + a.kv_dim), norm, f"{p}key_norm")
            turned = g.concatenate([query, key], 2)
        turned = g.reshape(turned, (1, t, num_heads, a.head_dim))
        if norm is not None and a.query_key_norm_axis == "head":
            roles = [f"{p}query_norm"] * a.num_heads + [f"{p}key_norm"] * a.num_kv_heads
            turned = self._norm(turned, norm, *roles)
        if layer.rope is not None:
            turned = self._turn(turned, layer.rope, rotations[layer.rope])
        query = g.mul(g.slice(turned, 2, 0, a.num_heads), g.floats(a.attention_scale))
        key = g.slice(turned, 2, a.num_heads, num_heads)
        value = g.slice(joined, 2, a.query_dim + a.kv_dim, a.query_dim + 2 * a.kv_dim)
        value = g.reshape(value, (1, t, a.num_kv_heads, a.head_dim))
        if self._is_transposed:
            key, value = g.transpose(key, (0, 2, 1, 3)), g.transpose(value, (0, 2, 3, 1))
        return g.transpose(query, (0, 2, 1, 3)), key, value

    def _turn(self, x: Tensor, rope: Rope, rotation: tuple[Tensor, Tensor]) -> Tensor:
        g, half = self._graph, rope.rotary_dim // 2
        parts = [g.slice(x, 3, half, 2 * half), g.slice(x, 3, 0, half)]
        if 2 * half < x.shape[3]:
            parts.append(g.slice(x, 3, 2 * half, x.shape[3]))
        cosines, sines = rotation
        return g.add(g.mul(x, cosines), g.mul(g.concatenate(parts, 3), sines))

    def _attend(self, i: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Return what the heads see, multiplied by the output matrix: [1, T, embedding_dim]."""
        a, g, t, s = self._a, self._graph, self._num_tokens, self._cache_length
        if not self._is_transposed:
            key, value = g.transpose(key, (0, 2, 1, 3)), g.transpose(value, (0, 2, 1, 3))
        # The queries of all heads that share keys are rows of one product.
        per_group = a.num_heads // a.num_kv_heads
        grouped = (1, a.num_kv_heads, per_group * t, s)
        by_head = grouped if t == 1 else (1, a.num_heads, t, s)
        query = g.reshape(query, (*grouped[:3], a.head_dim))
        scores = g.reshape(g.matmul(query, key, transposed=True), by_head)
        if a.attention_soft_cap is not None:
            scores = self._soft_cap(scores, a.attention_soft_cap)
        if a.alibi:
            bias = AlibiTable(a.num_heads, a.attention_scale).columns(s)[:, :s]
            scores = g.add(scores, g.floats(bias.reshape(grouped if t == 1 else (1, a.num_heads, 1, s))))
        shares = g.reshape(g.softmax(g.add(scores, mask)), grouped)
        attended = g.reshape(g.matmul(shares, value, transposed=self._is_transposed), (1, a.num_heads, t, a.head_dim))
        attended = g.reshape(g.transpose(attended, (0, 2, 1, 3)), (1, t, a.query_dim))
        return self._linear(attended, (f"layers.{i}.attention.output",), a.attention_output_bias)

    def _feed_forward(self, i: int, h: Tensor) -> Tensor:
        a, g = self._a, self._graph
        p = f"layers.{i}.feed_forward."
        if a.gated:
            gate = self._activation(self._linear(h, (f"{p}gate",), a.feed_forward_bias))
            h = g.mul(gate, self._linear(h, (f"{p}up",), a.feed_forward_bias))
        else:
            h = self._activation(self._linear(h, (f"{p}up",), a.feed_forward_bias))
        return self._linear(h, (f"{p}down",), a.feed_forward_bias)

    def _activation(self, x: Tensor) -> Tensor:
        g, kind = self._graph, self._a.activation
        if kind == "silu":
            return g.mul(x, g.sigmoid(x))
        if kind == "relu":
            return g.relu(x)
        return g.gelu(x, approximate=kind == "gelu_tanh")

    def _linear(self, x: Tensor, roles: tuple[str, ...], has_bias: bool) -> Tensor:
        g = self._graph
        bias = g.weight(self._weights.vector(*(f"{role}.bias" for role in roles))) if has_bias else None
        return g.fully_connected(x, g.weight(self._weights.matrix(*roles)), bias)

    def _norm(self, x: Tensor, norm: Norm | None, *roles: str) -> Tensor:
        """Return `x` normalised over its last axis; several roles are those of its rows one after the other."""
        if norm is None:
            return x
        g, shape = self._graph, (len(roles), x.shape[-1]) if len(roles) > 1 else (x.shape[-1],)
        if norm.kind == "layer":
            x = g.sub(x, g.mean(x))
        inverse = g.rsqrt(g.add(g.mean(g.mul(x, x)), g.floats(norm.eps)))
        scales = (f"{role}.scale" for role in roles)
        x = g.mul(g.mul(x, inverse), g.weight(self._weights.vector(*scales, offset=norm.scale_offset, shape=shape)))
        if norm.has_bias:
            x = g.add(x, g.weight(self._weights.vector(*(f"{role}.bias" for role in roles), shape=shape)))
        return x

    def _soft_cap(self, x: Tensor, cap: float) -> Tensor:
        g = self._graph
        return g.mul(g.tanh(g.mul(x, g.floats(1.0 / cap))), g.floats(cap))
