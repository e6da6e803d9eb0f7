"""What a file holds, told without reading its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from hearthlm.errors import CorruptFileError, HearthLMError, UnsupportedModelError
from hearthlm.formats import detect_format
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.llm_parameters import prompt_templates
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.safetensors_file import SafetensorsFile
from hearthlm.formats.stored_zip import read_zip_entries
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.models.family import PromptTemplates
from hearthlm.runtime.model import Model, ModelInfo, TensorInfo
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece

MAX_METADATA_BYTES = 1 << 20
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
    if kind in ("litertlm", "tflite"):
        return FileInfo(kind, metadata={"num_bytes": Path(path).stat().st_size, "contents": "not described yet"})
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
    """Describe a `.task`: its entries, and what its METADATA says of tokens and turns."""
    with MappedFile(path) as file:
        entries = read_zip_entries(file)
        listed = []
        templates = tokenizer = None
        metadata: dict[str, Any] = {}
        for entry in entries.values():
            head = bytes(file.read(entry.offset, min(8, entry.num_bytes), "entry"))
            kind = "tflite" if head[4:8] == b"TFL3" else "zip" if head[:2] == b"PK" else None
            if entry.name == "METADATA" and entry.num_bytes <= MAX_METADATA_BYTES:
                kind = "LlmParameters"
                message = _parameters(path, bytes(file.read(entry.offset, entry.num_bytes, "METADATA")))
                templates = prompt_templates(message)
                metadata = {"start_token": message.start_token, "stop_tokens": list(message.stop_tokens)}
            elif entry.name == "TOKENIZER_MODEL" and entry.num_bytes <= MAX_TOKENIZER_BYTES:
                data = bytes(file.read(entry.offset, entry.num_bytes, "TOKENIZER_MODEL"))
                tokenizer = _described(from_sentencepiece(data))
                kind = "sentencepiece"
            listed.append({"name": entry.name, "bytes": entry.num_bytes, "kind": kind})
    return FileInfo("task", tokenizer=tokenizer, templates=templates, metadata={**metadata, "entries": listed})


def _parameters(path: str | PathLike[str], data: bytes) -> LlmParameters:
    from google.protobuf.message import DecodeError

    try:
        return LlmParameters.FromString(data)
    except DecodeError:
        raise CorruptFileError(f"{os.fspath(path)}: METADATA: expected a message LlmParameters") from None


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
