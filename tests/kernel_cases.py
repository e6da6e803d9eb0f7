"""Inputs of kernels at every remainder size, type and extreme, and what the NumPy reference makes of them.

`python kernel_cases.py FILE` writes them for `native/check_kernels.cc`, which runs where Python does not. A case is a
name, numbers, input arrays and expected outputs, each a count or size followed by its data, little-endian.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from hearthlm.kernels import BlockTable, CacheBatch, LoraFactors, LoraRows, QuantizedRows, ThreadPool, reference
from hearthlm.kernels.cache_batch import CACHE_DTYPES, row_length
from hearthlm.kernels.interface import Activation, Floats
from hearthlm.quantization import WeightMatrix, WeightType, float32_to_bfloat16, pack_int4

FLOAT_TYPES: tuple[WeightType, ...] = ("float32", "float16", "bfloat16")
INTEGER_TYPES: tuple[WeightType, ...] = ("int8", "int4")
ALL_TYPES = FLOAT_TYPES + INTEGER_TYPES
ACTIVATIONS: tuple[Activation, ...] = ("gelu_tanh", "gelu", "silu", "relu")
HEAD_DIM = 40
# Rows of activations, of weights and columns: so many of the first that every instruction set unpacks weights for them.
MANY_ROWS = [(m, 37, 259) for m in range(100, 125)] + [(101, n, 64) for n in range(1, 66, 4)]
MANY_ROWS += [(100, 5, c) for c in range(1, 131, 3)] + [(109, 40, 2049), (103, 33, 4225)]
CACHE_TYPES = tuple(dtype.name for dtype in CACHE_DTYPES)


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    """Return random float32 values at an address that no vector register likes."""
    size = math.prod(shape)
    return misaligned(rng.standard_normal(size, dtype=np.float32).reshape(shape))


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that starts one element past an aligned address and ends where its memory ends."""
    memory = np.empty(array.size + 1, array.dtype)
    memory[1:] = array.ravel()
    return memory[1:].reshape(array.shape)


def matrix(rng: np.random.Generator, dtype: WeightType, n: int, k: int, zero_points: bool = False) -> WeightMatrix:
    if dtype in FLOAT_TYPES:
        values = rng.standard_normal((n, k), dtype=np.float32)
        stored: NDArray[Any] = float32_to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
        return WeightMatrix(dtype, (n, k), misaligned(stored))
    limit = 128 if dtype == "int8" else 8
    q = rng.integers(-limit, limit, (n, k)).astype(np.int8)
    scales = floats(rng, n)
    zeros = misaligned(rng.integers(-limit, limit, n).astype(np.float32) + np.float32(0.25)) if zero_points else None
    return WeightMatrix(dtype, (n, k), misaligned(stored_as(dtype, q, rng)), scales, zeros)


def stored_as(dtype: WeightType, q: NDArray[np.int8], rng: np.random.Generator) -> NDArray[Any]:
    """Return q as it lies in a matrix, with anything at all in the unused nibble of an odd row."""
    if dtype == "int8":
        return q
    packed = pack_int4(q)
    if q.shape[1] % 2:
        packed[:, -1] = (packed[:, -1] & 15) | (rng.integers(0, 16, len(q)).astype(np.uint8) << np.uint8(4))
    return packed


def quantised(rng: np.random.Generator, m: int, k: int) -> QuantizedRows:
    values = misaligned(rng.integers(-127, 128, (m, k)).astype(np.int8))
    return QuantizedRows(values, floats(rng, m), values.sum(axis=1, dtype=np.int32))


def adapter(rng: np.random.Generator, dtype: WeightType, rank: int, k: int, n: int) -> LoraFactors:
    return LoraFactors(matrix(rng, dtype, rank, k), matrix(rng, dtype, rank, n), 0.75)


def masked_logits(rng: np.random.Generator, size: int) -> Floats:
    """Return logits with many equal ones, both zeros, minus infinity and NaN."""
    values = np.array([-np.inf, np.nan, -0.0, 0.0, 1, 1, 2, -300], dtype=np.float32)
    return misaligned(rng.choice(values, size))


def draws(rng: np.random.Generator) -> Iterator[tuple[int, float, float, float, float]]:
    """Yield sizes of vocabularies, temperatures, top_p, min_p and numbers to draw with."""
    edges = (0.0, 0.5, 1 - 2.0**-53)
    for size in [*range(1, 70), 4095, 4096, 4097, 12_300]:
        for top_p in (1.0, 0.9):
            yield size, 0.8, top_p, float(size % 2) / 20, float(rng.random())
    for size in (5, 9000):
        for temperature in (5e-324, 0.01, 1.5, 1e300):
            for top_p in (1e-9, 0.3, 0.999, 1 - 1e-7, 1 - 2.0**-53, 1.0):
                for min_p in (0.0, 0.05, 0.999):
                    yield from ((size, temperature, top_p, min_p, number) for number in edges)


class Sequences:
    """Hold the caches of several sequences and make batches of any rows of them."""

    def __init__(
        self, lengths: list[int], kv_heads: int, head_dim: int = HEAD_DIM, block_size: int = 5, dtype: str = "float32"
    ) -> None:
        self.block_size, self.dtype = block_size, np.dtype(dtype)
        shape = (2, 2, kv_heads, block_size, row_length(head_dim, self.dtype))
        # Not a number, nor is the scale of a row of int8.
        empty = np.full(shape, -1 if self.dtype == np.int8 else np.nan, self.dtype)
        self.blocks: list[list[NDArray[Any] | None]] = [
            [empty.copy() for _ in range(-(-n // block_size))] for n in lengths
        ]

    def every_block(self) -> list[NDArray[Any]]:
        return [block for table in self.blocks for block in table if block is not None]

    def batch(self, rows: list[tuple[int, int, int]]) -> CacheBatch:
        """Return positions [first, end) of each (sequence, first, end)."""
        return CacheBatch(
            [0, *accumulate(end - first for _, first, end in rows)],
            [first for _, first, _ in rows],
            [BlockTable(self.blocks[i], self.block_size, self.dtype) for i, _, _ in rows],
        )


def factor(rng: np.random.Generator, size: int) -> Floats:
    u = np.triu(rng.standard_normal((size, size), dtype=np.float32) * np.float32(0.3))
    u[np.diag_indices(size)] = rng.uniform(0.5, 2, size)
    below = np.tril_indices(size, -1)
    u[below] = np.nan  # must not be looked at
    return misaligned(u)


# ---- Cases for a program without Python ----

MAGIC = b"hearthlm kernel cases 1\n"
NOTHING = np.empty(0, np.float32)


@dataclass
class Output:
    """Expect `values`, bit for bit unless a tolerance says otherwise, in an array that begins as `initial`."""

    values: NDArray[Any]
    relative: float = 0.0
    absolute: float = 0.0
    initial: NDArray[Any] | None = None


@dataclass
class Case:
    kernel: str
    numbers: Sequence[float]
    inputs: Sequence[NDArray[Any]]
    outputs: Sequence[Output] = field(default_factory=list)

    def encode(self) -> bytes:
        parts = [struct.pack("<I", len(self.kernel)), self.kernel.encode()]
        parts.append(struct.pack(f"<I{len(self.numbers)}d", len(self.numbers), *self.numbers))
        parts.append(struct.pack("<I", len(self.inputs)))
        for array in self.inputs:
            parts += [struct.pack("<Q", array.nbytes), array.tobytes()]
        parts.append(struct.pack("<I", len(self.outputs)))
        for output in self.outputs:
            initial = b"" if output.initial is None else output.initial.tobytes()
            is_float = output.values.dtype == np.float32
            parts.append(struct.pack("<Idd", is_float, output.relative, output.absolute))
            for data in (output.values.tobytes(), initial):
                parts += [struct.pack("<Q", len(data)), data]
        return b"".join(parts)


def close(values: Floats, relative: float = 1e-6, **others: Any) -> Output:
    """Return an output whose error stays below `relative` of the largest value."""
    largest = float(np.max(np.abs(values), initial=0, where=np.isfinite(values)))
    return Output(values, relative, relative * max(1.0, largest), **others)


def stored(w: WeightMatrix) -> tuple[list[float], list[NDArray[Any]]]:
    """Return the numbers and arrays of a matrix."""
    empty = NOTHING
    numbers: list[float] = [get_args(WeightType).index(w.dtype), *w.shape]
    return numbers, [w.data, empty if w.scales is None else w.scales, empty if w.zero_points is None else w.zero_points]


def linear_case(x: Floats | QuantizedRows, w: WeightMatrix, bias: Floats | None, pool: ThreadPool) -> Case:
    numbers, arrays = stored(w)
    y = reference.linear(x, w, bias, pool)
    arrays.append(NOTHING if bias is None else bias)
    if isinstance(x, QuantizedRows):
        inputs: list[NDArray[Any]] = [x.values, x.scales, x.sums, *arrays]
        return Case("linear_int8", [len(x.values), *numbers], inputs, [Output(y)])
    absolute = 2e-7 * w.shape[1] ** 0.5 * float(np.max(np.abs(y), initial=0))
    return Case("linear_float", [len(x), *numbers], [x, *arrays], [Output(y, 1e-5, absolute)])


def gated_cases(rng: np.random.Generator, pool: ThreadPool) -> Iterator[Case]:
    sizes = [(m, n, 70) for m in (1, 2, 5, 19) for n in (1, 4, 33)] + [(1, 70, 1152), (29, 40, 2049), *MANY_ROWS[::6]]
    for dtype in INTEGER_TYPES:
        for i, (m, n, columns) in enumerate(sizes):
            x = quantised(rng, m, columns)
            gate, up = (matrix(rng, dtype, n, columns, zero_points=zeros) for zeros in (bool(n % 2), bool(m % 2)))
            gate_bias, up_bias = (floats(rng, n) if has else None for has in (n % 3 == 0, m % 3 == 0))
            kind = i % len(ACTIVATIONS)
            y = reference.linear_gated(x, gate, gate_bias, up, up_bias, ACTIVATIONS[kind], pool)
            numbers, arrays = stored(gate)
            arrays += [NOTHING if gate_bias is None else gate_bias, *stored(up)[1]]
            arrays += [NOTHING if up_bias is None else up_bias]
            absolute = 1e-6 * float(np.max(np.abs(y), initial=1))
            yield Case(
                "linear_gated", [m, *numbers, kind], [x.values, x.scales, x.sums, *arrays], [Output(y, 1e-5, absolute)]
            )


def linear_cases(rng: np.random.Generator, pool: ThreadPool) -> Iterator[Case]:
    sizes = [(m, 5, c) for m in (1, 2, 3, 5, 8) for c in range(1, 131)]
    sizes += [(m, n, 64) for m in (1, 17) for n in range(1, 50)] + [(m, 37, 259) for m in range(1, 31)]
    sizes += [(1, 70, 1152), (29, 40, 2049), (14, 33, 4096), *MANY_ROWS[::3]]
    for dtype in INTEGER_TYPES:
        for m, n, columns in sizes:
            x, w = quantised(rng, m, columns), matrix(rng, dtype, n, columns, zero_points=bool(columns % 3 == 0))
            yield linear_case(x, w, floats(rng, n) if (m + n) % 2 else None, pool)
        lowest, highest = (-128, 127) if dtype == "int8" else (-8, 7)
        for columns in (1152, 65_537):
            rows = np.full((3, columns), lowest, dtype=np.int8)
            rows[1], rows[2, ::2] = highest, highest
            w = WeightMatrix(dtype, rows.shape, stored_as(dtype, rows, rng), np.ones(3, np.float32))
            for m in (1, 3, 16):
                values = np.full((m, columns), 127, dtype=np.int8)
                values[1::3], values[2::3, ::2] = -128, -128
                x = QuantizedRows(values, np.ones(m, np.float32), values.sum(axis=1, dtype=np.int32))
                yield linear_case(x, w, None, pool)
    sizes = [(m, 5, c) for m in (1, 7) for c in range(1, 67)] + [(m, n, 40) for m in range(1, 10) for n in range(1, 8)]
    for dtype in ALL_TYPES:
        for m, n, columns in [*sizes, (3, 50, 1152), (2, 3, 9001)]:
            w = matrix(rng, dtype, n, columns, zero_points=bool(columns % 2))
            yield linear_case(floats(rng, m, columns), w, floats(rng, n) if (m + n) % 2 else None, pool)
        tiny = WeightMatrix("float32", (2, 9), np.full((2, 9), 1e-40, np.float32))
        yield linear_case(np.full((2, 9), 0.5, np.float32), tiny, None, pool)


def row_cases(rng: np.random.Generator, pool: ThreadPool) -> Iterator[Case]:
    for m, columns in [(1, c) for c in range(1, 70)] + [(50, 1153), (3, 7000)]:
        x = floats(rng, m, columns) * np.float32(10.0 ** rng.integers(-20, 20))
        yield quantize_case(x, pool)
    yield quantize_case(np.array([[0, 0, 0], [1e-40, -1e-40, 0], [1, -1, 0.5], [3e38, 1, -3e38]], np.float32), pool)
    for dtype in ALL_TYPES:
        for columns in range(1, 70):
            w = matrix(rng, dtype, 5, columns, zero_points=columns % 2 == 0)
            ids = np.array([4, 0, 3, 3], np.int32)
            numbers, arrays = stored(w)
            y = reference.embed_rows(ids, w, 33.94)
            yield Case("embed_rows", [len(ids), *numbers, 33.94], [ids, *arrays], [Output(y)])
    bits = np.arange(65_536, dtype=np.uint16)
    halves = bits[(bits & 0x7FFF) <= 0x7C00].view(np.float16).reshape(1, -1)  # no NaN: their bits are not promised
    numbers, arrays = stored(WeightMatrix("float16", (1, halves.size), halves))
    y = halves.astype(np.float32)
    yield Case("embed_rows", [1, *numbers, 1.0], [np.zeros(1, np.int32), *arrays], [Output(y)])
    for m, d in [(m, d) for m in (1, 3) for d in range(1, 140)] + [(20, 1152)]:
        x, weight, bias = floats(rng, m, d), floats(rng, d), floats(rng, d)
        y = reference.rms_norm(x, weight, 1e-6, pool)
        yield Case("rms_norm", [m, d, 1e-6], [x, weight], [close(y, 3e-6)])
        for b in (None, bias):
            y = reference.layer_norm(x, weight, b, 1e-5, pool)
            yield Case("layer_norm", [m, d, 1e-5], [x, weight, NOTHING if b is None else b], [close(y, 1e-5)])
    zeros = np.zeros((1, 9), np.float32)
    yield Case("rms_norm", [1, 9, 1e-6], [zeros, np.ones(9, np.float32)], [Output(zeros)])
    for r in range(1, 70):
        x, cos, sin = floats(rng, 3, 2, 2 * r + r % 4), floats(rng, 3, r), floats(rng, 3, r)
        y = x.copy()
        reference.rope(y, cos, sin)
        yield Case("rope", [*x.shape, r], [cos, sin], [Output(y, initial=x)])


def quantize_case(x: Floats, pool: ThreadPool) -> Case:
    rows = reference.quantize_rows(x, pool)
    return Case("quantize_rows", x.shape, [x], [Output(rows.values), Output(rows.scales), Output(rows.sums)])


def lora_cases(rng: np.random.Generator, pool: ThreadPool) -> Iterator[Case]:
    sizes = [(1, rank, c, 67 - c) for rank in (1, 3, 16) for c in range(1, 67)]
    sizes += [(m, rank, 40, 530) for m in range(1, 10) for rank in (1, 2, 5)] + [(2, 130, 7, 5), (9, 8, 1152, 130)]
    for i, (m, rank, columns, n) in enumerate(sizes):
        first, second = (adapter(rng, FLOAT_TYPES[(i + j) % 3], rank + j, columns, n) for j in range(2))
        half = (m + 1) // 2
        adapted = [LoraRows(0, half, first), LoraRows(half, m, second)]
        x, y = floats(rng, m, columns), floats(rng, m, n)
        expected = y.copy()
        reference.lora_add(x, adapted, expected, pool)
        numbers: list[float] = [m, columns, n]
        inputs: list[NDArray[Any]] = [x]
        for begin, end, factors in adapted:
            types = [get_args(WeightType).index(w.dtype) for w in (factors.down, factors.up_transposed)]
            numbers += [begin, end, factors.down.shape[0], *types, factors.scale]
            inputs += [factors.down.data, factors.up_transposed.data]
        absolute = 2e-7 * (rank * columns) ** 0.5 * float(np.max(np.abs(expected)))
        yield Case("lora_add", numbers, inputs, [Output(expected, 1e-5, absolute, y)])


def element_cases(rng: np.random.Generator, pool: ThreadPool) -> Iterator[Case]:
    wide = np.concatenate([np.linspace(-30, 30, 4003), [0, 1e-6, -1e-6, 1e-30, 1e-40, 100, -100]]).astype(np.float32)
    for x in [wide, *(floats(rng, size) for size in range(1, 40))]:
        up, capped, added = floats(rng, len(x)), x.copy(), x.copy()
        for i, kind in enumerate(ACTIVATIONS):
            y = x.copy()
            reference.activation(y, kind, pool)
            yield Case("activation", [i, 0], [NOTHING], [Output(y, 1e-5, 2e-6, x)])
            yield Case("activation", [i, 1], [up], [Output(y * up, 1e-5, 1e-5, x)])
        reference.soft_cap(capped, 3.0, pool)
        yield Case("soft_cap", [3.0], [], [Output(capped, 2e-6, 1e-6, x)])
        reference.add(added, up, pool)
        yield Case("add", [], [up], [Output(added, initial=x)])


def attention_case(
    rng: np.random.Generator,
    pool: ThreadPool,
    rows: list[tuple[int, int, int]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: str,
    soft_cap: float,
    window: int,
    bias: bool,
) -> Case:
    """Append every position of some sequences, then attend from the rows (sequence, first, end)."""
    lengths = [end for _, _, end in rows]
    sequences = Sequences(lengths, kv_heads, head_dim, block_size, dtype)
    initial = np.stack(sequences.every_block())
    everything = sequences.batch([(i, 0, end) for i, end in enumerate(lengths)])
    keys, values = (floats(rng, everything.num_rows, kv_heads, head_dim) for _ in range(2))
    reference.kv_append(keys, values, everything, 1)
    batch = sequences.batch(rows)
    q = floats(rng, batch.num_rows, heads, head_dim)
    key_bias = floats(rng, heads, max(lengths) + 1) if bias else None
    y = reference.attention(q, batch, 1, kv_heads, head_dim**-0.5, soft_cap, window, key_bias, pool)
    stride = max(lengths) + 1 if bias else 0
    numbers = [heads, head_dim**-0.5, soft_cap, window, stride, len(rows), block_size, kv_heads, head_dim, 1, 2]
    numbers.append(CACHE_DTYPES.index(np.dtype(dtype)))
    inputs: list[NDArray[Any]] = [q, keys, values, NOTHING if key_bias is None else key_bias]
    inputs += [everything.row_begin, everything.first_positions, batch.row_begin, batch.first_positions]
    inputs += [batch.block_begin]
    blocks = Output(np.stack(sequences.every_block()), initial=initial)
    return Case("attention", numbers, inputs, [blocks, close(y, 2e-6)])


def attention_cases(rng: np.random.Generator, pool: ThreadPool) -> Iterator[Case]:
    for dtype in CACHE_TYPES:
        for heads, kv_heads in ((4, 4), (6, 2), (9, 1), (1, 1), (20, 1)):
            for soft_cap, window, bias in ((0.0, 0, False), (2.0, 0, True), (0.0, 7, True), (5.0, 1, False)):
                rows = [(0, 3, 23), (1, 0, 1), (2, 36, 40)]
                yield attention_case(rng, pool, rows, heads, kv_heads, HEAD_DIM, 5, dtype, soft_cap, window, bias)
        for window in (0, 150):  # several chunks of positions, together and apart
            rows = [(0, 250, 271), (1, 299, 300)]
            yield attention_case(rng, pool, rows, 3, 1, HEAD_DIM, 16, dtype, 0.0, window, False)
            yield attention_case(rng, pool, [(0, 399, 400)], 4, 1, HEAD_DIM, 64, dtype, 0.0, window, True)
    for head_dim in [*range(1, 70), 80, 128, 256]:
        dtype = CACHE_TYPES[head_dim % 3]
        yield attention_case(rng, pool, [(0, 0, 9)], 3, 1, head_dim, 1 + head_dim % 16, dtype, 0.0, 0, False)


def sampling_cases(rng: np.random.Generator, pool: ThreadPool) -> Iterator[Case]:
    for size in [*range(1, 70), 1000]:
        for logits in (floats(rng, size), rng.integers(0, 4, size).astype(np.float32), np.zeros(size, np.float32)):
            for count in {1, min(size, 40), size}:
                ids, values = reference.top_k(logits, count)
                yield Case("top_k", [size, count], [logits], [Output(ids), Output(values)])
    logits = np.array([np.nan, 1, np.nan, -np.inf, 3] + [0] * 80, dtype=np.float32)
    ids, values = reference.top_k(logits, 3)
    yield Case("top_k", [len(logits), 3], [logits], [Output(ids), Output(values)])
    for v, temperature, top_p, min_p, number in draws(rng):
        for logits in (floats(rng, v) * np.float32(5), masked_logits(rng, v), np.zeros(v, np.float32)):
            chosen = reference.draw(logits, temperature, top_p, min_p, number)
            numbers = [v, temperature, top_p, min_p, number]
            yield Case("draw", numbers, [logits], [Output(np.array([chosen], np.int64))])
    for m, v in [(1, v) for v in range(1, 70)] + [(3, 4095), (3, 4097)]:
        logits, ids = floats(rng, m, v) * np.float32(10), rng.integers(0, v, m).astype(np.int32)
        y = reference.log_softmax_at(logits, ids, pool)
        yield Case("log_softmax_at", [m, v], [logits, ids], [Output(y, 2e-6, 2e-6)])
    for lowest, highest in ((-8, 7), (-128, 127)):
        for m, columns in [(m, c) for m in (1, 2, 33) for c in range(1, 40)] + [(m, 37) for m in range(1, 40)]:
            w, scales = floats(rng, m, columns), rng.uniform(0.01, 0.3, m).astype(np.float32)
            u = factor(rng, columns)
            q, losses = reference.round_compensated(w, u, scales, lowest, highest, pool)
            inputs = [w, u, scales]
            yield Case("round_compensated", [m, columns, lowest, highest], inputs, [Output(q), Output(losses)])


def main() -> None:
    """Write every case to the file that the command line names."""
    rng, pool = np.random.default_rng(0), ThreadPool(1)
    with Path(sys.argv[1]).open("wb") as file:
        file.write(MAGIC)
        for cases in (linear_cases, gated_cases, row_cases, lora_cases, element_cases, attention_cases, sampling_cases):
            for case in cases(rng, pool):
                file.write(case.encode())


if __name__ == "__main__":
    main()
