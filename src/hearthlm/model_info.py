"""What a file holds, told without reading its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from hearthlm.errors import HearthLMError, UnsupportedModelError
from hearthlm.formats import detect_format, task_bundle
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.litert_lora import is_litert_lora, read_litert_lora
from hearthlm.formats.litert_model import LiteRtModel, TensorSpec, llm_signatures, read_litert_model
from hearthlm.formats.litertlm import LANGUAGE_MODEL, MODEL_TYPE, OWN_LABEL, LiteRtLmFile
from hearthlm.formats.llm_metadata import LlmMetadata
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.safetensors_file import SafetensorsFile
from hearthlm.formats.task_bundle import TaskBundle
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.models.family import PromptTemplates
from hearthlm.runtime.model import Model, ModelInfo, TensorInfo
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece

MAX_TOKENIZER_BYTES = 256 << 20
_SESSION = "hearthlm-session"


@dataclass(frozen=True)
class FileInfo:
    """Say what a file that is no model by itself holds: an adapter, a bundle, a session, a tokenizer, bare weights."""

    format: str
    tensors: tuple[TensorInfo, ...] = ()
    tokenizer: dict[str, Any] | None = None
    templates: PromptTemplates | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `hearthlm inspect --json`: the keys of a model's, null for what there is not."""
        return {
            "format": self.format,
            "model_type": None,
            "family": None,
            "parameters": None,
            "tensors": [
                {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.num_bytes} for t in self.tensors
            ],
            "tokenizer": self.tokenizer,
            "templates": None if self.templates is None else asdict(self.templates),
            "metadata": self.metadata,
        }


def inspect_model(path: str | PathLike[str]) -> ModelInfo:
    """Describe the MediaPipe `.bin` or Hugging Face folder at `path`.

    Raises FileNotFoundError, ModelFormatError or UnsupportedModelError, as loading it would.
    """
    with Model.open(path) as model:
        return model.info


def inspect_file(path: str | PathLike[str]) -> ModelInfo | FileInfo:
    """Describe a model, or whatever else the file or folder at `path` is recognised as.

    Raises FileNotFoundError, ModelFormatError for a damaged file and UnsupportedModelError for one of no known kind.
    """
    try:
        kind = detect_format(path)
    except UnsupportedModelError:
        info = _tokenizer_info(path)
        if info is None:
            raise
        return info
    if kind == "weights_bin":
        return _adapter_bin_info(path) or inspect_model(path)
    if kind == "task":
        return _bundle_info(path)
    if kind == "tflite":
        return _litert_info(path)
    if kind == "litertlm":
        return _litertlm_info(path)
    if kind == "safetensors" and (info := _session_info(path)) is not None:
        return info
    with Checkpoint.open(path) as checkpoint:
        if checkpoint.config is not None and checkpoint.adapter_config is None:
            return inspect_model(path)
        return _weights_info("checkpoint" if kind == "checkpoint" else kind, checkpoint)


def _adapter_bin_info(path: str | PathLike[str]) -> FileInfo | None:
    with WeightsBin.open(path) as file:
        if not file.tensors or not all("w_prime" in name for name in file.tensors):
            return None
        tensors = tuple(TensorInfo(t.name, t.type, t.shape, t.num_bytes) for t in file.tensors.values())
        return FileInfo("lora_bin", tensors, metadata={"rank": file.lora_rank, "backend": file.backend})


def _weights_info(kind: str, checkpoint: Checkpoint) -> FileInfo:
    tensors = []
    for name in checkpoint.names:
        try:
            dtype, values = checkpoint.array(name)
            tensors.append(TensorInfo(name, dtype, values.shape, values.nbytes))
        except UnsupportedModelError:  # a type that no weight has
            tensors.append(TensorInfo(name, "other", checkpoint.shape(name), 0))
    metadata: dict[str, Any] = {}
    if checkpoint.adapter_config is not None:
        kind = "adapter"
        for name in ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules"):
            if name in checkpoint.adapter_config:
                metadata[name] = checkpoint.adapter_config[name]
    return FileInfo(kind, tuple(tensors), metadata=metadata)


def _session_info(path: str | PathLike[str]) -> FileInfo | None:
    file = SafetensorsFile.open(path)
    try:
        if file.metadata.get("format") != _SESSION:
            return None
        tensors = tuple(TensorInfo(t.name, t.dtype, t.shape, t.num_bytes) for t in file.tensors.values())
        num_tokens = file.shape("ids")[0] if "ids" in file.tensors and file.shape("ids") else 0
        metadata = {name: file.metadata.get(name) for name in ("version", "fingerprint")}
        return FileInfo("session", tensors, metadata={"num_tokens": num_tokens, **metadata})
    finally:
        file.close()


def _bundle_info(path: str | PathLike[str]) -> FileInfo:
    """Describe a `.task`: its entries, how its model is called, its tokenizer, and what METADATA says."""
    kinds = {
        task_bundle.MODEL: "tflite",
        task_bundle.TOKENIZER: "sentencepiece",
        task_bundle.METADATA: "LlmParameters",
        task_bundle.TOKENIZER_JSON: "tokenizer.json",
        task_bundle.TOKENIZER_CONFIG: "tokenizer_config.json",
        task_bundle.CHAT_TEMPLATE: "chat template",
    }
    with TaskBundle.open(path) as bundle:
        listed = []
        for name, entry in bundle.entries.items():
            is_model = bytes(bundle.entry(name)[4:8]) == b"TFL3"
            kind = kinds.get(name, "tflite" if is_model else None)
            listed.append({"name": name, "bytes": entry.num_bytes, "kind": kind})
        message = bundle.parameters
        if (tokenizer_json := bundle.tokenizer_json) is not None:
            tokenizer = from_hugging_face(tokenizer_json)
        else:
            tokenizer = from_sentencepiece(bundle.sentencepiece_model, bytes_to_unicode=bundle.bytes_to_unicode)
        metadata = {
            **_said(bundle.llm_metadata),
            "bytes_to_unicode": bundle.bytes_to_unicode,
            "role_tokens": {
                role: getattr(message, f"{role}_role_token")
                for role in ("user", "system", "model", "end")
                if message.HasField(f"{role}_role_token")
            },
            "entries": listed,
            **_called(lambda: bundle.model, f"{bundle.path}: {task_bundle.MODEL}", bundle.check_text_only),
        }
        templates = bundle.llm_metadata.templates or PromptTemplates()
        return FileInfo("task", tokenizer=_described(tokenizer), templates=templates, metadata=metadata)


def _litert_info(path: str | PathLike[str]) -> FileInfo:
    """Describe a `.tflite` by itself, a model or a LoRA adapter."""
    with MappedFile(path) as file, file.read(0, file.size, "model") as data:
        if is_litert_lora(data):
            lora = read_litert_lora(data, str(file.path))
            tensors = (TensorInfo(name, "FLOAT32", v.shape, v.nbytes) for name, v in lora.matrices.items())
            return FileInfo("lora_tflite", tuple(tensors), metadata={"rank": lora.rank})
        called = _called(lambda: read_litert_model(data, str(file.path)), str(file.path))
        return FileInfo("tflite", metadata={"num_bytes": file.size, **called})


def _litertlm_info(path: str | PathLike[str]) -> FileInfo:
    """Describe a `.litertlm`: its sections, how its (first) model is called, its tokenizer."""
    with LiteRtLmFile.open(path) as file:
        tokenizer: Tokenizer | None = None
        if (tokenizer_json := file.tokenizer_json) is not None:
            tokenizer = from_hugging_face(tokenizer_json)
        elif (pieces := file.sentencepiece_model) is not None:
            tokenizer = from_sentencepiece(pieces, bytes_to_unicode=file.bytes_to_unicode)
        metadata: dict[str, Any] = {
            "version": ".".join(map(str, file.version)),
            "labels": file.labels,
            "entries": [
                {
                    "name": s.labels.get(MODEL_TYPE) or s.labels.get(OWN_LABEL) or s.kind,
                    "bytes": s.num_bytes,
                    "kind": s.kind,
                }
                for s in file.sections
            ],
        }
        models = sorted(
            (s for s in file.sections if s.kind == "tflite"), key=lambda s: s.labels.get(MODEL_TYPE) != LANGUAGE_MODEL
        )
        if models:
            where = f"{path}: {models[0].name}"
            with file.data(models[0]) as data:
                metadata |= _called(lambda: read_litert_model(data, where), where, lambda: file.language_model)
        templates = None
        if any(s.kind == "LlmMetadata" for s in file.sections):
            metadata |= _said(file.metadata)
            templates = file.metadata.templates
        if file.executor_metadata is not None:
            buffers = file.executor_metadata.llm_executor_metadata.state_buffers
            metadata["state_buffers"] = {b.decode_input_name: b.sequence_axis for b in buffers}
        described = None if tokenizer is None else _described(tokenizer)
        return FileInfo("litertlm", tokenizer=described, templates=templates, metadata=metadata)


def _said(metadata: LlmMetadata) -> dict[str, Any]:
    """Say what a `.task` or `.litertlm` tells about prompts and answers."""
    return {
        "start_token": metadata.start_token,
        "stop_tokens": list(metadata.stop_tokens),
        "pad_token": metadata.pad_token,
        "max_num_tokens": metadata.max_num_tokens,
        "llm_model_type": metadata.model_type,
        "sampler": None if metadata.sampler is None else asdict(metadata.sampler),
        "channels": [channel.name for channel in metadata.channels],
        "num_suppressed_tokens": len(metadata.suppressed_tokens),
        "modalities": list(metadata.modalities),
        "other_fields": list(metadata.other_fields),
        "has_chat_template": metadata.chat_template is not None,
    }


def _called(read: Callable[[], LiteRtModel], where: str, check: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Say how a LiteRT model is called; where none would know how, `check` or the model itself, `problem` says why."""
    called: dict[str, Any] = {"signatures": [], "prefill_lengths": {}, "lora_ranks": [], "kv_cache": None}
    try:
        model = read()
        called["signatures"] = [
            {"name": s.name, "inputs": _specs(s.inputs), "outputs": _specs(s.outputs)}
            for s in model.signatures.values()
        ]
        llm = llm_signatures(model, where)
        check()
    except UnsupportedModelError as error:
        return {**called, "problem": str(error)}
    called |= {"prefill_lengths": dict(llm.prefill_lengths), "lora_ranks": list(llm.lora_ranks)}
    if llm.kv_cache is not None:
        called["kv_cache"] = {**asdict(llm.kv_cache), "num_tokens": llm.kv_cache.num_tokens}
    return called


def _specs(tensors: Mapping[str, TensorSpec]) -> dict[str, Any]:
    return {name: {"dtype": t.dtype, "shape": list(t.shape)} for name, t in tensors.items()}


def _tokenizer_info(path: str | PathLike[str]) -> FileInfo | None:
    """Describe a tokenizer by itself: a tokenizer.json or a SentencePiece model; None for what is neither."""
    size = Path(path).stat().st_size
    if not 0 < size <= MAX_TOKENIZER_BYTES:
        return None
    data = Path(path).read_bytes()
    load: Callable[[bytes], Tokenizer] = from_hugging_face if data.lstrip()[:1] == b"{" else from_sentencepiece
    try:
        return FileInfo("tokenizer", tokenizer=_described(load(data)), metadata={"num_bytes": size})
    except HearthLMError:
        return None


def _described(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size}


__all__ = ["FileInfo", "ModelInfo", "TensorInfo", "inspect_file", "inspect_model"]
