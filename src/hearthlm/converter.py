"""Checkpoints to MediaPipe's `.bin`: read, map, quantise and write, a few MiB at a time."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hearthlm.blueprint import blueprint, left_over
from hearthlm.carried_tokenizer import CarriedTokenizer
from hearthlm.errors import CorruptFileError, TensorMismatchError, UnsupportedModelError
from hearthlm.formats.atomic_file import check_space, make_folder
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.llm_parameters import llm_parameters
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.formats.weights_bin import WEB_MIN_BYTES, write_weights_bin
from hearthlm.models import FAMILIES
from hearthlm.models.family import Family, QuantizationGroup, TensorSpec
from hearthlm.models.model_types import MODEL_TYPES
from hearthlm.models.params import Architecture
from hearthlm.quantization import QuantizationMethod, WeightMatrix, WeightType, quantize
from hearthlm.runtime.calibration import MAX_TOKENS as MAX_CALIBRATION_TOKENS
from hearthlm.runtime.calibration import Calibration, calibration_ids, generated_ids
from hearthlm.runtime.checkpoint_source import CheckpointSource
from hearthlm.runtime.cpu_count import default_num_threads
from hearthlm.runtime.lora import LoraAdapter, open_adapter, write_lora_bin
from hearthlm.runtime.model import checkpoint_chat
from hearthlm.runtime.weights import load_weights

_log = logging.getLogger("hearthlm")

_TYPE_OF_BITS: Mapping[int, WeightType] = {4: "int4", 8: "int8", 16: "float16", 32: "float32"}
_LORA = re.compile(r"\.lora_[AB]\.")


@dataclass(frozen=True)
class ConversionConfig:
    """Say what to convert and how, in the words of MediaPipe's converter; nothing is read before `convert_checkpoint`.

    `input_ckpt`: a Hugging Face folder, a file of weights, or a pattern (`model*.safetensors`). `ckpt_format`:
    "safetensors", "pytorch", or None to tell it by the bytes. `model_type`: MediaPipe's name ("GEMMA_2B"), the name of
    a family ("LLAMA"), or None where config.json tells. `backend`: "cpu" (rows) or "gpu" (blocks; Android, iOS, Web).
    The bits of each group are 8 or 4; 32, and 16 on "gpu", keep floats, for debugging. `is_symmetric=False` adds zero
    points. `vocab_model_file`: a SentencePiece model, a tokenizer.json, or a folder with either; "" takes what lies
    beside the weights. `output_tflite_file` None means `output_dir`/model.tflite. `use_fake_weights` writes zeros.
    `use_dynamic_ple` is declared in files for the GPU. `use_mse_quant` is MediaPipe's own second method of
    quantisation; better ones are chosen by `quantization_method`.

    `lora_ckpt`: a PEFT folder or its safetensors; written to `lora_output_tflite_file` (None: `_lora` before the
    output's ending) with its scale worked in. `lora_rank` None means what the adapter has; `lora_alpha` is for
    adapters without adapter_config.json.

    Beside MediaPipe's: `num_heads` and `head_dim` for checkpoints without config.json whose sizes are not the published
    ones, `quantization_method`, and `mediapipe_compatible=True`, which repeats what MediaPipe's converter does wrong:
    scores of added tokens, order of LoRA factors, no LoRA scale, zero points lost on "cpu"; and leaves out the entry
    of ours that carries what MediaPipe's message cannot say.
    Raises ValueError for a value out of range, NotImplementedError for what cannot be honoured.
    """

    input_ckpt: str | PathLike[str]
    ckpt_format: Literal["safetensors", "pytorch"] | None
    model_type: str | None
    backend: Literal["cpu", "gpu"]
    output_dir: str | PathLike[str]
    _: KW_ONLY
    is_quantized: bool = False
    is_symmetric: bool = True
    attention_quant_bits: int = 8
    feedforward_quant_bits: int = 8
    embedding_quant_bits: int = 8
    combine_file_only: bool = False
    vocab_model_file: str | PathLike[str] = ""
    obfuscate: bool = False
    output_tflite_file: str | PathLike[str] | None = None
    fp16_scale: float | None = None
    block_size: int = 0
    lora_ckpt: str | PathLike[str] | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_output_tflite_file: str | PathLike[str] | None = None
    lora_main_model_type: str | None = None
    image_encoder_file: str | PathLike[str] | None = None
    image_adapter_file: str | PathLike[str] | None = None
    submodel_type: str | None = None
    use_fake_weights: bool = False
    use_dynamic_ple: bool = True
    use_mse_quant: bool = False
    apply_srq: bool | None = None
    num_heads: int | None = None
    head_dim: int | None = None
    quantization_method: QuantizationMethod | None = None
    mediapipe_compatible: bool = False

    def __post_init__(self) -> None:
        if self.backend not in ("cpu", "gpu"):
            raise ValueError(f"Unsupported backend: {self.backend}; expected cpu or gpu")
        if self.ckpt_format not in ("safetensors", "pytorch", None):
            raise ValueError(f"Unknown checkpoint format: {self.ckpt_format}; expected safetensors or pytorch")
        known = {*MODEL_TYPES, *(name.upper() for name in FAMILIES)}
        if self.model_type is not None and self.model_type not in known:
            raise ValueError(f"Unknown model type: {self.model_type}; expected one of {', '.join(sorted(known))}")
        for group in get_args(QuantizationGroup):
            bits = self.bits(group)
            allowed = (4, 8, 32) if self.backend == "cpu" else (4, 8, 16, 32)
            if bits not in allowed:
                raise ValueError(f"{_BITS_FIELDS[group]}: expected one of {allowed} for {self.backend}, got {bits!r}")
        if self.block_size not in (0, 32, 128):
            raise ValueError(f"Block size must be one of (0 (off), 32, 128), got {self.block_size!r}")
        for name in ("num_heads", "head_dim", "lora_rank"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if self.quantization_method not in (None, *get_args(QuantizationMethod)):
            methods = ", ".join(get_args(QuantizationMethod))
            raise ValueError(f"quantization_method: expected one of {methods}, got {self.quantization_method!r}")
        if self.use_mse_quant and self.quantization_method not in (None, "mediapipe_mse"):
            raise ValueError(f"use_mse_quant: expected False with quantization_method {self.quantization_method!r}")
        if not self.is_symmetric:
            if self.method != "minmax":
                raise ValueError(f"is_symmetric: expected True for {self.method!r}, which has no zero points")
            if self.backend == "cpu" and not self.mediapipe_compatible:
                raise ValueError(
                    "is_symmetric: expected True for cpu, whose files cannot hold zero points; "
                    "mediapipe_compatible=True writes the file without them, as MediaPipe does"
                )
        if self.lora_ckpt is None:
            for name in ("lora_rank", "lora_alpha", "lora_output_tflite_file", "lora_main_model_type"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: there is no lora_ckpt that it could be about")
        if self.lora_main_model_type not in (None, self.model_type):
            raise ValueError(f"lora_main_model_type: expected {self.model_type}, got {self.lora_main_model_type}")
        for name, value in _CANNOT_BE_HONOURED.items():
            if getattr(self, name) not in (None, False, 0, ""):
                raise NotImplementedError(f"{name}={getattr(self, name)!r}: {value}")

    @property
    def method(self) -> QuantizationMethod:
        """How values are quantised."""
        return self.quantization_method or ("mediapipe_mse" if self.use_mse_quant else "minmax")

    def bits(self, group: QuantizationGroup) -> int:
        """Return the bits per value of the matrices of a group."""
        bits: int = getattr(self, _BITS_FIELDS[group])
        return bits

    @property
    def output_file(self) -> Path:
        """Where the model is written."""
        if self.output_tflite_file is None:
            return Path(self.output_dir, "model.tflite")
        return Path(self.output_tflite_file)

    @property
    def lora_output_file(self) -> Path | None:
        """Where the adapter is written, if there is one."""
        if self.lora_ckpt is None:
            return None
        if self.lora_output_tflite_file is not None:
            return Path(self.lora_output_tflite_file)
        return self.output_file.with_stem(f"{self.output_file.stem}_lora")


_BITS_FIELDS: Mapping[QuantizationGroup, str] = {
    "attention": "attention_quant_bits",
    "feed_forward": "feedforward_quant_bits",
    "embedding": "embedding_quant_bits",
}
_CANNOT_BE_HONOURED = {
    "combine_file_only": "the intermediate files of MediaPipe's two steps are never written here; convert in one step",
    "block_size": "no reader of this format has scales for blocks; leave it at 0",
    "image_encoder_file": "images are not supported; leave it out to convert the text part",
    "image_adapter_file": "images are not supported; leave it out to convert the text part",
    "submodel_type": "models inside models are not supported",
    "apply_srq": "statically quantised activations are not supported",
    "is_quantized": "checkpoints that are quantised already are not supported; convert the float one",
}


@dataclass(frozen=True)
class PlannedTensor:
    """Say what becomes of a tensor: its name in the file, what it is made of, and its size with scales and sums."""

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


@dataclass(frozen=True)
class ConversionPlan:
    """Say what a conversion writes; `left_over` are the checkpoint's tensors that it ignores."""

    model_type: str
    family: str
    output_file: str
    lora_output_file: str | None
    tensors: tuple[PlannedTensor, ...]
    left_over: tuple[str, ...]
    num_bytes: int
    peak_rss_mb: int

    def to_json(self) -> dict[str, Any]:
        """Return the document of `hearthlm convert --dry-run --json`."""
        return asdict(self)


Progress = Callable[[float, str], None]


def plan_conversion(config: ConversionConfig) -> ConversionPlan:
    """Read and check everything but the weights, and write nothing; raises what `convert_checkpoint` raises."""
    with _Conversion(config) as conversion:
        return conversion.plan


def convert_checkpoint(
    config: ConversionConfig, progress: Progress | None = None, *, num_threads: int | None = None
) -> ConversionPlan:
    """Convert a checkpoint, and its adapter if there is one, and return what was written.

    A file appears whole or not at all; folders are made. `progress(part, name)` gets the part of the work that is
    done and the tensor's name. `num_threads` None means one per physical core; the bytes do not depend on it. Raises
    FileNotFoundError, ModelFormatError and UnsupportedModelError by name for a checkpoint that cannot be converted,
    OSError for a disk that is full.
    """
    with _Conversion(config) as conversion:
        conversion.write(progress, num_threads or default_num_threads())
        return conversion.plan


class _Conversion:
    """A checkpoint that is open, and how its tensors become those of the file."""

    def __init__(self, config: ConversionConfig) -> None:
        self._config = config
        _warn_of_what_has_no_effect(config)
        self._checkpoint = Checkpoint.open(config.input_ckpt)
        try:
            self._source = CheckpointSource(config.input_ckpt, self._checkpoint)
            _check_format(config, self._checkpoint)
            self._family, architecture, self._model_type = blueprint(
                self._checkpoint, self._source, config.model_type, num_heads=config.num_heads, head_dim=config.head_dim
            )
            self._architecture = architecture
            self._calibration: Calibration | None = None
            self._specs = list(_specs(self._family, architecture, self._source))
            for spec in self._specs:
                self._source.check(spec)
            ignored = [name for name in self._checkpoint.names if config.lora_ckpt is not None and _LORA.search(name)]
            self._left_over = left_over(self._checkpoint, self._specs, self._source, ignored)
            named = os.fspath(config.vocab_model_file)
            self._tokenizer = CarriedTokenizer.find(
                Path(named) if named else self._checkpoint.folder, mediapipe_compatible=config.mediapipe_compatible
            )
            self._chat = {} if config.mediapipe_compatible else checkpoint_chat(self._checkpoint)
            self._parameters = self._message(architecture)
            self._extra = self._entry(architecture)
            self._adapter = self._open_adapter(architecture)
            self.plan = self._plan()
        except BaseException:
            self._checkpoint.close()
            raise

    def __enter__(self) -> _Conversion:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoint.close()

    def write(self, progress: Progress | None, num_threads: int) -> None:
        config, done, total = self._config, 0, max(1, sum(_weight_bytes(t.shape, t.dtype) for t in self.plan.tensors))

        def advance(name: str, num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            self._checkpoint.release_pages()
            if progress is not None:
                progress(min(1.0, done / total), name)

        for path in (config.output_file, config.lora_output_file, Path(config.output_dir, "any")):
            if path is not None:
                make_folder(path.parent)
        check_space(config.output_file, self.plan.num_bytes)
        number = 0 if self._model_type is None else self._model_type.number
        specs = self._specs
        if config.method == "gptq":  # which follows a text through the layers, the output last
            specs = sorted(specs, key=lambda spec: spec.group == "embedding")
        with self._calibrated(num_threads):
            write_weights_bin(
                config.output_file,
                self._parameters,
                number,
                [self._tensor_plan(spec) for spec in specs],
                tokenizer=self._tokenizer.sentencepiece,
                backend=config.backend,
                extra=self._extra,
                min_bytes=0 if config.backend == "cpu" or config.mediapipe_compatible else WEB_MIN_BYTES,
                num_threads=1 if config.method == "gptq" else num_threads,
                progress=advance,
            )
        if self._adapter is not None and config.lora_output_file is not None:
            write_lora_bin(
                config.lora_output_file,
                self._adapter,
                self._family,
                self._parameters,
                number,
                tokenizer=self._tokenizer.sentencepiece,
                mediapipe_compatible=config.mediapipe_compatible,
            )

    @contextmanager
    def _calibrated(self, num_threads: int) -> Iterator[None]:
        """Have the calibration at hand that the method needs; it has threads of its own."""
        if self._config.method != "gptq" or self._config.use_fake_weights:
            yield
            return
        weights = load_weights(self._architecture, self._specs, self._source)
        start_id = self._parameters.start_token_id if self._parameters.HasField("start_token_id") else None
        ids = calibration_ids(self._tokenizer.tokenizer, start_id)
        before = ""

        def release(role: str, _: NDArray[np.float32]) -> None:
            nonlocal before
            layer = role.rpartition(".attention.")[0] or before
            if layer != before:  # the layer before has been read
                self._checkpoint.release_pages()
            before = layer

        starts = [sequence[:1] for sequence in ids]
        ids += generated_ids(self._architecture, weights, starts, num_threads=num_threads, observe=release)
        with Calibration(self._architecture, weights, ids, num_threads=num_threads) as self._calibration:
            yield
        self._calibration = None

    def _quantized(self, spec: TensorSpec, values: NDArray[np.float32], bits: int) -> WeightMatrix:
        method, compensation = self._config.method, None
        if method == "gptq":
            is_only_looked_up = spec.role == "embedding" and not self._architecture.tied_embedding
            if self._calibration is None or is_only_looked_up:
                method = "mse"
            else:
                compensation = self._calibration.compensation(spec.role)
        return quantize(values, bits, method=method, symmetric=self._config.is_symmetric, compensation=compensation)

    def _tensor_plan(self, spec: TensorSpec) -> TensorPlan:
        config = self._config
        name = spec.bin_names[-1 if config.backend == "gpu" else 0]
        if len(spec.shape) == 1:
            shape: tuple[int, ...] = spec.shape
            if config.backend == "cpu" and _is_layer_norm(spec.role, self._specs):
                shape = (1, 1, *shape)
            return TensorPlan(name, shape, "float32", lambda first, last: self._vector(spec)[first:last])
        dtype = self._dtype(spec)
        keeps_zero_points = not config.is_symmetric and config.backend == "gpu" and dtype in ("int4", "int8")

        def produce(first: int, last: int) -> WeightMatrix:
            shape = (last - first, spec.shape[1])
            zeros = np.zeros(shape, np.float32)
            values = zeros if config.use_fake_weights else self._source.rows(spec, first, last)
            if dtype in ("float32", "float16"):
                return WeightMatrix(dtype, shape, values.astype(dtype))
            try:
                matrix = self._quantized(spec, values, 4 if dtype == "int4" else 8)
            except ValueError as error:
                raise CorruptFileError(
                    f"{config.input_ckpt}: tensor {spec.checkpoint_name}, from row {first}: {error}"
                ) from None
            return matrix if keeps_zero_points else replace(matrix, zero_points=None)

        return TensorPlan(name, spec.shape, dtype, produce, keeps_zero_points)

    def _vector(self, spec: TensorSpec) -> NDArray[np.float32]:
        if self._config.use_fake_weights:
            return np.zeros(spec.shape, np.float32)
        return self._source.vector(spec)

    def _dtype(self, spec: TensorSpec) -> WeightType:
        return "float32" if spec.group is None else _TYPE_OF_BITS[self._config.bits(spec.group)]

    def _message(self, architecture: Architecture) -> LlmParameters:
        """Return the message of the file, with the tokens that begin and end a text."""
        if self._model_type is None:
            message = LlmParameters(vocab_size=architecture.vocab_size)
            t = message.transformer_parameters
            t.embedding_dim, t.hidden_dimension = architecture.embedding_dim, architecture.hidden_dim
            t.head_dimension, t.num_heads = architecture.head_dim, architecture.num_heads
            t.num_kv_heads, t.num_stacks = architecture.num_kv_heads, architecture.num_layers
            return message
        message = llm_parameters(architecture, self._family, self._model_type.number)
        chat = self._chat
        message.start_token_id = chat.get("start_id", self._model_type.start_token_id)
        if self._tokenizer.is_byte_level and not self._family.bytes_to_unicode:
            message.input_output_normalizations.append(LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE)
        stop_tokens = [*self._model_type.stop_tokens, *self._tokenizer.special_pieces(chat.get("stop_ids", []))]
        message.stop_tokens.extend(dict.fromkeys(stop_tokens))
        if self._config.backend == "gpu" and self._config.use_dynamic_ple:
            message.transformer_parameters.load_per_layer_embedding_dynamically = True
            message.transformer_parameters.load_ngrammer_embedding_dynamically = True
        return message

    def _entry(self, architecture: Architecture) -> dict[str, Any] | None:
        """Return what MediaPipe's message cannot say: see docs/file-formats.md."""
        if self._config.mediapipe_compatible:
            if self._model_type is None:
                raise ValueError(
                    f"mediapipe_compatible: MediaPipe has no word for models of the family {self._family.name}"
                )
            return None
        entry: dict[str, Any] = {"family": self._family.name}
        if self._model_type is None:
            entry["architecture"] = architecture.to_json()
        elif architecture.context_length != self._family.file_traits[self._model_type.number].context_length:
            entry["context_length"] = architecture.context_length
        return entry | self._chat | self._tokenizer.entry()

    def _open_adapter(self, architecture: Architecture) -> LoraAdapter | None:
        config = self._config
        if config.lora_ckpt is None:
            return None
        if self._model_type is None:
            raise UnsupportedModelError(
                f"lora_ckpt: a LoRA .bin belongs to one of MediaPipe's model types, and {self._family.name} is none; "
                "run the adapter as it is: lora_path takes a PEFT folder"
            )
        is_same_file = Path(config.lora_ckpt) == Path(config.input_ckpt)
        others = frozenset(name for name in self._checkpoint.names if not _LORA.search(name))
        adapter = open_adapter(
            config.lora_ckpt,
            self._family,
            architecture,
            alpha=config.lora_alpha,
            scaled=not config.mediapipe_compatible,
            ignored=others if is_same_file else frozenset(),
        )
        if config.lora_rank is not None and adapter.rank != config.lora_rank:
            raise TensorMismatchError(
                f"{config.lora_ckpt}: lora_rank: expected {config.lora_rank}, but the adapter has {adapter.rank}"
            )
        return adapter

    def _plan(self) -> ConversionPlan:
        with_sums = self._config.backend == "gpu"
        tensors = []
        for spec in self._specs:
            plan, out = self._tensor_plan(spec), spec.shape[0]
            per_row = 0
            if plan.dtype in ("int4", "int8"):
                per_row = 4 * out * (1 + plan.has_zero_points + with_sums)
            size = _weight_bytes(spec.shape, plan.dtype) + per_row
            source = self._source.name_of(spec)
            tensors.append(PlannedTensor(plan.name, source, spec.shape, plan.dtype, size))
        lora = self._config.lora_output_file
        return ConversionPlan(
            model_type="none" if self._model_type is None else self._model_type.name,
            family=self._family.name,
            output_file=str(self._config.output_file),
            lora_output_file=None if lora is None else str(lora),
            tensors=tuple(tensors),
            left_over=self._left_over,
            num_bytes=sum(t.num_bytes for t in tensors) + self._tokenizer.num_bytes,
            peak_rss_mb=self._peak_rss_mb(),
        )

    def _peak_rss_mb(self) -> int:
        """Estimate the memory that the conversion takes, from what was measured (benchmarks/README.md)."""
        peak = 200 + 3 * self._tokenizer.num_bytes / 1e6
        if self._config.method == "gptq":  # the inputs of a layer's matrices, and the largest once more to work on
            widest = max(self._architecture.hidden_dim, self._architecture.query_dim)
            peak += 2.5 * 4e-6 * 2 * MAX_CALIBRATION_TOKENS * widest
        return round(peak)


def _weight_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a tensor's values, without scales and sums."""
    bits = {"int4": 4, "int8": 8, "float16": 16}.get(dtype, 32)
    return (math.prod(shape) * bits + 7) // 8


def _warn_of_what_has_no_effect(config: ConversionConfig) -> None:
    if config.obfuscate:
        _log.warning("obfuscate has no effect: names are written as they are, as MediaPipe's converter does")
    if config.fp16_scale is not None:
        _log.warning("fp16_scale has no effect, as in MediaPipe's converter")
    if not config.is_symmetric and config.backend == "cpu":
        _log.warning("the zero points are lost: such a file answers wrongly in every engine")


def _check_format(config: ConversionConfig, checkpoint: Checkpoint) -> None:
    if config.ckpt_format is not None and config.ckpt_format != checkpoint.format:
        raise UnsupportedModelError(
            f"{config.input_ckpt}: ckpt_format: expected {checkpoint.format}, which the files are, "
            f"got {config.ckpt_format}"
        )


def _is_layer_norm(role: str, specs: list[TensorSpec]) -> bool:
    """Tell whether a vector belongs to a norm with a bias; MediaPipe writes those as [1, 1, n]."""
    base, _, kind = role.rpartition(".")
    return "norm" in base and kind in ("scale", "bias") and any(spec.role == f"{base}.bias" for spec in specs)


def _specs(family: Family, architecture: Architecture, source: CheckpointSource) -> Iterator[TensorSpec]:
    """Yield the tensors of the file; the output is the embedding once more where the checkpoint has it once."""
    specs = list(family.tensors(architecture))
    embedding = next(spec for spec in specs if spec.role == "embedding")
    for spec in specs:
        if spec.role == "logits" and source.find(spec.checkpoint_name) is None:
            spec = replace(spec, checkpoint_name=embedding.checkpoint_name, checkpoint_rows=embedding.checkpoint_rows)
        yield spec


__all__ = ["ConversionConfig", "ConversionPlan", "PlannedTensor", "convert_checkpoint", "plan_conversion"]
