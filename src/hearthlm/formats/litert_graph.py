"""LiteRT models (`.tflite`) built operator by operator and written, their weights a few MiB at a time.

Format: tensorflow/compiler/mlir/lite/schema/schema.fbs. A model has one graph for each signature; they share their
constants. Small ones lie in the flatbuffer, weights behind it: a buffer's `offset` and `size` say where, counted from
the beginning of the flatbuffer, so that neither is bound to the 2 GiB that a flatbuffer can hold.

Quantised weights are signed: int8 [out, in]; int4 two to the byte, the even one in the low nibble. With one scale for
each row the scales stand in the flatbuffer; with one for each block of a row they are a tensor of their own, float16
[out, in / block].
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats.atomic_file import replace_file
from hearthlm.formats.flatbuffer import Fields, Packed, Scalar, Shared, Value, build_flatbuffer
from hearthlm.formats.tensor_plan import TensorPlan, produced_pieces, write_at
from hearthlm.quantization import WeightMatrix

TensorType = Literal["FLOAT32", "FLOAT16", "INT32", "BOOL", "INT8", "INT4"]

IDENTIFIER = b"TFL3"
MAX_HEAD_BYTES = (1 << 31) - 1
WEIGHT_ALIGNMENT = 64  # of weights behind the flatbuffer, counted from its beginning
_INLINE_ALIGNMENT = 16  # of constants in it

_TYPE_CODES = {"FLOAT32": 0, "FLOAT16": 1, "INT32": 2, "BOOL": 6, "INT8": 9, "INT4": 17}
_BLOCKWISE = 2  # of the union QuantizationDetails
# Code, version, and the kind of options, 0 where the operator has none that matter: unions BuiltinOperator and
# BuiltinOptions of the schema.
_OPERATORS: Mapping[str, tuple[int, int, int]] = {
    "ADD": (0, 1, 11),
    "CONCATENATION": (2, 1, 10),
    "EMBEDDING_LOOKUP": (7, 1, 0),
    "FULLY_CONNECTED": (9, 5, 8),
    "LOGISTIC": (14, 1, 0),
    "MUL": (18, 1, 21),
    "RELU": (19, 1, 0),
    "RESHAPE": (22, 1, 0),
    "SOFTMAX": (25, 1, 9),
    "TANH": (28, 1, 0),
    "TRANSPOSE": (39, 1, 0),
    "MEAN": (40, 1, 27),
    "SUB": (41, 1, 28),
    "CAST": (53, 1, 0),
    "MINIMUM": (57, 1, 0),
    "GREATER": (61, 1, 0),
    "SLICE": (65, 1, 0),
    "SIN": (66, 1, 0),
    "RSQRT": (76, 1, 0),
    "COS": (108, 1, 0),
    "SELECT_V2": (123, 1, 0),
    "BATCH_MATMUL": (126, 1, 101),
    "GELU": (150, 1, 116),
    "DYNAMIC_UPDATE_SLICE": (151, 1, 0),
}


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant that is streamed to the file and lies there once, however many graphs use it.

    `plan` produces it as float32, or as symmetric int8 or int4 with a scale for each of its rows; `shape` is that of
    the tensor. With `block_size` a row of the plan is a block of a row of the tensor.
    """

    plan: TensorPlan
    shape: tuple[int, ...]
    block_size: int = 0

    def __post_init__(self) -> None:
        if math.prod(self.plan.shape) != math.prod(self.shape):
            raise ValueError(f"{self.plan.name}: a plan of {self.plan.shape} values is no tensor {self.shape}")
        if self.plan.dtype not in ("float32", "int8", "int4") or self.plan.has_zero_points:
            raise ValueError(f"{self.plan.name}: expected float32, int8 or int4 without zero points")
        if self.block_size and (self.plan.dtype != "int4" or self.plan.shape[-1] != self.block_size):
            raise ValueError(f"{self.plan.name}: expected int4 rows of {self.block_size}, got {self.plan.shape}")
        if self.plan.dtype == "int4" and self.plan.shape[-1] % 2:
            raise UnsupportedModelError(
                f"{self.plan.name}: int4 needs an even number of columns, got {self.plan.shape[-1]}; use int8"
            )

    @property
    def num_bytes(self) -> int:
        """Count the bytes of the values, without scales."""
        return math.prod(self.shape) * {"float32": 32, "int8": 8, "int4": 4}[self.plan.dtype] // 8

    @property
    def num_scales(self) -> int:
        return 0 if self.plan.dtype == "float32" else self.plan.shape[0]

    @property
    def scale_bytes(self) -> int:
        """Count the bytes of the scales' own tensor, 0 where they stand in the flatbuffer."""
        return 2 * self.num_scales if self.block_size else 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """One value of one graph; `index` is its place there."""

    index: int
    type: TensorType
    shape: tuple[int, ...]
    name: str = ""
    constant: bytes | Weight | None = None


@dataclass(frozen=True, eq=False)
class _Operator:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Fields = field(default_factory=dict)


class Graph:
    """The operators of one signature, in the order in which they run.

    Every method but `input`, `output` and those that make constants adds one operator and returns its result.
    Operands are broadcast as in NumPy.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tensors: list[Tensor] = []
        self.operators: list[_Operator] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}
        self._weights: dict[Weight, Tensor] = {}

    def input(self, name: str, type: TensorType, shape: Sequence[int]) -> Tensor:
        self.inputs[name] = self._tensor(type, shape, f"{self.name}_{name}")
        return self.inputs[name]

    def output(self, name: str, tensor: Tensor) -> None:
        """Give a result of an operator out under `name`."""
        named = Tensor(tensor.index, tensor.type, tensor.shape, f"{self.name}_{name}_output")
        self.tensors[tensor.index] = self.outputs[name] = named

    def integers(self, values: Sequence[int] | NDArray[np.int32]) -> Tensor:
        """Return constant int32 values."""
        return self._constant("INT32", np.asarray(values, np.int32))

    def floats(self, values: float | Sequence[float] | NDArray[np.float32]) -> Tensor:
        """Return constant float32 values."""
        return self._constant("FLOAT32", np.atleast_1d(np.asarray(values, np.float32)))

    def weight(self, weight: Weight) -> Tensor:
        if weight not in self._weights:
            types: dict[str, TensorType] = {"float32": "FLOAT32", "int8": "INT8", "int4": "INT4"}
            self._weights[weight] = self._tensor(
                types[weight.plan.dtype], weight.shape, weight.plan.name, constant=weight
            )
        return self._weights[weight]

    def _constant(self, type: TensorType, values: NDArray[Any]) -> Tensor:
        data = values.tobytes()
        key = (type, values.shape, data)
        if key not in self._constants:
            self._constants[key] = self._tensor(type, values.shape, constant=data)
        return self._constants[key]

    def _tensor(
        self, type: TensorType, shape: Sequence[int], name: str = "", constant: bytes | Weight | None = None
    ) -> Tensor:
        tensor = Tensor(len(self.tensors), type, tuple(int(n) for n in shape), name, constant)
        self.tensors.append(tensor)
        return tensor

    def _operator(
        self,
        name: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        options: Fields | None = None,
        type: TensorType = "FLOAT32",
    ) -> Tensor:
        result = self._tensor(type, shape)
        indices = tuple(-1 if tensor is None else tensor.index for tensor in inputs)
        self.operators.append(_Operator(name, indices, (result.index,), options or {}))
        return result

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._elementwise("ADD", a, b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self._elementwise("SUB", a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return self._elementwise("MUL", a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return self._elementwise("MINIMUM", a, b)

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return self._elementwise("GREATER", a, b, "BOOL")

    def _elementwise(self, name: str, a: Tensor, b: Tensor, type: TensorType | None = None) -> Tensor:
        return self._operator(name, (a, b), np.broadcast_shapes(a.shape, b.shape), type=type or a.type)

    def select(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        return self._operator("SELECT_V2", (condition, a, b), shape, type=a.type)

    def cos(self, x: Tensor) -> Tensor:
        return self._operator("COS", (x,), x.shape)

    def sin(self, x: Tensor) -> Tensor:
        return self._operator("SIN", (x,), x.shape)

    def rsqrt(self, x: Tensor) -> Tensor:
        return self._operator("RSQRT", (x,), x.shape)

    def tanh(self, x: Tensor) -> Tensor:
        return self._operator("TANH", (x,), x.shape)

    def relu(self, x: Tensor) -> Tensor:
        return self._operator("RELU", (x,), x.shape)

    def sigmoid(self, x: Tensor) -> Tensor:
        return self._operator("LOGISTIC", (x,), x.shape)

    def gelu(self, x: Tensor, *, approximate: bool) -> Tensor:
        """Return x * Phi(x), with `approximate` by the formula with tanh."""
        return self._operator("GELU", (x,), x.shape, {0: Scalar("?", approximate)})

    def softmax(self, x: Tensor) -> Tensor:
        return self._operator("SOFTMAX", (x,), x.shape, {0: Scalar("f", 1.0)})

    def to_float(self, x: Tensor) -> Tensor:
        return self._operator("CAST", (x,), x.shape)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over the last axis, which stays with length 1."""
        axis = self.integers([len(x.shape) - 1])
        return self._operator("MEAN", (x, axis), (*x.shape[:-1], 1), {0: Scalar("?", True)})

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return `x` in another shape: itself where it has that shape already."""
        if tuple(shape) == x.shape:
            return x
        return self._operator("RESHAPE", (x, self.integers(shape)), shape, type=x.type)

    def transpose(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """Return `x` with its axes in another order; where none that is longer than 1 changes place, reshaped."""
        shape = [x.shape[axis] for axis in axes]
        moved = [axis for axis in axes if x.shape[axis] > 1]
        if moved == sorted(moved):
            return self.reshape(x, shape)
        return self._operator("TRANSPOSE", (x, self.integers(axes)), shape, type=x.type)

    def slice(self, x: Tensor, axis: int, begin: int, end: int) -> Tensor:
        """Return the part [begin, end) of one axis: `x` itself where that is all of it."""
        if (begin, end) == (0, x.shape[axis]):
            return x
        first, shape = [0] * len(x.shape), list(x.shape)
        first[axis], shape[axis] = begin, end - begin
        return self._operator("SLICE", (x, self.integers(first), self.integers(shape)), shape, type=x.type)

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self._operator("CONCATENATION", parts, shape, {0: Scalar("i", axis)}, parts[0].type)

    def lookup(self, ids: Tensor, table: Tensor) -> Tensor:
        """Return the rows `ids` [n] of a table [rows, columns] as float32."""
        return self._operator("EMBEDDING_LOOKUP", (ids, table), (*ids.shape, table.shape[1]))

    def fully_connected(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x [..., in] times weight [out, in] transposed, plus bias [out]."""
        return self._operator(
            "FULLY_CONNECTED", (x, weight, bias), (*x.shape[:-1], weight.shape[0]), {2: Scalar("?", True)}
        )

    def matmul(self, a: Tensor, b: Tensor, *, transposed: bool) -> Tensor:
        """Return a [..., m, k] times b [..., k, n], or with `transposed` times the transpose of b [..., n, k]."""
        columns = b.shape[-2] if transposed else b.shape[-1]
        return self._operator("BATCH_MATMUL", (a, b), (*a.shape[:-1], columns), {1: Scalar("?", transposed)})

    def update(self, x: Tensor, part: Tensor, begin: Tensor) -> Tensor:
        """Return `x` with `part` put in at the place `begin`, int32 [number of axes]."""
        return self._operator("DYNAMIC_UPDATE_SLICE", (x, part, begin), x.shape)


def write_litert_model(
    path: str | os.PathLike[str],
    graphs: Sequence[Graph],
    *,
    description: str,
    metadata: Mapping[str, bytes] | None = None,
    num_threads: int = 1,
    progress: Callable[[str, int], None] | None = None,
) -> int:
    """Write a model with one signature for each graph and return its number of bytes.

    The file appears at `path` whole or not at all, and the same content gives the same bytes. Weights are written in
    the order in which graphs first use them; `num_threads` produce pieces of one side by side, and `progress(name,
    num_bytes)` is called in this thread after each piece. Raises UnsupportedModelError where the flatbuffer would
    become larger than its format allows, and ValueError for a producer that breaks its plan.
    """
    model = _Model(graphs, description, metadata or {})
    offsets, end = model.place()
    place = {(b.weight, b.is_scales): offset for b, offset in zip(model.streamed, offsets, strict=True)}
    with replace_file(path) as file, ThreadPoolExecutor(num_threads) as pool:
        file.truncate(end)
        for weight in model.weights:
            _write_weight(file, weight, place, model.scales, pool, num_threads, progress)
        write_at(file, 0, model.build(offsets))
    return end


def litert_model_size(graphs: Sequence[Graph], *, description: str, metadata: Mapping[str, bytes] | None = None) -> int:
    """Return how many bytes `write_litert_model` would write; raises UnsupportedModelError where it would."""
    return _Model(graphs, description, metadata or {}).place()[1]


@dataclass(frozen=True)
class _Buffer:
    """Name bytes that lie behind the flatbuffer: the values of a weight, or the scales of its blocks."""

    weight: Weight
    is_scales: bool
    num_bytes: int


class _Model:
    """Number the buffers and tensors of all graphs; `scales` is filled in while weights are written."""

    def __init__(self, graphs: Sequence[Graph], description: str, metadata: Mapping[str, bytes]) -> None:
        self._graphs = graphs
        self._description = description
        self._metadata = metadata
        self.weights = list(
            dict.fromkeys(t.constant for g in graphs for t in g.tensors if isinstance(t.constant, Weight))
        )
        constants = [t.constant for g in graphs for t in g.tensors if isinstance(t.constant, bytes)]
        self._inline = list(dict.fromkeys([*constants, *metadata.values()]))
        self.scales = {w: np.zeros(w.num_scales, np.float32) for w in self.weights if w.num_scales}
        self.streamed = [
            buffer
            for weight in self.weights
            for buffer in (_Buffer(weight, False, weight.num_bytes), _Buffer(weight, True, weight.scale_bytes))
            if buffer.num_bytes
        ]
        # Buffer 0 is that of tensors without constant values.
        self._index_of_constant = {data: i for i, data in enumerate(self._inline, start=1)}
        first = 1 + len(self._inline)
        self._index_of_weight = {(b.weight, b.is_scales): i for i, b in enumerate(self.streamed, start=first)}
        self._operators = sorted({operator.name for graph in graphs for operator in graph.operators})

    def place(self) -> tuple[list[int], int]:
        """Return the offsets of `streamed` behind the flatbuffer, and the size of the file."""
        head_bytes = len(self.build([0] * len(self.streamed)))
        if head_bytes > MAX_HEAD_BYTES:
            raise UnsupportedModelError(
                f"the graphs take {head_bytes} bytes, but a flatbuffer holds {MAX_HEAD_BYTES}; use fewer prefill "
                "lengths"
            )
        offsets, end = [], _round_up(head_bytes)
        for buffer in self.streamed:
            offsets.append(end)
            end = _round_up(end + buffer.num_bytes)
        return offsets, end

    def build(self, offsets: Sequence[int]) -> bytes:
        """Return the flatbuffer; its length does not depend on `offsets`, those of `streamed`, nor on the scales."""
        quantization = {
            weight: Shared({2: _packed(scales), 3: _packed(np.zeros(scales.size, np.int64))})
            for weight, scales in self.scales.items()
            if not weight.block_size
        }
        ranges = zip(offsets, self.streamed, strict=True)
        codes = [_OPERATORS[name] for name in self._operators]
        root: dict[int, Value] = {
            0: Scalar("I", 3),
            1: [
                {0: Scalar("b", min(code, 127)), 2: Scalar("i", version), 3: Scalar("i", code)}
                for code, version, _ in codes
            ],
            2: [self._subgraph(graph, quantization) for graph in self._graphs],
            3: self._description,
            4: [
                {},
                *({0: Packed(data, len(data), _INLINE_ALIGNMENT)} for data in self._inline),
                *({1: Scalar("Q", offset), 2: Scalar("Q", buffer.num_bytes)} for offset, buffer in ranges),
            ],
            7: [_signature(graph, index) for index, graph in enumerate(self._graphs)],
        }
        if self._metadata:
            root[6] = [
                {0: name, 1: Scalar("I", self._index_of_constant[data])} for name, data in self._metadata.items()
            ]
        return build_flatbuffer(root, IDENTIFIER)

    def _subgraph(self, graph: Graph, quantization: Mapping[Weight, Shared]) -> Fields:
        tensors: list[Fields] = []
        block_scales: list[Fields] = []
        for tensor in graph.tensors:
            fields: dict[int, Value] = {0: tensor.shape, 1: Scalar("B", _TYPE_CODES[tensor.type]), 3: tensor.name}
            weight = tensor.constant
            if isinstance(weight, bytes):
                fields[2] = Scalar("I", self._index_of_constant[weight])
            elif weight is not None:
                fields[2] = Scalar("I", self._index_of_weight[weight, False])
                if weight.block_size:
                    place = len(graph.tensors) + len(block_scales)
                    fields[4] = {
                        4: Scalar("B", _BLOCKWISE),
                        5: {0: Scalar("i", place), 1: Scalar("i", -1), 2: Scalar("i", weight.block_size)},
                    }
                    block_scales.append(
                        {
                            0: (weight.shape[0], weight.num_scales // weight.shape[0]),
                            1: Scalar("B", _TYPE_CODES["FLOAT16"]),
                            2: Scalar("I", self._index_of_weight[weight, True]),
                            3: f"{tensor.name}_scales",
                        }
                    )
                elif weight in quantization:
                    fields[4] = quantization[weight]
            tensors.append(fields)
        return {
            0: [*tensors, *block_scales],
            1: [tensor.index for tensor in graph.inputs.values()],
            2: [tensor.index for tensor in graph.outputs.values()],
            3: [self._operator(operator) for operator in graph.operators],
            4: graph.name,
        }

    def _operator(self, operator: _Operator) -> Fields:
        fields: dict[int, Value] = {
            0: Scalar("I", self._operators.index(operator.name)),
            1: operator.inputs,
            2: operator.outputs,
        }
        if kind := _OPERATORS[operator.name][2]:
            fields |= {3: Scalar("B", kind), 4: operator.options}
        return fields


def _signature(graph: Graph, index: int) -> Fields:
    def maps(tensors: Mapping[str, Tensor]) -> list[Fields]:
        return [{0: name, 1: Scalar("I", tensor.index)} for name, tensor in tensors.items()]

    return {0: maps(graph.inputs), 1: maps(graph.outputs), 2: graph.name, 4: Scalar("I", index)}


def _packed(values: NDArray[Any]) -> Packed:
    return Packed(values.tobytes(), values.size, max(4, values.itemsize))


def _write_weight(
    file: BinaryIO,
    weight: Weight,
    place: Mapping[tuple[Weight, bool], int],
    scales: Mapping[Weight, NDArray[np.float32]],
    pool: ThreadPoolExecutor,
    num_threads: int,
    progress: Callable[[str, int], None] | None,
) -> None:
    """Write a weight piece by piece, the scales of its blocks too, and note the scales of its rows."""
    plan = weight.plan
    row_bytes = weight.num_bytes // plan.shape[0]
    for first, last, produced in produced_pieces(plan, pool, num_threads):
        value = produced()
        shape = (last - first, *plan.shape[1:])
        data: NDArray[Any] = value.data if isinstance(value, WeightMatrix) else value
        dtype = value.dtype if isinstance(value, WeightMatrix) else str(value.dtype)
        if value.shape != shape or dtype != plan.dtype:
            raise ValueError(f"{plan.name}: expected {plan.dtype} {list(shape)}, got {dtype} {list(value.shape)}")
        if plan.dtype == "int4":
            data = data ^ np.uint8(0x88)  # q + 8 becomes q in two's complement
        write_at(file, place[weight, False] + first * row_bytes, data)
        if isinstance(value, WeightMatrix) and value.scales is not None:
            scales[weight][first:last] = value.scales
            if weight.block_size:
                write_at(file, place[weight, True] + 2 * first, value.scales.astype(np.float16))
        if progress is not None:
            progress(plan.name, (last - first) * row_bytes)


def _round_up(position: int) -> int:
    return -(-position // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT
