"""Low-rank adapters, y = x W^T + scale * (x A^T) B^T, from MediaPipe's `.bin` or PEFT's files, never merged into W."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import CorruptFileError, TensorMismatchError, UnsupportedModelError
from hearthlm.formats import detect_format
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.formats.weights_bin import WEB_MIN_BYTES, WeightsBin, write_weights_bin
from hearthlm.kernels import LoraFactors
from hearthlm.models.family import Family, TensorSpec
from hearthlm.models.model_types import MODEL_TYPES_BY_NUMBER
from hearthlm.models.params import Architecture
from hearthlm.quantization import (
    WeightMatrix,
    WeightType,
    bfloat16_to_float32,
    dequantize,
    float32_to_bfloat16,
)

_log = logging.getLogger("hearthlm")

# What adapter_config.json may say without changing what is computed here.
_WITHOUT_EFFECT = """
auto_mapping base_model_name_or_path fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform
lora_dropout peft_type peft_version revision target_modules task_type qalora_group_size exclude_modules megatron_config
megatron_core loftq_config eva_config corda_config lora_ga_config velora_config runtime_config ensure_weight_tying
arrow_config
"""
_READ = frozenset(("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"))
# Neutral values of what would change the result.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "layer_replication": (None,),
}
_PEFT_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?(?:\.linear)?\.(?:weight|w)")


@dataclass(frozen=True, eq=False)
class Adapter:
    """Name an adapter for one model; immutable, and shared by every sequence that uses it."""

    path: str
    rank: int  # the largest of all layers
    num_bytes: int
    digest: str


@dataclass(frozen=True, eq=False)
class LoraAdapter(Adapter):
    """Hold an adapter for a model of weights and an architecture."""

    architecture: Architecture = field(repr=False)
    factors: Mapping[str, LoraFactors] = field(repr=False)  # by the role of the matrix that they add to


def open_adapter(
    path: str | PathLike[str],
    family: Family,
    architecture: Architecture,
    *,
    alpha: float | None = None,
    scaled: bool = True,
    ignored: frozenset[str] = frozenset(),
) -> LoraAdapter:
    """Read the adapter at `path`, a `_lora.bin` or a PEFT folder or file, for a model.

    `alpha` is for a PEFT adapter without adapter_config.json; `scaled=False` leaves its scale out. `ignored` names
    tensors of the file that are no part of it. Raises TensorMismatchError for a tensor that the model has no place for
    or whose shape is another, and for an adapter that would change nothing; UnsupportedModelError for a setting of
    PEFT's that is not understood.
    """
    specs = {
        spec.role: spec
        for spec in family.tensors(architecture)
        if len(spec.shape) == 2 and spec.group in ("attention", "feed_forward")
    }
    kind = detect_format(path)
    if kind == "weights_bin":
        found = _from_bin(path, specs, family)
    elif kind in ("checkpoint", "safetensors", "torch_zip"):
        found = read_peft(path, specs, alpha=alpha, scaled=scaled, ignored=ignored)
    else:
        raise UnsupportedModelError(
            f"{path}: expected a LoRA .bin or a PEFT adapter, got a file of the format {kind!r}"
        )
    if not found:
        raise TensorMismatchError(f"{path}: there is no LoRA tensor in it")
    if not any(up.any() and down.any() and scale for down, up, scale in found.values()):
        raise TensorMismatchError(f"{path}: the adapter would change nothing: every product of its factors is zero")
    digest = hashlib.blake2b(digest_size=32)
    factors = {}
    for role in sorted(found):
        down, up, scale = found[role]
        pair = LoraFactors(_float_matrix(down), _float_matrix(up.T), scale)
        digest.update(f"{role} {pair.down.shape} {pair.up_transposed.shape} {scale}".encode())
        digest.update(np.ascontiguousarray(down, dtype=np.float32).tobytes())
        digest.update(np.ascontiguousarray(up, dtype=np.float32).tobytes())
        factors[role] = pair
    return LoraAdapter(
        path=str(path),
        rank=max(f.down.shape[0] for f in factors.values()),
        num_bytes=sum(f.down.num_bytes + f.up_transposed.num_bytes for f in factors.values()),
        digest=digest.hexdigest(),
        architecture=architecture,
        factors=factors,
    )


def _float_matrix(values: NDArray[np.float32]) -> WeightMatrix:
    """Return values in 16 bits if that loses nothing, as with most adapters: they are read for every token."""
    shape = values.shape[0], values.shape[1]
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.array_equal(half.astype(np.float32), values):
        return WeightMatrix("float16", shape, np.ascontiguousarray(half))
    bits = float32_to_bfloat16(np.ascontiguousarray(values))
    if np.array_equal(bfloat16_to_float32(bits), values):
        return WeightMatrix("bfloat16", shape, bits)
    return WeightMatrix("float32", shape, np.ascontiguousarray(values))


def write_lora_bin(
    path: str | PathLike[str],
    adapter: LoraAdapter,
    family: Family,
    parameters: LlmParameters,
    model_type: int,
    *,
    tokenizer: bytes | None,
    mediapipe_compatible: bool = False,
) -> None:
    """Write an adapter as MediaPipe's `_lora.bin`: blocks of float16, float32 for types that need it.

    `w_prime_left` is A [rank, in] and `w_prime_right` B [out, rank]; of Gemma's attention output the names are swapped.
    The layout has no rank that is not a multiple of 4, and one rank for all: the factors are filled up with zeros.
    `mediapipe_compatible` repeats what MediaPipe's converter does wrong with the output's factors: it swaps the names
    for every family, and puts the values in the wrong order.
    Raises CorruptFileError for a value that float16 cannot hold.
    """
    rank = -(-adapter.rank // 4) * 4
    dtype: WeightType = "float32" if MODEL_TYPES_BY_NUMBER[model_type].needs_float32 else "float16"
    is_swapped = family.file_traits[model_type].lora_output_swapped
    specs = {spec.role: spec for spec in family.tensors(adapter.architecture)}
    plans = []
    for role, factors in adapter.factors.items():
        spec = specs[role]
        base = _bin_module(spec)
        down = np.zeros((rank, spec.shape[1]), np.float32)
        down[: factors.down.shape[0]] = dequantize(factors.down)
        up = np.zeros((spec.shape[0], rank), np.float32)
        up[:, : factors.down.shape[0]] = dequantize(factors.up_transposed).T * np.float32(factors.scale)
        sides = ("left", "right")
        if role.endswith("attention.output"):
            if is_swapped or mediapipe_compatible:
                sides = ("right", "left")
            if mediapipe_compatible:
                down, up = (_scrambled(values, not is_swapped) for values in (down, up))
        for side, values in zip(sides, (down, up), strict=True):
            stored = values.astype(dtype)
            if not np.isfinite(stored).all():
                raise CorruptFileError(f"{adapter.path}: {role}: a value is not finite as {dtype}")
            matrix = WeightMatrix(dtype, (stored.shape[0], stored.shape[1]), stored)
            plans.append(TensorPlan.of(f"{base}.w_prime_{side}", matrix))
    write_weights_bin(
        path,
        parameters,
        model_type,
        plans,
        tokenizer=tokenizer,
        backend="gpu",
        lora_rank=rank,
        extra=None if mediapipe_compatible else {"lora": {"rank": adapter.rank}},
        min_bytes=0 if mediapipe_compatible else WEB_MIN_BYTES,
    )


def _scrambled(values: NDArray[np.float32], transposed: bool) -> NDArray[np.float32]:
    """Return a factor as MediaPipe's converter takes it for one of another shape; `_from_bin` undoes it."""
    read = values.T.reshape(values.shape)
    return np.ascontiguousarray(read.T if transposed else read)


_Found = dict[str, tuple[NDArray[np.float32], NDArray[np.float32], float]]  # A, B and the scale, by role


def _from_bin(path: str | PathLike[str], specs: Mapping[str, TensorSpec], family: Family) -> _Found:
    """Read MediaPipe's layout: for Gemma's attention output the names of the two factors are swapped.

    MediaPipe's own converter swaps them for every family, and puts them through a wrong reshape; in its files, which
    have no metadata entry of ours, that is undone.
    """
    with WeightsBin.open(path) as file:
        rank = file.lora_rank
        if rank is None or not file.tensors or not all("w_prime" in name for name in file.tensors):
            raise UnsupportedModelError(f"{path}: expected a LoRA .bin, got one that holds a whole model")
        traits = family.file_traits.get(file.model_type)
        if traits is None:
            raise TensorMismatchError(f"{path}: the adapter is for another type of model than {family.name}")
        left_over = set(file.tensors)
        found: _Found = {}
        for role, spec in specs.items():
            for bin_name in spec.bin_names:
                base = bin_name.removesuffix(".w").removesuffix(".linear")
                left, right = f"{base}.w_prime_left", f"{base}.w_prime_right"
                if left not in file.tensors and right not in file.tensors:
                    continue
                is_output, is_mediapipes = role.endswith("attention.output"), file.extra is None
                is_swapped = is_output and (traits.lora_output_swapped or is_mediapipes)
                down_name, up_name = (right, left) if is_swapped else (left, right)
                out, columns = spec.shape
                if is_output and is_mediapipes and not traits.lora_output_swapped:
                    down = dequantize(file.matrix(down_name, (columns, rank))).T.reshape(columns, rank).T
                    up = dequantize(file.matrix(up_name, (rank, out))).T.reshape(rank, out).T
                else:
                    down = dequantize(file.matrix(down_name, (rank, columns)))
                    up = dequantize(file.matrix(up_name, (out, rank)))
                    if is_output and is_mediapipes:
                        down, up = down.reshape(columns, rank).T, up.reshape(rank, out).T
                found[role] = down, up, 1.0
                left_over -= {left, right}
                break
        _check_left_over(path, left_over)
        return found


def read_peft(
    path: str | PathLike[str],
    specs: Mapping[str, TensorSpec],
    *,
    alpha: float | None = None,
    scaled: bool = True,
    ignored: frozenset[str] = frozenset(),
) -> _Found:
    """Return A [rank, in] and B [out, rank], scaled, of the matrices that a PEFT adapter adds to, by role."""
    with Checkpoint.open(path) as file:
        config = file.adapter_config
        if config is None and alpha is None and scaled:
            _log.warning("%s: there is no adapter_config.json beside it; lora_alpha is taken to be the rank", path)
        settings = _PeftSettings(path, config or {}, alpha)
        pairs: dict[str, dict[str, str]] = {}
        left_over = set()
        for name in (name for name in file.names if name not in ignored):
            match = _PEFT_NAME.fullmatch(name)
            if match is None:
                left_over.add(name)
            else:
                pairs.setdefault(match[1], {})[match[2]] = name
        found: _Found = {}
        used = set()
        for role, spec in specs.items():
            spelling = next((s for s in _spellings(spec) if s in pairs), None)
            if spelling is None:
                continue
            used.add(spelling)
            pair = pairs[spelling]
            if set(pair) != {"A", "B"}:
                raise TensorMismatchError(f"{path}: {spelling}: expected lora_A and lora_B, got only {min(pair)}")
            down, up = dequantize(file.matrix(pair["A"])), dequantize(file.matrix(pair["B"]))
            rows = spec.checkpoint_rows
            whole = rows.shape[::-1] if rows.transposed else rows.shape
            rank = down.shape[0]
            if down.shape != (rank, whole[1]) or up.shape != (whole[0], rank):
                raise TensorMismatchError(
                    f"{path}: {spelling}: expected lora_A [rank, {whole[1]}] and lora_B [{whole[0]}, rank], "
                    f"got {list(down.shape)} and {list(up.shape)}"
                )
            count = spec.shape[0] // rows.num_groups
            up = up.reshape(rows.num_groups, -1, rank)[:, rows.begin : rows.begin + count].reshape(-1, rank)
            found[role] = down, up, settings.scale(spelling, rank) if scaled else 1.0
        for module in pairs.keys() - used:
            left_over |= set(pairs[module].values())
        _check_left_over(path, left_over)
        return found


def _spellings(spec: TensorSpec) -> Iterator[str]:
    """Yield the names of a module: in larger models around the same text model, and as MediaPipe's converter spells it.

    PEFT's names for Phi-2 make that converter fail; those who used it renamed their tensors to its own.
    """
    module = spec.checkpoint_name.removesuffix(".weight")
    bare = module.removeprefix("model.").removeprefix("transformer.")
    yield from (module, f"model.{module}", f"language_model.{module}", f"model.language_model.{bare}", bare)
    yield _bin_module(spec).replace("params.lm.transformer.x_layers_", "model.layers.")


def _bin_module(spec: TensorSpec) -> str:
    """Return the name of a matrix in a `.bin` without its ending."""
    return spec.bin_names[0].removesuffix(".w").removesuffix(".linear")


def _check_left_over(path: str | PathLike[str], names: set[str]) -> None:
    if names:
        raise TensorMismatchError(
            f"{path}: the model has no place for {len(names)} of its tensors: {', '.join(sorted(names)[:3])}"
            f"{', ...' if len(names) > 3 else ''}"
        )


class _PeftSettings:
    """Read adapter_config.json; a field that would change the result and is not understood is refused by name.

    A field that is null is as good as absent: every version of PEFT adds some, for variants that are off by default.
    """

    def __init__(self, path: str | PathLike[str], config: Mapping[str, Any], alpha: float | None) -> None:
        self._path = path
        self._config = config
        self._given_alpha = alpha
        if config and alpha not in (None, config.get("lora_alpha")):
            raise TensorMismatchError(
                f"{path}: lora_alpha: adapter_config.json says {config.get('lora_alpha')!r:.80}, got {alpha}"
            )
        for name, value in config.items():
            if name in _NEUTRAL:
                if value not in _NEUTRAL[name]:
                    raise UnsupportedModelError(f"{path}: adapter_config.json: {name}={value!r:.80} is not supported")
            elif name == "peft_type" and value != "LORA":
                raise UnsupportedModelError(f"{path}: adapter_config.json: expected peft_type LORA, got {value!r:.80}")
            elif value is not None and name not in _WITHOUT_EFFECT.split() and name not in _READ:
                raise UnsupportedModelError(f"{path}: adapter_config.json: the field {name!r} is not understood")
        self._rank_pattern = self._pattern("rank_pattern")
        self._alpha_pattern = self._pattern("alpha_pattern")

    def _pattern(self, name: str) -> Mapping[str, Any]:
        value = self._config.get(name) or {}
        if not isinstance(value, dict):
            raise UnsupportedModelError(
                f"{self._path}: adapter_config.json: {name}: expected an object, got {value!r:.80}"
            )
        return value

    def scale(self, module: str, rank: int) -> float:
        """Return what B is multiplied by: lora_alpha / rank, or over its root with use_rslora."""
        if not self._config:
            return 1.0 if self._given_alpha is None else self._given_alpha / rank
        declared = self._of(self._rank_pattern, module, self._config.get("r"))
        if declared != rank:
            raise TensorMismatchError(
                f"{self._path}: {module}: adapter_config.json says rank {declared!r:.80}, its tensors have {rank}"
            )
        alpha = self._of(self._alpha_pattern, module, self._config.get("lora_alpha"))
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise UnsupportedModelError(
                f"{self._path}: adapter_config.json: lora_alpha: expected a number, got {alpha!r:.80}"
            )
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _of(self, pattern: Mapping[str, Any], module: str, default: Any) -> Any:
        """Return the value of the pattern that a module's name ends with, as PEFT does (names, no expressions)."""
        for key, value in pattern.items():
            if module == key or module.endswith(f".{key}"):
                return value
        return default
