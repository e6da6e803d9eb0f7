"""What a model file says of itself to whoever writes its prompts: tokens, turns, sampling, length.

The words are those of LiteRT-LM's message LlmMetadata, the section of a `.litertlm`. What MediaPipe's LlmParameters,
the METADATA of a `.task`, says of the same things is put in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats import llm_metadata_pb2 as messages
from hearthlm.formats.litert_model import KvCache
from hearthlm.formats.llm_parameters import prompt_templates
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.sampler_defaults import SamplerDefaults, SamplerType
from hearthlm.models.family import PromptTemplate, PromptTemplates

MAX_METADATA_BYTES = 1 << 20
MAX_STOP_TOKENS = 1024
MAX_TOKEN_IDS = 256  # of one stop sequence
MAX_STATE_BUFFERS = 16_384

Token = str | tuple[int, ...]  # spelled, or as the ids of one token or of a sequence

_SAMPLER_TYPES: dict[int, SamplerType] = {1: "top_k", 2: "top_p", 3: "greedy"}


@dataclass(frozen=True)
class Channel:
    """Name a part of an answer, such as its thoughts, and the texts that begin and end it."""

    name: str
    start: str
    end: str


@dataclass(frozen=True)
class LlmMetadata:
    """Say how a model is talked to; None and empty stand for what the file does not say.

    `stop_tokens` end an answer; one that is a text may be spelled by several tokens, and one of several ids has to be
    met whole. `chat_template` is a Jinja template, and goes before `templates`. `max_num_tokens` counts prompt and
    answer. `model_type` is LiteRT-LM's name, such as "gemma3" or "generic_model". `modalities` are inputs other than
    text that the file declares: "image" and "audio". `other_fields` are those set in the message that have no word
    here.
    """

    start_token: Token | None = None
    stop_tokens: tuple[Token, ...] = ()
    templates: PromptTemplates | None = None
    chat_template: str | None = None
    sampler: SamplerDefaults | None = None
    max_num_tokens: int | None = None
    model_type: str | None = None
    channels: tuple[Channel, ...] = ()
    suppressed_tokens: tuple[int, ...] = ()
    pad_token: Token | None = None
    supports_thinking: bool | None = None
    supports_function_calling: bool | None = None
    min_runtime_version: str | None = None
    modalities: tuple[str, ...] = ()
    other_fields: tuple[str, ...] = ()

    def with_session_prefix(self, templates: PromptTemplates | None) -> LlmMetadata:
        """Return the same with the system prompt of `templates`, which LlmMetadata itself has no field for."""
        if templates is None or not templates.session_prefix:
            return self
        own = self.templates or templates
        return replace(self, templates=replace(own, session_prefix=templates.session_prefix))


def read_llm_metadata(data: bytes | memoryview, where: str) -> LlmMetadata:
    """Return what the serialised message LlmMetadata says; `where` begins every error.

    Raises CorruptFileError for bytes that are no such message, and for values that no model can have.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise CorruptFileError(f"{where}: expected at most {MAX_METADATA_BYTES} bytes, got {len(data)}")
    try:
        message = messages.LlmMetadata.FromString(bytes(data))
    except DecodeError:
        raise CorruptFileError(f"{where}: expected a message LlmMetadata") from None
    if len(message.stop_tokens) > MAX_STOP_TOKENS:
        raise CorruptFileError(
            f"{where}: stop_tokens: expected at most {MAX_STOP_TOKENS}, got {len(message.stop_tokens)}"
        )
    if message.max_num_tokens < 0:
        raise CorruptFileError(f"{where}: max_num_tokens: expected a number of tokens, got {message.max_num_tokens}")
    if any(i < 0 for i in message.suppress_tokens.ids):
        raise CorruptFileError(f"{where}: suppress_tokens: expected ids from 0, got {min(message.suppress_tokens.ids)}")
    optional = {
        name: getattr(message, name) if message.HasField(name) else None
        for name in ("supports_thinking", "supports_function_calling", "min_runtime_version")
    }
    turns = message.prompt_templates
    generic = message.llm_model_type.generic_model
    return LlmMetadata(
        start_token=_token(message.start_token, f"{where}: start_token") if message.HasField("start_token") else None,
        stop_tokens=tuple(_token(t, f"{where}: stop_tokens[{i}]") for i, t in enumerate(message.stop_tokens)),
        templates=PromptTemplates(_affixes(turns.user), _affixes(turns.model), _affixes(turns.system))
        if message.HasField("prompt_templates")
        else None,
        chat_template=message.jinja_prompt_template if message.HasField("jinja_prompt_template") else None,
        sampler=_sampler(message.sampler_params, where) if message.HasField("sampler_params") else None,
        max_num_tokens=message.max_num_tokens or None,
        model_type=_model_type(message),
        channels=tuple(Channel(c.channel_name, c.start, c.end) for c in message.channels),
        suppressed_tokens=tuple(message.suppress_tokens.ids),
        pad_token=_token(message.pad_token, f"{where}: pad_token") if message.HasField("pad_token") else None,
        modalities=tuple(name for name in ("image", "audio") if getattr(generic, f"{name}_enabled")),
        other_fields=tuple(_other_fields(message)),
        **optional,
    )


def write_llm_metadata(metadata: LlmMetadata) -> bytes:
    """Return the serialised message LlmMetadata that says the same.

    Raises UnsupportedModelError, naming the field, for what the message has no word for.
    """
    m = metadata
    if m.templates is not None and m.templates.session_prefix:
        raise UnsupportedModelError("templates.session_prefix: LlmMetadata has no field for a system prompt")
    if m.other_fields:
        raise UnsupportedModelError(f"{', '.join(m.other_fields)}: cannot be written from LlmMetadata's plain form")
    message = messages.LlmMetadata(max_num_tokens=m.max_num_tokens or 0)
    if m.start_token is not None:
        message.start_token.CopyFrom(_union(m.start_token))
    message.stop_tokens.extend(_union(token) for token in m.stop_tokens)
    if m.templates is not None:
        message.prompt_templates.SetInParent()
        for role in ("user", "model", "system"):
            turn: PromptTemplate = getattr(m.templates, role)
            if turn != PromptTemplate():
                getattr(message.prompt_templates, role).MergeFrom(
                    messages.PromptAffixes(prefix=turn.prefix, suffix=turn.suffix)
                )
    if m.chat_template is not None:
        message.jinja_prompt_template = m.chat_template
    if m.sampler is not None:
        message.sampler_params.SetInParent()
        s, target = m.sampler, message.sampler_params
        target.type = next((n for n, name in _SAMPLER_TYPES.items() if name == s.type), 0)  # type: ignore[assignment]
        target.k, target.p, target.temperature = s.top_k or 0, s.top_p or 0.0, s.temperature or 0.0
        if s.seed is not None:
            target.seed = s.seed
    if m.model_type is not None:
        if m.model_type not in messages.LlmModelType.DESCRIPTOR.fields_by_name:
            known = ", ".join(messages.LlmModelType.DESCRIPTOR.fields_by_name)
            raise UnsupportedModelError(f"model_type: expected one of {known}; got {m.model_type!r}")
        getattr(message.llm_model_type, m.model_type).SetInParent()
    for modality in m.modalities:
        if m.model_type != "generic_model":
            raise UnsupportedModelError(f"modalities: {modality}: only a generic_model declares it")
        setattr(message.llm_model_type.generic_model, f"{modality}_enabled", True)
    message.channels.extend(messages.Channel(channel_name=c.name, start=c.start, end=c.end) for c in m.channels)
    if m.suppressed_tokens:
        message.suppress_tokens.ids.extend(m.suppressed_tokens)
    if m.pad_token is not None:
        message.pad_token.CopyFrom(_union(m.pad_token))
    for name in ("supports_thinking", "supports_function_calling", "min_runtime_version"):
        if (value := getattr(m, name)) is not None:
            setattr(message, name, value)
    return message.SerializeToString(deterministic=True)


def from_llm_parameters(message: LlmParameters, chat_template: str | None = None) -> LlmMetadata:
    """Return what the METADATA of a `.task` says; its length is the model's, and `chat_template` lies beside it."""
    start: Token | None = None
    if message.HasField("start_token"):
        start = message.start_token or None
    elif message.HasField("start_token_id"):
        start = (message.start_token_id,)
    has_turns = message.HasField("prompt_templates") or message.HasField("prompt_template")
    return LlmMetadata(
        start_token=start,
        stop_tokens=(*(t for t in message.stop_tokens if t), *((i,) for i in message.stop_token_ids if i >= 0)),
        templates=prompt_templates(message) if has_turns else None,
        chat_template=chat_template,
        channels=tuple(Channel(c.channel_name, c.start, c.end) for c in message.channels),
        suppressed_tokens=tuple(message.suppressed_tokens),
    )


def read_task_metadata(data: bytes, chat_template: str | None, where: str) -> LlmMetadata:
    """Return what the METADATA of a `.task` says; `where` begins every error.

    It is MediaPipe's LlmParameters, or, in bundles made for LiteRT-LM alone, LlmMetadata. Raises CorruptFileError for
    bytes that are neither.
    """
    if is_llm_metadata(data):
        found = read_llm_metadata(data, where)
        return found if chat_template is None else replace(found, chat_template=chat_template)
    try:
        return from_llm_parameters(LlmParameters.FromString(data), chat_template)
    except DecodeError:
        raise CorruptFileError(f"{where}: expected a message LlmParameters") from None


def is_llm_metadata(data: bytes) -> bool:
    """Say whether a METADATA is LlmMetadata: it begins with a token where LlmParameters, as bundled, has nothing."""
    try:
        return messages.LlmMetadata.FromString(data).start_token.WhichOneof("token_union") is not None
    except DecodeError:
        return False


def to_llm_parameters(
    metadata: LlmMetadata, spell: Callable[[tuple[int, ...]], str | None], *, bytes_to_unicode: bool = False
) -> LlmParameters:
    """Return the METADATA of a `.task` that says the same, written as MediaPipe's bundler writes it.

    `spell` returns how ids are spelled, None where no text stands for them. Left out is what the message has no word
    for: a stop sequence of several ids that cannot be spelled, sampling, the model's type, its length, its pad token.
    """
    message = LlmParameters()
    if isinstance(metadata.start_token, str):
        message.start_token = metadata.start_token
    elif metadata.start_token is not None:
        if (text := spell(metadata.start_token)) is not None:
            message.start_token = text
        elif len(metadata.start_token) == 1:
            message.start_token_id = metadata.start_token[0]
    for token in metadata.stop_tokens:
        if isinstance(token, str):
            message.stop_tokens.append(token)
        elif (text := spell(token)) is not None:
            message.stop_tokens.append(text)
        elif len(token) == 1:
            message.stop_token_ids.append(token[0])
    if bytes_to_unicode:
        message.input_output_normalizations.append(LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE)
    if (turns := metadata.templates) is not None:
        old = message.prompt_template
        for name, value in (
            ("session_prefix", turns.session_prefix),
            ("prompt_prefix", turns.user.prefix),
            ("prompt_suffix", turns.user.suffix and turns.user.suffix + turns.model.prefix),
        ):
            if value:
                setattr(old, name, value)
        for role in ("user", "model", "system"):
            turn: PromptTemplate = getattr(turns, role)
            for part in ("prefix", "suffix"):
                if value := getattr(turn, part):
                    setattr(getattr(message.prompt_templates, f"{role}_template"), f"prompt_{part}", value)
    for channel in metadata.channels:
        message.channels.add(channel_name=channel.name, start=channel.start, end=channel.end)
    message.suppressed_tokens.extend(metadata.suppressed_tokens)
    return message


def read_executor_metadata(data: bytes | memoryview, where: str) -> messages.ExecutorMetadata:
    """Return the serialised message ExecutorMetadata; `where` begins every error.

    Raises CorruptFileError for bytes that are no such message, too many buffers, and negative axes and lengths.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise CorruptFileError(f"{where}: expected at most {MAX_METADATA_BYTES} bytes, got {len(data)}")
    try:
        message = messages.ExecutorMetadata.FromString(bytes(data))
    except DecodeError:
        raise CorruptFileError(f"{where}: expected a message ExecutorMetadata") from None
    buffers = message.llm_executor_metadata.state_buffers
    if len(buffers) > MAX_STATE_BUFFERS:
        raise CorruptFileError(f"{where}: state_buffers: expected at most {MAX_STATE_BUFFERS}, got {len(buffers)}")
    for i, buffer in enumerate(buffers):
        for name in ("sequence_axis", "minimum_sequence_length", "maximum_sequence_length"):
            if getattr(buffer, name) < 0:
                raise CorruptFileError(
                    f"{where}: state_buffers[{i}].{name}: expected 0 or more, got {getattr(buffer, name)}"
                )
    return message


def write_executor_metadata(cache: KvCache) -> bytes:
    """Return the serialised message ExecutorMetadata that names the buffers of a KV cache and their axis of tokens.

    They are written as litert-torch writes them: global, layer by layer, keys first. Raises UnsupportedModelError where
    the shapes leave the axis open.
    """
    if cache.num_tokens is None:
        raise UnsupportedModelError(
            f"the shapes {list(cache.key_shape)} and {list(cache.value_shape)} of the KV cache do not tell which axis "
            "counts tokens"
        )
    message = messages.ExecutorMetadata()
    llm = message.llm_executor_metadata
    llm.max_history_size = cache.num_tokens
    key, value = cache.name, cache.name.replace("_k_", "_v_") if "_k_" in cache.name else "v" + cache.name[1:]
    for layer in range(cache.num_layers):
        for pattern, kind, axis in (
            (key, messages.StateBuffer.TYPE_GLOBAL_KEY_CACHE, cache.key_axis),
            (value, messages.StateBuffer.TYPE_GLOBAL_VALUE_CACHE, cache.value_axis),
        ):
            name = pattern.format(layer=layer)
            llm.state_buffers.add(
                prefill_input_name=name,
                prefill_output_name=name,
                decode_input_name=name,
                decode_output_name=name,
                type=kind,
                sequence_axis=axis,
                maximum_sequence_length=cache.num_tokens,
            )
    return message.SerializeToString(deterministic=True)


def _token(union: messages.TokenUnion, where: str) -> Token:
    """Return a token that can be met."""
    kind = union.WhichOneof("token_union")
    if kind == "token_str" and union.token_str:
        return union.token_str
    ids = tuple(union.token_ids.ids)
    if not ids:
        raise CorruptFileError(f"{where}: expected a text or ids, got none")
    if len(ids) > MAX_TOKEN_IDS or min(ids) < 0:
        raise CorruptFileError(f"{where}: expected at most {MAX_TOKEN_IDS} ids from 0, got {list(ids[:8])}")
    return ids


def _union(token: Token) -> messages.TokenUnion:
    if isinstance(token, str):
        return messages.TokenUnion(token_str=token)
    return messages.TokenUnion(token_ids=messages.TokenIds(ids=token))


def _affixes(affixes: messages.PromptAffixes) -> PromptTemplate:
    return PromptTemplate(affixes.prefix, affixes.suffix)


def _sampler(message: messages.SamplerParameters, where: str) -> SamplerDefaults:
    if message.k < 0:
        raise CorruptFileError(f"{where}: sampler_params.k: expected 0 or more, got {message.k}")
    if not 0 <= message.p <= 1:
        raise CorruptFileError(f"{where}: sampler_params.p: expected 0 to 1, got {message.p}")
    if not 0 <= message.temperature < math.inf:
        raise CorruptFileError(f"{where}: sampler_params.temperature: expected 0 or more, got {message.temperature}")
    return SamplerDefaults(
        type=_SAMPLER_TYPES.get(message.type),
        top_k=message.k or None,
        top_p=message.p or None,
        temperature=message.temperature or None,
        seed=message.seed if message.HasField("seed") else None,
    )


def _model_type(message: messages.LlmMetadata) -> str | None:
    if (name := message.llm_model_type.WhichOneof("model_type")) is not None:
        return str(name)
    unknown = UnknownFieldSet(message.llm_model_type)
    return f"number {unknown[0].field_number}" if len(unknown) else None


def _other_fields(message: messages.LlmMetadata) -> Iterator[str]:
    """Yield the fields that are set and have no word in the plain form."""
    if message.HasField("kv_cache_init_value"):
        yield "kv_cache_init_value"
    if any(channel.HasField("is_reasoning_channel") for channel in message.channels):
        yield "channels.is_reasoning_channel"
    for name in ("model_role", "force_string_content"):
        if message.llm_model_type.generic_model.HasField(name):
            yield f"llm_model_type.generic_model.{name}"
    kind = message.llm_model_type.WhichOneof("model_type")
    nested = {"": message, "llm_model_type.": message.llm_model_type, "sampler_params.": message.sampler_params}
    if kind is not None:
        nested[f"llm_model_type.{kind}."] = getattr(message.llm_model_type, kind)
    for prefix, part in nested.items():
        unknown = UnknownFieldSet(part)
        for number in sorted({unknown[i].field_number for i in range(len(unknown))}):
            yield f"{prefix}field {number}"
