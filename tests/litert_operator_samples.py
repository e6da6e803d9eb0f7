"""LiteRT models of one operator, built with the schema's own Python classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

TYPES = {
    "float32": schema.TensorType.FLOAT32, "float16": schema.TensorType.FLOAT16, "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64, "int16": schema.TensorType.INT16, "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8, "bool": schema.TensorType.BOOL, "int4": schema.TensorType.INT4,
}  # fmt: skip


@dataclass(frozen=True)
class T:
    """A tensor: what goes in or comes out, or a constant with `values`; `scales` are those of its rows, or one."""

    dtype: str
    shape: tuple[int, ...] = ()
    values: NDArray[Any] | None = None
    scales: int = 0
    block: int = 0


def c(*values: int, dtype: str = "int32") -> T:
    """Return a constant vector of integers."""
    return T(dtype, (len(values),), np.array(values, dtype))


def weights(dtype: str, rows: int, columns: int, *, scales: int = 0, block: int = 0) -> T:
    """Return a constant matrix."""
    if dtype == "int4":
        return T(dtype, (rows, columns), np.full(rows * columns // 2, 0x31, np.uint8), scales, block)
    return T(dtype, (rows, columns), np.ones((rows, columns), dtype), scales)


@dataclass(frozen=True)
class Sample:
    """A call of one operator: its name in the schema, inputs (None is left out), options and outputs."""

    name: str
    inputs: Sequence[T | None]
    outputs: Sequence[T]
    options: dict[str, Any] = field(default_factory=dict)
    options_name: str = ""
    version: int = 1


def build(sample: Sample) -> bytes:
    """Return a model with the operator and one signature, `run`."""
    return pack(model_of(sample))


def pack(model: schema.ModelT) -> bytes:
    """Return a model as it lies in a file."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def model_of(sample: Sample) -> schema.ModelT:
    """Return the model of `build`, to be changed."""
    buffers, tensors = [schema.BufferT()], []

    def constant(values: NDArray[Any]) -> int:
        if not values.size:
            return 0
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        buffers.append(buffer)
        return len(buffers) - 1

    def add(t: T, name: str) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.name = np.array(t.shape, np.int32), TYPES[t.dtype], name.encode()
        tensor.buffer = 0 if t.values is None else constant(t.values)
        if t.scales:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.full(t.scales, 0.5, np.float32)
            tensor.quantization.zeroPoint = np.zeros(t.scales, np.int64)
        tensors.append(tensor)
        index = len(tensors) - 1
        if t.block:
            shape = (t.shape[0], t.shape[1] // t.block)
            blocks = schema.BlockwiseQuantizationT()
            blocks.scales, blocks.zeroPoints, blocks.blockSize = len(tensors), -1, t.block
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.details = blocks
            tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            add(T("float16", shape, np.full(shape, 0.5, np.float16)), name + "_scales")
        return index

    operator, code = schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, sample.name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = sample.version
    inputs = [-1 if t is None else add(t, f"input_{i}") for i, t in enumerate(sample.inputs)]
    outputs = [add(t, f"output_{i}") for i, t in enumerate(sample.outputs)]
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    if sample.options_name:
        operator.builtinOptions = getattr(schema, f"{sample.options_name}T")()
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, sample.options_name)
        for name, value in sample.options.items():
            assert hasattr(operator.builtinOptions, name), name
            setattr(operator.builtinOptions, name, value)
    graph, signature, model = schema.SubGraphT(), schema.SignatureDefT(), schema.ModelT()
    graph.tensors, graph.operators, graph.name = tensors, [operator], b"main"
    put_in = [i for i, t in zip(inputs, sample.inputs, strict=True) if t is not None and t.values is None]
    graph.inputs, graph.outputs = np.array(put_in, np.int32), operator.outputs
    signature.inputs, signature.outputs = [], []
    for listed, indices in ((signature.inputs, put_in), (signature.outputs, outputs)):
        for index in indices:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = tensors[index].name, index
            listed.append(entry)
    signature.signatureKey, signature.subgraphIndex = b"run", 0
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    model.signatureDefs, model.description = [signature], b"a test"
    return model


F, N, B = "float32", "int32", "bool"


def _samples() -> list[Sample]:
    x = T(F, (2, 3, 4))
    found = [
        Sample(name, [x], [x], {}, options)
        for name, options in (
            ("FLOOR", ""), ("LOGISTIC", ""), ("RELU", ""), ("RELU6", ""), ("TANH", ""), ("EXP", "ExpOptions"),
            ("NEG", "NegOptions"), ("SIN", ""), ("LOG", ""), ("SQRT", ""), ("RSQRT", ""), ("SQUARE", "SquareOptions"),
            ("ABS", "AbsOptions"), ("CEIL", ""), ("COS", "CosOptions"), ("ROUND", ""), ("GELU", "GeluOptions"),
        )
    ]  # fmt: skip
    found.append(Sample("LOGICAL_NOT", [T(B, (2, 3))], [T(B, (2, 3))], {}, "LogicalNotOptions"))
    found.append(Sample("SOFTMAX", [x], [x], {"beta": 1.0}, "SoftmaxOptions"))
    for name in ("ADD", "SUB", "MUL", "DIV"):
        relu = {"fusedActivationFunction": 1}
        found.append(Sample(name, [x, T(F, (4,))], [x], relu, f"{name.capitalize()}Options"))
    for name, options in (
        ("MAXIMUM", "MaximumMinimumOptions"), ("MINIMUM", "MaximumMinimumOptions"), ("POW", "PowOptions"),
        ("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"),
    ):  # fmt: skip
        found.append(Sample(name, [x, T(F, (3, 1))], [x], {}, options))
    for name in ("LESS", "GREATER", "GREATER_EQUAL", "LESS_EQUAL", "EQUAL", "NOT_EQUAL"):
        options = f"{name.title().replace('_', '')}Options"
        found.append(Sample(name, [T(N, (2, 1)), T(N, (1, 3))], [T(B, (2, 3))], {}, options))
    for name in ("LOGICAL_OR", "LOGICAL_AND"):
        options = f"{name.title().replace('_', '')}Options"
        found.append(Sample(name, [T(B, (2, 3)), T(B, (3,))], [T(B, (2, 3))], {}, options))
    for name, dtype in (
        ("MEAN", F), ("SUM", F), ("REDUCE_MAX", F), ("REDUCE_MIN", F), ("REDUCE_ANY", B), ("REDUCE_ALL", B)
    ):  # fmt: skip
        y = T(dtype, (2, 3, 4))
        found.append(Sample(name, [y, c(-1)], [T(dtype, (2, 3, 1))], {"keepDims": True}, "ReducerOptions"))
        found.append(Sample(name, [y, c(0, 2)], [T(dtype, (3,))], {}, "ReducerOptions"))
    fully = "FullyConnectedOptions"
    for matrix in (
        weights(F, 6, 4), weights("int8", 6, 4, scales=6), weights("int4", 6, 4, scales=6),
    ):  # fmt: skip
        found.append(Sample("FULLY_CONNECTED", [x, matrix, None], [T(F, (2, 3, 6))], {"keepNumDims": True}, fully))
        found.append(Sample("EMBEDDING_LOOKUP", [T(N, (5,)), matrix], [T(F, (5, 4))]))
    found += [
        Sample("FULLY_CONNECTED", [x, weights(F, 6, 4), T(F, (6,), np.ones(6, F))], [T(F, (6, 6))], {}, fully),
        Sample(
            "FULLY_CONNECTED", [T(F, (2, 64)), weights("int4", 6, 64, block=32), None], [T(F, (2, 6))],
            {"keepNumDims": True}, fully,
        ),
        Sample("EMBEDDING_LOOKUP", [T(N, (5,)), weights("int4", 6, 64, block=32)], [T(F, (5, 64))]),
        Sample("DEQUANTIZE", [T("int8", (2, 3), scales=1)], [T(F, (2, 3))], {}, "DequantizeOptions"),
        Sample("DEQUANTIZE", [T("int8", (6, 4), scales=6)], [T(F, (6, 4))], {}, "DequantizeOptions"),
        Sample("DEQUANTIZE", [weights("int4", 6, 4, scales=6)], [T(F, (6, 4))], {}, "DequantizeOptions"),
        Sample("DEQUANTIZE", [T("float16", (3,))], [T(F, (3,))], {}, "DequantizeOptions"),
        Sample("QUANTIZE", [T(F, (2, 3))], [T("int8", (2, 3), scales=1)], {}, "QuantizeOptions"),
        Sample("CONCATENATION", [x, T(F, (2, 5, 4))], [T(F, (2, 8, 4))], {"axis": -2}, "ConcatenationOptions"),
        Sample("RESHAPE", [x, c(2, -1)], [T(F, (2, 12))]),
        Sample("RESHAPE", [T(N, (1,)), c()], [T(N, ())]),
        Sample("RESHAPE", [x], [T(F, (4, 6))], {"newShape": [4, 6]}, "ReshapeOptions"),
        Sample("PAD", [x, T(N, (3, 2), np.array([[0, 1], [2, 0], [1, 1]], N))], [T(F, (3, 5, 6))], {}, "PadOptions"),
        Sample(
            "PADV2", [x, T(N, (3, 2), np.zeros((3, 2), N)), T(F, (), np.array(1, F))], [x], {}, "PadV2Options"
        ),
        Sample("GATHER", [x, T(N, (2, 2))], [T(F, (2, 2, 2, 4))], {"axis": 1}, "GatherOptions"),
        Sample("GATHER_ND", [x, T(N, (5, 2))], [T(F, (5, 4))], {}, "GatherNdOptions"),
        Sample("TRANSPOSE", [x, c(2, 0, 1)], [T(F, (4, 2, 3))], {}, "TransposeOptions"),
        Sample("SQUEEZE", [T(F, (1, 3, 1))], [T(F, (3, 1))], {"squeezeDims": [0]}, "SqueezeOptions"),
        Sample("STRIDED_SLICE", [x, c(0, 1, 0), c(2, 3, -1), c(1, 1, 2)], [T(F, (2, 2, 2))], {}, "StridedSliceOptions"),
        Sample(
            "STRIDED_SLICE", [x, c(1, 0, 0), c(2, 0, 0), c(1, 1, 1)], [T(F, (3, 4))],
            {"shrinkAxisMask": 1, "beginMask": 6, "endMask": 6}, "StridedSliceOptions",
        ),
        Sample("TOPK_V2", [x, T(N, (), np.array(2, N))], [T(F, (2, 3, 2)), T(N, (2, 3, 2))], {}, "TopKV2Options"),
        Sample("SPLIT", [T(N, (), np.array(2, N)), x], [T(F, (2, 3, 2))] * 2, {"numSplits": 2}, "SplitOptions"),
        Sample("CAST", [T(N, (2, 3))], [T(F, (2, 3))], {}, "CastOptions"),
        Sample("ARG_MAX", [x, T(N, (), np.array(1, N))], [T(N, (2, 4))], {"outputType": 2}, "ArgMaxOptions"),
        Sample("SELECT", [T(B, (2, 3, 4)), x, x], [x], {}, "SelectOptions"),
        Sample("SELECT", [T(B, (2,)), x, x], [x], {}, "SelectOptions"),
        Sample("SELECT_V2", [T(B, (3, 1)), x, T(F, ())], [x], {}, "SelectV2Options"),
        Sample("SLICE", [x, c(0, 1, 2), c(2, -1, 1)], [T(F, (2, 2, 1))], {}, "SliceOptions"),
        Sample("TILE", [x, c(1, 2, 3)], [T(F, (2, 6, 12))], {}, "TileOptions"),
        Sample("EXPAND_DIMS", [x, T(N, (), np.array(1, N))], [T(F, (2, 1, 3, 4))], {}, "ExpandDimsOptions"),
        Sample("PACK", [T(F, (2, 3))] * 3, [T(F, (2, 3, 3))], {"valuesCount": 3, "axis": 2}, "PackOptions"),
        Sample("UNPACK", [x], [T(F, (2, 4))] * 3, {"num": 3, "axis": 1}, "UnpackOptions"),
        Sample("FILL", [c(2, 3), T(F, ())], [T(F, (2, 3))], {}, "FillOptions"),
        Sample("RANGE", [T(N, (), np.array(n, N)) for n in (2, 9, 3)], [T(N, (3,))], {}, "RangeOptions"),
        Sample("BATCH_MATMUL", [T(F, (2, 1, 3, 4)), T(F, (5, 4, 6))], [T(F, (2, 5, 3, 6))], {}, "BatchMatMulOptions"),
        Sample("BATCH_MATMUL", [T(F, (3, 4)), T(F, (6, 4))], [T(F, (3, 6))], {"adjY": True}, "BatchMatMulOptions"),
        Sample("CUMSUM", [x, T(N, (), np.array(1, N))], [x], {}, "CumsumOptions"),
        Sample("BROADCAST_TO", [T(F, (3, 1)), c(2, 3, 4)], [x], {}, "BroadcastToOptions", version=2),
        Sample("DYNAMIC_UPDATE_SLICE", [x, T(F, (1, 3, 2)), T(N, (3,))], [x], {}, "DynamicUpdateSliceOptions"),
    ]  # fmt: skip
    return found


SAMPLES = _samples()
