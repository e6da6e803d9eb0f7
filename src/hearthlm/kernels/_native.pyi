"""The compiled kernels, called by `native` alone: nothing here checks how shapes agree."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int32]

def instruction_sets() -> tuple[str, ...]: ...
def first_id_outside(ids: _Ints, limit: int, /) -> int: ...

class ThreadPool:
    def __init__(self, num_threads: int) -> None: ...
    def close(self) -> None: ...

class CacheView:
    def __init__(
        self,
        row_begin: _Ints,
        first_positions: _Ints,
        addresses: NDArray[np.uint64],
        block_begin: _Ints,
        block_size: int,
        layers: int,
        kv_heads: int,
        head_dim: int,
        type: int,
    ) -> None: ...
    def fits(self, layer: int, kv_heads: int, head_dim: int, /) -> bool: ...
    def first_incomplete_sequence(self, reads: bool, window: int, /) -> int: ...
    def rebind(self, other: CacheView, /) -> None: ...

class Recording:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def repeat(self, pool: ThreadPool, /) -> None: ...

class LoraView:
    def __init__(
        self,
        down: NDArray[Any],
        down_type: int,
        up: NDArray[Any],
        up_type: int,
        rank: int,
        columns: int,
        rows: int,
        scale: float,
    ) -> None: ...

class Kernels:
    def __init__(self, instruction_set: str, recording: Recording | None = None) -> None: ...
    def quantize_rows(
        self, x: _Floats, values: NDArray[np.int8], scales: _Floats, sums: _Ints, pool: ThreadPool, /
    ) -> None: ...
    def linear_float(
        self,
        x: _Floats,
        data: NDArray[Any],
        type: int,
        rows: int,
        columns: int,
        scales: _Floats | None,
        zero_points: _Floats | None,
        bias: _Floats | None,
        y: _Floats,
        pool: ThreadPool,
        /,
    ) -> None: ...
    def linear_int8(
        self,
        x: NDArray[np.int8],
        x_scales: _Floats,
        x_sums: _Ints,
        type: int,
        columns: int,
        arrays: list[tuple[NDArray[Any], _Floats, _Floats | None, _Floats | None, _Floats]],
        pool: ThreadPool,
        /,
    ) -> None: ...
    def linear_gated(
        self,
        x: NDArray[np.int8],
        x_scales: _Floats,
        x_sums: _Ints,
        type: int,
        columns: int,
        gate: tuple[NDArray[Any], _Floats, _Floats | None, _Floats | None, _Floats],
        up: NDArray[Any],
        up_scales: _Floats,
        up_zero_points: _Floats | None,
        up_bias: _Floats | None,
        kind: int,
        pool: ThreadPool,
        /,
    ) -> None: ...
    def lora_add(
        self, x: _Floats, adapted: list[tuple[int, int, LoraView]], y: _Floats, pool: ThreadPool, /
    ) -> None: ...
    def embed_rows(
        self,
        ids: _Ints,
        data: NDArray[Any],
        type: int,
        rows: int,
        columns: int,
        scales: _Floats | None,
        zero_points: _Floats | None,
        scale: float,
        y: _Floats,
        /,
    ) -> None: ...
    def rms_norm(self, x: _Floats, weight: _Floats, eps: float, y: _Floats, pool: ThreadPool, /) -> None: ...
    def rms_norm_add(
        self, x: _Floats, weight: _Floats, eps: float, residual: _Floats, y: _Floats, pool: ThreadPool, /
    ) -> None: ...
    def rms_norm_quantize(
        self,
        x: _Floats,
        weight: _Floats,
        eps: float,
        values: NDArray[np.int8],
        scales: _Floats,
        sums: _Ints,
        pool: ThreadPool,
        /,
    ) -> None: ...
    def layer_norm(
        self, x: _Floats, weight: _Floats, bias: _Floats | None, eps: float, y: _Floats, pool: ThreadPool, /
    ) -> None: ...
    def rope(self, x: _Floats, cos: _Floats, sin: _Floats, /) -> None: ...
    def round_compensated(
        self,
        w: _Floats,
        u: _Floats,
        scales: _Floats,
        lowest: float,
        highest: float,
        q: NDArray[np.int8],
        losses: _Floats,
        pool: ThreadPool,
        /,
    ) -> None: ...
    def activation(self, x: _Floats, up: _Floats | None, kind: int, pool: ThreadPool, /) -> None: ...
    def add(self, x: _Floats, y: _Floats, pool: ThreadPool, /) -> None: ...
    def soft_cap(self, x: _Floats, cap: float, pool: ThreadPool, /) -> None: ...
    def kv_append(self, keys: _Floats, values: _Floats, view: CacheView, layer: int, /) -> None: ...
    def attention(
        self,
        queries: _Floats,
        view: CacheView,
        layer: int,
        scale: float,
        soft_cap: float,
        window: int,
        key_bias: _Floats | None,
        y: _Floats,
        pool: ThreadPool,
        /,
    ) -> None: ...
    def top_k(self, logits: _Floats, ids: _Ints, values: _Floats, /) -> None: ...
    def draw(self, logits: _Floats, temperature: float, top_p: float, min_p: float, number: float, /) -> int: ...
    def log_softmax_at(self, logits: _Floats, ids: _Ints, y: _Floats, pool: ThreadPool, /) -> None: ...
