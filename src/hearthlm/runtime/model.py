"""A model as its file or folder describes it: blueprint, tensors, tokenizer, and how it is spoken to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import (
    CorruptFileError,
    ModelFormatError,
    TemplateError,
    TensorMismatchError,
    TokenizerFormatError,
    UnsupportedModelError,
)
from hearthlm.formats import detect_format
from hearthlm.formats.checkpoint import Checkpoint, read_json_file
from hearthlm.formats.llm_parameters import file_parameters, prompt_templates
from hearthlm.formats.llm_parameters_pb2 import LlmModelType, LlmParameters
from hearthlm.formats.sampler_defaults import SamplerDefaults
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.models import FAMILIES, read_config
from hearthlm.models.family import Family, PromptTemplates, TensorSpec
from hearthlm.models.params import Architecture
from hearthlm.quantization import WeightMatrix
from hearthlm.runtime.checkpoint_source import CheckpointSource
from hearthlm.runtime.language_model import ExecutorMemory, ExecutorSettings
from hearthlm.runtime.weights import TensorSource, WeightPlacement, Weights, load_weights
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece

if TYPE_CHECKING:
    from hearthlm.runtime.lora import LoraAdapter
    from hearthlm.runtime.transformer import TransformerExecutor

_BYTES_TO_UNICODE = LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE

MAX_TEMPLATE_BYTES = 256 << 10

_log = logging.getLogger("hearthlm")

_T = TypeVar("_T")


@dataclass(frozen=True)
class TensorInfo:
    """Name one tensor of a file as the file declares it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class ModelInfo:
    """Say what a file holds, without its weights having been read."""

    format: Literal["weights_bin", "checkpoint"]
    model_type: str
    family: str
    architecture: Architecture
    num_parameters: int
    tensors: tuple[TensorInfo, ...]
    tokenizer: dict[str, Any] | None
    start_id: int | None
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    prompt_templates: PromptTemplates
    metadata: dict[str, Any]
    weight_types: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # of "attention", "feed_forward", "embedding"

    def to_json(self) -> dict[str, Any]:
        """Return the document of `hearthlm inspect --json`."""
        return {
            "format": self.format,
            "model_type": self.model_type,
            "family": self.family,
            "parameters": {"count": self.num_parameters, **self.architecture.to_json()},
            "tensors": [
                {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.num_bytes} for t in self.tensors
            ],
            "tokenizer": self.tokenizer,
            "templates": asdict(self.prompt_templates),
            "metadata": {
                **self.metadata,
                "start_id": self.start_id,
                "stop_ids": list(self.stop_ids),
                "stop_strings": list(self.stop_strings),
            },
        }


@dataclass(frozen=True)
class Model:
    """Describe an open model of weights; use as a context manager, weights loaded from it outlive it."""

    has_fixed_cache = False
    sampler_defaults = SamplerDefaults()
    suppressed_ids = ()

    architecture: Architecture
    family: Family
    info: ModelInfo
    prompt_templates: PromptTemplates
    start_id: int | None
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    chat_template: str | None  # in Jinja, as the checkpoint brings it
    special_tokens: Mapping[str, str]  # bos_token and the like, for the template
    _source: _OpenFile = field(repr=False)
    _tokenizer: Tokenizer | None = field(repr=False)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Model:
        """Open a MediaPipe `.bin` or a Hugging Face folder, told apart by bytes and never by name.

        Raises FileNotFoundError, ModelFormatError, or UnsupportedModelError for what is not understood.
        """
        kind = detect_format(path)
        try:
            if kind == "weights_bin":
                return _open_weights_bin(path)
            if kind in ("checkpoint", "safetensors", "torch_zip"):
                return _open_checkpoint(path)
        except (ModelFormatError, UnsupportedModelError) as error:
            where = os.fspath(path)
            raise error if where in str(error) else type(error)(f"{where}: {error}") from None
        raise UnsupportedModelError(
            f"{path}: a {kind} holds a graph: expected weights, a .bin or a Hugging Face folder"
        )

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerFormatError(
                f"{self._source.path}: there is no tokenizer in it or beside it; "
                "only calls that take ids can be answered"
            )
        return self._tokenizer

    @property
    def name(self) -> str:
        return self.family.name

    @property
    def vocab_size(self) -> int:
        return self.architecture.vocab_size

    @property
    def context_length(self) -> int:
        return self.architecture.context_length

    @property
    def embedding_dim(self) -> int | None:
        return self.architecture.embedding_dim

    @property
    def default_chat(self) -> PromptTemplates | None:
        return self.family.chat

    def new_executor(
        self, settings: ExecutorSettings, progress: Callable[[float], None] | None = None
    ) -> TransformerExecutor:
        """Load the weights and return what computes with them."""
        from hearthlm.runtime.transformer import TransformerExecutor

        if settings.cache_dir is not None:
            raise ValueError(
                "cache_dir: expected None: only LiteRT models have weights that are worth storing in another order"
            )
        return TransformerExecutor(
            self.architecture,
            self.load_weights(placement=settings.weights, progress=progress),
            num_threads=settings.num_threads,
            activation_data_type=settings.activation_data_type,
            kv_cache_dtype=settings.kv_cache_dtype,
        )

    def memory(
        self, settings: ExecutorSettings, *, max_tokens: int, num_sequences: int, looks_up: bool
    ) -> ExecutorMemory:
        """Return what an executor with these settings will take; see `LanguageModel.memory`."""
        from hearthlm.runtime.transformer_memory import transformer_memory

        return transformer_memory(self, settings, max_tokens=max_tokens, num_sequences=num_sequences, looks_up=looks_up)

    def open_adapter(self, path: str | PathLike[str]) -> LoraAdapter:
        """Read a LoRA adapter for this model; see `runtime.lora.open_adapter`."""
        from hearthlm.runtime.lora import open_adapter

        return open_adapter(path, self.family, self.architecture)

    def load_weights(
        self, *, placement: WeightPlacement = "auto", progress: Callable[[float], None] | None = None
    ) -> Weights:
        """Read or map every tensor that the architecture needs; see `runtime.weights.load_weights`."""
        return load_weights(
            self.architecture,
            self.family.tensors(self.architecture),
            self._source,
            placement=placement,
            progress=progress,
        )

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _OpenFile(TensorSource, Protocol):
    path: str | PathLike[str]

    def close(self) -> None: ...


class _WeightsBinSource:
    def __init__(self, path: str | PathLike[str], file: WeightsBin) -> None:
        self.path = path
        self._file = file

    def matrix(self, spec: TensorSpec) -> WeightMatrix:
        return self._file.matrix(self._name(spec), (spec.shape[0], spec.shape[1]))

    def vector(self, spec: TensorSpec) -> NDArray[np.float32]:
        return self._file.vector(self._name(spec), spec.shape[0])

    def _name(self, spec: TensorSpec) -> str:
        """Return the first of the tensor's names that the file has; of a weight also its older spelling."""
        for name in spec.bin_names:
            for spelling in (name, name.removesuffix(".w") + ".linear.w"):
                if spelling in self._file.tensors:
                    return spelling
        raise TensorMismatchError(
            f"{self.path}: the model needs the tensor {' or '.join(spec.bin_names) or spec.role} "
            f"{list(spec.shape)}, and the file has none of that name"
        )

    def release_pages(self) -> None:
        self._file.release_pages()

    def close(self) -> None:
        self._file.close()


def _open_weights_bin(path: str | PathLike[str]) -> Model:
    file = WeightsBin.open(path)
    try:
        if file.tensors and all("w_prime" in name for name in file.tensors):
            raise UnsupportedModelError(f"{path}: this is a LoRA adapter of rank {file.lora_rank}, not a model")
        message = file.parameters
        extra = file.extra or {}
        if "architecture" in extra:
            architecture = Architecture.from_json(extra["architecture"])
            if architecture.family not in FAMILIES:
                raise UnsupportedModelError(f"{path}: the family {architecture.family!r} is not known")
            family = FAMILIES[architecture.family]
        else:
            family = _family_of_file(file)
            architecture = family.read_file_parameters(file_parameters(message, file.model_type))
            if "context_length" in extra:
                context_length = _entry_value(extra, "context_length", int, 0)
                architecture = replace(architecture, context_length=context_length)
        if damaged := file.lost_zero_points():
            _log.warning(
                "%s: %d matrices look asymmetrically quantised with their zero points lost by the converter (%s, ...); "
                "answers will be wrong in every engine: convert the model again, symmetrically",
                path,
                len(damaged),
                damaged[0],
            )
        tokenizer: Tokenizer | None = None
        if "tokenizer_json" in extra:
            tokenizer_json = _entry_value(extra, "tokenizer_json", str, "")
            tokenizer = from_hugging_face(
                tokenizer_json.encode("utf-8"), _entry_value(extra, "tokenizer_config", dict, {})
            )
        elif file.tokenizer is not None:
            normalizations = message.input_output_normalizations
            to_unicode = family.bytes_to_unicode or _BYTES_TO_UNICODE in normalizations
            tokenizer = from_sentencepiece(file.tokenizer, bytes_to_unicode=to_unicode)
        start_id: int | None = None
        if "start_id" in extra:
            start_id = _entry_value(extra, "start_id", int, 0)
        elif message.HasField("start_token_id"):
            start_id = message.start_token_id
        elif message.start_token and tokenizer is not None:
            start_id = tokenizer.token_id(message.start_token)
        tensors = tuple(TensorInfo(t.name, t.type, t.shape, t.num_bytes) for t in file.tensors.values())
        return _model(
            source=_WeightsBinSource(path, file),
            format="weights_bin",
            model_type=_type_name(file.model_type),
            family=family,
            architecture=architecture,
            tensors=tensors,
            tokenizer=tokenizer,
            start_id=start_id,
            stop_ids=[*message.stop_token_ids, *filter(_is_id, _entry_value(extra, "stop_ids", list, []))],
            stop_tokens=[*message.stop_tokens, *family.stop_tokens],
            templates=prompt_templates(message),
            chat_template=_entry_value(extra, "chat_template", str, None),
            special_tokens={
                name: text
                for name, text in _entry_value(extra, "special_tokens", dict, {}).items()
                if isinstance(text, str)
            },
            metadata={"backend": file.backend, "num_bytes": sum(t.num_bytes for t in tensors)},
        )
    except BaseException:
        file.close()
        raise


def _entry_value(extra: Mapping[str, Any], name: str, kind: type[_T], default: Any) -> Any:
    """Return a key of our metadata entry; CorruptFileError for a value of another type."""
    value = extra.get(name, default)
    if name in extra and (not isinstance(value, kind) or isinstance(value, bool)):
        raise CorruptFileError(f"metadata entry hearthlm: {name}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _family_of_file(file: WeightsBin) -> Family:
    known = {number: family for family in FAMILIES.values() for number in family.file_traits}
    if file.model_type not in known:
        raise UnsupportedModelError(
            f"models of the type {_type_name(file.model_type)} are not supported; known: "
            f"{', '.join(_type_name(number) for number in sorted(known))}"
        )
    return known[file.model_type]


def _type_name(model_type: int) -> str:
    """Return an LlmModelType as MediaPipe writes it in its code."""
    if model_type not in LlmModelType.values():
        return f"number {model_type}"
    return LlmModelType.Name(model_type).removeprefix("LLM_MODEL_TYPE_")


def _open_checkpoint(path: str | PathLike[str]) -> Model:
    file = Checkpoint.open(path)
    try:
        config = file.config
        if config is None:
            raise UnsupportedModelError(
                f"{path}: there is no config.json beside the weights, so nothing says what model they are"
            )
        family, architecture = read_config(config)
        model_type = str(config.get("model_type"))
        if isinstance(config.get("text_config"), dict):
            _log.warning("%s: the model's vision part is left out; it answers text only", path)
        tokenizer = _checkpoint_tokenizer(file, _tokenizer_config(file))
        chat = checkpoint_chat(file)
        start_id = chat.get("start_id")
        if start_id is None and tokenizer is not None:
            start_id = tokenizer.start_id
        tensors = tuple(_tensor_info(file, name) for name in file.names)
        return _model(
            source=CheckpointSource(path, file),
            format="checkpoint",
            model_type=model_type,
            family=family,
            architecture=architecture,
            tensors=tensors,
            tokenizer=tokenizer,
            start_id=start_id,
            stop_ids=chat.get("stop_ids", []),
            stop_tokens=family.stop_tokens,
            templates=PromptTemplates(),
            chat_template=chat.get("chat_template"),
            special_tokens=chat.get("special_tokens"),
            metadata={"num_bytes": sum(t.num_bytes for t in tensors)},
        )
    except BaseException:
        file.close()
        raise


def checkpoint_chat(file: Checkpoint) -> dict[str, Any]:
    """Return how a checkpoint is spoken to, as far as it says: start_id, stop_ids, chat_template, special_tokens.

    They are JSON values, under the names that they have in our metadata entry of a `.bin`, too.
    """
    config, generation = file.config or {}, file.generation_config or {}
    if isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}
    tokenizer_config = _tokenizer_config(file)
    stop: Any = generation.get("eos_token_id", config.get("eos_token_id"))
    chat = {
        "start_id": next((i for i in (generation.get("bos_token_id"), config.get("bos_token_id")) if _is_id(i)), None),
        "stop_ids": [i for i in (stop if isinstance(stop, list) else [stop]) if _is_id(i)],
        "chat_template": _chat_template(file, tokenizer_config),
        "special_tokens": special_tokens_in(tokenizer_config),
    }
    return {name: value for name, value in chat.items() if value not in (None, [], {})}


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tensor_info(file: Checkpoint, name: str) -> TensorInfo:
    try:
        dtype, values = file.array(name)
    except UnsupportedModelError:  # a type that no weight has; an error only if the tensor is needed
        return TensorInfo(name, "other", file.shape(name), 0)
    return TensorInfo(name, dtype, values.shape, values.nbytes)


def _tokenizer_config(file: Checkpoint) -> dict[str, Any] | None:
    files = file.tokenizer_files
    return read_json_file(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else None


def _checkpoint_tokenizer(file: Checkpoint, config: dict[str, Any] | None) -> Tokenizer | None:
    """Return the tokenizer beside the weights; `tokenizer.json` is what transformers reads first."""
    files = file.tokenizer_files
    if "tokenizer.json" in files:
        return from_hugging_face(files["tokenizer.json"].read_bytes(), config)
    if "tokenizer.model" in files:
        return from_sentencepiece(files["tokenizer.model"].read_bytes())
    return None


def _chat_template(file: Checkpoint, config: dict[str, Any] | None) -> str | None:
    """Return the template of chat_template.jinja, or else of tokenizer_config.json; of several the default one."""
    path = file.tokenizer_files.get("chat_template.jinja")
    if path is not None:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise TemplateError(f"{path}: expected at most {MAX_TEMPLATE_BYTES} bytes, got {path.stat().st_size}")
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise TemplateError(f"{path}: expected UTF-8, got {error.reason} at byte {error.start}") from None
    return template_in(config)


def template_in(config: Mapping[str, Any] | None) -> str | None:
    """Return the chat template of tokenizer_config.json; of several the default one."""
    template = (config or {}).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise TemplateError(f"chat_template: expected a str or a list with one named default, got {template!r:.80}")
    return template


def special_tokens_in(config: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the tokens that tokenizer_config.json names, such as bos_token; an added token is written as a mapping."""
    tokens = {}
    for name, value in (config or {}).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _model(
    *,
    source: _OpenFile,
    format: Literal["weights_bin", "checkpoint"],
    model_type: str,
    family: Family,
    architecture: Architecture,
    tensors: tuple[TensorInfo, ...],
    tokenizer: Tokenizer | None,
    start_id: int | None,
    stop_ids: Any,
    stop_tokens: Any,
    templates: PromptTemplates,
    metadata: dict[str, Any],
    chat_template: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> Model:
    """Join what both formats say: stop tokens become ids where the tokenizer knows them, and strings otherwise."""
    ids = {int(i) for i in stop_ids}
    strings = []
    for token in dict.fromkeys(stop_tokens):
        known = tokenizer.token_id(token) if tokenizer is not None else None
        if known is not None:
            ids.add(known)
        if token and token not in family.stop_tokens:
            strings.append(token)
    num_parameters = 0
    stored = {tensor.name: tensor.dtype for tensor in tensors}
    weight_types: dict[str, set[str]] = {}
    for spec in family.tensors(architecture):
        size = 1
        for length in spec.shape:
            size *= length
        num_parameters += size
        names = [*spec.bin_names, *(name.removesuffix(".w") + ".linear.w" for name in spec.bin_names)]
        found = next((stored[name] for name in (spec.checkpoint_name, *names) if name in stored), None)
        if spec.group is not None and found is not None:
            weight_types.setdefault(spec.group, set()).add(found)
    info = ModelInfo(
        format=format,
        model_type=model_type,
        family=family.name,
        architecture=architecture,
        num_parameters=num_parameters,
        tensors=tensors,
        tokenizer=None if tokenizer is None else {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size},
        start_id=start_id,
        stop_ids=tuple(sorted(ids)),
        stop_strings=tuple(strings),
        prompt_templates=templates,
        metadata=metadata,
        weight_types={group: tuple(sorted(types)) for group, types in weight_types.items()},
    )
    return Model(
        architecture=architecture,
        family=family,
        info=info,
        prompt_templates=templates,
        start_id=start_id,
        stop_ids=frozenset(ids),
        stop_strings=tuple(strings),
        chat_template=chat_template,
        special_tokens=special_tokens or {},
        _source=source,
        _tokenizer=tokenizer,
    )
