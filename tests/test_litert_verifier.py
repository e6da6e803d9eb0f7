"""The verifier of LiteRT models: real ones pass, and what LiteRT would trust is refused by name."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from litert_operator_samples import SAMPLES, F, N, Sample, T, build, c, model_of, pack, weights

from hearthlm.errors import CorruptFileError, HearthLMError, UnsupportedModelError
from hearthlm.formats import litert_verifier
from hearthlm.formats.flatbuffer import Fields, FlatbufferReader, Scalar, build_flatbuffer
from hearthlm.formats.flexbuffer import read_attributes
from hearthlm.formats.litert_model import read_litert_model
from hearthlm.formats.litert_operators import KNOWN_COMPOSITES, OPERATORS
from hearthlm.formats.litert_verifier import verify_litert_model
from hearthlm.formats.litertlm import LiteRtLmFile
from hearthlm.formats.task_bundle import MODEL, TaskBundle

GOLDEN = Path(__file__).parent / "golden" / "litert"
EPSILON = bytes.fromhex("657073696c6f6e000109000003000000010000000100000" + "0bd3786350e052601")


def real(name: str) -> bytes:
    path = GOLDEN / name
    if path.suffix == ".task":
        with TaskBundle.open(path) as bundle:
            return bytes(bundle.entry(MODEL))
    if path.suffix == ".litertlm":
        with LiteRtLmFile.open(path) as file:
            return bytes(file.data(file.language_model))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "num_operators"),
    [
        ("gemma3_q8_ekv128.task", 576),
        ("gemma3_mask_transposed_q8_ekv128.task", 524),
        ("gemma3_mask_transposed_q8_ekv128.litertlm", 524),
        ("gemma3_q4_block32_ekv128.tflite", 576),
        ("hf_llama_wi8.litertlm", 317),
    ],
)
def test_models_of_the_exporter_pass(name: str, num_operators: int) -> None:
    model = verify_litert_model(real(name), name)
    assert sum(len(graph.steps) for graph in model.graphs) == num_operators
    assert model.signatures.keys() == read_litert_model(real(name), name).signatures.keys()
    shared = [{t.num_bytes for t in model.graphs[i].tensors if t.is_constant} for i in model.signatures.values()]
    assert max(set.intersection(*shared)) > 20_000  # the weights are constants of every signature


def test_every_operator_has_a_sample() -> None:
    assert {sample.name for sample in SAMPLES} == {operator.name for operator in OPERATORS.values()}
    for code, operator in OPERATORS.items():
        assert getattr(schema.BuiltinOperator, operator.name) == code


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_what_comes_out_is_what_litert_computes(sample: Sample) -> None:
    data = build(sample)
    [graph] = verify_litert_model(data, "m").graphs
    runner = Interpreter(model_content=data, num_threads=1).get_signature_runner("run")
    found = runner(**{name: np.ones(t["shape"], t["dtype"]) for name, t in runner.get_input_details().items()})
    assert [(str(found[f"output_{i}"].dtype), found[f"output_{i}"].shape) for i in range(len(found))] == [
        (t.dtype, t.shape) for t in sample.outputs
    ]
    computed = [t for t in (*sample.inputs, *sample.outputs) if t is not None and t.values is None]
    sizes = [math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in computed]
    assert sum(t.num_bytes for t in graph.tensors if not t.is_constant) == sum(sizes)
    assert [(step.inputs, step.outputs) for step in graph.steps] == [(graph.steps[0].inputs, graph.outputs)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_another_shape_or_type_coming_out_is_refused(sample: Sample) -> None:
    for last in (
        replace(sample.outputs[-1], shape=(*sample.outputs[-1].shape, 1)),
        replace(sample.outputs[-1], shape=(*sample.outputs[-1].shape[:-1], 77)),
        replace(sample.outputs[-1], dtype="int16" if sample.outputs[-1].dtype == "float32" else "float32"),
    ):
        if sample.name in ("CAST", "QUANTIZE") and last.shape == sample.outputs[-1].shape:
            continue  # they may say so
        with pytest.raises(HearthLMError, match=f"^m: subgraph 0 'main': operator 0 {sample.name}: "):
            verify_litert_model(build(replace(sample, outputs=[*sample.outputs[:-1], last])), "m")


X = T(F, (2, 3, 4))
REFUSED: list[tuple[Sample, str]] = [
    (Sample("ADD", [X, T(F, (3,))], [X], {}, "AddOptions"), r"the shapes \[2, 3, 4\], \[3\] do not fit together"),
    (Sample("ADD", [X, T(N, (4,))], [X], {}, "AddOptions"), "expected inputs of one type"),
    (Sample("ADD", [X, None], [X], {}, "AddOptions"), "input 1 is left out"),
    (Sample("ADD", [X], [X], {}, "AddOptions"), "expected 2 to 2 inputs, got 1"),
    (Sample("ADD", [X, X], [X, X], {}, "AddOptions"), "expected 1 outputs, got 2"),
    (Sample("ADD", [X, X], [X], {}, "MulOptions"), "has options of another operator"),
    (Sample("ADD", [X, X], [X], {"fusedActivationFunction": 4}, "AddOptions"), "fused activation 4: expected one of"),
    (Sample("DIV", [T(N, (2,)), T(N, (2,))], [T(N, (2,))]), "input 0: expected FLOAT32, got INT32"),
    (Sample("TANH", [T(F, (1, 1, 1, 1, 1, 2))], [T(F, (1, 1, 1, 1, 1, 2))]), "expected 0 to 5 dimensions"),
    (Sample("MEAN", [X, c(3)], [T(F, (2, 3))]), "axis: expected -3 to 2, got 3"),
    (Sample("MEAN", [X, c(1, 1)], [T(F, (2, 4))]), r"expected different axes, got \[1, 1\]"),
    (Sample("MEAN", [X, T(N, (1,))], [T(F, (2, 4))]), "expected a constant, since it decides about the shape"),
    (Sample("FULLY_CONNECTED", [X, weights(F, 6, 5), None], [X]), "a matrix of 5 columns does not fit FLOAT32"),
    (Sample("FULLY_CONNECTED", [X, weights(F, 6, 4), T(F, (5,))], [X]), r"bias: expected FLOAT32\[6\], got"),
    (Sample("FULLY_CONNECTED", [X, weights("int8", 6, 4), None], [X]), r"the weights INT8\[6, 4\] have no scales"),
    (Sample("FULLY_CONNECTED", [X, T("int8", (6, 4), scales=6), None], [X]), "quantised weights that are no constant"),
    (Sample("EMBEDDING_LOOKUP", [T(N, (5,)), weights("int8", 6, 4)], [T(F, (5, 4))]), "have no scales"),
    (Sample("BATCH_MATMUL", [X, X], [X]), r"FLOAT32\[2, 3, 4\] and FLOAT32\[2, 3, 4\] cannot be multiplied"),
    (Sample("SOFTMAX", [X], [X]), "beta: expected a positive number, got 0"),
    (Sample("CONCATENATION", [X, T(F, (2, 3, 5))], [X], {"axis": 1}, "ConcatenationOptions"), "cannot be put beside"),
    (Sample("PACK", [X, X], [X], {"valuesCount": 3}, "PackOptions"), "expected 3 inputs of one shape"),
    (Sample("UNPACK", [X], [T(F, (3, 4))], {"num": 1}, "UnpackOptions"), "count: expected 2, got 1"),
    (Sample("PAD", [X, c(1, 1, 1)], [X]), "input 1: expected 2 to 2 dimensions"),
    (Sample("PAD", [T(F, (2,)), T(N, (1, 2), np.array([[-1, 0]], N))], [T(F, (1,))]), "expected paddings from 0"),
    (Sample("SLICE", [X, c(0, 0, 0), c(2, 4, 4)], [X]), "lies outside of FLOAT32"),
    (Sample("SLICE", [X, c(0, 0, -1), c(1, 1, 1)], [X]), "lies outside of FLOAT32"),
    (Sample("SLICE", [X, c(0, 0), c(1, 1)], [X]), "input 1: expected 3 numbers, got INT32"),
    (Sample("STRIDED_SLICE", [X, c(0, 0, 0), c(2, 3, 4), c(1, 1, 0)], [X]), "strides: expected positive ones"),
    (Sample("STRIDED_SLICE", [X, c(0, 0, 0), c(2, 3, 5), c(1, 1, 1)], [X]), "lies outside of axis 2"),
    (Sample("GATHER", [X, T(N, (1,))], [X], {"axis": 3}, "GatherOptions"), "axis: expected -3 to 2, got 3"),
    (Sample("GATHER", [X, T(N, (1,))], [X], {"batchDims": 1}, "GatherOptions"), "batch_dims: expected 0"),
    (Sample("GATHER_ND", [X, T(N, (1, 4))], [X]), "4 indices do not fit FLOAT32"),
    (Sample("CAST", [X], [T("int4", (2, 3, 4))]), "a cast to INT4"),
    (Sample("BROADCAST_TO", [X, c(2, 3, 5)], [X], version=2), "do not fit together"),
    (Sample("BROADCAST_TO", [X, c(4)], [X], version=2), "cannot be repeated to"),
    (Sample("TILE", [X, c(1, 1, 0)], [X]), "expected at least one repetition"),
    (Sample("TRANSPOSE", [X, c(0, 1, 1)], [X]), r"expected an order of 3 axes, got \[0, 1, 1\]"),
    (Sample("RESHAPE", [X, c(5, -1)], [X]), "cannot be reshaped to"),
    (Sample("RESHAPE", [X, c(-1, -1)], [X]), "cannot be reshaped to"),
    (Sample("RESHAPE", [X, c(0)], [X]), "cannot be reshaped to"),
    (Sample("RESHAPE", [X], [X]), "expected a constant shape"),
    (Sample("SQUEEZE", [X], [X], {"squeezeDims": [1]}, "SqueezeOptions"), "are not of length 1"),
    (Sample("SPLIT", [c(1), X], [X], {"numSplits": 2}, "SplitOptions"), "cannot be split into 2 equal parts"),
    (Sample("SELECT", [T("bool", (3,)), X, X], [X]), "do not fit together"),
    (Sample("DYNAMIC_UPDATE_SLICE", [X, T(F, (2, 3, 5)), T(N, (3,))], [X]), "does not fit into"),
    (Sample("DYNAMIC_UPDATE_SLICE", [X, X, T(N, (2,))], [X]), "does not fit into"),
    (Sample("ARG_MAX", [X, c(0)], [X], {"outputType": 0}, "ArgMaxOptions"), "output_type: expected INT32 or INT64"),
    (Sample("TOPK_V2", [X, c(5)], [X, X]), "k: expected 1 to 4, got 5"),
    (Sample("FILL", [c(0), T(F, ())], [X]), "cannot be filled"),
    (Sample("RANGE", [c(0), c(3), c(0)], [X]), "there is nothing from 0 to 3 in steps of 0"),
    (Sample("DEQUANTIZE", [T("int8", (2,))], [X]), "has no scales"),
    (Sample("QUANTIZE", [T(F, (2,))], [T("int8", (2,))]), "expected one scale"),
    (Sample("CONV_2D", [X, X], [X]), "operator 3 of the schema is not one of those understood"),
    (Sample("WHILE", [X], [X]), "operator 119 of the schema is not one of those understood"),
    (Sample("CUSTOM", [X], [X]), "the custom operator '' is not understood"),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "says"), REFUSED, ids=lambda value: value.name if isinstance(value, Sample) else "")
def test_an_operator_that_cannot_be_is_refused(sample: Sample, says: str) -> None:
    with pytest.raises(HearthLMError, match=says):
        verify_litert_model(build(sample), "m")


def tensor(model: Any, index: int = 0) -> Any:
    return model.subgraphs[0].tensors[index]


def operator(model: Any) -> Any:
    return model.subgraphs[0].operators[0]


def composite(name: bytes = b"odml.rms_norm", index: int = 1, attributes: bytes = EPSILON) -> Callable[[Any], None]:
    """Return what makes the operator a composite of a second subgraph, which is like the first."""

    def change(model: Any) -> None:
        inner = model_of(Sample("TANH", [X], [X]))
        model.subgraphs.append(inner.subgraphs[0])
        model.operatorCodes.append(inner.operatorCodes[0])
        model.subgraphs[1].operators[0].opcodeIndex = 1
        model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = 206, 127
        options = schema.StableHLOCompositeOptionsT()
        options.name, options.decompositionSubgraphIndex = name, index
        options.compositeAttributes = np.frombuffer(attributes, np.uint8)
        operator(model).builtinOptions2, operator(model).builtinOptions2Type = options, 21

    return change


def both(*changes: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for one in changes:
            one(model)

    return change


def put(part: Callable[[Any], Any], name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(part(model), name, value)


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def external(
    model: Any, name: bytes = b"weights", offset: int = 0, group: int = 0, packing: bytes | None = None
) -> None:
    """Put the second input into another file."""
    buffer, groups = schema.ExternalBufferT(), schema.ExternalBufferGroupT()
    buffer.id, buffer.group, buffer.offset, buffer.length, buffer.packing = 7, group, offset, 96, packing
    groups.name = name
    model.externalBuffers, model.externalBufferGroups = [buffer], [groups]
    tensor(model, 1).externalBuffer = 7
    model.subgraphs[0].inputs, model.signatureDefs = ints(0), []


def scales(count: int = 1, zeros: int | None = None, value: float = 0.5, zero: int = 0, axis: int = 0) -> Any:
    found = schema.QuantizationParametersT()
    found.scale = np.full(count, value, np.float32)
    found.zeroPoint = np.full(count if zeros is None else zeros, zero, np.int64)
    found.quantizedDimension = axis
    return found


def metadata(name: bytes, buffer: int = 0) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, buffer
        model.metadata = [entry]

    return change


def data_outside(offset: int, size: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        buffer = schema.BufferT()
        buffer.offset, buffer.size = offset, size
        model.buffers.append(buffer)

    return change


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "version": (put(lambda m: m, "version", 4), "expected version 3 of the schema, got 4"),
    "no buffers": (put(lambda m: m, "buffers", []), "there are no buffers"),
    "no subgraphs": (put(lambda m: m, "subgraphs", []), "expected 1 to 16384 subgraphs, got 0"),
    "control edges": (metadata(b"model_control_dependencies"), "metadata 'model_control_dependencies'"),
    "metadata": (metadata(b"a", 9), "metadata 'a': buffer 9 is out of range, there are 1"),
    "metadata_buffer": (put(lambda m: m, "metadataBuffer", [-1]), "metadata_buffer: an index is out of range"),
    "beyond": (data_outside(1 << 40, 8), "data of a buffer: expected 8 bytes at offset 1099511627776"),
    "overflow": (data_outside(2**64 - 4, 8), "data of a buffer: expected 8 bytes at offset 18446744073709551612"),
    "to be filled": (data_outside(1, 1), "a buffer has the impossible offset 1 and size 1"),
    "named builtin": (put(lambda m: m.operatorCodes[0], "customCode", b"a"), "has the name of a custom operator"),
    "code": (put(operator, "opcodeIndex", 1), "code 1 is out of range, there are 1"),
    "type": (put(tensor, "type", 5), "tensor 0: type STRING is not understood"),
    "negative type": (put(tensor, "type", -1), "tensor 0: type TYPE_-1 is not understood"),
    "rank": (put(tensor, "shape", ints(*[1] * 9)), "tensor 0: expected at most 8 dimensions, got 9"),
    "dimension": (put(tensor, "shape", ints(2, -3, 4)), r"tensor 0: expected dimensions from 1, got \[2, -3, 4\]"),
    "no values": (put(tensor, "shape", ints(0)), r"tensor 0: expected dimensions from 1, got \[0\]"),
    "values": (put(tensor, "shape", ints(2**16, 2**16)), r"tensor 0: FLOAT32\[65536, 65536\] has more than 2147483647"),
    "bytes": (put(tensor, "shape", ints(2**15, 2**15)), "expected tensors of at most 2147483647 bytes, got 4294967296"),
    "variable": (put(tensor, "isVariable", True), "tensor 0: expected no variable"),
    "sparse": (put(tensor, "sparsity", schema.SparsityParametersT()), "tensor 0: expected no variable"),
    "signature": (put(tensor, "shapeSignature", ints(2, 3, 5)), "contradicts its signature"),
    "buffer": (put(tensor, "buffer", 1), "tensor 0: buffer 1 is out of range, there are 1"),
    "external": (external, "its weights lie in another file, and no section with them came along"),
    "scale of floats": (put(tensor, "quantization", scales()), r"FLOAT32\[2, 3, 4\] has scales"),
    "inputs": (put(lambda m: m.subgraphs[0], "inputs", ints(0, 9)), "input or output 9 is out of range"),
    "inputs twice": (put(lambda m: m.subgraphs[0], "inputs", ints(0, 0)), "an input appears twice, or is a constant"),
    "outputs twice": (put(lambda m: m.subgraphs[0], "outputs", ints(2, 2)), "an output appears twice"),
    "never": (put(lambda m: m.subgraphs[0], "inputs", ints(0)), "input tensor 1 is computed later or never"),
    "input": (put(operator, "inputs", ints(0, 3)), "input tensor 3 is out of range, there are 3"),
    "negative input": (put(operator, "inputs", ints(0, -2)), "input tensor -2 is out of range"),
    "output": (put(operator, "outputs", ints(-1)), "output tensor -1 is out of range"),
    "in place": (put(operator, "outputs", ints(0)), "output tensor 0 is there already"),
    "not computed": (put(lambda m: m.subgraphs[0], "operators", []), "output tensor 2 is never computed"),
    "custom options": (put(operator, "customOptions", np.ones(3, np.uint8)), "has options of a custom operator"),
    "changes": (put(operator, "mutatingVariableInputs", np.array([True, False])), "changes its inputs"),
    "intermediates": (put(operator, "intermediates", ints(0)), "has intermediate tensors"),
    "signature's graph": (put(lambda m: m.signatureDefs[0], "subgraphIndex", 1), "subgraph 1 is out of range"),
    "signature's inputs": (put(lambda m: m.signatureDefs[0], "inputs", []), r"its inputs are tensors \[\], those of"),
    "composite's inputs": (composite(), r"its inputs are FLOAT32\[2, 3, 4\], FLOAT32\[2, 3, 4\]"),
    "composite's graph": (composite(index=2), "odml.rms_norm: subgraph 2 is out of range, there are 2"),
    "composite's name": (composite(name=b"odml.wild"), "'odml.wild': expected one of odml.cache_update, "),
    "composite's attributes": (composite(attributes=b"\x00\x09\x01"), "expected a map"),
    "composite's options": (both(composite(), put(operator, "builtinOptions2Type", 20)), "has no options"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_lies_is_refused(name: str) -> None:
    change, says = CHANGES[name]
    model = model_of(Sample("ADD", [X, X], [X]))
    change(model)
    with pytest.raises(HearthLMError, match=f"^m: .*{says}"):
        verify_litert_model(pack(model), "m")


def test_a_composite_is_its_graph() -> None:
    model = model_of(Sample("TANH", [X], [X]))
    composite()(model)
    outer, inner = verify_litert_model(pack(model), "m").graphs
    assert [step.subgraph for step in outer.steps] == [1]
    assert [step.subgraph for step in inner.steps] == [None]
    model.subgraphs[1].operators = []
    with pytest.raises(CorruptFileError, match="subgraph 1 'main': output tensor 1 is never computed"):
        verify_litert_model(pack(model), "m")
    assert all(name.startswith("odml.") for name in KNOWN_COMPOSITES)


def test_a_composite_that_contains_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(Sample("TANH", [X], [X]))
    composite(index=0)(model)
    with pytest.raises(CorruptFileError, match="subgraph 0 'main': composites more than 8 deep"):
        verify_litert_model(pack(model), "m")
    operator(model).builtinOptions2.decompositionSubgraphIndex = 1
    monkeypatch.setattr(litert_verifier, "MAX_STEPS", 1)
    with pytest.raises(CorruptFileError, match="expected at most 1 steps, got 2"):
        verify_litert_model(pack(model), "m")


QUANTIZED: dict[str, tuple[Any, str]] = {
    "too many": (scales(5), "expected 1 or 6 scales and zero points, got 5 and 5"),
    "zero points": (scales(6, zeros=5), "expected 1 or 6 scales and zero points, got 6 and 5"),
    "axis": (scales(6, axis=2), r"quantized_dimension: expected an axis of INT8\[6, 4\], got 2"),
    "other axis": (scales(4, axis=1), "belong to axis 1, expected 0"),
    "negative": (scales(6, value=-1), "expected positive scales"),
    "not a number": (scales(6, value=math.nan), "expected positive scales"),
    "far zero": (scales(6, zero=2**40), "a zero point lies outside of the type"),
    "zero": (scales(6, zero=3), "have zero points other than 0"),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_scales_that_do_not_fit_are_refused(name: str) -> None:
    model = model_of(Sample("FULLY_CONNECTED", [X, weights("int8", 6, 4, scales=6), None], [T(F, (6, 6))]))
    verify_litert_model(pack(model), "m")
    tensor(model, 1).quantization, says = QUANTIZED[name]
    with pytest.raises(HearthLMError, match=says):
        verify_litert_model(pack(model), "m")


def test_blocks_that_do_not_fit_are_refused() -> None:
    def blocks(**fields: Any) -> bytes:
        model = model_of(Sample("FULLY_CONNECTED", [T(F, (2, 64)), weights("int4", 6, 64, block=32)], [T(F, (2, 6))]))
        for name, value in fields.items():
            setattr(tensor(model, 1).quantization.details, name, value)
        return pack(model)

    verify_litert_model(blocks(), "m")
    for field, value, says in (
        ("blockSize", 48, "blocks of 48 do not fit rows of 64"),
        ("blockSize", 0, "blocks of 0 do not fit"),
        ("blockSize", 64, r"expected constant scales of FLOAT16\[6, 1\], got FLOAT16\[6, 2\]"),
        ("scales", 9, "tensor 9 with its scales is out of range"),
        ("scales", 0, "expected constant scales of FLOAT16"),
        ("zeroPoints", 2, "expected blocks without zero points, got those of tensor 2"),
    ):
        with pytest.raises(HearthLMError, match=says):
            verify_litert_model(blocks(**{field: value}), "m")


def test_a_constant_has_exactly_its_bytes() -> None:
    for change in (-1, 1):
        model = model_of(Sample("ADD", [X, T(F, (4,), np.zeros(4, F))], [X]))
        model.buffers[1].data = np.zeros(16 + change, np.uint8)
        with pytest.raises(CorruptFileError, match=rf"FLOAT32\[4\] needs 16 bytes, its buffer has {16 + change}"):
            verify_litert_model(pack(model), "m")


def test_weights_in_a_section_of_their_own() -> None:
    def model(**fields: Any) -> bytes:
        found = model_of(Sample("ADD", [X, X], [X]))
        external(found, **fields)
        return pack(found)

    verify_litert_model(model(), "m", num_weight_bytes=96)
    for fields, says in (
        ({"offset": 4}, "expected 96 bytes at offset 4 of group 0; there are 1 groups and 96 bytes"),
        ({"offset": 2**64 - 8}, "there are 1 groups and 96 bytes"),
        ({"group": 1}, "of group 1; there are 1 groups"),
        ({"packing": b"zip"}, "its packing is not understood"),
        ({"name": b"../weights"}, "expected a name, got a path"),
        ({"name": b"C:weights"}, "expected a name, got a path"),
    ):
        with pytest.raises(HearthLMError, match=says):
            verify_litert_model(model(**fields), "m", num_weight_bytes=96)
    found = model_of(Sample("ADD", [X, X], [X]))
    external(found)
    tensor(found, 1).externalBuffer = 8
    with pytest.raises(CorruptFileError, match="tensor 1: external buffer 8: expected 96 bytes, got None"):
        verify_litert_model(pack(found), "m", num_weight_bytes=96)
    found.externalBuffers = []
    with pytest.raises(CorruptFileError, match="external buffer 8 is out of range, there are none"):
        verify_litert_model(pack(found), "m")


def test_what_is_used_again_and_again_is_refused() -> None:
    """A small file with many subgraphs that are all the same one would be looked at for hours."""
    first: Fields = {0: [{0: [2, 3], 3: "x"}] * 500}
    others: list[Fields] = [{}] * 999
    data = bytearray(build_flatbuffer({0: Scalar("I", 3), 2: [first, *others], 4: [{}]}, b"TFL3"))
    model = FlatbufferReader(bytes(data), "m").root(b"TFL3")
    begin, count = model.vector_range(2, 4, 1000)
    place = begin + int.from_bytes(data[begin : begin + 4], "little")
    for i in range(1, count):
        struct.pack_into("<I", data, begin + 4 * i, place - begin - 4 * i)
    with pytest.raises(CorruptFileError, match=rf"used more often than {len(data)} bytes explain"):
        verify_litert_model(bytes(data), "m")


def test_a_text_that_does_not_end_is_refused() -> None:
    data = build(Sample("TANH", [X], [X]))
    at = data.index(b"main\0")
    with pytest.raises(CorruptFileError, match="the text does not end with a zero byte"):
        verify_litert_model(data[: at + 4] + b"x" + data[at + 5 :], "m")


def test_every_truncation_is_refused() -> None:
    data = real("hf_llama_wi8.litertlm")
    for size in (*range(0, 64, 7), 4096, len(data) // 2, len(data) - 1):
        with pytest.raises(HearthLMError):
            verify_litert_model(data[:size], "m")


def test_attributes_are_read_and_refused() -> None:
    assert read_attributes(EPSILON, "m") == {"epsilon": pytest.approx(1e-6)}
    from flatbuffers import flexbuffers

    values = {"axis": -3, "big": 2**40, "exact": 0.1, "on": True}
    assert read_attributes(bytes(flexbuffers.Dumps(values)), "m") == values
    assert read_attributes(bytes(flexbuffers.Dumps({})), "m") == {}
    for data, error, says in (
        (b"\0\0", CorruptFileError, "expected 3 to 4096 bytes, got 2"),
        (bytes(4097), CorruptFileError, "expected 3 to 4096 bytes, got 4097"),
        (bytes(flexbuffers.Dumps(7)), UnsupportedModelError, "expected a map"),
        (bytes(flexbuffers.Dumps({"a": "text"})), UnsupportedModelError, "'a': expected a number, got type 5"),
        (EPSILON[:-3] + b"\xff" + EPSILON[-2:], CorruptFileError, "lies outside of 32 bytes"),
        (EPSILON.replace(b"\x01\0\0\0\x01\0\0\0", b"\xff\0\0\0\x01\0\0\0"), CorruptFileError, "width 255|lies outside"),
        (
            EPSILON.replace(b"\x03\0\0\0", b"\xff\xff\0\0"),
            CorruptFileError,
            "lies outside|not as many",
        ),
    ):
        with pytest.raises(error, match=f"^m: .*({says})"):
            read_attributes(data, "m")
