"""Every set of kernels that this CPU runs, against NumPy: at every remainder size, type, offset and option."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    ACTIVATIONS,
    ALL_TYPES,
    CACHE_TYPES,
    FLOAT_TYPES,
    HEAD_DIM,
    INTEGER_TYPES,
    MANY_ROWS,
    Sequences,
    adapter,
    draws,
    factor,
    floats,
    masked_logits,
    matrix,
    misaligned,
    quantised,
    stored_as,
)
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.kernels import (
    BlockTable,
    CacheBatch,
    Kernels,
    LoraFactors,
    LoraRows,
    QuantizedRows,
    ThreadPool,
    reference,
)
from hearthlm.kernels.interface import Activation, Floats
from hearthlm.quantization import WeightMatrix, WeightType

native = pytest.importorskip("hearthlm.kernels.native")


@pytest.fixture(scope="module", params=native.instruction_sets())
def k(request: pytest.FixtureRequest) -> Kernels:
    result: Kernels = native.NativeKernels(request.param)
    return result


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPool]:
    with ThreadPool(2) as result:
        yield result


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def assert_same_bits(got: NDArray[Any], expected: NDArray[Any]) -> None:
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))


def assert_close(got: Floats, expected: Floats, tolerance: float = 1e-6) -> None:
    """Hold the error below `tolerance` of the largest value."""
    bound = tolerance * max(1.0, float(np.max(np.abs(expected), initial=0)))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=bound)


# ---- Linear ----


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_integer_linear_equals_the_reference_bit_for_bit(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, dtype: WeightType, zero_points: bool
) -> None:
    sizes = [(m, 5, c) for m in (1, 2, 3, 4, 5, 8, 13) for c in range(1, 131)]
    sizes += [(m, n, c) for m in (1, 17) for n in range(1, 66, 3) for c in (1, 64, 127)]
    sizes += [(m, 37, 259) for m in range(1, 31)] + [(1, 700, 1152), (29, 70, 2049), (50, 33, 4096)]
    sizes += MANY_ROWS
    for m, n, columns in sizes:
        x, w = quantised(rng, m, columns), matrix(rng, dtype, n, columns, zero_points)
        bias = floats(rng, n) if (m + n) % 2 else None
        assert_same_bits(k.linear(x, w, bias, pool), reference.linear(x, w, bias, pool))


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_linears_together_equal_each_alone_bit_for_bit(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, dtype: WeightType
) -> None:
    for m in (1, 2, 5, 16, 101):
        for sizes in ((1,), (3, 70), (0, 5, 0), (256, 37, 1), (5, 4, 3, 2, 40, 33)):
            x = quantised(rng, m, 300)
            pairs = [(matrix(rng, dtype, n, 300, bool(n % 2)), floats(rng, n) if n % 3 else None) for n in sizes]
            together = k.linear_each(x, pairs, pool)
            assert len(together) == len(pairs)
            for y, (weight, bias) in zip(together, pairs, strict=True):
                assert_same_bits(y, k.linear(x, weight, bias, pool))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_a_gated_linear_equals_its_parts_bit_for_bit(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, dtype: WeightType, kind: Activation
) -> None:
    sizes = [(m, n, 70) for m in (1, 2, 3, 4, 7, 17, 29) for n in (1, 3, 4, 31, 33)] + [(1, 700, 1152), (90, 37, 2300)]
    for m, n, columns in [*sizes, *MANY_ROWS[::4]]:
        x = quantised(rng, m, columns)
        gate, up = (matrix(rng, dtype, n, columns, zero_points=zeros) for zeros in (bool(m % 2), bool(n % 2)))
        gate_bias, up_bias = (floats(rng, n) if has else None for has in (n % 3 == 0, m % 3 == 0))
        expected = k.linear(x, gate, gate_bias, pool)
        k.gated_activation(expected, k.linear(x, up, up_bias, pool), kind, pool)
        assert_same_bits(k.linear_gated(x, gate, gate_bias, up, up_bias, kind, pool), expected)
        one = QuantizedRows(x.values[-1:], x.scales[-1:], x.sums[-1:])
        assert_same_bits(k.linear_gated(one, gate, gate_bias, up, up_bias, kind, pool), expected[-1:])


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
@pytest.mark.parametrize("columns", [1152, 65_536, 65_537, 140_001])
def test_integer_linear_does_not_saturate_or_overflow(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, dtype: WeightType, columns: int
) -> None:
    lowest, highest = (-128, 127) if dtype == "int8" else (-8, 7)
    rows = np.full((4, columns), lowest, dtype=np.int8)
    rows[1] = highest
    rows[2, ::2], rows[3, 1::2] = highest, highest
    w = WeightMatrix(dtype, rows.shape, stored_as(dtype, rows, rng), np.ones(4, np.float32))
    for m in (1, 3, 16, 100):
        values = np.full((m, columns), 127, dtype=np.int8)
        values[1::3] = -128
        values[2::3, ::2] = -128
        x = QuantizedRows(values, np.ones(m, np.float32), values.sum(axis=1, dtype=np.int32))
        exact = (values.astype(np.int64) @ rows.T.astype(np.int64)).astype(np.float32)
        assert_same_bits(k.linear(x, w, None, pool), exact)


@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_float_linear_is_close_to_the_reference(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, dtype: WeightType
) -> None:
    sizes = [(m, 5, c) for m in (1, 2, 7) for c in range(1, 67)] + [(1, 300, 1152), (33, 50, 1152), (5, 9, 70_001)]
    sizes += [(m, n, 40) for m in range(1, 10) for n in range(1, 8)]
    for m, n, columns in sizes:
        x = floats(rng, m, columns)
        w = matrix(rng, dtype, n, columns, zero_points=bool(columns % 2))
        bias = floats(rng, n) if (m + n) % 2 else None
        expected = reference.linear(x, w, bias, pool)
        np.testing.assert_allclose(
            k.linear(x, w, bias, pool), expected, rtol=1e-5, atol=2e-7 * columns**0.5 * np.max(np.abs(expected))
        )


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("columns", [77, 256])
def test_a_row_of_float_linear_does_not_depend_on_the_other_rows_or_the_threads(
    k: Kernels, rng: np.random.Generator, dtype: WeightType, columns: int
) -> None:
    x, w = floats(rng, 18, columns), matrix(rng, dtype, 301, columns, zero_points=dtype == "int4")
    with ThreadPool(1) as one, ThreadPool(3) as three:
        single = np.concatenate([k.linear(np.ascontiguousarray(row[None]), w, None, one) for row in x])
        for m in range(1, 19):
            assert_same_bits(k.linear(np.ascontiguousarray(x[:m]), w, None, one), single[:m])
            assert_same_bits(k.linear(np.ascontiguousarray(x[:m]), w, None, three), single[:m])


def test_quantised_rows_equal_the_reference_bit_for_bit(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    for m, columns in [(1, c) for c in range(1, 70)] + [(50, 1153), (3, 70_000)]:
        x = floats(rng, m, columns) * np.float32(10.0 ** rng.integers(-20, 20))
        got, expected = k.quantize_rows(x, pool), reference.quantize_rows(x, pool)
        assert_same_bits(got.values, expected.values)
        assert_same_bits(got.scales, expected.scales)
        assert_same_bits(got.sums, expected.sums)


def test_rows_of_zeros_and_nearly_zeros_quantise_to_zero(k: Kernels, pool: ThreadPool) -> None:
    x = np.array([[0, 0, 0], [1e-40, -1e-40, 0], [1, -1, 0.5]], dtype=np.float32)
    for rows in (k.quantize_rows(x, pool), reference.quantize_rows(x, pool)):
        assert rows.values.tolist() == [[0, 0, 0], [0, 0, 0], [127, -127, 64]]
        assert rows.scales.tolist() == [0, 0, pytest.approx(1 / 127)]
        assert rows.sums.tolist() == [0, 0, 64]


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("dtype", ALL_TYPES)
def test_embedded_rows_equal_the_reference_bit_for_bit(
    k: Kernels, rng: np.random.Generator, dtype: WeightType, zero_points: bool
) -> None:
    for columns in range(1, 70):
        w = matrix(rng, dtype, 11, columns, zero_points and dtype in INTEGER_TYPES)
        ids = np.array([10, 0, 3, 3], dtype=np.int32)
        assert_same_bits(k.embed_rows(ids, w, 33.94), reference.embed_rows(ids, w, 33.94))


def test_every_float16_value_widens_exactly(k: Kernels) -> None:
    halves = np.arange(65_536, dtype=np.uint16).view(np.float16).reshape(1, -1)
    got = k.embed_rows(np.zeros(1, np.int32), WeightMatrix("float16", (1, 65_536), halves), 1.0)
    finite = ~np.isnan(halves)
    assert_same_bits(got[finite], halves.astype(np.float32)[finite])
    assert np.all(np.isnan(got[~finite]))


def test_a_read_only_weight_is_read(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    w = matrix(rng, "int4", 7, 40)
    w.data.flags.writeable = False
    x = quantised(rng, 2, 40)
    assert_same_bits(k.linear(x, w, None, pool), reference.linear(x, w, None, pool))


# ---- Adapters ----


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_adapters_of_any_rank_add_what_the_reference_adds(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, dtype: WeightType
) -> None:
    sizes = [(1, rank, c, 67 - c) for rank in (1, 3, 16) for c in range(1, 67)]
    sizes += [(m, rank, 40, 530) for m in range(1, 10) for rank in (1, 2, 5)] + [(33, 64, 1152, 1030), (2, 130, 7, 5)]
    for m, rank, columns, n in sizes:
        x, y = floats(rng, m, columns), floats(rng, m, n)
        adapted = [LoraRows(0, m, adapter(rng, dtype, rank, columns, n))]
        expected = y.copy()
        reference.lora_add(x, adapted, expected, pool)
        k.lora_add(x, adapted, y, pool)
        atol = 2e-7 * (rank * columns) ** 0.5 * np.max(np.abs(expected))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=atol)


def test_an_adapted_row_does_not_depend_on_the_other_rows_their_adapters_or_the_threads(
    k: Kernels, rng: np.random.Generator
) -> None:
    x, y = floats(rng, 17, 77), floats(rng, 17, 1100)
    some, other = adapter(rng, "float16", 5, 77, 1100), adapter(rng, "float32", 16, 77, 1100)
    with ThreadPool(1) as one, ThreadPool(3) as three:
        single = [{f: y[i : i + 1].copy() for f in (some, other)} for i in range(17)]
        for i, rows in enumerate(single):
            for factors, row in rows.items():
                k.lora_add(np.ascontiguousarray(x[i : i + 1]), [LoraRows(0, 1, factors)], row, one)
        for pool in (one, three):
            got = y.copy()
            k.lora_add(x, [LoraRows(0, 6, some), LoraRows(7, 15, other), LoraRows(16, 17, some)], got, pool)
            for i in range(17):
                factors = some if i < 6 or i == 16 else other
                assert_same_bits(got[i : i + 1], y[i : i + 1] if i in (6, 15) else single[i][factors])


# ---- Element by element ----


def test_norms_are_close_to_the_reference_and_rows_are_independent(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    for m, d in [(m, d) for m in (1, 3) for d in range(1, 140)] + [(70, 1152)]:
        x, weight, bias = floats(rng, m, d), floats(rng, d), floats(rng, d)
        rms = k.rms_norm(x, weight, 1e-6, pool)
        assert_close(rms, reference.rms_norm(x, weight, 1e-6, pool), 3e-6)
        for b in (None, bias):
            layer = k.layer_norm(x, weight, b, 1e-5, pool)
            assert_close(layer, reference.layer_norm(x, weight, b, 1e-5, pool), 1e-5)
        assert_same_bits(k.rms_norm(np.ascontiguousarray(x[-1:]), weight, 1e-6, pool), rms[-1:])
        assert_same_bits(k.layer_norm(np.ascontiguousarray(x[-1:]), weight, bias, 1e-5, pool), layer[-1:])


def test_rope_equals_the_reference_bit_for_bit(k: Kernels, rng: np.random.Generator) -> None:
    for r in range(1, 70):
        x, cos, sin = floats(rng, 3, 2, 2 * r + r % 4), floats(rng, 3, r), floats(rng, 3, r)
        expected = x.copy()
        reference.rope(expected, cos, sin)
        k.rope(x, cos, sin)
        assert_same_bits(x, expected)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_close_to_the_exact_functions(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, kind: Activation
) -> None:
    wide = np.concatenate([np.linspace(-30, 30, 40_003), [0, 1e-6, -1e-6, 1e-30, 100, -100]]).astype(np.float32)
    for x in [wide, *(floats(rng, size) for size in range(1, 40))]:
        exact = activated(x.astype(np.float64), kind)
        y = x.copy()
        k.activation(y, kind, pool)
        np.testing.assert_allclose(y, exact, rtol=1e-6, atol=2e-7)
        gate, up = x.reshape(1, -1).copy(), floats(rng, 1, x.size)
        k.gated_activation(gate, up, kind, pool)
        assert_same_bits(gate, (y * up[0])[None])
        reference.activation(x, kind, pool)
        np.testing.assert_allclose(x, exact, rtol=1e-5, atol=2e-6)


def activated(x: NDArray[np.float64], kind: Activation) -> NDArray[np.float64]:
    y: NDArray[np.float64]
    if kind == "gelu_tanh":
        y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    elif kind == "gelu":
        y = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    else:
        y = x / (1 + np.exp(-x)) if kind == "silu" else np.maximum(x, 0)
    return y


def test_soft_cap_is_exact_to_a_few_units_in_the_last_place(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    for x in [np.linspace(-500, 500, 70_001).astype(np.float32), *(floats(rng, size) for size in range(1, 40))]:
        exact = 30 * np.tanh(x.astype(np.float64) / 30)
        k.soft_cap(x, 30.0, pool)
        np.testing.assert_allclose(x, exact, rtol=5e-7)


def test_sums_are_those_of_numpy(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    for shape in [(70_001,), (3, 5, 7), *((size,) for size in range(40))]:
        x, y = floats(rng, *shape), floats(rng, *shape)
        expected = x + y
        k.add(x, y, pool)
        assert_same_bits(x, expected)


def test_not_a_number_stays_one_and_infinity_saturates(k: Kernels, pool: ThreadPool) -> None:
    x = np.array([np.nan, np.inf, -np.inf], dtype=np.float32)
    k.soft_cap(x, 30.0, pool)
    np.testing.assert_array_equal(x, np.array([np.nan, 30, -30], dtype=np.float32))
    y = np.array([np.nan, np.inf], dtype=np.float32)
    k.activation(y, "silu", pool)
    np.testing.assert_array_equal(y, np.array([np.nan, np.inf], dtype=np.float32))


# ---- Attention ----


@pytest.mark.parametrize("cache_dtype", CACHE_TYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (9, 1), (1, 1), (20, 1)])
@pytest.mark.parametrize(
    ("soft_cap", "window", "bias"), [(0.0, 0, False), (2.0, 0, True), (0.0, 7, True), (5.0, 1, False)]
)
def test_attention_is_close_to_the_reference(
    k: Kernels,
    pool: ThreadPool,
    rng: np.random.Generator,
    cache_dtype: str,
    heads: int,
    kv_heads: int,
    soft_cap: float,
    window: int,
    bias: bool,
) -> None:
    lengths = [23, 1, 40]
    sequences = Sequences(lengths, kv_heads, dtype=cache_dtype)
    batch = sequences.batch([(0, 0, 23), (1, 0, 1), (2, 0, 40)])
    q, keys, values = (floats(rng, 64, h, HEAD_DIM) for h in (heads, kv_heads, kv_heads))
    k.kv_append(keys, values, batch, 1)
    key_bias = floats(rng, heads, 41) if bias else None
    arguments = (batch, 1, kv_heads, 0.3, soft_cap, window, key_bias, pool)
    assert_close(k.attention(q, *arguments), reference.attention(q, *arguments), 2e-6)


def test_attention_takes_every_head_size_and_block_size(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    for head_dim in [*range(1, 70), 80, 96, 128, 256]:
        for dtype in CACHE_TYPES:
            sequences = Sequences([9], 1, head_dim, block_size=1 + head_dim % 16, dtype=dtype)
            batch = sequences.batch([(0, 0, 9)])
            q, keys, values = (floats(rng, 9, h, head_dim) for h in (3, 1, 1))
            k.kv_append(keys, values, batch, 0)
            arguments = (batch, 0, 1, head_dim**-0.5, 0.0, 0, None, pool)
            assert_close(k.attention(q, *arguments), reference.attention(q, *arguments), 2e-6)


@pytest.mark.parametrize("cache_dtype", CACHE_TYPES)
@pytest.mark.parametrize("window", [0, 200])
def test_attention_over_many_keys_is_close_to_the_reference_and_the_same_in_pieces(
    k: Kernels, rng: np.random.Generator, cache_dtype: str, window: int
) -> None:
    sequences = Sequences([420, 300], 1, dtype=cache_dtype, block_size=64)
    q, keys, values = (floats(rng, 720, h, HEAD_DIM) for h in (3, 1, 1))
    with ThreadPool(1) as one, ThreadPool(3) as three:
        everything = sequences.batch([(0, 0, 420), (1, 0, 300)])
        k.kv_append(keys, values, everything, 1)
        whole = k.attention(q, everything, 1, 1, 0.3, 0.0, window, None, three)
        assert_close(whole, reference.attention(q, everything, 1, 1, 0.3, 0.0, window, None, one), 2e-6)
        for first, end in ((419, 420), (256, 257), (255, 257), (250, 261), (383, 420)):
            for pool in (one, three):
                batch = sequences.batch([(0, first, end), (1, 299, 300)])
                rows = np.concatenate([q[first:end], q[719:]])
                y = k.attention(rows, batch, 1, 1, 0.3, 0.0, window, None, pool)
                assert_same_bits(y, np.concatenate([whole[first:end], whole[719:]]))


def test_appended_keys_and_values_equal_the_reference_bit_for_bit(k: Kernels, rng: np.random.Generator) -> None:
    for dtype in CACHE_TYPES:
        for head_dim in range(1, 40):
            got, expected = (Sequences([7, 3], 2, head_dim, dtype=dtype) for _ in range(2))
            keys, values = (floats(rng, 6, 2, head_dim) * np.float32(10.0 ** rng.integers(-9, 6)) for _ in range(2))
            rows = [(1, 0, 2), (0, 3, 7)]
            k.kv_append(keys, values, got.batch(rows), 1)
            reference.kv_append(keys, values, expected.batch(rows), 1)
            for a, b in zip(got.every_block(), expected.every_block(), strict=True):
                assert_same_bits(a, b)


def test_float16_cache_rounds_half_to_even_at_every_exponent(k: Kernels, rng: np.random.Generator) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    x = np.concatenate([halves, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))])
    x = np.concatenate([x, -x, np.array([65519, 65520, 1e9, np.inf, -np.inf], np.float32)]).reshape(1, 1, -1)
    sequences = Sequences([1], 1, x.shape[2], 1, "float16")
    k.kv_append(x, x, sequences.batch([(0, 0, 1)]), 0)
    block = sequences.blocks[0][0]
    assert block is not None
    with np.errstate(over="ignore"):
        assert_same_bits(block[0, 1, 0, 0], x[0, 0].astype(np.float16))


@pytest.mark.parametrize("cache_dtype", CACHE_TYPES)
@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize(("heads", "kv_heads"), [(5, 1), (4, 2), (3, 3)])
def test_attention_does_not_depend_on_chunks_batch_threads_or_block_size(
    k: Kernels, rng: np.random.Generator, cache_dtype: str, window: int, heads: int, kv_heads: int
) -> None:
    q, keys, values = (floats(rng, 50, h, HEAD_DIM) for h in (heads, kv_heads, kv_heads))

    def run(chunks: list[int], threads: int, block_size: int, with_other: bool) -> Floats:
        sequences = Sequences([50, 50], kv_heads, block_size=block_size, dtype=cache_dtype)
        outputs = []
        with ThreadPool(threads) as pool:
            for first, end in zip([0, *chunks], [*chunks, 50], strict=True):
                pieces = [a[first:end] for a in (q, keys, values)]
                rows = [(0, first, end)]
                if with_other:
                    rows.insert(0, (1, first, end))
                    pieces = [np.concatenate([floats(rng, *a.shape), a]) for a in pieces]
                pieces = [np.ascontiguousarray(a) for a in pieces]
                batch = sequences.batch(rows)
                k.kv_append(pieces[1], pieces[2], batch, 0)
                y = k.attention(pieces[0], batch, 0, kv_heads, 0.2, 3.0, window, None, pool)
                outputs.append(y[-(end - first) :])
        return np.concatenate(outputs)

    expected = run([], 1, 50, False)
    for chunks in ([], [1], [7, 8, 33], list(range(1, 50))):
        for threads, block_size, with_other in ((1, 8, False), (2, 5, True), (3, 16, False)):
            assert_same_bits(run(chunks, threads, block_size, with_other), expected)


def test_a_dropped_block_is_not_touched_and_refused_when_in_sight(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    sequences = Sequences([20], 1)
    q = floats(rng, 20, 2, HEAD_DIM)
    keys = floats(rng, 20, 1, HEAD_DIM)
    k.kv_append(keys, keys, sequences.batch([(0, 0, 20)]), 0)
    whole = k.attention(q, sequences.batch([(0, 0, 20)]), 0, 1, 1.0, 0.0, 4, None, pool)
    sequences.blocks[0][:2] = [None, None]
    batch = sequences.batch([(0, 13, 20)])  # sees from 10 on
    got = k.attention(np.ascontiguousarray(q[13:]), batch, 0, 1, 1.0, 0.0, 4, None, pool)
    assert_same_bits(got, whole[13:])
    for kernel in (k, reference):
        with pytest.raises(ValueError, match="dropped"):
            kernel.attention(
                np.ascontiguousarray(q[12:]), sequences.batch([(0, 12, 20)]), 0, 1, 1.0, 0.0, 4, None, pool
            )
        with pytest.raises(ValueError, match="dropped"):
            kernel.kv_append(keys, keys, sequences.batch([(0, 0, 20)]), 0)


@pytest.mark.parametrize("cache_dtype", CACHE_TYPES)
def test_keys_after_the_query_are_not_read(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, cache_dtype: str
) -> None:
    sequences = Sequences([10], 1, dtype=cache_dtype)  # not a number wherever nothing was appended
    keys = floats(rng, 6, 1, HEAD_DIM)
    batch = sequences.batch([(0, 0, 6)])
    k.kv_append(keys, keys, batch, 0)
    y = k.attention(floats(rng, 6, 3, HEAD_DIM), batch, 0, 1, 1.0, 0.0, 0, None, pool)
    assert np.all(np.isfinite(y))


@pytest.mark.parametrize("window", [0, 5])
def test_a_value_out_of_sight_that_is_infinite_changes_nothing(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, window: int
) -> None:
    sequences = Sequences([30], 1)
    q, keys, values = (floats(rng, 30, h, HEAD_DIM) for h in (2, 1, 1))
    batch = sequences.batch([(0, 0, 30)])
    k.kv_append(keys, values, batch, 0)
    expected = k.attention(q, batch, 0, 1, 1.0, 0.0, window, None, pool)
    keys[20], values[20] = np.nan, np.inf
    k.kv_append(keys, values, batch, 0)
    got = k.attention(q, batch, 0, 1, 1.0, 0.0, window, None, pool)
    sees = (np.arange(30) >= 20) & (np.arange(30) < (20 + window if window else 30))
    assert_same_bits(got[~sees], expected[~sees])
    assert np.all(np.isnan(got[sees]))


def test_a_cache_batch_that_contradicts_itself_is_refused() -> None:
    block = np.zeros((2, 2, 1, 5, HEAD_DIM), np.float32)
    cases: list[tuple[list[Any], int, str, str]] = [
        ([block], 5, "float64", "dtype: expected float32, float16 or int8"),
        ([block[..., :4].astype(np.int8)], 5, "int8", "rows of 5 bytes or more"),
        ([block], 0, "float32", "block_size"),
        ([block], 4, "float32", "block: expected .num_layers, 2, kv_heads, 4, head_dim"),
        ([block[0]], 5, "float32", "block: expected .num_layers"),
        ([block, None, block[:1]], 5, "float32", "block: expected float32 .* as the others"),
        ([block, block.astype(np.float16)], 5, "float32", "block: expected float32 .* as the others, got float16"),
        ([block[:, :, :, :, ::2]], 5, "float32", "block: expected a C-contiguous array"),
    ]
    for blocks, block_size, dtype, message in cases:
        with pytest.raises(ValueError, match=message):
            BlockTable(blocks, block_size, dtype)
    table = BlockTable([block, None], 5, "float32")
    for row_begin, first_positions, tables, message in (
        ([0], [], [], "at least one"),
        ([0, 7], [0, 0], [table], "expected 2 and 1 for 1 tables"),
        ([0, 11], [0], [table], "sequence 0 ends at position 11, but its blocks hold 10"),
        ([0, 7, 5], [0, 0], [table, table], "row_begin: expected bounds that rise"),
        ([1, 7], [0], [table], "row_begin: expected bounds that rise"),
        ([0, 7], [-1], [table], "first_positions"),
        ([0, 1, 2], [0, 0], [table, BlockTable([block[:1]], 5, "float32")], "tables: expected blocks .2, 2"),
        ([0, 1, 2], [0, 0], [table, BlockTable([None], 5, "float16")], "got 5 of float16 in table 1"),
    ):
        with pytest.raises(ValueError, match=message):
            CacheBatch(row_begin, first_positions, tables)


# ---- Recording ----


def test_recorded_calls_are_made_again_on_what_their_arrays_hold_then(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    recording = k.record()
    if recording is None:
        pytest.skip("the reference makes every result anew")
    weight, x = floats(rng, 40), floats(rng, 3, 40)
    y = recording.kernels.rms_norm(x, weight, 1e-6, pool)
    recording.kernels.add(y, x, pool)
    z = recording.kernels.rms_norm(y, weight, 1e-6, pool)
    for _ in range(3):
        x[:] = floats(rng, 3, 40)
        recording.repeat(pool)
        expected = k.rms_norm(x, weight, 1e-6, pool)
        k.add(expected, x, pool)
        assert_same_bits(y, expected)
        assert_same_bits(z, k.rms_norm(expected, weight, 1e-6, pool))


def test_memory_of_recorded_results_is_used_again_once_nobody_holds_them(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    recording = k.record()
    if recording is None:
        pytest.skip("the reference makes every result anew")
    weight = floats(rng, 40)
    x = floats(rng, 3, 40)
    for _ in range(10):
        x = recording.kernels.rms_norm(x, weight, 1e-6, pool)
    kept = recording.kernels.rms_norm(x, weight, 1e-6, pool).reshape(5, 24)[1:]  # a view of a view
    before = kept.copy()
    others = [recording.kernels.rms_norm(x, weight, 1e-6, pool) for _ in range(4)]
    addresses = {array.__array_interface__["data"][0] for array in (x, *others)}
    assert len(addresses) == 5
    assert_same_bits(kept, before)
    recording.repeat(pool)


def test_recorded_calls_go_on_with_the_cache_that_they_are_given(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    recording = k.record()
    if recording is None:
        pytest.skip("the reference makes every result anew")
    sequences = Sequences([20, 20], 1)
    keys, queries = floats(rng, 1, 1, HEAD_DIM), floats(rng, 1, 2, HEAD_DIM)
    batch = sequences.batch([(0, 0, 1)])
    recording.kernels.kv_append(keys, keys, batch, 1)
    y = recording.kernels.attention(queries, batch, 1, 1, 1.0, 0.0, 6, None, pool)
    place = recording.place_of(batch)
    del batch
    others = Sequences([20, 20], 1)
    for position in range(20):
        keys[:], queries[:] = floats(rng, 1, 1, HEAD_DIM), floats(rng, 1, 2, HEAD_DIM)
        recording.fill(place, sequences.batch([(1, position, position + 1)]), 6)
        recording.repeat(pool)
        other = others.batch([(1, position, position + 1)])
        k.kv_append(keys, keys, other, 1)
        assert_same_bits(y, k.attention(queries, other, 1, 1, 1.0, 0.0, 6, None, pool))
    for wrong, message in (
        (sequences.batch([(0, 0, 2)]), "expected 1 rows"),
        (Sequences([20], 1, dtype="float16").batch([(0, 0, 1)]), "got 1 with float16"),
        (Sequences([20], 2).batch([(0, 0, 1)]), "blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            recording.fill(place, wrong, 6)
    sequences.blocks[1][0] = None
    with pytest.raises(ValueError, match="dropped"):
        recording.fill(place, sequences.batch([(1, 8, 9)]), 6)


# ---- Sampling ----


def test_top_k_is_descending_with_the_lowest_id_first_among_equals(k: Kernels, rng: np.random.Generator) -> None:
    for size in [*range(1, 70), 1000, 5003]:
        for logits in (floats(rng, size), rng.integers(0, 4, size).astype(np.float32), np.zeros(size, np.float32)):
            for count in {1, 2, min(size, 40), size, size + 3}:
                ids, values = k.top_k(logits, count)
                expected_ids, expected_values = reference.top_k(logits, count)
                assert ids.tolist() == expected_ids.tolist()
                assert_same_bits(values, expected_values)


def test_top_k_takes_not_a_number_for_the_lowest(k: Kernels) -> None:
    logits = np.array([np.nan, 1, np.nan, -np.inf, 3] + [0] * 80, dtype=np.float32)
    logits[50] = np.nan
    assert k.top_k(logits, 3)[0].tolist() == [4, 1, 5]
    assert k.top_k(np.full(100, np.nan, np.float32), 2)[0].tolist() == [0, 1]


def test_a_draw_is_the_reference_s(k: Kernels, rng: np.random.Generator) -> None:
    for v, temperature, top_p, min_p, number in draws(rng):
        for logits in (floats(rng, v) * np.float32(5), masked_logits(rng, v), np.zeros(v, np.float32)):
            options = (temperature, top_p, min_p, number)
            assert k.draw(logits, *options) == reference.draw(logits, *options), (v, options)


def test_draws_follow_the_weights(k: Kernels, rng: np.random.Generator) -> None:
    logits = floats(rng, 5000) * np.float32(3)
    weights = np.exp(logits.astype(np.float64) / 0.7)
    order = np.argsort(-logits, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(weights[order]), 0.8 * weights.sum())) + 1]
    for number in rng.random(300):
        plain = np.searchsorted(np.cumsum(weights), number * weights.sum(), side="right")
        assert k.draw(logits, 0.7, 1.0, 0.0, number) == plain
        top = np.searchsorted(np.cumsum(weights[kept]), number * weights[kept].sum(), side="right")
        assert k.draw(logits, 0.7, 0.8, 0.0, number) == kept[top]


@pytest.mark.parametrize("top_p", [0.5, 1.0])
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_nothing_is_drawn_without_a_finite_highest(k: Kernels, top_p: float, wrong: float) -> None:
    for kernel in (k, reference):
        assert kernel.draw(np.full(40, wrong, np.float32), 1.0, top_p, 0.0, 0.5) == -1


def test_log_softmax_is_close_to_the_reference(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    for m, v in [(1, v) for v in range(1, 70)] + [(5, 4095), (3, 4097), (2, 262_144)]:
        logits, ids = floats(rng, m, v) * np.float32(10), rng.integers(0, v, m).astype(np.int32)
        np.testing.assert_allclose(
            k.log_softmax_at(logits, ids, pool), reference.log_softmax_at(logits, ids, pool), rtol=2e-6, atol=2e-6
        )


# ---- Memory ----


class GuardedMemory:
    """Give out arrays that end where a page begins that nobody may touch."""

    def __init__(self) -> None:
        self.size = 1 << 20
        self.memory = mmap.mmap(-1, self.size + mmap.PAGESIZE)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        guard = ctypes.c_void_p(self.bytes.ctypes.data + self.size)
        assert libc.mprotect(guard, mmap.PAGESIZE, 0) == 0, ctypes.get_errno()

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        placed = self.bytes[self.size - array.nbytes : self.size].view(array.dtype).reshape(array.shape)
        placed[...] = array
        return placed


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_nothing_is_read_past_the_end_of_weights_or_activations(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    weights, activations, out = GuardedMemory(), GuardedMemory(), GuardedMemory()
    for columns in [*range(1, 135), 1152]:
        for m in (1, 2, 13):
            for dtype in ALL_TYPES:
                w = matrix(rng, dtype, 3, columns)
                guarded = WeightMatrix(w.dtype, w.shape, weights.copy(w.data), w.scales)
                x = activations.copy(floats(rng, m, columns))
                assert_same_bits(k.linear(x, guarded, None, pool), k.linear(x, w, None, pool))
                k.embed_rows(np.array([2], np.int32), guarded, 1.0)
                if dtype in INTEGER_TYPES:
                    rows = quantised(rng, m, columns)
                    expected = k.linear(rows, w, None, pool)
                    rows.values = activations.copy(rows.values)
                    assert_same_bits(k.linear(rows, guarded, None, pool), expected)
        x = activations.copy(floats(rng, 1, columns))
        for dtype in FLOAT_TYPES:
            down, up = matrix(rng, dtype, 3, columns), matrix(rng, dtype, 3, columns)
            guarded_down = WeightMatrix(dtype, down.shape, weights.copy(down.data))
            guarded_up = WeightMatrix(dtype, up.shape, out.copy(up.data))
            got, expected = x.copy(), x.copy()
            k.lora_add(x, [LoraRows(0, 1, LoraFactors(down, up, 1.0))], expected, pool)
            k.lora_add(x, [LoraRows(0, 1, LoraFactors(guarded_down, guarded_up, 1.0))], got, pool)
            assert_same_bits(got, expected)
        k.quantize_rows(x, pool)
        k.rms_norm(x, weights.copy(x[0]), 1e-6, pool)
        k.layer_norm(x, weights.copy(x[0]), out.copy(x[0]), 1e-6, pool)
        k.gated_activation(out.copy(x), x, "silu", pool)
        k.soft_cap(out.copy(x), 2.0, pool)
        k.add(out.copy(x), weights.copy(x), pool)
        k.rope(out.copy(floats(rng, 1, 1, 2 * columns)), x, weights.copy(x))
        k.top_k(x[0], 3)
        for top_p in (0.9, 1.0):
            k.draw(x[0], 1.0, top_p, 0.0, 0.5)
        if columns < 135:  # a factor of 1152 x 1152 does not fit
            u = weights.copy(np.eye(columns, dtype=np.float32))
            k.round_compensated(x, u, np.ones(1, np.float32), -8, 7, pool)
        k.log_softmax_at(x, np.zeros(1, np.int32), pool)
        for dtype in ("float32", "float16"):
            sequences = Sequences([3], 1, columns, 3, dtype)
            block = sequences.blocks[0][0]
            assert block is not None
            sequences.blocks[0][0] = weights.copy(block[:1])
            batch = sequences.batch([(0, 0, 3)])
            keys = activations.copy(floats(rng, 3, 1, columns))
            k.kv_append(keys, keys, batch, 0)
            k.attention(keys, batch, 0, 1, 1.0, 0.0, 0, out.copy(floats(rng, 1, 3)), pool)


# ---- Rounding ----


@pytest.mark.parametrize(("lowest", "highest"), [(-8, 7), (-128, 127)])
def test_compensated_rounding_equals_the_reference_bit_for_bit(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator, lowest: int, highest: int
) -> None:
    sizes = [(m, c) for m in (1, 2, 33) for c in range(1, 70)] + [(m, 37) for m in range(1, 70)] + [(100, 300)]
    for m, columns in sizes:
        w, scales = floats(rng, m, columns), misaligned(rng.uniform(0.01, 0.3, m).astype(np.float32))
        u = factor(rng, columns)
        got = k.round_compensated(w, u, scales, lowest, highest, pool)
        expected = reference.round_compensated(w, u, scales, lowest, highest, pool)
        assert_same_bits(got[0], expected[0])
        assert_same_bits(got[1], expected[1])


def test_compensated_rounding_of_a_row_does_not_depend_on_the_other_rows_or_the_threads(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    w, scales, u = floats(rng, 90, 50), np.full(90, 0.2, np.float32), factor(rng, 50)
    whole, losses = k.round_compensated(w, u, scales, -8, 7, pool)
    for begin, end in ((0, 1), (1, 34), (34, 90), (0, 90)):
        rows = np.ascontiguousarray(w[begin:end])
        for threads in (pool, ThreadPool(1)):
            q, loss = k.round_compensated(rows, u, scales[begin:end], -8, 7, threads)
            assert_same_bits(q, whole[begin:end])
            assert_same_bits(loss, losses[begin:end])


def test_the_loss_of_compensated_rounding_is_the_error_that_inputs_would_see(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    w, scales, u = floats(rng, 5, 20), np.full(5, 0.2, np.float32), np.triu(factor(rng, 20))
    q, losses = k.round_compensated(w, u, scales, -8, 7, pool)
    error = (w - q * scales[:, None]).astype(np.float64)
    moments = np.linalg.inv(u.astype(np.float64).T @ u)
    np.testing.assert_allclose(losses, np.einsum("ri,ij,rj->r", error, moments, error), rtol=1e-3)


def test_rounding_with_a_diagonal_factor_is_plain_rounding(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    w = np.array([[0.5, 1.5, 2.5, -0.5, -9.0, 9.0, 0.0]], np.float32)
    q, _ = k.round_compensated(w, np.eye(7, dtype=np.float32), np.ones(1, np.float32), -8, 7, pool)
    assert q.tolist() == [[0, 2, 2, 0, -8, 7, 0]]


# ---- Arguments, threads and the choice ----


def test_a_norm_with_what_follows_equals_its_parts_bit_for_bit(
    k: Kernels, pool: ThreadPool, rng: np.random.Generator
) -> None:
    for m, d in [(1, d) for d in range(1, 70)] + [(3, 1152), (70, 1153), (5, 40)]:
        x, weight, residual = floats(rng, m, d), floats(rng, d), floats(rng, m, d)
        expected = k.rms_norm(x, weight, 1e-6, pool)
        rows, whole = k.rms_norm_quantize(x, weight, 1e-6, pool), k.quantize_rows(expected, pool)
        assert_same_bits(rows.values, whole.values)
        assert_same_bits(rows.scales, whole.scales)
        assert_same_bits(rows.sums, whole.sums)
        k.add(expected, residual, pool)
        assert_same_bits(k.rms_norm_add(x, weight, 1e-6, residual, pool), expected)
    with pytest.raises(ValueError, match="residual: expected"):
        k.rms_norm_add(x, weight, 1e-6, residual[1:], pool)


def test_both_refuse_what_does_not_fit(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    x, w = floats(rng, 2, 8), matrix(rng, "int8", 3, 8)
    for kernel in (k, reference):
        wrongs: list[Any] = [x[:, ::2], x.astype(np.float64), x[0], np.ascontiguousarray(x[:, :7])]
        for wrong in wrongs:
            with pytest.raises(ValueError, match="x: expected"):
                kernel.linear(wrong, w, None, pool)
        with pytest.raises(ValueError, match="bias: expected"):
            kernel.linear(x, w, floats(rng, 4), pool)
        with pytest.raises(ValueError, match="int8 or int4"):
            kernel.linear(kernel.quantize_rows(x, pool), matrix(rng, "float32", 3, 8), None, pool)
        y = floats(rng, 2, 3)
        for begin, end, columns, n, match in (
            (0, 3, 8, 3, "rows"),
            (-1, 1, 8, 3, "rows"),
            (0, 1, 7, 3, "factors"),
            (0, 1, 8, 4, "factors"),
        ):
            with pytest.raises(ValueError, match=f"adapted: expected {match}"):
                kernel.lora_add(x, [LoraRows(begin, end, adapter(rng, "float32", 2, columns, n))], y, pool)
        with pytest.raises(ValueError, match="float types"):
            kernel.lora_add(x, [LoraRows(0, 1, adapter(rng, "int8", 2, 8, 3))], y, pool)
        quantised_rows, four = quantised(rng, 2, 8), matrix(rng, "int4", 3, 8)
        for other in (matrix(rng, "int8", 3, 8), matrix(rng, "int4", 4, 8), matrix(rng, "int4", 3, 7)):
            with pytest.raises(ValueError, match="gate and up: expected int8 or int4 of one type and shape, got int4"):
                kernel.linear_gated(quantised_rows, four, None, other, None, "silu", pool)
        whole = matrix(rng, "float32", 3, 8)
        with pytest.raises(ValueError, match="gate and up: expected int8 or int4"):
            kernel.linear_gated(quantised_rows, whole, None, whole, None, "silu", pool)
        for other in (matrix(rng, "int8", 3, 8), matrix(rng, "int4", 3, 7)):
            with pytest.raises(ValueError, match="linears: expected int4 of 8 columns, as the first is, got int"):
                kernel.linear_each(quantised_rows, ((four, None), (other, None)), pool)
        with pytest.raises(ValueError, match="linears: expected at least one"):
            kernel.linear_each(quantised_rows, (), pool)
        with pytest.raises(ValueError, match="bias: expected"):
            kernel.linear_each(quantised_rows, ((four, None), (four, floats(rng, 4))), pool)
        with pytest.raises(ValueError, match="up_bias: expected"):
            kernel.linear_gated(quantised_rows, four, floats(rng, 3), four, floats(rng, 4), "silu", pool)
        with pytest.raises(ValueError, match="x.values: expected"):
            kernel.linear_gated(quantised(rng, 2, 9), four, None, four, None, "silu", pool)
        with pytest.raises(ValueError, match="kind: expected"):
            kernel.linear_gated(quantised_rows, four, None, four, None, "swish", pool)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="ids: expected 0 to 2, got -1 to 3"):
            kernel.embed_rows(np.array([-1, 3], np.int32), w, 1.0)
        with pytest.raises(ValueError, match="ids"):
            kernel.log_softmax_at(x, np.array([0, 8], np.int32), pool)
        with pytest.raises(ValueError, match="kind"):
            kernel.activation(x, "swish", pool)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="cos"):
            kernel.rope(floats(rng, 2, 1, 8), floats(rng, 2, 5), floats(rng, 2, 5))
        with pytest.raises(ValueError, match="k: expected"):
            kernel.top_k(floats(rng, 3), 0)
        for options in ((0.0, 1.0, 0.0, 0.5), (1.0, 0.0, 0.0, 0.5), (1.0, 1.0, 1.0, 0.5), (1.0, 1.0, 0.0, 1.0)):
            with pytest.raises(ValueError, match="temperature: expected|top_p, min_p and number: expected"):
                kernel.draw(x[0], *options)
        with pytest.raises(ValueError, match="logits: expected"):
            kernel.draw(x, 1.0, 1.0, 0.0, 0.5)
        with pytest.raises(ValueError, match="cap"):
            kernel.soft_cap(x, 0.0, pool)
        with pytest.raises(ValueError, match="y: expected"):
            kernel.add(x, x[:, 1:], pool)
        batch = Sequences([2], 2).batch([(0, 0, 2)])
        q = floats(rng, 2, 4, HEAD_DIM)
        for kv_heads, layer, match in ((3, 0, "num_kv_heads"), (1, 0, "layer 0"), (2, 2, "layer 2"), (2, -1, "layer")):
            with pytest.raises(ValueError, match=match):
                kernel.attention(q, batch, layer, kv_heads, 1.0, 0.0, 0, None, pool)
        with pytest.raises(ValueError, match="key_bias"):
            kernel.attention(q, batch, 0, 2, 1.0, 0.0, 0, floats(rng, 4, 1), pool)
        u, scales = np.eye(8, dtype=np.float32), np.ones(2, np.float32)
        for rows, factors, steps, lowest, match in (
            (x[0], u, scales, -8, "w:"),
            (x, u[:7], scales, -8, "factor"),
            (x, u, scales[:1], -8, "scales"),
            (x, u, scales, -129, "lowest"),
        ):
            with pytest.raises(ValueError, match=match):
                kernel.round_compensated(rows, factors, steps, lowest, 7, pool)


def test_nothing_is_computed_from_no_rows(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    for kernel in (k, reference):
        x = np.empty((0, 8), np.float32)
        for dtype in ALL_TYPES:
            assert kernel.linear(x, matrix(rng, dtype, 3, 8), None, pool).shape == (0, 3)
        rows = kernel.quantize_rows(x, pool)
        assert kernel.linear(rows, matrix(rng, "int4", 3, 8), None, pool).shape == (0, 3)
        w = matrix(rng, "int4", 3, 8)
        assert kernel.linear_gated(rows, w, None, w, None, "silu", pool).shape == (0, 3)
        assert kernel.rms_norm(x, np.ones(8, np.float32), 1e-6, pool).shape == (0, 8)
        assert kernel.embed_rows(np.empty(0, np.int32), matrix(rng, "int8", 3, 8), 1.0).shape == (0, 8)
        u, scales = np.eye(8, dtype=np.float32), np.empty(0, np.float32)
        assert kernel.round_compensated(x, u, scales, -8, 7, pool)[0].shape == (0, 8)
        nothing = Sequences([0], 1).batch([(0, 0, 0)])
        q = np.empty((0, 4, HEAD_DIM), np.float32)
        kernel.kv_append(q, q, nothing, 0)
        assert kernel.attention(q, nothing, 0, 4, 1.0, 0.0, 0, None, pool).shape == (0, 4, HEAD_DIM)


def test_a_matrix_without_columns_gives_the_bias(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    bias = floats(rng, 3)
    for kernel in (k, reference):
        for m in (1, 9):
            x = np.empty((m, 0), np.float32)
            for dtype in ALL_TYPES:
                w = matrix(rng, dtype, 3, 0)
                assert_same_bits(kernel.linear(x, w, bias, pool), np.tile(bias, (m, 1)))
                if dtype in INTEGER_TYPES:
                    y = kernel.linear(kernel.quantize_rows(x, pool), w, bias, pool)
                    assert_same_bits(y, np.tile(bias, (m, 1)))


def test_a_closed_pool_and_a_pool_used_by_several_threads_give_the_same_result(
    k: Kernels, rng: np.random.Generator
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    x, w = quantised(rng, 3, 512), matrix(rng, "int4", 2000, 512)
    expected = reference.linear(x, w, None, ThreadPool(1))
    pool = ThreadPool(3)
    with ThreadPoolExecutor(4) as executor:
        for result in executor.map(lambda _: k.linear(x, w, None, pool), range(200)):
            assert_same_bits(result, expected)
    pool.close()
    pool.close()
    assert_same_bits(k.linear(x, w, None, pool), expected)
    with pytest.raises(ValueError, match="num_threads"):
        ThreadPool(0)


def test_the_reference_does_not_depend_on_the_other_rows(pool: ThreadPool, rng: np.random.Generator) -> None:
    x, w = floats(rng, 9, 300), matrix(rng, "float32", 70, 300)
    whole = reference.linear(x, w, None, pool)
    for m in range(1, 10):
        assert_same_bits(reference.linear(np.ascontiguousarray(x[:m]), w, None, pool), whole[:m])


PRINT_CHOICE = "import hearthlm.kernels as k; print(k.instruction_set)"


@pytest.mark.parametrize("name", [*native.instruction_sets(), "reference"])
def test_the_environment_chooses_the_kernels(name: str) -> None:
    assert choose(name) == (0, name)


def test_an_unknown_choice_names_what_there_is() -> None:
    code, text = choose("mmx")
    assert code == 1
    assert "HEARTHLM_KERNELS" in text and "portable, reference; got 'mmx'" in text


def test_unset_chooses_the_best_native_kernels() -> None:
    assert choose("") == (0, native.instruction_sets()[0])
    assert kernels.instruction_set in (*native.instruction_sets(), "reference")


def test_without_the_extension_the_reference_is_chosen_with_a_warning() -> None:
    code = "import sys; sys.modules['hearthlm.kernels._native'] = None; " + PRINT_CHOICE
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(""))
    assert done.stdout.strip() == "reference"
    assert "no native kernels" in done.stderr


def choose(name: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", PRINT_CHOICE], capture_output=True, text=True, env=environment(name))
    return done.returncode, (done.stdout or done.stderr).strip()


def environment(name: str) -> dict[str, str]:
    return {**os.environ, "HEARTHLM_KERNELS": name, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
