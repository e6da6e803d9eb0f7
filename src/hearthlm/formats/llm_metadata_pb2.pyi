from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenUnion(_message.Message):
    __slots__ = ("token_ids", "token_str")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STR_FIELD_NUMBER: _ClassVar[int]
    token_ids: TokenIds
    token_str: str
    def __init__(self, token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., token_str: _Optional[str] = ...) -> None: ...

class PromptAffixes(_message.Message):
    __slots__ = ("prefix", "suffix")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    suffix: str
    def __init__(self, prefix: _Optional[str] = ..., suffix: _Optional[str] = ...) -> None: ...

class PromptTemplates(_message.Message):
    __slots__ = ("user", "model", "system")
    USER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    user: PromptAffixes
    model: PromptAffixes
    system: PromptAffixes
    def __init__(self, user: _Optional[_Union[PromptAffixes, _Mapping]] = ..., model: _Optional[_Union[PromptAffixes, _Mapping]] = ..., system: _Optional[_Union[PromptAffixes, _Mapping]] = ...) -> None: ...

class Channel(_message.Message):
    __slots__ = ("channel_name", "start", "end", "is_reasoning_channel")
    CHANNEL_NAME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    IS_REASONING_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    channel_name: str
    start: str
    end: str
    is_reasoning_channel: bool
    def __init__(self, channel_name: _Optional[str] = ..., start: _Optional[str] = ..., end: _Optional[str] = ..., is_reasoning_channel: bool = ...) -> None: ...

class SamplerParameters(_message.Message):
    __slots__ = ("type", "k", "p", "temperature", "seed")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[SamplerParameters.Type]
        TOP_K: _ClassVar[SamplerParameters.Type]
        TOP_P: _ClassVar[SamplerParameters.Type]
        GREEDY: _ClassVar[SamplerParameters.Type]
    TYPE_UNSPECIFIED: SamplerParameters.Type
    TOP_K: SamplerParameters.Type
    TOP_P: SamplerParameters.Type
    GREEDY: SamplerParameters.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    P_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    type: SamplerParameters.Type
    k: int
    p: float
    temperature: float
    seed: int
    def __init__(self, type: _Optional[_Union[SamplerParameters.Type, str]] = ..., k: _Optional[int] = ..., p: _Optional[float] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class LlmModelType(_message.Message):
    __slots__ = ("generic_model", "gemma3n", "function_gemma", "gemma3", "qwen3", "qwen2p5", "gemma4", "fast_vlm", "lfm2", "minicpm5", "minicpmv4")
    GENERIC_MODEL_FIELD_NUMBER: _ClassVar[int]
    GEMMA3N_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_GEMMA_FIELD_NUMBER: _ClassVar[int]
    GEMMA3_FIELD_NUMBER: _ClassVar[int]
    QWEN3_FIELD_NUMBER: _ClassVar[int]
    QWEN2P5_FIELD_NUMBER: _ClassVar[int]
    GEMMA4_FIELD_NUMBER: _ClassVar[int]
    FAST_VLM_FIELD_NUMBER: _ClassVar[int]
    LFM2_FIELD_NUMBER: _ClassVar[int]
    MINICPM5_FIELD_NUMBER: _ClassVar[int]
    MINICPMV4_FIELD_NUMBER: _ClassVar[int]
    generic_model: GenericModel
    gemma3n: OtherModel
    function_gemma: OtherModel
    gemma3: OtherModel
    qwen3: OtherModel
    qwen2p5: OtherModel
    gemma4: OtherModel
    fast_vlm: OtherModel
    lfm2: OtherModel
    minicpm5: OtherModel
    minicpmv4: OtherModel
    def __init__(self, generic_model: _Optional[_Union[GenericModel, _Mapping]] = ..., gemma3n: _Optional[_Union[OtherModel, _Mapping]] = ..., function_gemma: _Optional[_Union[OtherModel, _Mapping]] = ..., gemma3: _Optional[_Union[OtherModel, _Mapping]] = ..., qwen3: _Optional[_Union[OtherModel, _Mapping]] = ..., qwen2p5: _Optional[_Union[OtherModel, _Mapping]] = ..., gemma4: _Optional[_Union[OtherModel, _Mapping]] = ..., fast_vlm: _Optional[_Union[OtherModel, _Mapping]] = ..., lfm2: _Optional[_Union[OtherModel, _Mapping]] = ..., minicpm5: _Optional[_Union[OtherModel, _Mapping]] = ..., minicpmv4: _Optional[_Union[OtherModel, _Mapping]] = ...) -> None: ...

class GenericModel(_message.Message):
    __slots__ = ("model_role", "force_string_content", "image_enabled", "audio_enabled")
    MODEL_ROLE_FIELD_NUMBER: _ClassVar[int]
    FORCE_STRING_CONTENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ENABLED_FIELD_NUMBER: _ClassVar[int]
    AUDIO_ENABLED_FIELD_NUMBER: _ClassVar[int]
    model_role: str
    force_string_content: bool
    image_enabled: bool
    audio_enabled: bool
    def __init__(self, model_role: _Optional[str] = ..., force_string_content: bool = ..., image_enabled: bool = ..., audio_enabled: bool = ...) -> None: ...

class OtherModel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LlmMetadata(_message.Message):
    __slots__ = ("start_token", "stop_tokens", "prompt_templates", "sampler_params", "max_num_tokens", "llm_model_type", "jinja_prompt_template", "channels", "suppress_tokens", "kv_cache_init_value", "supports_thinking", "supports_function_calling", "pad_token", "min_runtime_version")
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_PARAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LLM_MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    JINJA_PROMPT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_INIT_VALUE_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_THINKING_FIELD_NUMBER: _ClassVar[int]
    SUPPORTS_FUNCTION_CALLING_FIELD_NUMBER: _ClassVar[int]
    PAD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MIN_RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    start_token: TokenUnion
    stop_tokens: _containers.RepeatedCompositeFieldContainer[TokenUnion]
    prompt_templates: PromptTemplates
    sampler_params: SamplerParameters
    max_num_tokens: int
    llm_model_type: LlmModelType
    jinja_prompt_template: str
    channels: _containers.RepeatedCompositeFieldContainer[Channel]
    suppress_tokens: TokenIds
    kv_cache_init_value: int
    supports_thinking: bool
    supports_function_calling: bool
    pad_token: TokenUnion
    min_runtime_version: str
    def __init__(self, start_token: _Optional[_Union[TokenUnion, _Mapping]] = ..., stop_tokens: _Optional[_Iterable[_Union[TokenUnion, _Mapping]]] = ..., prompt_templates: _Optional[_Union[PromptTemplates, _Mapping]] = ..., sampler_params: _Optional[_Union[SamplerParameters, _Mapping]] = ..., max_num_tokens: _Optional[int] = ..., llm_model_type: _Optional[_Union[LlmModelType, _Mapping]] = ..., jinja_prompt_template: _Optional[str] = ..., channels: _Optional[_Iterable[_Union[Channel, _Mapping]]] = ..., suppress_tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., kv_cache_init_value: _Optional[int] = ..., supports_thinking: bool = ..., supports_function_calling: bool = ..., pad_token: _Optional[_Union[TokenUnion, _Mapping]] = ..., min_runtime_version: _Optional[str] = ...) -> None: ...

class StateBuffer(_message.Message):
    __slots__ = ("prefill_input_name", "prefill_output_name", "decode_input_name", "decode_output_name", "policy", "type", "sequence_axis", "minimum_sequence_length", "maximum_sequence_length")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[StateBuffer.Type]
        TYPE_GLOBAL_KEY_CACHE: _ClassVar[StateBuffer.Type]
        TYPE_GLOBAL_VALUE_CACHE: _ClassVar[StateBuffer.Type]
        TYPE_LOCAL_KEY_CACHE: _ClassVar[StateBuffer.Type]
        TYPE_LOCAL_VALUE_CACHE: _ClassVar[StateBuffer.Type]
        TYPE_LINEAR_ATTENTION: _ClassVar[StateBuffer.Type]
    TYPE_UNSPECIFIED: StateBuffer.Type
    TYPE_GLOBAL_KEY_CACHE: StateBuffer.Type
    TYPE_GLOBAL_VALUE_CACHE: StateBuffer.Type
    TYPE_LOCAL_KEY_CACHE: StateBuffer.Type
    TYPE_LOCAL_VALUE_CACHE: StateBuffer.Type
    TYPE_LINEAR_ATTENTION: StateBuffer.Type
    PREFILL_INPUT_NAME_FIELD_NUMBER: _ClassVar[int]
    PREFILL_OUTPUT_NAME_FIELD_NUMBER: _ClassVar[int]
    DECODE_INPUT_NAME_FIELD_NUMBER: _ClassVar[int]
    DECODE_OUTPUT_NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_AXIS_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    prefill_input_name: str
    prefill_output_name: str
    decode_input_name: str
    decode_output_name: str
    policy: int
    type: StateBuffer.Type
    sequence_axis: int
    minimum_sequence_length: int
    maximum_sequence_length: int
    def __init__(self, prefill_input_name: _Optional[str] = ..., prefill_output_name: _Optional[str] = ..., decode_input_name: _Optional[str] = ..., decode_output_name: _Optional[str] = ..., policy: _Optional[int] = ..., type: _Optional[_Union[StateBuffer.Type, str]] = ..., sequence_axis: _Optional[int] = ..., minimum_sequence_length: _Optional[int] = ..., maximum_sequence_length: _Optional[int] = ...) -> None: ...

class AttentionMaskSettings(_message.Message):
    __slots__ = ("attention_mask_policy", "local_attention_mask_policy", "sliding_window_size")
    ATTENTION_MASK_POLICY_FIELD_NUMBER: _ClassVar[int]
    LOCAL_ATTENTION_MASK_POLICY_FIELD_NUMBER: _ClassVar[int]
    SLIDING_WINDOW_SIZE_FIELD_NUMBER: _ClassVar[int]
    attention_mask_policy: int
    local_attention_mask_policy: int
    sliding_window_size: int
    def __init__(self, attention_mask_policy: _Optional[int] = ..., local_attention_mask_policy: _Optional[int] = ..., sliding_window_size: _Optional[int] = ...) -> None: ...

class LlmExecutorMetadata(_message.Message):
    __slots__ = ("max_history_size", "state_buffers", "attention_mask_settings")
    MAX_HISTORY_SIZE_FIELD_NUMBER: _ClassVar[int]
    STATE_BUFFERS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MASK_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    max_history_size: int
    state_buffers: _containers.RepeatedCompositeFieldContainer[StateBuffer]
    attention_mask_settings: AttentionMaskSettings
    def __init__(self, max_history_size: _Optional[int] = ..., state_buffers: _Optional[_Iterable[_Union[StateBuffer, _Mapping]]] = ..., attention_mask_settings: _Optional[_Union[AttentionMaskSettings, _Mapping]] = ...) -> None: ...

class ExecutorMetadata(_message.Message):
    __slots__ = ("llm_executor_metadata",)
    LLM_EXECUTOR_METADATA_FIELD_NUMBER: _ClassVar[int]
    llm_executor_metadata: LlmExecutorMetadata
    def __init__(self, llm_executor_metadata: _Optional[_Union[LlmExecutorMetadata, _Mapping]] = ...) -> None: ...
