"""Between the message LlmParameters of a MediaPipe file and the words of `hearthlm.models`."""

from __future__ import annotations

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats.llm_parameters_pb2 import LlmParameters, TransformerParameters
from hearthlm.models.family import Family, FileParameters, PromptTemplate, PromptTemplates
from hearthlm.models.model_types import MODEL_TYPES_BY_NUMBER
from hearthlm.models.params import Architecture, Norm

_NORMS = {
    TransformerParameters.NORM_UNSPECIFIED: "none",
    TransformerParameters.NO_NORM: "none",
    TransformerParameters.RMS_NORM: "rms",
    TransformerParameters.LAYER_NORM: "layer",
    TransformerParameters.RMS_NORM_NO_SCALE: "rms_no_scale",
}
_ACTIVATIONS = {
    TransformerParameters.GELU: "gelu",
    TransformerParameters.SILU: "silu",
    TransformerParameters.RELU: "relu",
    TransformerParameters.RELU1P5: "relu1p5",
}
_SCALES = {
    TransformerParameters.SCALE_TYPE_UNSPECIFIED: "unspecified",
    TransformerParameters.SCALE_TYPE_PER_DIM_SCALE: "per_dim_scale",
    TransformerParameters.SCALE_TYPE_INV_SQRT_HEAD_DIM: "inv_sqrt_head_dim",
    TransformerParameters.SCALE_TYPE_INV_SQRT_D_MODEL_DIV_NUM_HEADS: "inv_sqrt_d_model_div_num_heads",
    TransformerParameters.SCALE_TYPE_RESCALE_FACTOR_INV_HEAD_DIM: "rescale_factor_inv_head_dim",
    TransformerParameters.SCALE_TYPE_NONE: "none",
}

# What these fields switch on is computed by no forward pass here.
_UNSUPPORTED_FIELDS = (
    "residual_adapter_parameters",
    "num_extra_stacks",
    "laurel_config",
    "altup_config",
    "kv_cache_shared_start_layer",
    "activation_sparsity_stddev_multiplier",
    "num_layers_skipped",
    "per_layer_embedding_dimension",
    "ngram_vocabulary_size",
)


def file_parameters(message: LlmParameters, model_type: int) -> FileParameters:
    """Return what a file declares about its architecture.

    Raises UnsupportedModelError, naming the field, for what no forward pass here computes.
    """
    t = message.transformer_parameters
    attention, feed_forward = t.self_attention_parameters, t.feed_forward_parameters
    for name in _UNSUPPORTED_FIELDS:
        if name in t.DESCRIPTOR.fields_by_name and any(field.name == name for field, _ in t.ListFields()):
            raise UnsupportedModelError(f"transformer_parameters.{name} is set, and not supported")
    if attention.attention_mask_type not in (TransformerParameters.UNSPECIFIED, TransformerParameters.CAUSAL):
        raise UnsupportedModelError("self_attention_parameters.attention_mask_type: only CAUSAL is supported")
    if not t.skip_absolute_positional_embeddings:
        raise UnsupportedModelError("transformer_parameters.skip_absolute_positional_embeddings: expected true")
    if attention.qk_norm and attention.HasField("qk_norm_has_scale") and not attention.qk_norm_has_scale:
        raise UnsupportedModelError("self_attention_parameters.qk_norm_has_scale: expected true")
    return FileParameters(
        model_type=model_type,
        vocab_size=message.vocab_size,
        embedding_dim=t.embedding_dim,
        hidden_dim=t.hidden_dimension,
        head_dim=t.head_dimension,
        num_heads=t.num_heads,
        num_kv_heads=t.num_kv_heads,
        num_layers=t.num_stacks,
        pre_norm=_NORMS.get(t.pre_norm, f"number {t.pre_norm}"),
        post_norm=_NORMS.get(t.post_norm, f"number {t.post_norm}"),
        final_norm=_NORMS.get(t.final_norm, f"number {t.final_norm}"),
        feed_forward_pre_norm=_NORMS.get(feed_forward.pre_norm, f"number {feed_forward.pre_norm}"),
        feed_forward_post_norm=_NORMS.get(feed_forward.post_norm, f"number {feed_forward.post_norm}"),
        activation=_ACTIVATIONS.get(feed_forward.activation, f"number {feed_forward.activation}"),
        qkv_bias=not attention.qkv_no_bias,
        attention_output_bias=not attention.post_proj_no_bias,
        feed_forward_bias=not feed_forward.no_bias,
        logits_bias=not t.final_project_parameters.no_bias,
        attention_soft_cap=max(0.0, attention.soft_cap_value),
        final_soft_cap=max(0.0, t.final_project_parameters.soft_cap_value),
        attention_scale_type=_SCALES.get(attention.attention_scale_type, f"number {attention.attention_scale_type}"),
        query_rescale_factor=t.query_rescale_factor if t.HasField("query_rescale_factor") else None,
        sliding_window=max(0, attention.sliding_window_size),
        query_key_norm=attention.qk_norm,
        local_layers_per_global=max(0, t.num_local_layers_per_global),
        global_rope_base=t.global_rope_wavelength if t.HasField("global_rope_wavelength") else None,
        global_rope_scaling=t.global_rope_scaling if t.HasField("global_rope_scaling") else None,
    )


def llm_parameters(architecture: Architecture, family: Family, model_type: int) -> LlmParameters:
    """Return the message that declares `architecture`, as far as the message has words for it.

    Raises UnsupportedModelError where reading it back, with the traits of `model_type`, gives another architecture.
    The tokens and templates are the caller's to add.
    """
    a, traits, published = architecture, family.file_traits[model_type], MODEL_TYPES_BY_NUMBER[model_type]
    message = LlmParameters(vocab_size=a.vocab_size)
    t = message.transformer_parameters
    t.batch_size = 1
    t.embedding_dim, t.hidden_dimension, t.head_dimension = a.embedding_dim, a.hidden_dim, a.head_dim
    t.num_heads, t.num_stacks = a.num_heads, a.num_layers
    has_all_heads = a.num_kv_heads == a.num_heads > 1
    t.num_kv_heads = 0 if has_all_heads and not published.declares_all_kv_heads else a.num_kv_heads
    t.pre_norm, t.post_norm = _norm_number(a.attention_norm), _norm_number(a.post_attention_norm)
    t.final_norm = _norm_number(a.final_norm)
    t.feed_forward_parameters.no_bias = not a.feed_forward_bias
    activation = "gelu" if a.activation == "gelu_tanh" else a.activation
    t.feed_forward_parameters.activation = next(n for n, name in _ACTIVATIONS.items() if name == activation)
    t.feed_forward_parameters.pre_norm = _norm_number(a.feed_forward_norm)
    t.feed_forward_parameters.post_norm = _norm_number(a.post_feed_forward_norm)
    t.final_project_parameters.no_bias = not a.logits_bias
    t.final_project_parameters.soft_cap_value = a.final_soft_cap or 0.0
    attention = t.self_attention_parameters
    attention.qkv_no_bias, attention.post_proj_no_bias = not a.qkv_bias, not a.attention_output_bias
    attention.attention_mask_type = TransformerParameters.CAUSAL
    attention.soft_cap_value = a.attention_soft_cap or 0.0
    attention.attention_scale_type = TransformerParameters.SCALE_TYPE_INV_SQRT_HEAD_DIM
    if abs(a.attention_scale - a.head_dim**-0.5) > 1e-9:
        attention.attention_scale_type = TransformerParameters.SCALE_TYPE_INV_SQRT_D_MODEL_DIV_NUM_HEADS
    if a.query_key_norm is not None:
        attention.qk_norm = attention.qk_norm_has_scale = True
    t.skip_absolute_positional_embeddings = True
    if published.needs_bfloat16_range:
        t.gemma3_bfloat16_fix = True
    if traits.window is None:  # else the type itself says it, as MediaPipe's Gemma 2
        windows = [layer.window for layer in a.layers]
        local = next((i for i, window in enumerate(windows) if window is None), len(windows))
        if window := next((w for w in windows if w is not None), None):
            attention.sliding_window_size = window
            t.num_local_layers_per_global = local
        global_rope = next((layer.rope for layer in a.layers if layer.window is None), None)
        if global_rope is not None and global_rope.base != traits.rope_base:
            t.global_rope_wavelength = global_rope.base
        if global_rope is not None and global_rope.linear_factor != 1.0:
            t.global_rope_scaling = global_rope.linear_factor
    read_back = family.read_file_parameters(file_parameters(message, model_type)).to_json()
    for name, value in a.to_json().items():
        if name != "context_length" and not _same(read_back[name], value):
            raise UnsupportedModelError(
                f"{name}: a .bin of LlmModelType {model_type} means {read_back[name]!r:.120}, but the model has "
                f"{value!r:.120}"
            )
    return message


def prompt_templates(message: LlmParameters) -> PromptTemplates:
    """Return the turns of a file; the older single template is split as MediaPipe's runtime splits it.

    prompt_prefix opens the user's turn; of prompt_suffix the part up to the first line break closes it and the rest
    opens the model's.
    """
    old = message.prompt_template
    if message.HasField("prompt_templates"):
        t = message.prompt_templates
        return PromptTemplates(
            user=PromptTemplate(t.user_template.prompt_prefix, t.user_template.prompt_suffix),
            model=PromptTemplate(t.model_template.prompt_prefix, t.model_template.prompt_suffix),
            system=PromptTemplate(t.system_template.prompt_prefix, t.system_template.prompt_suffix),
            session_prefix=old.session_prefix,
        )
    head, line_break, rest = old.prompt_suffix.partition("\n")
    user_suffix, model_prefix = (head + line_break, rest) if line_break else ("", old.prompt_suffix)
    has_turns = "<start_of_turn>" in old.prompt_prefix or "<ctrl99>" in old.prompt_prefix
    return PromptTemplates(
        user=PromptTemplate(old.prompt_prefix, user_suffix),
        model=PromptTemplate(model_prefix, user_suffix if has_turns else ""),
        session_prefix=old.session_prefix,
    )


def _norm_number(norm: Norm | None) -> TransformerParameters.Norm:
    if norm is None:
        return TransformerParameters.NO_NORM
    return TransformerParameters.RMS_NORM if norm.kind == "rms" else TransformerParameters.LAYER_NORM


def _same(a: object, b: object) -> bool:
    """Compare values of an architecture; the message holds its numbers as float32."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
