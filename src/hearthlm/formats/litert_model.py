"""What a LiteRT model (`.tflite`) offers: its signatures, and whether they are those of a language model.

Format: tensorflow/compiler/mlir/lite/schema/schema.fbs. Only the flatbuffer's structure is read, never a weight.

A language model has one or more signatures `prefill*` that read a prompt in steps of a fixed number of tokens, and
`decode` for one token. Keys and values go in and come out under the same names; which axis counts the tokens is told
by the shapes alone. `..._lora_r<rank>` variants take an adapter's matrices as further inputs.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats.flatbuffer import FlatbufferReader, Table
from hearthlm.formats.litert_operators import type_name

IDENTIFIER = b"TFL3"
MAX_SIGNATURES = 256
MAX_SIGNATURE_TENSORS = 16_384  # inputs and outputs of all signatures together

_DYNAMIC_UPDATE_SLICE = 151  # BuiltinOperator: operand 0 with operand 1 written over a part of it
_UINT8 = struct.Struct("<B")
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorSpec:
    """Say what an input or output of a signature is; -1 stands for a dimension that is not fixed."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Name one entry point of a model, its inputs and its outputs.

    `updated` names the inputs that come out again with a slice of them replaced and that nothing else reads: input and
    output may then be the same memory.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    updated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LiteRtModel:
    """Say what a model offers."""

    signatures: Mapping[str, Signature]
    num_subgraphs: int
    num_operators: int


def read_litert_model(data: bytes | memoryview, where: str) -> LiteRtModel:
    """Return the signatures of the model in `data`, which may be mapped; `where` begins every error.

    Raises TruncatedFileError and CorruptFileError for bytes that contradict the format or themselves, weights that lie
    beyond the data included, and UnsupportedModelError for a flatbuffer without operators, such as a MediaPipe `.bin`.
    """
    data = memoryview(data)
    reader = FlatbufferReader(data, where)
    model = reader.root(IDENTIFIER)
    subgraphs = list(model.tables(2, "subgraph"))
    num_operators = sum(subgraph.count(3) for subgraph in subgraphs)
    if num_operators == 0:
        raise UnsupportedModelError(
            f"{where}: expected a LiteRT model, got a flatbuffer without operators (a MediaPipe .bin needs no bundle)"
        )
    for buffer in model.tables(4, "buffer"):
        buffer.byte_range(0)
        reader.need(buffer.scalar(1, _UINT64), buffer.scalar(2, _UINT64), "data of a buffer")
    if model.count(7) > MAX_SIGNATURES:
        raise CorruptFileError(f"{where}: expected at most {MAX_SIGNATURES} signatures, got {model.count(7)}")
    slice_updates = {
        i
        for i, code in enumerate(model.tables(1, "operator code"))
        if max(code.scalar(0, _UINT8), code.scalar(3, _INT32)) == _DYNAMIC_UPDATE_SLICE
    }
    tensors: dict[int, list[Table]] = {}
    signatures: dict[str, Signature] = {}
    num_tensors = 0
    for signature in model.tables(7, "signature"):
        name, index = signature.text(2), signature.scalar(4, _UINT32)
        what = f"{where}: signature {name[:120]!r}"
        if name in signatures:
            raise CorruptFileError(f"{what}: appears twice")
        if index >= len(subgraphs):
            raise CorruptFileError(f"{what}: subgraph {index} is out of range, there are {len(subgraphs)}")
        num_tensors += signature.count(0) + signature.count(1)
        if num_tensors > MAX_SIGNATURE_TENSORS:
            raise CorruptFileError(f"{what}: expected at most {MAX_SIGNATURE_TENSORS} inputs and outputs in all")
        if index not in tensors:
            tensors[index] = list(subgraphs[index].tables(0, "tensor"))
        signatures[name] = Signature(
            name,
            _specs(signature, 0, tensors[index], what),
            _specs(signature, 1, tensors[index], what),
            _updated(signature, subgraphs[index], slice_updates),
        )
    return LiteRtModel(MappingProxyType(signatures), len(subgraphs), num_operators)


def _specs(signature: Table, field: int, tensors: list[Table], what: str) -> Mapping[str, TensorSpec]:
    specs: dict[str, TensorSpec] = {}
    for entry in signature.tables(field, "input or output"):
        name, index = entry.text(0), entry.scalar(1, _UINT32)
        if name in specs:
            raise CorruptFileError(f"{what}: {name[:120]!r} appears twice")
        if index >= len(tensors):
            raise CorruptFileError(f"{what}: tensor {index} is out of range, there are {len(tensors)}")
        shape = tensors[index].integers(7) or tensors[index].integers(0)  # the first may have dimensions left open
        if len(shape) > 8 or min(shape, default=0) < -1:
            raise CorruptFileError(f"{what}: {name[:120]!r} has the impossible shape {list(shape[:9])}")
        code = tensors[index].scalar(1, _UINT8)
        specs[name] = TensorSpec(type_name(code), shape)
    return MappingProxyType(specs)


def _updated(signature: Table, subgraph: Table, slice_updates: set[int]) -> frozenset[str]:
    """Return the inputs of a signature that only an update of a slice reads, whose result comes out as that input."""
    outputs = {entry.text(0): entry.scalar(1, _UINT32) for entry in signature.tables(1, "output")}
    named = {entry.text(0): entry.scalar(1, _UINT32) for entry in signature.tables(0, "input")}
    wanted = {index: outputs[name] for name, index in named.items() if name in outputs}
    readers: dict[int, list[bool]] = {index: [] for index in wanted}
    for operator in subgraph.tables(3, "operator"):
        inputs = operator.integers(1)
        for index in wanted.keys() & set(inputs):
            readers[index].append(
                operator.scalar(0, _UINT32) in slice_updates
                and inputs[0] == index
                and index not in inputs[1:]
                and operator.integers(2) == (wanted[index],)
            )
    return frozenset(name for name, index in named.items() if readers.get(index) == [True])


@dataclass(frozen=True)
class KvCache:
    """Say how the keys and values of one sequence lie.

    The shapes are those of the layer that holds most. `num_tokens` is how many fit, and `key_axis` and `value_axis`
    count them; all are None where the shapes leave it open. `name` is the pattern of the inputs' names, such as
    "kv_cache_k_{layer}".
    """

    name: str
    num_layers: int
    dtype: str
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    key_axis: int | None
    value_axis: int | None

    @property
    def num_tokens(self) -> int | None:
        """How many tokens fit, prompt and answer together."""
        return None if self.key_axis is None else self.key_shape[self.key_axis]

    @property
    def tensors(self) -> tuple[tuple[str, str], ...]:
        """The names of the keys and of the values of every layer."""
        values = self.name.replace("k_", "v_")
        return tuple((self.name.format(layer=i), values.format(layer=i)) for i in range(self.num_layers))

    def _of_one(self, batch: int) -> tuple[object, ...]:
        """Return what is the same for any number of sequences side by side."""
        sizes = [math.prod(shape) / batch for shape in (self.key_shape, self.value_shape)]
        return self.name, self.num_layers, self.dtype, self.key_axis, self.value_axis, self.num_tokens, *sizes


@dataclass(frozen=True)
class LlmSignatures:
    """Say how a language model is called.

    `prefill_lengths` is how many tokens each prefill signature takes, the longest first. `lora_ranks` are those of its
    LoRA variants. `kv_cache` is None where the model keeps it to itself; decode takes `num_decoded` sequences side by
    side.
    """

    prefill_lengths: Mapping[str, int]
    tokens: str
    positions: str
    mask: str | None
    logits: str
    kv_cache: KvCache | None
    lora_ranks: tuple[int, ...]
    num_decoded: int = 1


@dataclass(frozen=True)
class _Convention:
    """One of the ways in which exporters name inputs."""

    tokens: str
    positions: str
    mask: str | None = None
    more: tuple[str, ...] = ()
    logits: str = "logits"
    has_cache: bool = True

    @property
    def inputs(self) -> set[str]:
        return {self.tokens, self.positions, *([self.mask] if self.mask else []), *self.more}


_CONVENTIONS = (
    _Convention("tokens", "input_pos", "mask"),
    _Convention("tokens", "input_pos"),
    _Convention("token_ids", "positions", "attn_mask"),
    _Convention("embeddings", "input_pos", "mask"),
    _Convention("embeddings", "input_pos", "mask", ("per_layer_embeddings",)),
    _Convention("args_0", "args_1", logits="output_0", has_cache=False),
)
_CACHE_NAMES = (("kv_cache_k_{layer}", "kv_cache_v_{layer}"), ("k_cache_{layer}", "v_cache_{layer}"))
_LORA_VARIANT = re.compile(r"(?:prefill.*|decode)_lora_r([0-9]{1,6})")
_LORA_INPUT = re.compile(r"lora_.+")
_IMAGE_OR_AUDIO = re.compile(r"image|pixel|vision|audio|(^|_)mel(_|$)|spectrogram", re.IGNORECASE)
_LAYER = re.compile(r"(kv_cache_[kv]_|[kv]_cache_)([0-9]{1,4})")


def llm_signatures(model: LiteRtModel, where: str) -> LlmSignatures:
    """Return how to call `model` as a language model.

    Raises UnsupportedModelError that lists what was found and what is known, where a signature is missing or its inputs
    are none of the known sets.
    """
    prefills = [s for name, s in model.signatures.items() if name.startswith("prefill")]
    decode = model.signatures.get("decode")
    if decode is None or not prefills:
        raise UnsupportedModelError(
            f"{where}: expected signatures prefill* and decode, got {_listed(model.signatures)}"
            f"{_not_text([*model.signatures, *(name for s in model.signatures.values() for name in s.inputs)])}"
        )
    convention = _convention(decode, where)
    cache = decoded = _cache(decode, convention, where)
    num_decoded = _batch(decode, convention)
    lengths: dict[str, int] = {}
    ranks: set[int] = set()
    for signature in prefills:
        if _convention(signature, where) != convention:
            raise UnsupportedModelError(f"{where}: signature {signature.name!r}: its inputs are not those of decode")
        cache = _cache(signature, convention, where)
        num_prefilled = _batch(signature, convention)
        if cache != decoded and (
            cache is None or decoded is None or cache._of_one(num_prefilled) != decoded._of_one(num_decoded)
        ):
            raise UnsupportedModelError(f"{where}: signature {signature.name!r}: its KV cache is not that of decode")
        if num_prefilled != 1:
            raise UnsupportedModelError(
                f"{where}: signature {signature.name!r}: {convention.tokens}: expected one sequence, "
                f"got {num_prefilled}"
            )
        if variant := _LORA_VARIANT.fullmatch(signature.name):
            ranks.add(int(variant[1]))
            continue
        shape = signature.inputs[convention.positions].shape
        if not shape or shape[-1] < 1:
            raise UnsupportedModelError(
                f"{where}: signature {signature.name!r}: {convention.positions}: expected a fixed number of tokens as "
                f"its last dimension, got shape {list(shape)}"
            )
        lengths[signature.name] = shape[-1]
    return LlmSignatures(
        MappingProxyType(dict(sorted(lengths.items(), key=lambda item: (-item[1], item[0])))),
        convention.tokens,
        convention.positions,
        convention.mask,
        convention.logits,
        cache,
        tuple(sorted(ranks)),
        num_decoded,
    )


def _convention(signature: Signature, where: str) -> _Convention:
    """Return the naming that a signature follows."""
    named = {name for name in signature.inputs if not _LAYER.fullmatch(name) and not _LORA_INPUT.fullmatch(name)}
    for convention in _CONVENTIONS:
        if named == convention.inputs and (signature.name != "decode" or convention.logits in signature.outputs):
            return convention
    known = "; ".join(f"{', '.join(sorted(c.inputs))} -> {c.logits}" for c in _CONVENTIONS)
    raise UnsupportedModelError(
        f"{where}: signature {signature.name!r}: expected one of the inputs and outputs {known}; "
        f"got {_listed(named)} -> {_listed(name for name in signature.outputs if not _LAYER.fullmatch(name))}"
        f"{_not_text(named)}"
    )


def _not_text(names: Iterable[str]) -> str:
    """Say which of the names are those of images or audio, "" where none is."""
    found = sorted({name for name in names if _IMAGE_OR_AUDIO.search(name)})
    return f"; {_listed(found)}: images and audio are not read, prompts are text" if found else ""


def _batch(signature: Signature, convention: _Convention) -> int:
    """Return how many sequences a signature takes side by side."""
    shape = signature.inputs[convention.tokens].shape
    return max(1, shape[0]) if len(shape) > 1 else 1


def _cache(signature: Signature, convention: _Convention, where: str) -> KvCache | None:
    """Return the KV cache that goes in and comes out of a signature."""
    if not convention.has_cache:
        return None
    what = f"{where}: signature {signature.name!r}"
    found = {name for name in signature.inputs if _LAYER.fullmatch(name)}
    for keys, values in _CACHE_NAMES:
        num_layers = len(found) // 2
        layers = [(keys.format(layer=i), values.format(layer=i)) for i in range(num_layers)]
        if not found or {name for pair in layers for name in pair} != found:
            continue
        if missing := found - signature.outputs.keys():
            raise UnsupportedModelError(f"{what}: the KV cache goes in but does not come out: {_listed(missing)}")
        # Layers that see a window may hold fewer tokens.
        longest = max(layers, key=lambda pair: math.prod(signature.inputs[pair[0]].shape))
        key, value = (signature.inputs[name] for name in longest)
        for name in sorted(found):
            if signature.inputs[name] != signature.outputs[name]:
                raise UnsupportedModelError(f"{what}: {name} does not come out in the shape and type it goes in with")
        mask = signature.inputs[convention.mask].shape if convention.mask else ()
        key_axis, value_axis = _token_axes(key.shape, value.shape, mask[-1] if mask else None)
        return KvCache(keys, num_layers, key.dtype, key.shape, value.shape, key_axis, value_axis)
    known = " or ".join(f"{keys}, {values}" for keys, values in _CACHE_NAMES)
    raise UnsupportedModelError(
        f"{what}: no KV cache inputs found: expected {known} for every layer from 0, "
        f"got {_listed(found or signature.inputs)}"
    )


def _token_axes(key: tuple[int, ...], value: tuple[int, ...], context: int | None) -> tuple[int | None, int | None]:
    """Return which axes of keys and values count tokens, None where the shapes do not tell.

    Exporters write [batch, tokens, heads, size] for both, or keys [batch, heads, tokens, size] with values
    [batch, heads, size, tokens]; `context` is the length of the mask, where there is one.
    """
    if len(key) != 4 or len(value) != 4:
        return None, None
    found = []
    for key_axis, value_axis in ((1, 1), (2, 3), (2, 2)):
        agree = key[key_axis] == value[value_axis] and context in (None, key[key_axis])
        if agree and _rest(key, key_axis) == _rest(value, value_axis):
            found.append((key_axis, value_axis))
    if {1, 2} <= {key_axis for key_axis, _ in found}:  # there are fewer heads than tokens
        longer = 0 if key[1] == key[2] else 1 if key[1] > key[2] else 2
        found = [axes for axes in found if axes[0] == longer]
    return found[0] if found else (None, None)


def _rest(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _listed(names: Iterable[str]) -> str:
    """Return names for an error, at most 12 of them, and none that a terminal would obey."""
    listed = sorted(names)
    text = ", ".join(name[:80] if name.isprintable() else repr(name[:80]) for name in listed[:12])
    return (f"{text} and {len(listed) - 12} more" if len(listed) > 12 else text) or "none"
