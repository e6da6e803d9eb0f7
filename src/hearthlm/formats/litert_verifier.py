"""Whether a LiteRT model can be run without harm: everything that LiteRT would read is checked before it does.

LiteRT itself trusts the file: an offset, an index or a shape that lies is read from wherever it points. So the whole
flatbuffer is walked here, and refused at the first thing that is not understood: every table, text and vector lies
inside the data; every tensor has a type and a shape whose size does not overflow, constants exactly as many bytes as
those need, and quantised ones their scales; operators are those of an allow-list, computed from what was computed
before, and their outputs have the shapes and types that follow from their inputs (`litert_operators`); composites
bring a graph that agrees with them, and never contain themselves. Nothing here reads a weight.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats.flatbuffer import FlatbufferReader, Table
from hearthlm.formats.flexbuffer import read_attributes
from hearthlm.formats.litert_model import IDENTIFIER
from hearthlm.formats.litert_operators import (
    BITS,
    COMPOSITE,
    FLOAT16,
    INT4,
    INT8,
    INT16,
    INT32,
    INT64,
    KNOWN_COMPOSITES,
    MAX_ELEMENTS,
    OPERATORS,
    UINT8,
    Call,
    Quantization,
    Shape,
    TensorInfo,
    read_options,
    tensor_bytes,
    type_name,
)

MAX_SUBGRAPHS = 16_384
MAX_SCALES = 1 << 24
MAX_INTEGERS = 4096  # dimensions, inputs and outputs
MAX_DEPTH = 8  # of composites in composites
MAX_STEPS = 1 << 20  # operators of one signature, those of its composites included
MAX_RANK = 8
MAX_TENSOR_BYTES = 2**31 - 1  # of one that is computed

_BYTE, _INT8, _INT32, _UINT32, _UINT64 = (struct.Struct(f"<{layout}") for layout in "BbiIQ")
_COMPOSITE_OPTIONS = 21  # of the union BuiltinOptions2
_BLOCKWISE = 2  # of the union QuantizationDetails
_QUANTIZED = (INT8, UINT8, INT16, INT32, INT4)
# LiteRT acts upon these; what a language model is does not need them.
_METADATA_THAT_ACTS = ("model_control_dependencies", "debug_metadata", "buffer_location", "LiteRtStamp")


@dataclass(frozen=True, slots=True)
class Step:
    """Name one operator of a graph, and the tensors that it reads and makes; an input of -1 is left out.

    `subgraph` is what computes a composite, None for any other operator.
    """

    code: int
    inputs: Sequence[int]
    outputs: Sequence[int]
    subgraph: int | None = None


@dataclass(frozen=True, slots=True)
class VerifiedGraph:
    """Say what one subgraph computes: its steps, in their order, on its tensors."""

    tensors: Sequence[TensorInfo]
    inputs: Sequence[int]
    outputs: Sequence[int]
    steps: Sequence[Step]


@dataclass(frozen=True)
class VerifiedModel:
    """Hold the subgraphs of a model, and which of them each signature runs; constants are views of its data."""

    graphs: Sequence[VerifiedGraph]
    signatures: Mapping[str, int]


def verify_litert_model(data: bytes | memoryview, where: str, *, num_weight_bytes: int | None = None) -> VerifiedModel:
    """Return what the model in `data`, which may be mapped, computes, if LiteRT can read and run it.

    `where` begins every error. `num_weight_bytes` is the size of the section with its weights, None where there is
    none: then a model that refers to one is refused. Raises TruncatedFileError and CorruptFileError for bytes that
    contradict the format or themselves, UnsupportedModelError for what may be sound and is not understood.
    """
    return _Verifier(memoryview(data), where, num_weight_bytes).verify()


@dataclass(frozen=True, slots=True)
class _Graph:
    """One subgraph, before its operators are looked at."""

    table: Table
    where: str
    tensors: list[TensorInfo]
    inputs: Sequence[int]
    outputs: Sequence[int]
    steps: list[Step]


class _Verifier:
    def __init__(self, data: memoryview, where: str, num_weight_bytes: int | None) -> None:
        self._data = data
        self._where = where
        self._num_weight_bytes = num_weight_bytes
        self._reader = FlatbufferReader(data, where)
        self._left = len(data) // 2 + 4096  # how much is still to be looked at
        self._scales: dict[tuple[int, int, int], bool] = {}  # those looked at, and whether their zero points are 0
        self._composites: dict[int, list[int]] = {}  # the subgraphs that each uses

    def verify(self) -> VerifiedModel:
        model = self._reader.root(IDENTIFIER)
        if (version := model.scalar(0, _UINT32)) != 3:
            raise UnsupportedModelError(f"{self._where}: expected version 3 of the schema, got {version}")
        model.text(3, terminated=True)
        self._buffers = [self._buffer(table) for table in model.tables(4, "buffer")]
        if not self._buffers:
            raise CorruptFileError(f"{self._where}: there are no buffers")
        self._check_metadata(model)
        self._external = list(self._external_buffers(model))
        self._codes = [self._operator_code(table) for table in model.tables(1, "operator code")]
        tables = list(model.tables(2, "subgraph"))
        if not 0 < len(tables) <= MAX_SUBGRAPHS:
            raise CorruptFileError(f"{self._where}: expected 1 to {MAX_SUBGRAPHS} subgraphs, got {len(tables)}")
        self._graphs = [self._graph(table, number) for number, table in enumerate(tables)]
        for number, graph in enumerate(self._graphs):
            self._check_operators(graph, number)
        self._check_nesting()
        signatures = self._check_signatures(model)
        graphs = [VerifiedGraph(graph.tensors, graph.inputs, graph.outputs, graph.steps) for graph in self._graphs]
        return VerifiedModel(graphs, signatures)

    def _spend(self, count: int) -> None:
        """Raise where more is looked at than the data has room for: it would be the same part again and again."""
        self._left -= count
        if self._left < 0:
            raise CorruptFileError(f"{self._where}: its parts are used more often than {len(self._data)} bytes explain")

    def _integers(self, table: Table, field: int) -> tuple[int, ...]:
        found = table.integers(field, MAX_INTEGERS)
        self._spend(len(found))
        return found

    def _buffer(self, table: Table) -> memoryview | None:
        """Return the bytes of a buffer, None where it stands for what is computed."""
        begin, count = table.byte_range(0)
        offset, size = table.scalar(1, _UINT64), table.scalar(2, _UINT64)
        if count:
            if offset or size:
                raise CorruptFileError(f"{self._where}: a buffer has data inside and outside of the flatbuffer")
            return self._data[begin : begin + count]
        if offset == 0 and size == 0:
            return None
        if offset < 8 or size < 2:  # LiteRT takes 1 for a buffer that is still to be filled
            raise CorruptFileError(f"{self._where}: a buffer has the impossible offset {offset} and size {size}")
        self._reader.need(offset, size, "data of a buffer")
        return self._data[offset : offset + size]

    def _check_metadata(self, model: Table) -> None:
        for table in model.tables(6, "metadata"):
            name, index = table.text(0, terminated=True), table.scalar(1, _UINT32)
            if name in _METADATA_THAT_ACTS:
                raise UnsupportedModelError(f"{self._where}: metadata {name!r}: a model with it is not run here")
            if index >= len(self._buffers):
                raise CorruptFileError(
                    f"{self._where}: metadata {name[:80]!r}: buffer {index} is out of range, "
                    f"there are {len(self._buffers)}"
                )
        if any(not 0 <= index < len(self._buffers) for index in model.integers(5)):
            raise CorruptFileError(f"{self._where}: metadata_buffer: an index is out of range")

    def _external_buffers(self, model: Table) -> Iterator[tuple[int, int]]:
        """Yield the identifier and the length of each buffer outside of the file."""
        num_groups = model.count(8)
        for table in model.tables(9, "external buffer"):
            if self._num_weight_bytes is None:
                raise UnsupportedModelError(
                    f"{self._where}: its weights lie in another file, and no section with them came along"
                )
            group, offset, length = table.scalar(1, _UINT32), table.scalar(2, _UINT64), table.scalar(3, _UINT64)
            if table.text(4, terminated=True) not in ("", "unpacked"):
                raise UnsupportedModelError(f"{self._where}: external buffer: its packing is not understood")
            if group >= num_groups or offset + length > self._num_weight_bytes:
                raise CorruptFileError(
                    f"{self._where}: external buffer: expected {length} bytes at offset {offset} of group {group}; "
                    f"there are {num_groups} groups and {self._num_weight_bytes} bytes"
                )
            yield table.scalar(0, _UINT32), length
        for table in model.tables(8, "external buffer group"):
            # LiteRT opens a file of that name where it is not told otherwise.
            if any(mark in table.text(0, terminated=True) for mark in ("/", "\\", "..", ":")):
                raise CorruptFileError(f"{self._where}: external buffer group: expected a name, got a path")

    def _operator_code(self, table: Table) -> int:
        table.text(1, terminated=True)
        code = max(table.scalar(0, _INT8), table.scalar(3, _INT32))
        if code == 32:
            raise UnsupportedModelError(f"{self._where}: the custom operator {table.text(1)[:80]!r} is not understood")
        if table.has(1):
            raise CorruptFileError(f"{self._where}: operator code {code} has the name of a custom operator")
        if code != COMPOSITE and code not in OPERATORS:
            raise UnsupportedModelError(f"{self._where}: operator {code} of the schema is not one of those understood")
        return code

    def _graph(self, table: Table, number: int) -> _Graph:
        where = f"{self._where}: subgraph {number} {table.text(4, terminated=True)[:80]!r}"
        tensors: list[TensorInfo] = []
        unresolved: list[tuple[int, Table]] = []
        self._spend(table.count(0))
        for index, tensor in enumerate(table.tables(0, "tensor")):
            tensors.append(self._tensor(tensor, f"{where}: tensor {index}"))
            if tensor.has(4):
                unresolved.append((index, tensor))
        for index, tensor in unresolved:  # scales may lie in another tensor
            quantization = self._quantization(tensor, tensors, index, f"{where}: tensor {index}")
            found = tensors[index]
            tensors[index] = TensorInfo(found.type, found.shape, found.data, quantization)
        inputs, outputs = self._integers(table, 1), self._integers(table, 2)
        for index in (*inputs, *outputs):
            if not 0 <= index < len(tensors):
                raise CorruptFileError(f"{where}: input or output {index} is out of range, there are {len(tensors)}")
        if len(set(inputs)) != len(inputs) or any(tensors[i].is_constant for i in inputs):
            raise CorruptFileError(f"{where}: an input appears twice, or is a constant")
        if len(set(outputs)) != len(outputs):
            raise CorruptFileError(f"{where}: an output appears twice")
        sizes = [t.num_bytes for t in tensors if not t.is_constant]
        if max(sizes, default=0) > MAX_TENSOR_BYTES:
            raise UnsupportedModelError(
                f"{where}: expected tensors of at most {MAX_TENSOR_BYTES} bytes, got {max(sizes)}"
            )
        return _Graph(table, where, tensors, inputs, outputs, [])

    def _tensor(self, table: Table, what: str) -> TensorInfo:
        kind, shape, index = table.scalar(1, _INT8), self._integers(table, 0), table.scalar(2, _UINT32)
        table.text(3, terminated=True)
        if kind not in BITS:
            raise UnsupportedModelError(f"{what}: type {type_name(kind)} is not understood")
        if len(shape) > MAX_RANK:
            raise UnsupportedModelError(f"{what}: expected at most {MAX_RANK} dimensions, got {len(shape)}")
        is_empty = shape == (0,) and kind in (INT32, INT64)  # the shape of a single number
        if min(shape, default=1) < 1 and not is_empty:
            raise CorruptFileError(f"{what}: expected dimensions from 1, got {list(shape)}")
        if math.prod(shape) > MAX_ELEMENTS:
            raise CorruptFileError(f"{what}: {type_name(kind)}{list(shape)} has more than {MAX_ELEMENTS} values")
        if table.scalar(5, _BYTE) or table.has(6) or table.count(9):
            raise UnsupportedModelError(f"{what}: expected no variable, no sparse values and no variants")
        signature = self._integers(table, 7)
        if signature and (
            len(signature) != len(shape) or any(s not in (-1, n) for s, n in zip(signature, shape, strict=True))
        ):
            raise CorruptFileError(f"{what}: the shape {list(shape)} contradicts its signature {list(signature)}")
        if index >= len(self._buffers):
            raise CorruptFileError(f"{what}: buffer {index} is out of range, there are {len(self._buffers)}")
        data = self._buffers[index]
        if (external := table.scalar(10, _UINT32)) and self._external:
            return self._external_tensor(kind, shape, external, what)
        if external:
            raise CorruptFileError(f"{what}: external buffer {external} is out of range, there are none")
        if data is None:
            return TensorInfo(kind, shape, memoryview(b"") if is_empty else None)
        if len(data) != tensor_bytes(kind, shape):
            raise CorruptFileError(
                f"{what}: {type_name(kind)}{list(shape)} needs {tensor_bytes(kind, shape)} bytes, "
                f"its buffer has {len(data)}"
            )
        return TensorInfo(kind, shape, data)

    def _external_tensor(self, kind: int, shape: Shape, identifier: int, what: str) -> TensorInfo:
        length = next((n for number, n in self._external if number == identifier), None)
        if length != tensor_bytes(kind, shape):
            raise CorruptFileError(
                f"{what}: external buffer {identifier}: expected {tensor_bytes(kind, shape)} bytes, got {length}"
            )
        return TensorInfo(kind, shape, memoryview(b""))  # its bytes are not here, and decide about nothing

    def _quantization(self, tensor: Table, tensors: list[TensorInfo], index: int, what: str) -> Quantization | None:
        """Return how the integers of a tensor are read, None where they are numbers as they are."""
        table = tensor.table(4, "quantization")
        if table is None:
            return None
        owner = tensors[index]
        for field in (0, 1):
            table.vector_range(field, 4, MAX_SCALES)
        begin, count = table.vector_range(2, 4, MAX_SCALES)
        zeros_begin, num_zeros = table.vector_range(3, 8, MAX_SCALES)
        axis, details = table.scalar(6, _INT32), table.scalar(4, _BYTE)
        if details not in (0, _BLOCKWISE) or (details == 0 and table.has(5)):
            raise UnsupportedModelError(f"{what}: quantization of kind {details} is not understood")
        if details == _BLOCKWISE:
            if count or num_zeros:
                raise CorruptFileError(f"{what}: scales of the tensor and of its blocks")
            return self._blockwise(table, tensors, owner, what)
        if count == 0 and num_zeros == 0:
            return None
        if owner.type not in _QUANTIZED:
            raise CorruptFileError(f"{what}: {owner} has scales")
        if not 0 <= axis < max(1, len(owner.shape)):
            raise CorruptFileError(f"{what}: quantized_dimension: expected an axis of {owner}, got {axis}")
        expected = owner.shape[axis] if owner.shape else 1
        if count not in (1, expected) or num_zeros != count:
            raise CorruptFileError(
                f"{what}: {owner}: expected 1 or {expected} scales and zero points, got {count} and {num_zeros}"
            )
        key = (begin, zeros_begin, count)
        if key not in self._scales:
            self._spend(count)
            scales = np.frombuffer(self._data[begin : begin + 4 * count], "<f4")
            if not (np.isfinite(scales) & (scales > 0)).all():
                raise CorruptFileError(f"{what}: expected positive scales")
            zeros = np.frombuffer(self._data[zeros_begin : zeros_begin + 8 * count], "<i8")
            if (np.abs(zeros) > 32768).any():
                raise CorruptFileError(f"{what}: a zero point lies outside of the type")
            self._scales[key] = not zeros.any()
        return Quantization(count, axis, self._scales[key])

    def _blockwise(self, table: Table, tensors: list[TensorInfo], owner: TensorInfo, what: str) -> Quantization:
        blocks = table.table(5, "blockwise quantization")
        if blocks is None or len(owner.shape) != 2 or owner.type not in (INT4, INT8):
            raise CorruptFileError(f"{what}: expected blocks of a matrix of INT4 or INT8, got {owner}")
        scales, zeros, size = (blocks.scalar(i, _INT32) for i in range(3))
        if zeros != -1 and not (zeros == 0 and not blocks.has(1)):
            raise UnsupportedModelError(f"{what}: expected blocks without zero points, got those of tensor {zeros}")
        if not 0 <= scales < len(tensors):
            raise CorruptFileError(f"{what}: tensor {scales} with its scales is out of range, there are {len(tensors)}")
        rows, columns = owner.shape
        if size < 32 or size % 32 or columns % size:
            raise CorruptFileError(f"{what}: blocks of {size} do not fit rows of {columns}")
        found = tensors[scales]
        if found.type != FLOAT16 or not found.is_constant or found.shape != (rows, columns // size):
            raise CorruptFileError(f"{what}: expected constant scales of FLOAT16{[rows, columns // size]}, got {found}")
        return Quantization(rows * (columns // size), 0, True, size)

    def _check_operators(self, graph: _Graph, number: int) -> None:
        """Raise unless every operator can be computed from what is there before it."""
        known = [tensor.is_constant for tensor in graph.tensors]
        for index in graph.inputs:
            known[index] = True
        self._composites[number] = []
        self._spend(graph.table.count(3))
        for step, table in enumerate(graph.table.tables(3, "operator")):
            index = table.scalar(0, _UINT32)
            if index >= len(self._codes):
                raise CorruptFileError(
                    f"{graph.where}: operator {step}: code {index} is out of range, there are {len(self._codes)}"
                )
            code = self._codes[index]
            name = "STABLEHLO_COMPOSITE" if code == COMPOSITE else OPERATORS[code].name
            where = f"{graph.where}: operator {step} {name}"
            if table.byte_range(5)[1] or table.scalar(9, _UINT64) or table.scalar(10, _UINT64):
                raise CorruptFileError(f"{where}: has options of a custom operator")
            inputs, outputs = self._integers(table, 1), self._integers(table, 2)
            changed = self._bytes(table, 7)
            if len(changed) > len(inputs) or any(changed):
                raise UnsupportedModelError(f"{where}: changes its inputs")
            if table.vector_range(8, 4, MAX_INTEGERS)[1]:
                raise UnsupportedModelError(f"{where}: has intermediate tensors")
            for i in inputs:
                if not -1 <= i < len(known):
                    raise CorruptFileError(f"{where}: input tensor {i} is out of range, there are {len(known)}")
                if i >= 0 and not known[i]:
                    raise CorruptFileError(f"{where}: input tensor {i} is computed later or never")
            for i in outputs:
                if not 0 <= i < len(known):
                    raise CorruptFileError(f"{where}: output tensor {i} is out of range, there are {len(known)}")
                if known[i]:
                    raise CorruptFileError(f"{where}: output tensor {i} is there already")
                known[i] = True
            given = [None if i < 0 else graph.tensors[i] for i in inputs]
            made = [graph.tensors[i] for i in outputs]
            subgraph = None
            if code == COMPOSITE:
                subgraph = self._check_composite(table, given, made, where)
                self._composites[number].append(subgraph)
            else:
                _check_call(code, table, given, made, where)
            graph.steps.append(Step(code, inputs, outputs, subgraph))
        for i in graph.outputs:
            if not known[i] or graph.tensors[i].is_constant:
                raise CorruptFileError(f"{graph.where}: output tensor {i} is never computed")

    def _bytes(self, table: Table, field: int) -> memoryview:
        begin, count = table.byte_range(field)
        return self._data[begin : begin + count]

    def _check_composite(
        self, table: Table, given: Sequence[TensorInfo | None], made: Sequence[TensorInfo], where: str
    ) -> int:
        """Return the subgraph that computes a composite, having the types and shapes that it is called with."""
        if table.scalar(3, _BYTE) or table.has(4):
            raise CorruptFileError(f"{where}: has options of another operator")
        options = table.table(12, "composite options")
        if table.scalar(11, _BYTE) != _COMPOSITE_OPTIONS or options is None:
            raise CorruptFileError(f"{where}: has no options")
        name = options.text(0, terminated=True)
        if name not in KNOWN_COMPOSITES:
            raise UnsupportedModelError(
                f"{where}: {name[:80]!r}: expected one of {', '.join(sorted(KNOWN_COMPOSITES))}"
            )
        if options.scalar(3, _INT8):
            raise UnsupportedModelError(f"{where}: {name}: expected attributes as a flexbuffer")
        if (attributes := self._bytes(options, 2)).nbytes:
            read_attributes(attributes, f"{where}: {name}: attributes")
        index = options.scalar(1, _INT32)
        if not 0 <= index < len(self._graphs):
            raise CorruptFileError(f"{where}: {name}: subgraph {index} is out of range, there are {len(self._graphs)}")
        inner = self._graphs[index]
        for what, outside, inside in (("inputs", given, inner.inputs), ("outputs", made, inner.outputs)):
            theirs = [inner.tensors[i] for i in inside]
            if [_signature(t) for t in outside] != [_signature(t) for t in theirs]:
                raise CorruptFileError(
                    f"{where}: {name}: its {what} are {_listed(outside)}, "
                    f"but those of subgraph {index} {_listed(theirs)}"
                )
        return index

    def _check_nesting(self) -> None:
        """Raise where a composite contains itself, or more steps than any model takes."""
        steps: dict[int, int] = {}
        for start in range(len(self._graphs)):
            path: list[tuple[int, Iterator[int]]] = [(start, iter(self._composites[start]))]
            while path:
                number, rest = path[-1]
                if (child := next((c for c in rest if c not in steps), None)) is None:
                    path.pop()
                    steps[number] = len(self._graphs[number].steps) + sum(steps[c] for c in self._composites[number])
                    if steps[number] > MAX_STEPS:
                        raise CorruptFileError(
                            f"{self._graphs[number].where}: expected at most {MAX_STEPS} steps, got {steps[number]}"
                        )
                    continue
                path.append((child, iter(self._composites[child])))
                if len(path) > MAX_DEPTH:
                    raise CorruptFileError(f"{self._graphs[child].where}: composites more than {MAX_DEPTH} deep")

    def _check_signatures(self, model: Table) -> dict[str, int]:
        """Return the subgraph of each signature."""
        signatures = {}
        for table in model.tables(7, "signature"):
            name, index = table.text(2, terminated=True), table.scalar(4, _UINT32)
            what = f"{self._where}: signature {name[:80]!r}"
            if index >= len(self._graphs):
                raise CorruptFileError(f"{what}: subgraph {index} is out of range, there are {len(self._graphs)}")
            graph = self._graphs[index]
            for field, word, known in ((0, "input", graph.inputs), (1, "output", graph.outputs)):
                found = []
                for entry in table.tables(field, word):
                    entry.text(0, terminated=True)
                    found.append(entry.scalar(1, _UINT32))
                if sorted(found) != sorted(known):
                    raise CorruptFileError(
                        f"{what}: its {word}s are tensors {sorted(found)[:8]}, "
                        f"those of its subgraph {sorted(known)[:8]}"
                    )
            signatures[name] = index
        return signatures


def _check_call(
    code: int, table: Table, given: Sequence[TensorInfo | None], made: Sequence[TensorInfo], where: str
) -> None:
    operator = OPERATORS[code]
    if not operator.min_inputs <= len(given) <= operator.max_inputs:
        raise CorruptFileError(
            f"{where}: expected {operator.min_inputs} to {operator.max_inputs} inputs, got {len(given)}"
        )
    if len(made) != (operator.num_outputs or len(made)) or not made:
        raise CorruptFileError(f"{where}: expected {operator.num_outputs} outputs, got {len(made)}")
    kind = table.scalar(3, _BYTE)
    if kind not in (0, operator.options) or table.scalar(11, _BYTE) or table.has(12):
        raise CorruptFileError(f"{where}: has options of another operator")
    options = table.table(4, "options") if kind else None
    if not kind and table.has(4):
        raise CorruptFileError(f"{where}: has options of no operator")
    expected = operator.rule(Call(where, given, made, read_options(operator, options)))
    if [(kind, shape) for kind, shape in expected] != [(t.type, t.shape) for t in made]:
        wanted = ", ".join(f"{type_name(kind)}{list(shape)}" for kind, shape in expected)
        raise CorruptFileError(f"{where}: expected {wanted} to come out, got {_listed(made)}")


def _signature(tensor: TensorInfo | None) -> tuple[int, Shape] | None:
    return None if tensor is None else (tensor.type, tensor.shape)


def _listed(tensors: Sequence[TensorInfo | None]) -> str:
    text = ", ".join(str(tensor) for tensor in tensors[:8])
    return f"{text} and {len(tensors) - 8} more" if len(tensors) > 8 else text or "none"
