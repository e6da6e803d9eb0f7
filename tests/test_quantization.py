"""Between floats and 8 or 4 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearthlm.quantization import (
    WeightMatrix,
    bfloat16_to_float32,
    dequantize,
    float32_to_bfloat16,
    pack_int4,
    quantize,
    unpack_int4,
)


@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_every_value_comes_back_within_half_a_step(rows: int, columns: int, bits: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = (generator.normal(size=(rows, columns)) * 10.0 ** generator.integers(-20, 20)).astype(np.float32)
    matrix = quantize(weights, bits)
    assert matrix.scales is not None
    assert np.all(np.abs(dequantize(matrix) - weights) <= matrix.scales[:, None] * 0.5001)


def test_the_largest_value_of_a_row_is_kept_and_a_row_of_zeros_has_scale_1() -> None:
    weights = np.array([[0.0, 0.0, 0.0], [1.0, -127.0, 3.0]], dtype=np.float32)
    matrix = quantize(weights, 8)
    assert matrix.data.tolist() == [[0, 0, 0], [1, -127, 3]]
    assert matrix.scales is not None
    assert matrix.scales.tolist() == [1.0, 1.0]


def test_ties_go_to_the_even_value() -> None:
    weights = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 7.0]], dtype=np.float32)
    assert unpack_int4(quantize(weights, 4).data, 6).tolist() == [[0, 2, 2, 0, -2, 7]]


def test_int4_has_the_even_column_in_the_low_nibble_and_an_offset_of_8() -> None:
    packed = pack_int4(np.array([[-8, 7, 0]], dtype=np.int8))
    assert packed.tolist() == [[0xF0, 0x88]]


@given(st.integers(1, 5), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_packing_is_undone_by_unpacking(rows: int, columns: int, seed: int) -> None:
    q = np.random.default_rng(seed).integers(-8, 8, (rows, columns), dtype=np.int8)
    assert np.array_equal(unpack_int4(pack_int4(q), columns), q)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_row(value: float) -> None:
    weights = np.zeros((3, 4), dtype=np.float32)
    weights[1, 2] = value
    with pytest.raises(ValueError, match="row 1"):
        quantize(weights, 8)


def test_zero_points_are_subtracted_before_scaling() -> None:
    one = np.array([2.0], dtype=np.float32)
    matrix = WeightMatrix("int8", (1, 2), np.array([[5, -3]], dtype=np.int8), one, np.array([1.0], dtype=np.float32))
    assert dequantize(matrix).tolist() == [[8.0, -8.0]]


@given(st.floats(width=32, allow_nan=True, allow_infinity=True))
def test_bfloat16_is_the_nearest_one(value: float) -> None:
    x = np.array([value], dtype=np.float32)
    back = bfloat16_to_float32(float32_to_bfloat16(x))
    if np.isnan(value):
        assert np.isnan(back[0])
    elif np.isfinite(back[0]):
        bits = float32_to_bfloat16(x)
        with np.errstate(over="ignore", invalid="ignore"):
            distances = [
                abs(float(bfloat16_to_float32(np.array([int(bits[0]) + step], dtype=np.uint16))[0]) - value)
                for step in (-1, 1)
                if 0 <= int(bits[0]) + step < 2**16
            ]
        assert all(not abs(float(back[0]) - value) > d for d in distances if np.isfinite(d))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int3", (1, 2), np.zeros((1, 2), np.int8)), "dtype"),
        (("int8", (2, 2), np.zeros((1, 2), np.int8), np.ones(2, np.float32)), "data of a int8 matrix"),
        (("int8", (1, 2), np.zeros((1, 2), np.int8)), "scales: missing"),
        (("float32", (1, 2), np.zeros((1, 2), np.float32), np.ones(1, np.float32)), "scales: not allowed"),
        (("int8", (1, 2), np.zeros((1, 2), np.int8), np.ones(2, np.float32)), r"scales: expected float32 \[1\]"),
        (("float32", (2, 2), np.zeros((2, 2), np.float32).T[:, ::-1]), "C-contiguous"),
    ],
)
def test_a_matrix_that_contradicts_itself_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightMatrix(*arguments)  # type: ignore[arg-type]
