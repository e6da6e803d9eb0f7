"""What ai-edge-litert takes in memory to run a model, told from its graph.

XNNPACK brings every constant matrix into the order in which it reads it, once for each signature, and the matrix
itself stays where it is. What is computed on the way through a signature lies in memory that the signatures share.
Measured with CompiledModel of ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from hearthlm.formats.litert_model import LiteRtModel, LlmSignatures
from hearthlm.formats.litert_operators import FLOAT32, INT4, INT8, OPERATORS, TensorInfo
from hearthlm.formats.litert_verifier import VerifiedGraph, VerifiedModel
from hearthlm.runtime.language_model import ExecutorMemory
from hearthlm.runtime.litert_graph import spec_bytes

_CODES = {operator.name: code for code, operator in OPERATORS.items()}
_DEQUANTIZE, _EMBEDDING_LOOKUP = _CODES["DEQUANTIZE"], _CODES["EMBEDDING_LOOKUP"]
_FULLY_CONNECTED, _BATCH_MATMUL = _CODES["FULLY_CONNECTED"], _CODES["BATCH_MATMUL"]
_VIEWS = {_CODES[name] for name in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")}

# Of a packed row beside its weights: a bias, of integers their sum, and a scale unless each block has one of 2 bytes.
_ROW_BYTES = {FLOAT32: 4, INT8: 12, INT4: 12}
_LIBRARY_BYTES = 4 << 20  # of its code that only a call touches, and of its heap
_STEP_BYTES = 3250  # of what the library keeps for an operator
_PAGES_AROUND_FAULT = 64 << 10  # bytes that Linux maps around a page of a file that is touched


def litert_memory(
    verified: VerifiedModel,
    model: LiteRtModel,
    signatures: LlmSignatures,
    *,
    num_bytes: int,
    is_mapped: bool,
    num_tokens: int,
    has_weight_cache: bool | None,
) -> ExecutorMemory:
    """Return what a model of `num_bytes` takes, of which `num_tokens` are looked up.

    `is_mapped` says whether its file is mapped or copied; `has_weight_cache` whether XNNPACK has a file with packed
    weights (True), writes one (False) or packs them for itself (None).
    """
    num_runs = _num_runs(verified)
    matrices, tables, packed = _constants(verified, num_runs)
    mapped = loaded = 0
    if is_mapped:
        partly_read = tables.keys() - matrices.keys()
        if has_weight_cache is not None:  # XNNPACK gives back the pages of what it has packed into a file
            partly_read = tables.keys() | matrices.keys()
        mapped = num_bytes - sum({**matrices, **tables}[key].num_bytes for key in partly_read)
        mapped += sum(_looked_up(tables[key], num_tokens) for key in partly_read & tables.keys())
    else:
        loaded = num_bytes
    if has_weight_cache is None:
        loaded += sum(num_runs[index] * size for index, sizes in packed.items() for _, size in sizes)
    else:
        once = {key: size for sizes in packed.values() for key, size in sizes}
        mapped += sum(once.values())
        if not has_weight_cache:  # a matrix is packed in memory before it is written
            loaded += max(once.values(), default=0)
    computed: dict[int, int] = {}
    for index in reversed(num_runs):
        computed[index] = _computed_bytes(verified.graphs[index], computed)
    num_steps = sum(count * len(verified.graphs[index].steps) for index, count in num_runs.items())
    state_bytes = _state_bytes(model, signatures)
    return ExecutorMemory(
        mapped_bytes=mapped,
        loaded_bytes=loaded,
        working_bytes=_LIBRARY_BYTES
        + _STEP_BYTES * num_steps
        + max(computed.values())
        + _call_bytes(model, signatures),
        cache_bytes=lambda _: state_bytes,
    )


def _looked_up(table: TensorInfo, num_tokens: int) -> int:
    """Return what is read of a table in a file for so many rows, with the pages around each."""
    return min(table.num_bytes, num_tokens * (table.num_bytes // table.shape[0] + _PAGES_AROUND_FAULT))


def _state_bytes(model: LiteRtModel, signatures: LlmSignatures) -> int:
    """Return what one sequence's keys and values take: twice where a call cannot change them in place."""
    cache = signatures.kv_cache
    assert cache is not None  # there is no executor without
    names = [name for pair in cache.tensors for name in pair]
    prefill, called = next(iter(signatures.prefill_lengths)), [*signatures.prefill_lengths, "decode"]
    in_place = all(model.signatures[name].updated >= set(names) for name in called)
    one, decoded = (sum(spec_bytes(model.signatures[name].inputs[n]) for n in names) for name in (prefill, "decode"))
    if signatures.num_decoded > 1:  # a prompt goes into a cache of its own, and from there into a slot
        one += decoded
    return one if in_place else 2 * one


def _call_bytes(model: LiteRtModel, signatures: LlmSignatures) -> int:
    """Return what goes into the signatures and comes out beside keys and values, as buffers and as arrays."""
    cache = signatures.kv_cache
    assert cache is not None
    names = {name for pair in cache.tensors for name in pair}
    buffers = [
        sum(
            spec_bytes(spec)
            for name, spec in (*signature.inputs.items(), *signature.outputs.items())
            if name not in names
        )
        for signature in (model.signatures[name] for name in [*signatures.prefill_lengths, "decode"])
    ]
    return sum(buffers) + max(buffers)


def _num_runs(model: VerifiedModel) -> dict[int, int]:
    """Return how often each subgraph is part of a signature; what uses another comes before it."""
    order: dict[int, None] = {}

    def visit(index: int) -> None:
        if index not in order:
            for step in model.graphs[index].steps:
                if step.subgraph is not None:
                    visit(step.subgraph)
            order[index] = None

    for index in model.signatures.values():
        visit(index)
    found = dict.fromkeys(reversed(order), 0)
    for index in model.signatures.values():
        found[index] += 1
    for index in found:
        for step in model.graphs[index].steps:
            if step.subgraph is not None:
                found[step.subgraph] += found[index]
    return found


def _constants(
    model: VerifiedModel, subgraphs: Iterable[int]
) -> tuple[dict[int, TensorInfo], dict[int, TensorInfo], dict[int, list[tuple[int, int]]]]:
    """Return the matrices that XNNPACK packs, the tables in which rows are looked up, and the sizes of packed matrices.

    A constant is known by where it lies; each subgraph has a packed size for every product.
    """
    matrices: dict[int, TensorInfo] = {}
    tables: dict[int, TensorInfo] = {}
    packed: dict[int, list[tuple[int, int]]] = {}
    for index in subgraphs:
        graph = model.graphs[index]
        packed[index] = []
        found = {i: (id(t.data), t, t) for i, t in enumerate(graph.tensors) if t.data is not None}
        for step in graph.steps:
            if step.code == _DEQUANTIZE and step.inputs[0] in found:  # once, when the model is loaded
                key, source, _ = found[step.inputs[0]]
                found[step.outputs[0]] = key, source, graph.tensors[step.outputs[0]]
            if len(step.inputs) < 2 or step.inputs[1] not in found:
                continue
            key, source, read = found[step.inputs[1]]
            if step.code == _EMBEDDING_LOOKUP:
                tables[key] = source
            elif step.code in (_FULLY_CONNECTED, _BATCH_MATMUL):
                matrices[key] = source
                packed[index].append((key, _packed_bytes(read)))
    return matrices, tables, packed


def _packed_bytes(matrix: TensorInfo) -> int:
    """Return what a constant matrix, [rows, columns], takes in XNNPACK's order."""
    rows, columns = math.prod(matrix.shape[:-1]), matrix.shape[-1]
    found = matrix.num_bytes + rows * _ROW_BYTES[matrix.type]
    if matrix.quantization is not None and (size := matrix.quantization.block_size):
        found += rows * (2 * columns // size - 4)
    return found


def _computed_bytes(graph: VerifiedGraph, of_composites: Mapping[int, int]) -> int:
    """Return the most that is held at a time of what a subgraph computes, its inputs and outputs not counted."""
    owner: dict[int, int] = {}  # of a tensor that is another in another shape
    last_use: dict[int, int] = {}
    for number, step in enumerate(graph.steps):
        if step.code in _VIEWS:
            owner[step.outputs[0]] = owner.get(step.inputs[0], step.inputs[0])
        for i in step.inputs:
            last_use[owner.get(i, i)] = number
    elsewhere = {*graph.inputs, *graph.outputs, *owner}
    ends: dict[int, list[int]] = {}
    for i, number in last_use.items():
        ends.setdefault(number, []).append(i)
    held: dict[int, int] = {}
    most = now = 0
    for number, step in enumerate(graph.steps):
        for i in set(step.outputs) - elsewhere:
            held[i] = graph.tensors[i].num_bytes
            now += held[i]
        beside = 0
        if step.subgraph is not None:
            beside = of_composites[step.subgraph]
        elif step.code == _BATCH_MATMUL:  # the second factor in XNNPACK's order
            beside = graph.tensors[step.inputs[1]].num_bytes
        elif step.code == _FULLY_CONNECTED:  # the rows in 8 bits
            beside = math.prod(graph.tensors[step.inputs[0]].shape)
        most = max(most, now + beside)
        now -= sum(held.pop(i, 0) for i in ends.get(number, ()))
    return most
