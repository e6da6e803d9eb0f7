"""Between floats and 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.kernels import ThreadPool
from hearthlm.models.gemma import GEMMA
from hearthlm.quantization import (
    QuantizationMethod,
    WeightMatrix,
    bfloat16_to_float32,
    dequantize,
    float32_to_bfloat16,
    pack_int4,
    quantize,
    quantize_blocks,
    unpack_int4,
)
from hearthlm.runtime.error_compensation import ErrorCompensation

GOLDEN = Path(__file__).parent / "golden"
METHODS: tuple[QuantizationMethod, ...] = get_args(QuantizationMethod)

Floats = NDArray[np.float32]


def random_rows(seed: int, rows: int, columns: int) -> Floats:
    """Return rows of very different sizes, some with outliers."""
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((rows, columns)) * 10.0 ** generator.integers(-9, 9, (rows, 1))
    weights[::3, columns // 2] *= 20
    return weights.astype(np.float32)


def correlated_inputs(seed: int, tokens: int, columns: int) -> Floats:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((columns, columns)) * np.exp(generator.standard_normal(columns))
    return (generator.standard_normal((tokens, columns)) @ mixing).astype(np.float32)


def squared_errors(weights: Floats, matrix: WeightMatrix) -> NDArray[np.float64]:
    """Return the squared error of each row, relative to the row's squares."""
    exact = weights.astype(np.float64)
    errors: NDArray[np.float64] = np.square(dequantize(matrix) - exact).sum(axis=1) / np.square(exact).sum(axis=1)
    return errors


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_every_method_refuses_a_value_that_is_not_finite(method: QuantizationMethod, value: float) -> None:
    weights = np.zeros((300, 4), dtype=np.float32)
    weights[271, 2] = value
    with pytest.raises(ValueError, match="row 271"):
        quantize(weights, 4, method=method, compensation=compensation_for(method, weights))
    with pytest.raises(ValueError, match="row 271"):
        quantize(weights, 4, symmetric=False)


def compensation_for(method: QuantizationMethod, weights: Floats) -> ErrorCompensation | None:
    if method != "gptq":
        return None
    return ErrorCompensation.from_inputs(correlated_inputs(5, 200, weights.shape[1]), ThreadPool(1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_panel_of_rows_gives_what_the_whole_matrix_gives(
    method: QuantizationMethod, symmetric: bool, bits: int
) -> None:
    if not symmetric and method != "minmax":
        pytest.skip("has no zero points")
    weights = random_rows(1, 1000, 135)  # more than one block of rows
    compensation = compensation_for(method, weights)

    def quantized(rows: slice) -> WeightMatrix:
        return quantize(weights[rows], bits, method=method, symmetric=symmetric, compensation=compensation)

    whole = quantized(slice(None))
    for rows in (slice(0, 1), slice(1, 34), slice(34, 700), slice(700, 1000)):
        panel = quantized(rows)
        for got, expected in (
            (panel.data, whole.data),
            (panel.scales, whole.scales),
            (panel.zero_points, whole.zero_points),
        ):
            np.testing.assert_array_equal(got, None if expected is None else expected[rows])


@given(st.integers(1, 9), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_the_searched_scale_is_never_worse_than_that_of_minmax(rows: int, columns: int, bits: int, seed: int) -> None:
    weights = random_rows(seed, rows, columns)
    searched = squared_errors(weights, quantize(weights, bits, method="mse"))
    assert np.all(searched <= squared_errors(weights, quantize(weights, bits)) * 1.0001 + 1e-12)


def test_the_searched_scale_is_close_to_the_best_there_is() -> None:
    weights = random_rows(2, 40, 256)
    matrix = quantize(weights, 4, method="mse")
    assert matrix.scales is not None
    found = squared_errors(weights, matrix)
    best = np.full(40, np.inf)
    for part in np.linspace(0.1, 1.1, 400):
        scales = (np.abs(weights).max(axis=1) / 7 * part).astype(np.float32)
        q = np.clip(np.rint(weights / scales[:, None]), -8, 7).astype(np.int8)
        best = np.minimum(best, squared_errors(weights, WeightMatrix("int8", weights.shape, q, scales)))
    assert np.all(found <= 1.05 * best)
    assert found.mean() <= 1.02 * best.mean()
    assert found.mean() < 0.8 * squared_errors(weights, quantize(weights, 4)).mean()


def test_an_outlier_is_clipped_where_that_serves_the_rest_of_the_row() -> None:
    weights = np.full((1, 4096), 0.1, np.float32)
    weights[0, 7] = 1.0
    matrix = quantize(weights, 4, method="mse")
    assert squared_errors(weights, matrix)[0] < 0.3 * squared_errors(weights, quantize(weights, 4))[0]


def test_weighted_columns_get_the_smaller_error() -> None:
    weights = np.random.default_rng(3).standard_normal((50, 64), dtype=np.float32)
    moments = np.where(np.arange(64) < 8, 100.0, 0.01).astype(np.float32)

    def weighted_error(matrix: WeightMatrix) -> float:
        return float(np.mean(np.square(dequantize(matrix) - weights) * moments))

    searched = quantize(weights, 4, method="mse", second_moments=moments)
    assert weighted_error(searched) < 0.9 * weighted_error(quantize(weights, 4, method="mse"))


@pytest.mark.parametrize("bits", [4, 8])
def test_compensation_leaves_less_error_in_the_outputs(bits: int) -> None:
    weights, inputs = random_rows(4, 60, 96), correlated_inputs(4, 2000, 96)
    unseen = correlated_inputs(4, 4000, 96)[2000:]
    compensation = ErrorCompensation.from_inputs(inputs, ThreadPool(1))
    exact = unseen @ weights.T

    def output_errors(matrix: WeightMatrix) -> Floats:
        errors: Floats = np.square(unseen @ dequantize(matrix).T - exact).sum(axis=0) / np.square(exact).sum(axis=0)
        return errors

    plain = output_errors(quantize(weights, bits, method="mse"))
    compensated = output_errors(quantize(weights, bits, method="gptq", compensation=compensation))
    assert np.mean(compensated < plain) > 0.9
    assert compensated.mean() < 0.5 * plain.mean()


def test_compensation_of_independent_inputs_only_chooses_the_scale() -> None:
    weights, inputs = random_rows(6, 20, 32), np.eye(32, dtype=np.float32)
    compensated = quantize(weights, 4, method="gptq", compensation=ErrorCompensation.from_inputs(inputs, ThreadPool(1)))
    plain = quantize(weights, 4, method="mse")
    assert np.all(squared_errors(weights, compensated) <= squared_errors(weights, plain) * 1.0001)
    assert compensated.scales is not None
    rounded = np.clip(np.rint(weights / compensated.scales[:, None]), -8, 7)
    assert np.mean(unpack_int4(compensated.data, 32) == rounded) > 0.999


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    inputs = correlated_inputs(7, 300, 40)
    inputs[:, ::4] = 0
    weights = np.random.default_rng(7).standard_normal((20, 40), dtype=np.float32)
    compensation = ErrorCompensation.from_inputs(inputs, ThreadPool(1))
    matrix = quantize(weights, 4, method="gptq", compensation=compensation)
    assert np.all(squared_errors(weights, matrix) < 0.5)
    nothing = ErrorCompensation.from_inputs(np.zeros((5, 40), np.float32), ThreadPool(1))
    assert np.all(squared_errors(weights, quantize(weights, 4, method="gptq", compensation=nothing)) < 0.5)
    with pytest.raises(ValueError, match="inputs: row 3"):
        inputs[3, 5] = np.inf
        ErrorCompensation.from_inputs(inputs, ThreadPool(1))


def test_compensation_in_blocks_is_nearly_as_good_as_in_one() -> None:
    weights, inputs = random_rows(8, 30, 100), correlated_inputs(8, 2000, 100)
    exact = inputs @ weights.T

    def error(max_block: int) -> float:
        compensation = ErrorCompensation.from_inputs(inputs, ThreadPool(1), max_block=max_block)
        matrix = quantize(weights, 4, method="gptq", compensation=compensation)
        return float(np.mean(np.square(inputs @ dequantize(matrix).T - exact) / np.square(exact).mean(axis=0)))

    assert error(100) <= error(50) < error(1)


def test_zeros_equal_values_and_denormals_come_back() -> None:
    weights = np.zeros((4, 6), np.float32)
    weights[1] = 0.75
    weights[2] = 1e-44
    weights[3, 2] = -3.0
    for bits in (4, 8):
        for method in METHODS:
            matrix = quantize(weights, bits, method=method, compensation=compensation_for(method, weights))
            assert matrix.scales is not None
            assert np.all(np.isfinite(matrix.scales) & (matrix.scales > 0))
            assert not dequantize(matrix)[0].any()
            assert np.all(np.abs(dequantize(matrix)[2]) < 1e-11)
        asymmetric = dequantize(quantize(weights, bits, symmetric=False))
        assert np.all(np.abs(asymmetric - weights) <= 0.11)
        np.testing.assert_array_equal(asymmetric[1], weights[1])


@given(st.integers(1, 9), st.integers(2, 40), st.sampled_from([4, 8]), st.integers(0, 2**32 - 1))
def test_with_zero_points_every_value_comes_back_within_half_a_step(
    rows: int, columns: int, bits: int, seed: int
) -> None:
    weights = np.random.default_rng(seed).uniform(-3, 5, (rows, columns)).astype(np.float32)
    matrix = quantize(weights, bits, symmetric=False)
    assert matrix.scales is not None
    assert np.all(np.abs(dequantize(matrix) - weights) <= matrix.scales[:, None] * 0.501)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 5}, "bits"),
        ({"method": "best"}, "method: expected one of minmax"),
        ({"method": "mse", "symmetric": False}, "symmetric"),
        ({"method": "gptq"}, "compensation: missing"),
        ({"compensation": ErrorCompensation.from_inputs(np.ones((3, 4), np.float32), ThreadPool(1))}, "not allowed"),
        ({"method": "mse", "second_moments": np.ones(3, np.float32)}, r"second_moments: expected \[4\], got \[3\]"),
    ],
)
def test_an_impossible_wish_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(np.ones((2, 4), np.float32), **{"bits": 4, **arguments})  # type: ignore[arg-type]


def test_a_row_that_spans_more_than_a_float_is_refused_with_zero_points() -> None:
    weights = np.array([[3e38, -3e38]], np.float32)
    assert np.array_equal(dequantize(quantize(weights, 8)), weights)
    with pytest.raises(ValueError, match="difference"):
        quantize(weights, 8, symmetric=False)


@pytest.mark.parametrize(
    "name",
    [
        "0.10.14/gemma_2b_cpu_asym_int8",
        "0.10.14/gemma_2b_cpu_asym_int4",
        "0.10.14/gemma_2b_gpu_asym_int8",
        "0.10.14/gemma_2b_gpu_asym_int4",
        "0.10.35/gemma_2b_cpu_int4_mse",
        "0.10.14/gemma_2b_cpu_int8",
        "0.10.14/gemma_2b_cpu_int4",
    ],
)
def test_the_values_of_mediapipes_converter_are_met_to_the_last_bit(name: str) -> None:
    file = WeightsBin.open(GOLDEN / "outputs" / f"{name}.bin")
    checkpoint = Checkpoint.open(GOLDEN / "inputs" / "gemma_2b")
    method: QuantizationMethod = "mediapipe_mse" if name.endswith("mse") else "minmax"
    num_compared = 0
    with file, checkpoint:
        for role, bin_names in GEMMA.bin_names.items():
            stored_name = GEMMA.checkpoint_names.get(role)
            for layer in range(2):
                bin_name = str(bin_names).format(i=layer)
                if not bin_name.endswith(".w") or not isinstance(stored_name, str):
                    continue
                weights = dequantize(checkpoint.matrix(stored_name.format(i=layer)))
                expected = file.matrix(bin_name, (weights.shape[0], weights.shape[1]))
                got = quantize(
                    weights, 8 if expected.dtype == "int8" else 4, method=method, symmetric="asym" not in name
                )
                np.testing.assert_array_equal(got.data, expected.data, err_msg=bin_name)
                np.testing.assert_array_equal(got.scales, expected.scales, err_msg=bin_name)
                if "gpu_asym" in name:  # in files for the CPU the converter loses them
                    np.testing.assert_array_equal(got.zero_points, expected.zero_points, err_msg=bin_name)
                num_compared += 1
    assert num_compared == 16  # of two layers; the embedding twice


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


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_scales_of_blocks_are_floats_of_both_16_bit_kinds(method: QuantizationMethod) -> None:
    values = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    values *= 10.0 ** np.linspace(-9, 4, 64, dtype=np.float32)[:, None]
    matrix = quantize_blocks(values, method=method)
    scales = matrix.scales
    assert scales is not None
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(scales, bfloat16_to_float32(float32_to_bfloat16(scales)))
    largest = np.abs(values).max(axis=1)
    error = np.abs(dequantize(matrix) - values).max(axis=1)
    is_normal = largest > 1e-3  # below, float16 has ever fewer scales
    assert (error[is_normal] <= (0.15 if method == "minmax" else 0.6) * largest[is_normal]).all()
    assert (error <= largest).all()


def test_blocks_of_least_error_have_less() -> None:
    values = np.random.default_rng(0).normal(size=(256, 32)).astype(np.float32)
    errors = [
        np.square(dequantize(quantize_blocks(values, method=method)) - values).sum() for method in ("minmax", "mse")
    ]
    assert errors[1] < 0.9 * errors[0]


def test_blocks_that_no_float16_scale_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="larger than a float16 scale allows"):
        quantize_blocks(np.full((1, 32), 1e6, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        quantize_blocks(np.full((1, 32), np.inf, np.float32))
