"""A `.task` put into a `.litertlm`, and back: the same model, tokenizer, tokens and turns in the other's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hearthlm.errors import HearthLMError, UnsupportedModelError
from hearthlm.formats import detect_format, task_bundle
from hearthlm.formats.atomic_file import make_folder
from hearthlm.formats.content import Content
from hearthlm.formats.json_document import parse_json_object
from hearthlm.formats.litert_model import KvCache, LiteRtModel, llm_signatures
from hearthlm.formats.litertlm import (
    LANGUAGE_MODEL,
    METADATA,
    MODEL_TYPE,
    OWN_LABEL,
    LiteRtLmFile,
    NewSection,
    packed_tokenizer,
    write_litertlm,
)
from hearthlm.formats.llm_metadata import (
    LlmMetadata,
    is_llm_metadata,
    read_llm_metadata,
    read_task_metadata,
    to_llm_parameters,
    write_executor_metadata,
    write_llm_metadata,
)
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.task_bundle import TaskBundle, write_task_bundle
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece
from hearthlm.tokenizers.hugging_face_to_sentencepiece import MAX_CONFIG_BYTES, is_byte_level, to_sentencepiece

StrPath = str | os.PathLike[str]

_TASK_ENTRIES = {
    task_bundle.MODEL, task_bundle.TOKENIZER, task_bundle.METADATA, task_bundle.TOKENIZER_JSON,
    task_bundle.TOKENIZER_CONFIG, task_bundle.CHAT_TEMPLATE, task_bundle.LLM_METADATA, task_bundle.EXECUTOR_METADATA,
}  # fmt: skip
_SECTIONS = {"tflite", "sentencepiece", "tokenizer.json", "LlmMetadata", "ExecutorMetadata"}


@dataclass(frozen=True)
class Repacked:
    """Say what `repack` wrote, and what other readers than this package will not find in it: one sentence each."""

    path: Path
    notes: tuple[str, ...]


def repack(source: StrPath, output: StrPath, progress: Callable[[float], None] | None = None) -> Repacked:
    """Write the `.task` or `.litertlm` at `source` as the other of the two; `progress` gets the part that is done.

    What the other format has no words for travels in entries of this package's own, so that packing back gives the same
    contents; `notes` say what that was. The model is copied in pieces, the file appears whole or not at all, and the
    same input gives the same bytes.

    Raises ValueError unless `output` ends as the other format, UnsupportedModelError, naming the entry or the section,
    for what cannot be kept, such as encoders of images and audio, and the errors of the files.
    """
    kind, ending = detect_format(source), Path(output).suffix
    expected = {"task": ".litertlm", "litertlm": ".task"}.get(kind)
    if expected is None:
        raise UnsupportedModelError(f"{os.fspath(source)}: expected a .task or .litertlm, got format {kind}")
    if ending != expected:
        raise ValueError(f"output: expected a name that ends with {expected}, as {source} is a .{kind}, got {output}")
    path = Path(output)
    make_folder(path.parent)
    if kind == "task":
        with TaskBundle.open(source) as bundle:
            sections, notes = _sections(bundle)
            write_litertlm(path, sections, {}, progress)
    else:
        with LiteRtLmFile.open(source) as file:
            entries, notes = _entries(file)
            write_task_bundle(path, entries, progress)
    return Repacked(path, tuple(notes))


def _sections(bundle: TaskBundle) -> tuple[list[NewSection], list[str]]:
    """Return the sections that say what a `.task` does, and what only this package will read of them."""
    bundle.check_text_only()
    for name in bundle.entries:
        if name not in _TASK_ENTRIES:
            raise UnsupportedModelError(f"{bundle.path}: entry {name}: a .litertlm has no section for it")
    cache = _kv_cache(bundle.model, f"{bundle.path}: {task_bundle.MODEL}")
    parameters = bundle.small_entry(task_bundle.METADATA) or b""
    tokenizer_json, config, pieces = bundle.tokenizer_json, bundle.tokenizer_config, bundle.sentencepiece_model
    message = bundle.small_entry(task_bundle.LLM_METADATA) or _message(parameters, bundle.chat_template, cache)
    sections = [NewSection("LlmMetadata", message)]
    if executor := bundle.small_entry(task_bundle.EXECUTOR_METADATA):
        sections.append(NewSection("ExecutorMetadata", executor, {OWN_LABEL: task_bundle.EXECUTOR_METADATA}))
    elif executor := _buffers(cache):
        sections.append(NewSection("ExecutorMetadata", executor))
    own: dict[str, bytes | None] = {}
    if tokenizer_json is not None:
        sections.append(NewSection("tokenizer.json", packed_tokenizer(tokenizer_json)))
        own[task_bundle.TOKENIZER_CONFIG] = config
        if pieces != _converted(tokenizer_json, config):
            own[task_bundle.TOKENIZER] = pieces
    else:
        sections.append(NewSection("sentencepiece", pieces))
    sections.append(NewSection("tflite", bundle.content(task_bundle.MODEL), {MODEL_TYPE: LANGUAGE_MODEL}))
    tokenizer = _tokenizer(tokenizer_json, config, pieces, bundle.bytes_to_unicode)
    written = read_llm_metadata(message, f"{bundle.path}: LlmMetadata")
    notes = []
    if parameters != _parameters(written, tokenizer, tokenizer_json):
        own[METADATA] = parameters
        if not is_llm_metadata(parameters):
            notes = [*_unsaid_in_litertlm(bundle.parameters, has_tokenizer_json=tokenizer_json is not None)]
    sections += [NewSection("binary", data, {OWN_LABEL: name}) for name, data in own.items() if data is not None]
    return sections, notes


def _entries(file: LiteRtLmFile) -> tuple[dict[str, Content], list[str]]:
    """Return the entries that say what a `.litertlm` does, and what only this package will read of them."""
    model = file.language_model
    notes = [f"the label {name} = {value!r:.80} of the file is not kept" for name, value in file.labels.items()]
    for section in file.sections:
        if (section.kind == "binary" and OWN_LABEL in section.labels) or section.kind == "deprecated":
            continue
        if section.kind not in _SECTIONS or (section.kind == "tflite" and section is not model):
            raise UnsupportedModelError(f"{file.path}: section {section.name}: a .task has no entry for it")
        for name, value in section.labels.items():
            if name not in (MODEL_TYPE, OWN_LABEL):
                notes.append(f"the label {name} = {value!r:.80} of section {section.name} is not kept")
    metadata = file.metadata
    message, executor = (_only(file, kind) for kind in ("LlmMetadata", "ExecutorMetadata"))
    had_executor = any(s.labels.get(OWN_LABEL) == task_bundle.EXECUTOR_METADATA for s in file.sections)
    cache = _kv_cache(file.model, f"{file.path}: {model.name}")
    tokenizer_json, config = file.tokenizer_json, file.own_entry(task_bundle.TOKENIZER_CONFIG)
    pieces = file.own_entry(task_bundle.TOKENIZER) or file.sentencepiece_model
    if pieces is None:
        if tokenizer_json is None:
            raise UnsupportedModelError(f"{file.path}: expected a section with a tokenizer")
        pieces = to_sentencepiece(tokenizer_json, config or b"")
    tokenizer = _tokenizer(tokenizer_json, config, pieces, file.bytes_to_unicode)
    parameters = file.own_entry(METADATA) or _parameters(metadata, tokenizer, tokenizer_json)
    template = None if metadata.chat_template is None else metadata.chat_template.encode()
    own: dict[str, bytes | None] = {
        task_bundle.TOKENIZER_JSON: tokenizer_json,
        task_bundle.TOKENIZER_CONFIG: config,
        task_bundle.CHAT_TEMPLATE: template,
    }
    if message != _message(parameters, template, cache):
        own[task_bundle.LLM_METADATA] = message
        notes += _unsaid_in_task(metadata, tokenizer, cache)
    if executor is not None and (had_executor or executor != _buffers(cache)):
        own[task_bundle.EXECUTOR_METADATA] = executor
    entries: dict[str, Content] = {
        task_bundle.MODEL: file.content(model),
        task_bundle.TOKENIZER: pieces,
        task_bundle.METADATA: parameters,
    }
    return entries | {name: data for name, data in own.items() if data is not None}, notes


def _message(parameters: bytes, template: bytes | None, cache: KvCache | None) -> bytes:
    """Return the LlmMetadata that says what the METADATA of a `.task` does, as far as it can."""
    if is_llm_metadata(parameters):
        return parameters
    text = None if template is None else template.decode("utf-8", "replace")
    metadata = read_task_metadata(parameters, text, task_bundle.METADATA)
    turns = metadata.templates
    return write_llm_metadata(
        replace(
            metadata,
            templates=None if turns is None else replace(turns, session_prefix=""),
            max_num_tokens=None if cache is None else cache.num_tokens,
            model_type="generic_model",
        )
    )


def _parameters(metadata: LlmMetadata, tokenizer: Tokenizer, tokenizer_json: bytes | None) -> bytes:
    """Return the METADATA of a `.task` that says what LlmMetadata does, as far as it can."""
    in_gpt2_alphabet = tokenizer_json is not None and is_byte_level(tokenizer_json)
    message = to_llm_parameters(metadata, lambda ids: _spelled(ids, tokenizer), bytes_to_unicode=in_gpt2_alphabet)
    return message.SerializeToString(deterministic=True)


def _spelled(ids: tuple[int, ...], tokenizer: Tokenizer) -> str | None:
    """Return the text that is read as exactly these ids, None if there is none."""
    if len(ids) == 1:
        piece = tokenizer.piece(ids[0])
        return piece if piece and tokenizer.token_id(piece) == ids[0] else None
    text = tokenizer.decode(ids, skip_special=False)
    return text if tuple(tokenizer.encode(text)) == ids else None


def _kv_cache(model: LiteRtModel, where: str) -> KvCache | None:
    return llm_signatures(model, where).kv_cache


def _buffers(cache: KvCache | None) -> bytes | None:
    """Return the ExecutorMetadata of a model, None where its shapes do not tell."""
    return None if cache is None or cache.num_tokens is None else write_executor_metadata(cache)


def _only(file: LiteRtLmFile, kind: str) -> bytes | None:
    return next((bytes(file.data(section)) for section in file.sections if section.kind == kind), None)


def _converted(tokenizer_json: bytes, config: bytes | None) -> bytes | None:
    """Return the SentencePiece model that packing back would make, None where it cannot."""
    try:
        return to_sentencepiece(tokenizer_json, config or b"")
    except HearthLMError:
        return None


def _tokenizer(tokenizer_json: bytes | None, config: bytes | None, pieces: bytes, bytes_to_unicode: bool) -> Tokenizer:
    if tokenizer_json is None:
        return from_sentencepiece(pieces, bytes_to_unicode=bytes_to_unicode)
    return from_hugging_face(tokenizer_json, parse_json_object(config or b"{}", "tokenizer_config", MAX_CONFIG_BYTES))


def _unsaid_in_litertlm(parameters: LlmParameters, *, has_tokenizer_json: bool) -> Iterator[str]:
    """Name what METADATA says that LlmMetadata has no words for."""
    said = {
        "start_token", "start_token_id", "stop_tokens", "stop_token_ids", "prompt_templates", "prompt_template",
        "channels", "suppressed_tokens",
    }  # fmt: skip
    if parameters.prompt_template.session_prefix:
        yield "the system prompt: only hearthlm will write it; LlmMetadata has no field for it"
    for field, _ in parameters.ListFields():
        if field.name == "input_output_normalizations":
            if not has_tokenizer_json:
                yield "bytes_to_unicode: only hearthlm will read the SentencePiece model in GPT-2's alphabet"
        elif field.name not in said:
            yield f"{field.name}: only hearthlm will find it; LlmMetadata has no field for it"


def _unsaid_in_task(metadata: LlmMetadata, tokenizer: Tokenizer, cache: KvCache | None) -> Iterator[str]:
    """Name what LlmMetadata says that the METADATA of a `.task` has no words for."""
    length = None if cache is None else cache.num_tokens
    fields = {
        "sampler_params": metadata.sampler,
        "llm_model_type": None if metadata.model_type == "generic_model" else metadata.model_type,
        "max_num_tokens": None if metadata.max_num_tokens == length else metadata.max_num_tokens,
        "pad_token": metadata.pad_token,
        "supports_thinking": metadata.supports_thinking,
        "supports_function_calling": metadata.supports_function_calling,
        "min_runtime_version": metadata.min_runtime_version,
        **dict.fromkeys((f"{modality}_enabled" for modality in metadata.modalities), True),
        **dict.fromkeys(metadata.other_fields, True),
    }
    for name, value in fields.items():
        if value is not None:
            yield f"{name}: only hearthlm will find it; METADATA has no field for it"
    for token in metadata.stop_tokens:
        if isinstance(token, tuple) and len(token) > 1 and _spelled(token, tokenizer) is None:
            yield f"the stop sequence {list(token)}: only hearthlm will stop there; no text is read as these ids"


__all__ = ["Repacked", "repack"]
