from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LlmModelType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LLM_MODEL_TYPE_UNKNOWN: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_ULM_1B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_ULM_128M: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_LLMIT_1B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMINI_XXS: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_FALCON_RW_1B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA_2B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_ULM_70M: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_STABLELM_4E1T_3B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMINI_XS: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_TINY_LLAMA_1B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_PHI_2: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA_7B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMINI_XS_DRAFTER_6LAYER_USM_700M_RESIDUAL_60M: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMINI_XS_USM_700M_RESIDUAL_150M: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMINIV2_NANOV2: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMINI_XS_DRAFTER_4LAYER: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA2_2B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA3_1B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA3_4B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA3_12B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA3_27B: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_GEMMA3_300M: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_FUNCTIONGEMMA3_300M: _ClassVar[LlmModelType]
    LLM_MODEL_TYPE_TF_LITE: _ClassVar[LlmModelType]

class PromptRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_ROLE_UNKNOWN: _ClassVar[PromptRole]
    PROMPT_ROLE_NONE: _ClassVar[PromptRole]
    PROMPT_ROLE_USER: _ClassVar[PromptRole]
    PROMPT_ROLE_MODEL: _ClassVar[PromptRole]
    PROMPT_ROLE_SYSTEM: _ClassVar[PromptRole]
LLM_MODEL_TYPE_UNKNOWN: LlmModelType
LLM_MODEL_TYPE_ULM_1B: LlmModelType
LLM_MODEL_TYPE_ULM_128M: LlmModelType
LLM_MODEL_TYPE_LLMIT_1B: LlmModelType
LLM_MODEL_TYPE_GEMINI_XXS: LlmModelType
LLM_MODEL_TYPE_FALCON_RW_1B: LlmModelType
LLM_MODEL_TYPE_GEMMA_2B: LlmModelType
LLM_MODEL_TYPE_ULM_70M: LlmModelType
LLM_MODEL_TYPE_STABLELM_4E1T_3B: LlmModelType
LLM_MODEL_TYPE_GEMINI_XS: LlmModelType
LLM_MODEL_TYPE_TINY_LLAMA_1B: LlmModelType
LLM_MODEL_TYPE_PHI_2: LlmModelType
LLM_MODEL_TYPE_GEMMA_7B: LlmModelType
LLM_MODEL_TYPE_GEMINI_XS_DRAFTER_6LAYER_USM_700M_RESIDUAL_60M: LlmModelType
LLM_MODEL_TYPE_GEMINI_XS_USM_700M_RESIDUAL_150M: LlmModelType
LLM_MODEL_TYPE_GEMINIV2_NANOV2: LlmModelType
LLM_MODEL_TYPE_GEMINI_XS_DRAFTER_4LAYER: LlmModelType
LLM_MODEL_TYPE_GEMMA2_2B: LlmModelType
LLM_MODEL_TYPE_GEMMA3_1B: LlmModelType
LLM_MODEL_TYPE_GEMMA3_4B: LlmModelType
LLM_MODEL_TYPE_GEMMA3_12B: LlmModelType
LLM_MODEL_TYPE_GEMMA3_27B: LlmModelType
LLM_MODEL_TYPE_GEMMA3_300M: LlmModelType
LLM_MODEL_TYPE_FUNCTIONGEMMA3_300M: LlmModelType
LLM_MODEL_TYPE_TF_LITE: LlmModelType
PROMPT_ROLE_UNKNOWN: PromptRole
PROMPT_ROLE_NONE: PromptRole
PROMPT_ROLE_USER: PromptRole
PROMPT_ROLE_MODEL: PromptRole
PROMPT_ROLE_SYSTEM: PromptRole

class LlmParameters(_message.Message):
    __slots__ = ("transformer_parameters", "vocab_size", "start_token_id", "start_token", "stop_tokens", "input_output_normalizations", "prompt_template", "num_draft_tokens", "audio_encoder_parameters", "user_role_token", "system_role_token", "model_role_token", "end_role_token", "vision_encoder_parameters", "submodel_transformer_parameters", "prompt_templates", "stop_token_ids", "channels", "suppressed_tokens")
    class InputOutputNormalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        INPUT_OUTPUT_NORMALIZATION_UNKNOWN: _ClassVar[LlmParameters.InputOutputNormalization]
        INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE: _ClassVar[LlmParameters.InputOutputNormalization]
    INPUT_OUTPUT_NORMALIZATION_UNKNOWN: LlmParameters.InputOutputNormalization
    INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE: LlmParameters.InputOutputNormalization
    class Channel(_message.Message):
        __slots__ = ("channel_name", "start", "end")
        CHANNEL_NAME_FIELD_NUMBER: _ClassVar[int]
        START_FIELD_NUMBER: _ClassVar[int]
        END_FIELD_NUMBER: _ClassVar[int]
        channel_name: str
        start: str
        end: str
        def __init__(self, channel_name: _Optional[str] = ..., start: _Optional[str] = ..., end: _Optional[str] = ...) -> None: ...
    TRANSFORMER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_OUTPUT_NORMALIZATIONS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AUDIO_ENCODER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    USER_ROLE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_ROLE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_ROLE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    END_ROLE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VISION_ENCODER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SUBMODEL_TRANSFORMER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    transformer_parameters: TransformerParameters
    vocab_size: int
    start_token_id: int
    start_token: str
    stop_tokens: _containers.RepeatedScalarFieldContainer[str]
    input_output_normalizations: _containers.RepeatedScalarFieldContainer[LlmParameters.InputOutputNormalization]
    prompt_template: PromptTemplate
    num_draft_tokens: int
    audio_encoder_parameters: AudioEncoderParameters
    user_role_token: str
    system_role_token: str
    model_role_token: str
    end_role_token: str
    vision_encoder_parameters: VisionEncoderParameters
    submodel_transformer_parameters: TransformerParameters
    prompt_templates: PromptTemplates
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    channels: _containers.RepeatedCompositeFieldContainer[LlmParameters.Channel]
    suppressed_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transformer_parameters: _Optional[_Union[TransformerParameters, _Mapping]] = ..., vocab_size: _Optional[int] = ..., start_token_id: _Optional[int] = ..., start_token: _Optional[str] = ..., stop_tokens: _Optional[_Iterable[str]] = ..., input_output_normalizations: _Optional[_Iterable[_Union[LlmParameters.InputOutputNormalization, str]]] = ..., prompt_template: _Optional[_Union[PromptTemplate, _Mapping]] = ..., num_draft_tokens: _Optional[int] = ..., audio_encoder_parameters: _Optional[_Union[AudioEncoderParameters, _Mapping]] = ..., user_role_token: _Optional[str] = ..., system_role_token: _Optional[str] = ..., model_role_token: _Optional[str] = ..., end_role_token: _Optional[str] = ..., vision_encoder_parameters: _Optional[_Union[VisionEncoderParameters, _Mapping]] = ..., submodel_transformer_parameters: _Optional[_Union[TransformerParameters, _Mapping]] = ..., prompt_templates: _Optional[_Union[PromptTemplates, _Mapping]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., channels: _Optional[_Iterable[_Union[LlmParameters.Channel, _Mapping]]] = ..., suppressed_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class AudioEncoderParameters(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VisionEncoderParameters(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PromptTemplate(_message.Message):
    __slots__ = ("session_prefix", "prompt_prefix", "prompt_suffix")
    SESSION_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SUFFIX_FIELD_NUMBER: _ClassVar[int]
    session_prefix: str
    prompt_prefix: str
    prompt_suffix: str
    def __init__(self, session_prefix: _Optional[str] = ..., prompt_prefix: _Optional[str] = ..., prompt_suffix: _Optional[str] = ...) -> None: ...

class PromptTemplates(_message.Message):
    __slots__ = ("user_template", "model_template", "system_template")
    USER_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    user_template: PromptTemplate
    model_template: PromptTemplate
    system_template: PromptTemplate
    def __init__(self, user_template: _Optional[_Union[PromptTemplate, _Mapping]] = ..., model_template: _Optional[_Union[PromptTemplate, _Mapping]] = ..., system_template: _Optional[_Union[PromptTemplate, _Mapping]] = ...) -> None: ...

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

class TransformerParameters(_message.Message):
    __slots__ = ("batch_size", "max_seq_length", "embedding_dim", "hidden_dimension", "head_dimension", "num_heads", "num_stacks", "num_kv_heads", "feed_forward_parameters", "final_project_parameters", "pre_norm", "post_norm", "final_norm", "self_attention_parameters", "skip_absolute_positional_embeddings", "num_local_layers_per_global", "ngram_vocabulary_size", "per_layer_embedding_dimension", "residual_adapter_parameters", "load_per_layer_embedding_dynamically", "load_ngrammer_embedding_dynamically", "query_rescale_factor", "vision_tokens_num", "num_extra_stacks", "max_num_images", "audio_vocab_offset", "audio_vocab_extra_dim", "audio_input_embedding_dim", "global_rope_wavelength", "global_rope_scaling", "laurel_config", "kv_cache_shared_start_layer", "gemma3_bfloat16_fix", "altup_config", "activation_sparsity_stddev_multiplier", "apply_srq", "layer_skip_start", "num_layers_skipped", "matform_factor", "scale_lora", "audio_dual_norm_soft_and_hard_tokens", "rms_norm_scale_shift", "use_ringbuffers")
    class Activation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTIVATION_UNSPECIFIED: _ClassVar[TransformerParameters.Activation]
        GELU: _ClassVar[TransformerParameters.Activation]
        SILU: _ClassVar[TransformerParameters.Activation]
        RELU: _ClassVar[TransformerParameters.Activation]
        RELU1P5: _ClassVar[TransformerParameters.Activation]
    ACTIVATION_UNSPECIFIED: TransformerParameters.Activation
    GELU: TransformerParameters.Activation
    SILU: TransformerParameters.Activation
    RELU: TransformerParameters.Activation
    RELU1P5: TransformerParameters.Activation
    class Norm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NORM_UNSPECIFIED: _ClassVar[TransformerParameters.Norm]
        NO_NORM: _ClassVar[TransformerParameters.Norm]
        RMS_NORM: _ClassVar[TransformerParameters.Norm]
        LAYER_NORM: _ClassVar[TransformerParameters.Norm]
        RMS_NORM_NO_SCALE: _ClassVar[TransformerParameters.Norm]
    NORM_UNSPECIFIED: TransformerParameters.Norm
    NO_NORM: TransformerParameters.Norm
    RMS_NORM: TransformerParameters.Norm
    LAYER_NORM: TransformerParameters.Norm
    RMS_NORM_NO_SCALE: TransformerParameters.Norm
    class AttentionMaskType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[TransformerParameters.AttentionMaskType]
        CAUSAL: _ClassVar[TransformerParameters.AttentionMaskType]
        PREFIX: _ClassVar[TransformerParameters.AttentionMaskType]
        BIDIRECTIONAL: _ClassVar[TransformerParameters.AttentionMaskType]
    UNSPECIFIED: TransformerParameters.AttentionMaskType
    CAUSAL: TransformerParameters.AttentionMaskType
    PREFIX: TransformerParameters.AttentionMaskType
    BIDIRECTIONAL: TransformerParameters.AttentionMaskType
    class AttentionScaleType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SCALE_TYPE_UNSPECIFIED: _ClassVar[TransformerParameters.AttentionScaleType]
        SCALE_TYPE_PER_DIM_SCALE: _ClassVar[TransformerParameters.AttentionScaleType]
        SCALE_TYPE_INV_SQRT_HEAD_DIM: _ClassVar[TransformerParameters.AttentionScaleType]
        SCALE_TYPE_INV_SQRT_D_MODEL_DIV_NUM_HEADS: _ClassVar[TransformerParameters.AttentionScaleType]
        SCALE_TYPE_RESCALE_FACTOR_INV_HEAD_DIM: _ClassVar[TransformerParameters.AttentionScaleType]
        SCALE_TYPE_NONE: _ClassVar[TransformerParameters.AttentionScaleType]
    SCALE_TYPE_UNSPECIFIED: TransformerParameters.AttentionScaleType
    SCALE_TYPE_PER_DIM_SCALE: TransformerParameters.AttentionScaleType
    SCALE_TYPE_INV_SQRT_HEAD_DIM: TransformerParameters.AttentionScaleType
    SCALE_TYPE_INV_SQRT_D_MODEL_DIV_NUM_HEADS: TransformerParameters.AttentionScaleType
    SCALE_TYPE_RESCALE_FACTOR_INV_HEAD_DIM: TransformerParameters.AttentionScaleType
    SCALE_TYPE_NONE: TransformerParameters.AttentionScaleType
    class WhereToInterleave(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        INTERLEAVE_UNSPECIFIED: _ClassVar[TransformerParameters.WhereToInterleave]
        ALL: _ClassVar[TransformerParameters.WhereToInterleave]
        EVERY_OTHER_4: _ClassVar[TransformerParameters.WhereToInterleave]
    INTERLEAVE_UNSPECIFIED: TransformerParameters.WhereToInterleave
    ALL: TransformerParameters.WhereToInterleave
    EVERY_OTHER_4: TransformerParameters.WhereToInterleave
    class FeedForwardParameters(_message.Message):
        __slots__ = ("no_bias", "activation", "pre_norm", "post_norm")
        NO_BIAS_FIELD_NUMBER: _ClassVar[int]
        ACTIVATION_FIELD_NUMBER: _ClassVar[int]
        PRE_NORM_FIELD_NUMBER: _ClassVar[int]
        POST_NORM_FIELD_NUMBER: _ClassVar[int]
        no_bias: bool
        activation: TransformerParameters.Activation
        pre_norm: TransformerParameters.Norm
        post_norm: TransformerParameters.Norm
        def __init__(self, no_bias: bool = ..., activation: _Optional[_Union[TransformerParameters.Activation, str]] = ..., pre_norm: _Optional[_Union[TransformerParameters.Norm, str]] = ..., post_norm: _Optional[_Union[TransformerParameters.Norm, str]] = ...) -> None: ...
    class FinalProjectParameters(_message.Message):
        __slots__ = ("no_bias", "soft_cap_value")
        NO_BIAS_FIELD_NUMBER: _ClassVar[int]
        SOFT_CAP_VALUE_FIELD_NUMBER: _ClassVar[int]
        no_bias: bool
        soft_cap_value: float
        def __init__(self, no_bias: bool = ..., soft_cap_value: _Optional[float] = ...) -> None: ...
    class SelfAttentionParameters(_message.Message):
        __slots__ = ("qkv_no_bias", "post_proj_no_bias", "attention_mask_type", "soft_cap_value", "attention_scale_type", "sliding_window_size", "qk_norm", "qk_norm_has_scale", "vision_bidirectional_attention")
        QKV_NO_BIAS_FIELD_NUMBER: _ClassVar[int]
        POST_PROJ_NO_BIAS_FIELD_NUMBER: _ClassVar[int]
        ATTENTION_MASK_TYPE_FIELD_NUMBER: _ClassVar[int]
        SOFT_CAP_VALUE_FIELD_NUMBER: _ClassVar[int]
        ATTENTION_SCALE_TYPE_FIELD_NUMBER: _ClassVar[int]
        SLIDING_WINDOW_SIZE_FIELD_NUMBER: _ClassVar[int]
        QK_NORM_FIELD_NUMBER: _ClassVar[int]
        QK_NORM_HAS_SCALE_FIELD_NUMBER: _ClassVar[int]
        VISION_BIDIRECTIONAL_ATTENTION_FIELD_NUMBER: _ClassVar[int]
        qkv_no_bias: bool
        post_proj_no_bias: bool
        attention_mask_type: TransformerParameters.AttentionMaskType
        soft_cap_value: float
        attention_scale_type: TransformerParameters.AttentionScaleType
        sliding_window_size: int
        qk_norm: bool
        qk_norm_has_scale: bool
        vision_bidirectional_attention: bool
        def __init__(self, qkv_no_bias: bool = ..., post_proj_no_bias: bool = ..., attention_mask_type: _Optional[_Union[TransformerParameters.AttentionMaskType, str]] = ..., soft_cap_value: _Optional[float] = ..., attention_scale_type: _Optional[_Union[TransformerParameters.AttentionScaleType, str]] = ..., sliding_window_size: _Optional[int] = ..., qk_norm: bool = ..., qk_norm_has_scale: bool = ..., vision_bidirectional_attention: bool = ...) -> None: ...
    class ResidualAdapterParameters(_message.Message):
        __slots__ = ("where_to_interleave", "bottleneck_dimension")
        WHERE_TO_INTERLEAVE_FIELD_NUMBER: _ClassVar[int]
        BOTTLENECK_DIMENSION_FIELD_NUMBER: _ClassVar[int]
        where_to_interleave: TransformerParameters.WhereToInterleave
        bottleneck_dimension: int
        def __init__(self, where_to_interleave: _Optional[_Union[TransformerParameters.WhereToInterleave, str]] = ..., bottleneck_dimension: _Optional[int] = ...) -> None: ...
    class LaurelConfig(_message.Message):
        __slots__ = ("laurel_rank", "post_laurel_norm_scale_shift")
        LAUREL_RANK_FIELD_NUMBER: _ClassVar[int]
        POST_LAUREL_NORM_SCALE_SHIFT_FIELD_NUMBER: _ClassVar[int]
        laurel_rank: int
        post_laurel_norm_scale_shift: float
        def __init__(self, laurel_rank: _Optional[int] = ..., post_laurel_norm_scale_shift: _Optional[float] = ...) -> None: ...
    class AltupConfig(_message.Message):
        __slots__ = ("num_modalities", "active_idx", "num_inputs")
        NUM_MODALITIES_FIELD_NUMBER: _ClassVar[int]
        ACTIVE_IDX_FIELD_NUMBER: _ClassVar[int]
        NUM_INPUTS_FIELD_NUMBER: _ClassVar[int]
        num_modalities: int
        active_idx: int
        num_inputs: int
        def __init__(self, num_modalities: _Optional[int] = ..., active_idx: _Optional[int] = ..., num_inputs: _Optional[int] = ...) -> None: ...
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQ_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_DIMENSION_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIMENSION_FIELD_NUMBER: _ClassVar[int]
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_STACKS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    FEED_FORWARD_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FINAL_PROJECT_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PRE_NORM_FIELD_NUMBER: _ClassVar[int]
    POST_NORM_FIELD_NUMBER: _ClassVar[int]
    FINAL_NORM_FIELD_NUMBER: _ClassVar[int]
    SELF_ATTENTION_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SKIP_ABSOLUTE_POSITIONAL_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOCAL_LAYERS_PER_GLOBAL_FIELD_NUMBER: _ClassVar[int]
    NGRAM_VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    PER_LAYER_EMBEDDING_DIMENSION_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_ADAPTER_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LOAD_PER_LAYER_EMBEDDING_DYNAMICALLY_FIELD_NUMBER: _ClassVar[int]
    LOAD_NGRAMMER_EMBEDDING_DYNAMICALLY_FIELD_NUMBER: _ClassVar[int]
    QUERY_RESCALE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    VISION_TOKENS_NUM_FIELD_NUMBER: _ClassVar[int]
    NUM_EXTRA_STACKS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    AUDIO_VOCAB_OFFSET_FIELD_NUMBER: _ClassVar[int]
    AUDIO_VOCAB_EXTRA_DIM_FIELD_NUMBER: _ClassVar[int]
    AUDIO_INPUT_EMBEDDING_DIM_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_ROPE_WAVELENGTH_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_ROPE_SCALING_FIELD_NUMBER: _ClassVar[int]
    LAUREL_CONFIG_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_SHARED_START_LAYER_FIELD_NUMBER: _ClassVar[int]
    GEMMA3_BFLOAT16_FIX_FIELD_NUMBER: _ClassVar[int]
    ALTUP_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_SPARSITY_STDDEV_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    APPLY_SRQ_FIELD_NUMBER: _ClassVar[int]
    LAYER_SKIP_START_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MATFORM_FACTOR_FIELD_NUMBER: _ClassVar[int]
    SCALE_LORA_FIELD_NUMBER: _ClassVar[int]
    AUDIO_DUAL_NORM_SOFT_AND_HARD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RMS_NORM_SCALE_SHIFT_FIELD_NUMBER: _ClassVar[int]
    USE_RINGBUFFERS_FIELD_NUMBER: _ClassVar[int]
    batch_size: int
    max_seq_length: int
    embedding_dim: int
    hidden_dimension: int
    head_dimension: int
    num_heads: int
    num_stacks: int
    num_kv_heads: int
    feed_forward_parameters: TransformerParameters.FeedForwardParameters
    final_project_parameters: TransformerParameters.FinalProjectParameters
    pre_norm: TransformerParameters.Norm
    post_norm: TransformerParameters.Norm
    final_norm: TransformerParameters.Norm
    self_attention_parameters: TransformerParameters.SelfAttentionParameters
    skip_absolute_positional_embeddings: bool
    num_local_layers_per_global: int
    ngram_vocabulary_size: int
    per_layer_embedding_dimension: int
    residual_adapter_parameters: TransformerParameters.ResidualAdapterParameters
    load_per_layer_embedding_dynamically: bool
    load_ngrammer_embedding_dynamically: bool
    query_rescale_factor: float
    vision_tokens_num: int
    num_extra_stacks: int
    max_num_images: int
    audio_vocab_offset: int
    audio_vocab_extra_dim: int
    audio_input_embedding_dim: int
    global_rope_wavelength: float
    global_rope_scaling: float
    laurel_config: TransformerParameters.LaurelConfig
    kv_cache_shared_start_layer: int
    gemma3_bfloat16_fix: bool
    altup_config: TransformerParameters.AltupConfig
    activation_sparsity_stddev_multiplier: float
    apply_srq: bool
    layer_skip_start: int
    num_layers_skipped: int
    matform_factor: float
    scale_lora: bool
    audio_dual_norm_soft_and_hard_tokens: bool
    rms_norm_scale_shift: float
    use_ringbuffers: bool
    def __init__(self, batch_size: _Optional[int] = ..., max_seq_length: _Optional[int] = ..., embedding_dim: _Optional[int] = ..., hidden_dimension: _Optional[int] = ..., head_dimension: _Optional[int] = ..., num_heads: _Optional[int] = ..., num_stacks: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., feed_forward_parameters: _Optional[_Union[TransformerParameters.FeedForwardParameters, _Mapping]] = ..., final_project_parameters: _Optional[_Union[TransformerParameters.FinalProjectParameters, _Mapping]] = ..., pre_norm: _Optional[_Union[TransformerParameters.Norm, str]] = ..., post_norm: _Optional[_Union[TransformerParameters.Norm, str]] = ..., final_norm: _Optional[_Union[TransformerParameters.Norm, str]] = ..., self_attention_parameters: _Optional[_Union[TransformerParameters.SelfAttentionParameters, _Mapping]] = ..., skip_absolute_positional_embeddings: bool = ..., num_local_layers_per_global: _Optional[int] = ..., ngram_vocabulary_size: _Optional[int] = ..., per_layer_embedding_dimension: _Optional[int] = ..., residual_adapter_parameters: _Optional[_Union[TransformerParameters.ResidualAdapterParameters, _Mapping]] = ..., load_per_layer_embedding_dynamically: bool = ..., load_ngrammer_embedding_dynamically: bool = ..., query_rescale_factor: _Optional[float] = ..., vision_tokens_num: _Optional[int] = ..., num_extra_stacks: _Optional[int] = ..., max_num_images: _Optional[int] = ..., audio_vocab_offset: _Optional[int] = ..., audio_vocab_extra_dim: _Optional[int] = ..., audio_input_embedding_dim: _Optional[int] = ..., global_rope_wavelength: _Optional[float] = ..., global_rope_scaling: _Optional[float] = ..., laurel_config: _Optional[_Union[TransformerParameters.LaurelConfig, _Mapping]] = ..., kv_cache_shared_start_layer: _Optional[int] = ..., gemma3_bfloat16_fix: bool = ..., altup_config: _Optional[_Union[TransformerParameters.AltupConfig, _Mapping]] = ..., activation_sparsity_stddev_multiplier: _Optional[float] = ..., apply_srq: bool = ..., layer_skip_start: _Optional[int] = ..., num_layers_skipped: _Optional[int] = ..., matform_factor: _Optional[float] = ..., scale_lora: bool = ..., audio_dual_norm_soft_and_hard_tokens: bool = ..., rms_norm_scale_shift: _Optional[float] = ..., use_ringbuffers: bool = ...) -> None: ...

class LlmFileMetadata(_message.Message):
    __slots__ = ("tensors", "model_params", "lora_rank")
    class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[LlmFileMetadata.DataType]
        FLOAT32: _ClassVar[LlmFileMetadata.DataType]
        INT8: _ClassVar[LlmFileMetadata.DataType]
        INT4: _ClassVar[LlmFileMetadata.DataType]
        UINT4: _ClassVar[LlmFileMetadata.DataType]
    UNSPECIFIED: LlmFileMetadata.DataType
    FLOAT32: LlmFileMetadata.DataType
    INT8: LlmFileMetadata.DataType
    INT4: LlmFileMetadata.DataType
    UINT4: LlmFileMetadata.DataType
    class Tensor(_message.Message):
        __slots__ = ("name", "offset", "size", "data_type")
        NAME_FIELD_NUMBER: _ClassVar[int]
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        SIZE_FIELD_NUMBER: _ClassVar[int]
        DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
        name: str
        offset: int
        size: int
        data_type: LlmFileMetadata.DataType
        def __init__(self, name: _Optional[str] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ..., data_type: _Optional[_Union[LlmFileMetadata.DataType, str]] = ...) -> None: ...
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    MODEL_PARAMS_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[LlmFileMetadata.Tensor]
    model_params: LlmParameters
    lora_rank: int
    def __init__(self, tensors: _Optional[_Iterable[_Union[LlmFileMetadata.Tensor, _Mapping]]] = ..., model_params: _Optional[_Union[LlmParameters, _Mapping]] = ..., lora_rank: _Optional[int] = ...) -> None: ...
