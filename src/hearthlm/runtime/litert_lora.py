"""Adapters of a LiteRT model: matrices that its `..._lora_r<rank>` signatures take as inputs."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import TensorMismatchError, UnsupportedModelError
from hearthlm.formats import detect_format
from hearthlm.formats.litert_lora import read_litert_lora
from hearthlm.formats.litert_model import LiteRtModel, LlmSignatures, TensorSpec
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.models.family import StoredRows
from hearthlm.models.family import TensorSpec as WeightSpec
from hearthlm.runtime.litert_graph import Buffers, Graph
from hearthlm.runtime.lora import Adapter, read_peft

_INPUT = re.compile(r"lora_atten_([qkvo])_([ab])_prime_weight_([0-9]{1,4})")

_Matrices = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class LiteRtAdapter(Adapter):
    """Hold an adapter for one model: `rank` is that of the signatures that it goes through."""

    matrices: _Matrices = field(repr=False)
    _loaded: dict[Graph, Buffers] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def buffers(self, graph: Graph) -> Buffers:
        """Return the matrices where the graph can read them; they are copied there once."""
        with self._lock:
            if graph not in self._loaded:
                buffers = graph.new_buffers(f"decode_lora_r{self.rank}", list(self.matrices))
                for name, values in self.matrices.items():
                    buffers.write(name, values)
                self._loaded[graph] = buffers
            return self._loaded[graph]


def open_litert_adapter(
    path: str | PathLike[str], model: LiteRtModel, signatures: LlmSignatures, where: str
) -> LiteRtAdapter:
    """Read the adapter at `path`, MediaPipe's `.tflite` or a PEFT folder or file, for a model with LoRA signatures.

    One of a smaller rank goes through the next larger signatures, filled up with zeros. Raises UnsupportedModelError
    for a model without such signatures, and TensorMismatchError for an adapter that does not fit or changes nothing.
    """
    if not signatures.lora_ranks:
        raise UnsupportedModelError(
            f"{where}: expected signatures ..._lora_r<rank>, which take an adapter, and the model has none: export it "
            "with LoRA ranks, or run the checkpoint"
        )
    kind = detect_format(path)
    if kind == "tflite":
        with MappedFile(path) as file, file.read(0, file.size, "adapter") as data:
            found = read_litert_lora(data, str(path))
        rank, matrices = found.rank, dict(found.matrices)
    elif kind in ("checkpoint", "safetensors", "torch_zip"):
        rank, matrices = _from_peft(path, model, signatures)
    else:
        raise UnsupportedModelError(
            f"{path}: expected an adapter of a LiteRT model, MediaPipe's .tflite or a PEFT folder, got a file of the "
            f"format {kind!r}"
        )
    fitting = [r for r in signatures.lora_ranks if r >= rank]
    if not fitting:
        raise TensorMismatchError(
            f"{path}: rank {rank}: expected at most {max(signatures.lora_ranks)}, the largest that the model was built "
            "for"
        )
    inputs = lora_inputs(model, fitting[0])
    if not any(values.any() for name, values in matrices.items() if "_b_" in name):
        raise TensorMismatchError(f"{path}: the adapter would change nothing: every product of its factors is zero")
    if unknown := matrices.keys() - inputs.keys():
        raise TensorMismatchError(
            f"{path}: the model has no place for {len(unknown)} of its tensors: {', '.join(sorted(unknown)[:3])[:300]}"
        )
    whole = {name: _filled(path, name, matrices.get(name), spec, rank) for name, spec in inputs.items()}
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(whole):
        digest.update(f"{name} {whole[name].shape}".encode())
        digest.update(whole[name].tobytes())
    return LiteRtAdapter(
        path=str(path),
        rank=fitting[0],
        num_bytes=sum(values.nbytes for values in whole.values()),
        digest=digest.hexdigest(),
        matrices=whole,
    )


def lora_inputs(model: LiteRtModel, rank: int) -> dict[str, TensorSpec]:
    """Return the inputs of the signatures of a rank that an adapter is for."""
    inputs = model.signatures[f"decode_lora_r{rank}"].inputs
    return {name: spec for name, spec in inputs.items() if name.startswith("lora_")}


def _filled(
    path: str | PathLike[str], name: str, values: NDArray[np.float32] | None, spec: TensorSpec, rank: int
) -> NDArray[np.float32]:
    """Return a matrix in the shape of an input, zero beyond the adapter's own rank, or where it has none."""
    whole = np.zeros(spec.shape, np.float32)
    if values is None:
        return whole
    match = _INPUT.fullmatch(name)
    axis = 1 if match is not None and match[2] == "a" else 0
    wanted = tuple(rank if i == axis else length for i, length in enumerate(spec.shape))
    if values.shape != wanted:
        raise TensorMismatchError(f"{path}: {name}: expected {list(wanted)}, got {list(values.shape)}")
    whole[: wanted[0], : wanted[1]] = values
    return whole


def _from_peft(
    path: str | PathLike[str], model: LiteRtModel, signatures: LlmSignatures
) -> tuple[int, dict[str, NDArray[np.float32]]]:
    """Read lora_A [rank, in] and lora_B [out, rank] of the attention's projections, scaled, as the inputs' a and b."""
    inputs = lora_inputs(model, signatures.lora_ranks[-1])
    specs: dict[str, WeightSpec] = {}
    for name in inputs:
        match = _INPUT.fullmatch(name)
        if match is None:
            raise UnsupportedModelError(
                f"{path}: the model takes {name!r}, and nothing says which tensor of a PEFT adapter that is; use an "
                "adapter in MediaPipe's .tflite"
            )
        kind, side, layer = match.groups()
        other = f"lora_atten_{kind}_{'b' if side == 'a' else 'a'}_prime_weight_{layer}"
        if side == "b" or other not in inputs:
            continue
        shape = (inputs[other].shape[-1], inputs[name].shape[0])
        specs[f"{kind}_{layer}"] = WeightSpec(
            role=f"{kind}_{layer}",
            shape=shape,
            checkpoint_name=f"model.layers.{layer}.self_attn.{kind}_proj.weight",
            checkpoint_rows=StoredRows(shape),
            bin_names=(f"params.lm.transformer.x_layers_{layer}.self_attention.{kind}.w",),
            group="attention",
        )
    found = read_peft(path, specs)
    if not found:
        raise TensorMismatchError(f"{path}: there is no LoRA tensor in it")
    rank = max(down.shape[0] for down, _, _ in found.values())
    matrices = {}
    for role, (down, up, scale) in found.items():
        kind, _, layer = role.partition("_")
        a, b = np.zeros((down.shape[1], rank), np.float32), np.zeros((rank, up.shape[0]), np.float32)
        a[:, : down.shape[0]], b[: up.shape[1]] = down.T, up.T * np.float32(scale)
        matrices[f"lora_atten_{kind}_a_prime_weight_{layer}"] = a
        matrices[f"lora_atten_{kind}_b_prime_weight_{layer}"] = b
    return rank, matrices
