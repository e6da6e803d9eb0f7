"""A language model as a graph: what a `.task`, a `.litertlm` or a bare `.tflite` says of it, and what runs it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hearthlm.errors import (
    CorruptFileError,
    ModelFormatError,
    TemplateError,
    TokenizerFormatError,
    UnsupportedModelError,
)
from hearthlm.formats import detect_format, task_bundle
from hearthlm.formats.atomic_file import make_folder
from hearthlm.formats.json_document import parse_json_object
from hearthlm.formats.litert_lora import is_litert_lora
from hearthlm.formats.litert_model import LiteRtModel, LlmSignatures, llm_signatures, read_litert_model
from hearthlm.formats.litert_verifier import verify_litert_model
from hearthlm.formats.litertlm import LiteRtLmFile
from hearthlm.formats.llm_metadata import LlmMetadata, Token
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.sampler_defaults import SamplerDefaults
from hearthlm.formats.task_bundle import TaskBundle
from hearthlm.models.family import PromptTemplates
from hearthlm.runtime.language_model import ExecutorMemory, ExecutorSettings, TextSettings
from hearthlm.runtime.litert import LiteRtExecutor, checked_layout
from hearthlm.runtime.litert_graph import load_graph, load_library
from hearthlm.runtime.litert_lora import LiteRtAdapter, open_litert_adapter
from hearthlm.runtime.litert_memory import litert_memory
from hearthlm.runtime.model import MAX_TEMPLATE_BYTES, special_tokens_in, template_in
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece

_SAMPLES, _SAMPLE_BYTES = 256, 4096
_MAX_TOKENIZER_BYTES = 64 << 20

_log = logging.getLogger("hearthlm")


@dataclass(frozen=True)
class LiteRtLanguageModel:
    """Describe an open model; use as a context manager, what it is computed with outlives it."""

    path: Path
    where: str  # the file, and the part of it that is the graph
    vocab_size: int
    context_length: int
    prompt_templates: PromptTemplates
    chat_template: str | None
    special_tokens: Mapping[str, str]
    start_id: int | None
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    sampler_defaults: SamplerDefaults
    suppressed_ids: tuple[int, ...]
    _model: LiteRtModel = field(repr=False)
    _signatures: LlmSignatures = field(repr=False)
    _data: memoryview = field(repr=False)
    _is_whole_file: bool = field(repr=False)  # the graph is a file of its own
    _release_pages: Callable[[], None] = field(repr=False)
    _open_files: ExitStack = field(repr=False)
    _tokenizer: Tokenizer | None = field(repr=False)

    info = None
    name = "LiteRT"
    has_fixed_cache = True
    embedding_dim = None
    default_chat = None

    @classmethod
    def open(cls, path: str | PathLike[str], text: TextSettings) -> Self:
        """Open a `.task`, `.litertlm` or `.tflite`.

        `text` is for a `.tflite`, whose file says nothing of it, and refused for the others with ValueError. Raises
        ModelFormatError, or UnsupportedModelError for signatures that are not understood, and a MediaPipe adapter.
        """
        kind = detect_format(path)
        if kind != "tflite" and text != TextSettings():
            raise ValueError(
                f"{path}: tokenizer_path, start_token and stop_tokens are for a bare .tflite; this model has its own"
            )
        with ExitStack() as files:
            file: TaskBundle | LiteRtLmFile | MappedFile
            if kind == "task":
                found = _read_task(file := files.enter_context(TaskBundle.open(path)))
            elif kind == "litertlm":
                found = _read_litertlm(file := files.enter_context(LiteRtLmFile.open(path)))
            else:
                found = _read_tflite(file := files.enter_context(MappedFile(path)), text)
            files.callback(found.data.release)
            signatures = _as_declared(llm_signatures(found.model, found.where), found.token_axes, found.where)
            layout = checked_layout(found.model, signatures, found.where)
            logits = found.model.signatures["decode"].outputs[signatures.logits].shape
            for name, tokens in (("start_token", (text.start_token,)), ("stop_tokens", text.stop_tokens)):
                for token in tokens:
                    if isinstance(token, int) and token >= logits[-1]:
                        raise ValueError(f"{name}: expected an id below {logits[-1]}, got {token}")
            metadata, tokenizer = found.metadata, found.tokenizer
            if (size := len((metadata.chat_template or "").encode())) > MAX_TEMPLATE_BYTES:
                raise TemplateError(f"{path}: chat template: expected at most {MAX_TEMPLATE_BYTES} bytes, got {size}")
            stop_ids, stop_strings = _stops(metadata.stop_tokens, tokenizer)
            return cls(
                path=Path(path),
                where=found.where,
                vocab_size=logits[-1],
                context_length=min(layout.num_tokens, metadata.max_num_tokens or layout.num_tokens),
                prompt_templates=metadata.templates or PromptTemplates(),
                chat_template=metadata.chat_template,
                special_tokens=_special_tokens(found.tokenizer_config, tokenizer, metadata),
                start_id=_token_id(metadata.start_token, tokenizer, found.where),
                stop_ids=stop_ids,
                stop_strings=stop_strings,
                suppressed_ids=tuple(i for i in metadata.suppressed_tokens if i < logits[-1]),
                sampler_defaults=_greedy_said(metadata.sampler or SamplerDefaults()),
                _model=found.model,
                _signatures=signatures,
                _data=found.data,
                _is_whole_file=kind == "tflite",
                _release_pages=file.release_pages,
                _open_files=files.pop_all(),
                _tokenizer=tokenizer,
            )

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerFormatError(
                f"{self.path}: there is no tokenizer in it; give one (tokenizer_path, or --tokenizer), or only "
                "call what takes ids"
            )
        return self._tokenizer

    def new_executor(
        self, settings: ExecutorSettings, progress: Callable[[float], None] | None = None
    ) -> LiteRtExecutor:
        """Verify the graph and hand it to ai-edge-litert.

        A file of its own is mapped by it; out of a bundle the graph is copied once into memory. Raises what
        `verify_litert_model` raises for a graph that could do harm, and what `load_graph` raises.
        """
        built_in = {"weights": "auto", "activation_data_type": None, "kv_cache_dtype": None}
        for name, neutral in built_in.items():
            if getattr(settings, name) != neutral:
                raise ValueError(
                    f"{name}={getattr(settings, name)!r}: expected {neutral!r}: a LiteRT model is computed as it was "
                    "exported"
                )
        digest = _digest(self._data)
        weight_cache = self._weight_cache(settings.cache_dir, digest)
        if weight_cache is not None:
            make_folder(weight_cache.parent)
        if progress is not None:
            progress(0.0)
        source = self.path if self._is_whole_file else bytes(self._data)
        verify_litert_model(source if isinstance(source, bytes) else self._data, self.where)
        self._release_pages()  # the library reads its own mapping, or the copy
        graph = load_graph(
            source,
            self._model,
            where=self.where,
            num_threads=settings.num_threads,
            weight_cache=weight_cache,
        )
        if progress is not None:
            progress(1.0)
        try:
            return LiteRtExecutor(
                graph,
                self._model,
                self._signatures,
                where=self.where,
                num_threads=settings.num_threads,
                digest=digest,
            )
        except BaseException:
            graph.close()
            raise

    def memory(
        self, settings: ExecutorSettings, *, max_tokens: int, num_sequences: int, looks_up: bool
    ) -> ExecutorMemory:
        """Return what an executor with these settings will take; see `LanguageModel.memory`."""
        load_library()  # and what it takes is the process's, from then on
        weight_cache = self._weight_cache(settings.cache_dir, _digest(self._data))
        found = litert_memory(
            verify_litert_model(self._data, self.where),
            self._model,
            self._signatures,
            num_bytes=len(self._data),
            is_mapped=self._is_whole_file,
            num_tokens=max_tokens * num_sequences,
            has_weight_cache=None if weight_cache is None else weight_cache.exists(),
        )
        self._release_pages()
        return found

    def _weight_cache(self, cache_dir: str | PathLike[str] | None, digest: bytes) -> Path | None:
        """Return the file for XNNPACK's packed weights, None where none is wanted."""
        if cache_dir is None:
            return None
        return Path(cache_dir) / f"{digest.hex()[:32]}-{_library_version()}.xnnpack_cache"

    def open_adapter(self, path: str | PathLike[str]) -> LiteRtAdapter:
        """Read a LoRA adapter for this model; see `runtime.litert_lora.open_litert_adapter`."""
        return open_litert_adapter(path, self._model, self._signatures, self.where)

    def close(self) -> None:
        self._open_files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Found:
    """Hold what a file was found to hold."""

    where: str
    data: memoryview
    model: LiteRtModel
    metadata: LlmMetadata
    tokenizer: Tokenizer | None
    tokenizer_config: Mapping[str, Any] | None = None
    token_axes: Mapping[str, int] = field(default_factory=dict)  # of the cache, by the names of its inputs


def _as_declared(signatures: LlmSignatures, token_axes: Mapping[str, int], where: str) -> LlmSignatures:
    """Return signatures whose cache counts tokens along the axes that the file declares, where it does."""
    cache = signatures.kv_cache
    if cache is None or not token_axes.keys() >= set(cache.tensors[0]):
        return signatures
    key, value = cache.tensors[0]
    for name, shape in ((key, cache.key_shape), (value, cache.value_shape)):
        if token_axes[name] >= len(shape):
            raise CorruptFileError(f"{where}: {name}: axis {token_axes[name]} is declared, of the shape {list(shape)}")
    cache = replace(cache, key_axis=token_axes[key], value_axis=token_axes[value])
    return replace(signatures, kv_cache=cache)


def _read_task(bundle: TaskBundle) -> _Found:
    where = f"{bundle.path}: {task_bundle.MODEL}"
    config = None
    if bundle.tokenizer_config is not None:
        config = parse_json_object(
            bundle.tokenizer_config, f"{bundle.path}: {task_bundle.TOKENIZER_CONFIG}", _MAX_TOKENIZER_BYTES
        )
    if bundle.tokenizer_json is not None:
        tokenizer = from_hugging_face(bundle.tokenizer_json, config)
    else:
        tokenizer = from_sentencepiece(bundle.sentencepiece_model, bytes_to_unicode=bundle.bytes_to_unicode)
    metadata = bundle.llm_metadata
    if metadata.chat_template is None:
        metadata = replace(metadata, chat_template=template_in(config))
    bundle.check_text_only()
    return _Found(where, bundle.entry(task_bundle.MODEL), bundle.model, metadata, tokenizer, config)


def _read_litertlm(file: LiteRtLmFile) -> _Found:
    section = file.language_model
    where = f"{file.path}: {section.name}"
    if file.weights is not None:
        raise UnsupportedModelError(
            f"{file.path}: section {file.weights.name}: weights outside of the model's own section cannot be run"
        )
    config_data = file.own_entry(task_bundle.TOKENIZER_CONFIG)
    config = None
    if config_data is not None:
        config = parse_json_object(config_data, f"{file.path}: {task_bundle.TOKENIZER_CONFIG}", _MAX_TOKENIZER_BYTES)
    tokenizer: Tokenizer | None = None
    if (tokenizer_json := file.tokenizer_json) is not None:
        tokenizer = from_hugging_face(tokenizer_json, config)
    elif (pieces := file.sentencepiece_model) is not None:
        tokenizer = from_sentencepiece(pieces, bytes_to_unicode=file.bytes_to_unicode)
    declared = file.executor_metadata
    buffers = () if declared is None else declared.llm_executor_metadata.state_buffers
    axes = {buffer.decode_input_name: buffer.sequence_axis for buffer in buffers if buffer.sequence_axis}
    return _Found(where, file.data(section), file.model, file.metadata, tokenizer, config, axes)


def _read_tflite(file: MappedFile, text: TextSettings) -> _Found:
    where = str(file.path)
    data = file.read(0, file.size, "model")
    if is_litert_lora(data):
        raise UnsupportedModelError(f"{where}: this is a LoRA adapter, not a model")
    tokenizer, config = _read_tokenizer(text.tokenizer_path)

    def token(value: str | int) -> Token:
        return (value,) if isinstance(value, int) else value

    for name, values in (("start_token", (text.start_token,)), ("stop_tokens", text.stop_tokens)):
        if tokenizer is None and any(isinstance(value, str) for value in values):
            raise ValueError(f"{name}: expected ids, as no tokenizer_path is given, got {values!r:.80}")
    if tokenizer is not None and isinstance(text.start_token, str) and tokenizer.token_id(text.start_token) is None:
        raise ValueError(f"start_token: {text.start_token!r:.80} is not in the vocabulary of {text.tokenizer_path}")
    metadata = LlmMetadata(
        start_token=None if text.start_token is None else token(text.start_token),
        stop_tokens=tuple(map(token, text.stop_tokens)),
        chat_template=template_in(config),
    )
    return _Found(where, data, read_litert_model(data, where), metadata, tokenizer, config)


def _read_tokenizer(path: str | PathLike[str] | None) -> tuple[Tokenizer | None, dict[str, Any] | None]:
    """Return the tokenizer of a file or folder, and tokenizer_config.json where a folder has one."""
    if path is None:
        return None, None
    place, config = Path(path), None
    if place.is_dir():
        if (file := place / "tokenizer_config.json").is_file():
            config = parse_json_object(_small_file(file), str(file), _MAX_TOKENIZER_BYTES)
        names = ("tokenizer.json", "tokenizer.model")
        found = [place / name for name in names if (place / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: expected tokenizer.json or tokenizer.model in the folder")
        place = found[0]
    data = _small_file(place)
    try:
        if data.lstrip()[:1] == b"{":
            return from_hugging_face(data, config), config
        return from_sentencepiece(data), config
    except (ModelFormatError, UnsupportedModelError) as error:
        raise type(error)(f"{place}: {error}") from None


def _small_file(path: Path) -> bytes:
    if (size := path.stat().st_size) > _MAX_TOKENIZER_BYTES:
        raise CorruptFileError(f"{path}: expected at most {_MAX_TOKENIZER_BYTES} bytes, got {size}")
    return path.read_bytes()


def _token_id(token: Token | None, tokenizer: Tokenizer | None, where: str) -> int | None:
    """Return the id of a token; one that the vocabulary has not is left out, with a warning."""
    if token is None or isinstance(token, tuple):
        return None if token is None else token[0]
    found = tokenizer.token_id(token) if tokenizer is not None else None
    if found is None:
        _log.warning("%s: the start token %.80r is not in the vocabulary; prompts begin without it", where, token)
    return found


def _stops(tokens: tuple[Token, ...], tokenizer: Tokenizer | None) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the ids and the texts that end an answer.

    A text of several tokens is looked for in the answer, where special tokens leave nothing: what ends a turn is the
    first of those in it. Several ids are looked for as the text that they make.
    """
    ids: set[int] = set()
    strings: dict[str, None] = {}
    for token in tokens:
        if isinstance(token, tuple):
            if len(token) == 1 or tokenizer is None:
                ids.add(token[0])
                continue
            text = tokenizer.decode(token, skip_special=False)
        else:
            text = token
        if tokenizer is not None:
            known = tokenizer.token_id(text)
            encoded = [known] if known is not None else tokenizer.encode(text)
            special = next((i for i in encoded if tokenizer.is_special(i)), None)
            if special is not None:
                ids.add(special)
                continue
            if known is not None:
                ids.add(known)
        if text:
            strings[text] = None
    return frozenset(ids), tuple(strings)


def _special_tokens(
    config: Mapping[str, Any] | None, tokenizer: Tokenizer | None, metadata: LlmMetadata
) -> dict[str, str]:
    """Return the tokens that a chat template may name; bos_token is the start token where nothing else says it."""
    tokens = special_tokens_in(config)
    start = metadata.start_token
    if isinstance(start, tuple) and tokenizer is not None:
        start = tokenizer.piece(start[0])
    if isinstance(start, str):
        tokens.setdefault("bos_token", start)
    return tokens


def _greedy_said(sampler: SamplerDefaults) -> SamplerDefaults:
    """Put the type "greedy" in the words of the other fields."""
    return SamplerDefaults(top_k=1, temperature=0.0) if sampler.type == "greedy" else sampler


def _digest(data: memoryview) -> bytes:
    """Return a hash of a model's length and of samples all over it."""
    digest = hashlib.blake2b(str(len(data)).encode(), digest_size=32)
    step = max(_SAMPLE_BYTES, len(data) // _SAMPLES)
    for offset in range(0, len(data), step):
        digest.update(data[offset : offset + _SAMPLE_BYTES])
    digest.update(data[-_SAMPLE_BYTES:])
    return digest.digest()


def _library_version() -> str:
    try:
        return version("ai-edge-litert")
    except PackageNotFoundError:
        return "unknown"
