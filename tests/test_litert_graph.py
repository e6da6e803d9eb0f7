"""LiteRT models built operator by operator, and how their weights lie in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats.litert_graph import Graph, Weight, litert_model_size, write_litert_model
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.quantization import WeightMatrix, dequantize, quantize, quantize_blocks

Values = NDArray[np.float32]


def run(path: Path, signature: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    outputs: dict[str, NDArray[Any]] = Interpreter(str(path)).get_signature_runner(signature)(**inputs)
    return outputs


def random_values(*shape: int) -> Values:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def weight_of(matrix: WeightMatrix, shape: tuple[int, ...] | None = None, block_size: int = 0) -> Weight:
    return Weight(TensorPlan.of("w", matrix), shape or matrix.shape, block_size)


def linear_model(path: Path, weight: Weight, rows: int = 3) -> Path:
    graph = Graph("linear")
    x = graph.input("x", "FLOAT32", (rows, weight.shape[1]))
    graph.output("y", graph.fully_connected(x, graph.weight(weight), None))
    write_litert_model(path, [graph], description="test")
    return path


def test_a_float_weight_multiplies(tmp_path: Path) -> None:
    values, x = random_values(8, 6), random_values(3, 6)
    path = linear_model(tmp_path / "m.tflite", weight_of(WeightMatrix("float32", (8, 6), values)))
    np.testing.assert_allclose(run(path, "linear", x=x)["y"], x @ values.T, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4", "blocks"])
def test_a_quantised_weight_means_what_was_quantised(kind: str, tmp_path: Path) -> None:
    values = random_values(16, 64)
    if kind == "blocks":
        matrix = quantize_blocks(values.reshape(-1, 32))
        weight, meant = weight_of(matrix, (16, 64), 32), dequantize(matrix).reshape(16, 64)
    else:
        matrix = quantize(values, int(kind.removeprefix("int")))
        weight, meant = weight_of(matrix), dequantize(matrix)
    path = linear_model(tmp_path / "m.tflite", weight, rows=64)
    # Rows with one value: XNNPACK rounds those to int8 without an error.
    y = run(path, "linear", x=np.eye(64, dtype=np.float32))["y"]
    np.testing.assert_allclose(y, meant.T, atol=1e-2 * np.abs(meant).max())
    graph = Graph("lookup")
    ids = graph.input("ids", "INT32", (2,))
    graph.output("rows", graph.lookup(ids, graph.weight(weight)))
    write_litert_model(tmp_path / "l.tflite", [graph], description="test")
    rows = run(tmp_path / "l.tflite", "lookup", ids=np.array([11, 3], np.int32))["rows"]
    np.testing.assert_allclose(rows, meant[[11, 3]], atol=1e-6)


def test_values_lie_once_behind_the_flatbuffer_at_multiples_of_64(tmp_path: Path) -> None:
    values = random_values(8, 5)
    weight = weight_of(WeightMatrix("float32", (8, 5), values))
    graphs = []
    for name in ("a", "b"):
        graph = Graph(name)
        x = graph.input("x", "FLOAT32", (1, 5))
        graph.output("y", graph.fully_connected(x, graph.weight(weight), None))
        graphs.append(graph)
    path = tmp_path / "m.tflite"
    write_litert_model(path, graphs, description="test")
    data = path.read_bytes()
    assert data.count(values.tobytes()) == 1
    assert data.index(values.tobytes()) % 64 == 0
    for name in ("a", "b"):
        np.testing.assert_allclose(run(path, name, x=np.ones((1, 5), np.float32))["y"][0], values.sum(1), atol=1e-5)


def test_weights_beyond_what_a_flatbuffer_holds_are_counted_without_being_made() -> None:
    def never(first: int, last: int) -> WeightMatrix:
        raise AssertionError

    graph = Graph("g")
    x = graph.input("x", "FLOAT32", (1, 1 << 16))
    for i in range(2):
        plan = TensorPlan(f"{i}", (1 << 15, 1 << 16), "int8", never)
        graph.output(f"y{i}", graph.fully_connected(x, graph.weight(Weight(plan, plan.shape)), None))
    assert litert_model_size([graph], description="test") > 2 << 31


def test_operands_are_broadcast_and_what_changes_nothing_is_left_out() -> None:
    graph = Graph("g")
    x = graph.input("x", "FLOAT32", (1, 3, 4))
    assert graph.add(x, graph.floats(np.array([[1.0], [2.0], [3.0]], np.float32))).shape == (1, 3, 4)
    assert graph.reshape(x, (1, 3, 4)) is x
    assert graph.slice(x, 2, 0, 4) is x
    assert graph.concatenate([x], 1) is x
    count = len(graph.operators)
    assert graph.transpose(x, (1, 0, 2)).shape == (3, 1, 4)
    assert [operator.name for operator in graph.operators[count:]] == ["RESHAPE"]
    assert graph.transpose(x, (0, 2, 1)).shape == (1, 4, 3)
    assert graph.operators[-1].name == "TRANSPOSE"
    assert graph.floats(2.0) is graph.floats(2.0)


@pytest.mark.parametrize(
    ("plan", "shape", "block_size", "message"),
    [
        (("int8", (4, 6)), (4, 5), 0, "is no tensor"),
        (("float16", (4, 6)), (4, 6), 0, "expected float32, int8 or int4 without zero points"),
        (("int8", (4, 32)), (2, 64), 32, "expected int4 rows of 32"),
        (("int4", (4, 16)), (2, 32), 32, "expected int4 rows of 32"),
    ],
)
def test_a_weight_that_does_not_fit_its_plan_is_refused(
    plan: tuple[Any, tuple[int, int]], shape: tuple[int, int], block_size: int, message: str
) -> None:
    dtype, rows = plan
    with pytest.raises(ValueError, match=message):
        Weight(TensorPlan("w", rows, dtype, lambda first, last: random_values(1)), shape, block_size)


def test_int4_rows_of_odd_length_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="w: int4 needs an even number of columns, got 5; use int8"):
        weight_of(quantize(random_values(4, 5), 4))


def test_a_producer_that_breaks_its_plan_is_refused(tmp_path: Path) -> None:
    wrong = quantize(random_values(4, 6), 8)
    weight = Weight(TensorPlan("w", (4, 4), "int8", lambda first, last: wrong), (4, 4))
    with pytest.raises(ValueError, match=r"w: expected int8 \[4, 4\], got int8 \[4, 6\]"):
        linear_model(tmp_path / "m.tflite", weight)
    assert list(tmp_path.iterdir()) == []
