"""What every set of kernels offers: shapes, types and meaning, in one place.

Held by both implementations: bit for bit the same result whatever the number of rows in a call, the threads, the other
sequences in a batch, or the chunks in which a prompt arrived. Arrays are C-contiguous; an array of another type or
shape raises ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hearthlm.kernels.cache_batch import CacheBatch
from hearthlm.kernels.thread_pool import ThreadPool
from hearthlm.quantization import WeightMatrix

Activation = Literal["gelu_tanh", "gelu", "silu", "relu"]
Floats = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class QuantizedRows:
    """Hold rows quantised to 8 bits: x = values * scales, symmetric, one scale per row."""

    values: NDArray[np.int8]  # [m, k], in [-127, 127]
    scales: Floats  # [m]
    sums: NDArray[np.int32]  # [m], of the int8 values


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """Hold what an adapter adds to one matrix [n, k]: scale * (x A^T) B^T, of any rank, the factors of a float type."""

    down: WeightMatrix  # A [rank, k]
    up_transposed: WeightMatrix  # B^T [rank, n]
    scale: float


class LoraRows(NamedTuple):
    """Say that the rows begin to end - 1 of a call go through an adapter."""

    begin: int
    end: int
    factors: LoraFactors


class Recording(Protocol):
    """Calls of kernels on arrays that stay where they are, made once and repeated as one call.

    What `kernels` returns while it records lies in memory that lasts as long as the recording and is used again as soon
    as nobody holds the array: whoever wants a result of `repeat` keeps the array that the first call returned. Arrays
    that come from elsewhere must be kept alive by the caller; what is written into them before `repeat` counts.
    """

    @property
    def kernels(self) -> Kernels:
        """The kernels whose calls are made and noted."""
        ...

    def place_of(self, batch: CacheBatch) -> object:
        """Return what stands for `batch` in the noted calls, without its blocks, which may go."""
        ...

    def fill(self, place: Any, batch: CacheBatch, window: int) -> None:
        """Let the noted calls work on `batch`, which has as many rows as the one that `place` stands for.

        Raises ValueError if a block that is needed was dropped: one that a row belongs to or, where layers see
        `window` tokens (0: all), one in sight.
        """
        ...

    def repeat(self, pool: ThreadPool) -> None:
        """Make the noted calls again, in their order; `pool` is the one that they were made with."""
        ...


class Kernels(Protocol):
    """A set of kernels; `hearthlm.kernels` exposes the functions of the chosen one."""

    @property
    def instruction_set(self) -> str:
        """Name what the kernels were compiled for, or "reference"."""
        ...

    def record(self) -> Recording | None:
        """Return an empty recording, None where calls cannot be repeated."""
        ...

    def quantize_rows(self, x: Floats, pool: ThreadPool) -> QuantizedRows:
        """Quantise finite rows [m, k] to 8 bits.

        scale = max|row| / 127, values = round half to even(row * (127 / max|row|)). A row so close to zero that
        127 / max|row| overflows gets scale 0 and zeros.
        """
        ...

    def linear(self, x: Floats | QuantizedRows, weight: WeightMatrix, bias: Floats | None, pool: ThreadPool) -> Floats:
        """Return x W^T + bias, [m, k] and [n, k] to [m, n].

        Float rows compute in float32 with the weights widened on the fly. QuantizedRows need int8 or int4 weights and
        compute in exact integers: y = float(acc - zero_point * sum) * (x_scale * weight_scale) + bias.
        """
        ...

    def linear_each(
        self, x: QuantizedRows, linears: Sequence[tuple[WeightMatrix, Floats | None]], pool: ThreadPool
    ) -> list[Floats]:
        """Return `linear` by each weight and bias, the same bits; at least one, of one type and number of columns."""
        ...

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
        """Return what `gated_activation` makes of `linear` by `gate` and by `up`, [m, n], the same bits.

        Both matrices are int8 or int4, of one type and shape.
        """
        ...

    def lora_add(self, x: Floats, adapted: Sequence[LoraRows], y: Floats, pool: ThreadPool) -> None:
        """Add scale * (x A^T) B^T to the adapted rows of y [m, n], with x [m, k], in place.

        What a row gets depends on that row alone. Raises ValueError for rows outside, or factors that do not fit.
        """
        ...

    def embed_rows(self, ids: NDArray[np.int32], weight: WeightMatrix, scale: float) -> Floats:
        """Return the dequantised rows `ids` [m] of a matrix, times `scale`, [m, in].

        Raises ValueError for an id outside.
        """
        ...

    def rms_norm(self, x: Floats, weight: Floats, eps: float, pool: ThreadPool) -> Floats:
        """Return x * (1 / sqrt(mean(x^2) + eps)) * weight, rows [m, d], weight [d] (Zhang & Sennrich 2019)."""
        ...

    def rms_norm_add(self, x: Floats, weight: Floats, eps: float, residual: Floats, pool: ThreadPool) -> Floats:
        """Return `rms_norm` of x plus `residual` [m, d], the same bits as one after the other."""
        ...

    def rms_norm_quantize(self, x: Floats, weight: Floats, eps: float, pool: ThreadPool) -> QuantizedRows:
        """Return `quantize_rows` of `rms_norm` of x, the same bits as one after the other."""
        ...

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats | None, eps: float, pool: ThreadPool) -> Floats:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias, rows [m, d], weight, bias [d] (Ba et al. 2016)."""
        ...

    def rope(self, x: Floats, cos: Floats, sin: Floats) -> None:
        """Rotate x [m, heads, head_dim] in place by the angles of cos and sin [m, r] (Su et al. 2021).

        Channel c pairs with c + r (halves, not neighbours) for c < r; channels from 2 r on stay as they are.
        """
        ...

    def gated_activation(self, gate: Floats, up: Floats, kind: Activation, pool: ThreadPool) -> None:
        """Replace gate by act(gate) * up, both [m, k]."""
        ...

    def activation(self, x: Floats, kind: Activation, pool: ThreadPool) -> None:
        """Replace x, of any shape, by act(x): GELU by tanh or by erf (Hendrycks & Gimpel 2016), SiLU or ReLU."""
        ...

    def add(self, x: Floats, y: Floats, pool: ThreadPool) -> None:
        """Add y to x in place, both of any one shape."""
        ...

    def soft_cap(self, x: Floats, cap: float, pool: ThreadPool) -> None:
        """Replace x, of any shape, by cap * tanh(x / cap)."""
        ...

    def kv_append(self, keys: Floats, values: Floats, batch: CacheBatch, layer: int) -> None:
        """Store keys and values [m, kv_heads, head_dim] of the batch's rows, rounded to the cache's type.

        An int8 cache holds each [head_dim] as `quantize_rows` would, with a scale of its own; it takes finite ones.
        Raises ValueError if a block that a row belongs to was dropped.
        """
        ...

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
        """Return causal attention of queries [m, heads, head_dim] over the cache, [m, heads, head_dim].

        The query at position p sees keys max(0, p - window + 1) to p, all of them if `window` is 0; head n reads
        kv head n // (heads / kv_heads). A score is (q . k) * scale, then soft_cap * tanh(score / soft_cap) unless
        `soft_cap` is 0, then + key_bias[head, key position] (key_bias [heads, positions]) if given. Raises ValueError
        if a block in sight was dropped.
        """
        ...

    def top_k(self, logits: Floats, k: int) -> tuple[NDArray[np.int32], Floats]:
        """Return ids and values of the min(k, v) highest of logits [v], descending, the lowest id first among equals.

        NaN counts as minus infinity.
        """
        ...

    def draw(self, logits: Floats, temperature: float, top_p: float, min_p: float, number: float) -> int:
        """Return the token that `number` in [0, 1) draws from logits [v], the same with all kernels; -1 for none.

        There is none where the highest logit is not finite; NaN counts as minus infinity. A token weighs
        exp((logit - highest) / temperature), and what is below `min_p` is dropped. The token is the first with which
        the weights reach more than `number` of their sum, in the order of ids; if `top_p` is below 1, in the order of
        falling logits and among the first only, which together reach `top_p` of the sum of all. In float64: the
        weights of 4096 tokens are added up in 8 lanes, then these by halves; the sums of such blocks one by one.
        """
        ...

    def log_softmax_at(self, logits: Floats, ids: NDArray[np.int32], pool: ThreadPool) -> Floats:
        """Return the log-probability of ids[i] in row i of logits [m, v], [m]. Raises ValueError for an id outside."""
        ...

    def round_compensated(
        self, w: Floats, factor: Floats, scales: Floats, lowest: int, highest: int, pool: ThreadPool
    ) -> tuple[NDArray[np.int8], Floats]:
        """Return w / scales rounded to integers in [lowest, highest], [m, k], columns making up for earlier ones.

        Column by column, q = round half to even of the clipped w / scales; then (w - q * scales) / factor[j, j], times
        factor[j, c], is taken from every later column c (GPTQ, Frantar et al. 2022). Also returns the sum of the
        squares of those quotients, [m], which is the rows' squared error for inputs whose second moments are the
        inverse of factor^T factor. `factor` is upper triangular [k, k] with a positive diagonal, `scales` positive [m].
        """
        ...
