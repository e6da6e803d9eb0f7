"""Falcon RW-1B, RW-7B and 7B: https://huggingface.co/docs/transformers/model_doc/falcon."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import (
    PHI_BIN_NAMES,
    QKV,
    TWICE_NAMED_NORM,
    Family,
    FileTraits,
    activation,
    linear_names,
    norm_names,
)
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    dim = fields.positive("hidden_size", 4544)
    heads = fields.divisor("num_attention_heads", dim, 71)
    head_dim = dim // heads
    is_multi_query, parallel = fields.flag("multi_query", True), fields.flag("parallel_attn", True)
    alibi, bias = fields.flag("alibi", False), fields.flag("bias", False)
    fields.require("new_decoder_architecture", False)  # 40B and 180B: two norms side by side
    fields.require("num_ln_in_parallel_attn", 1)
    fields.require("apply_residual_connection_post_layernorm", False)
    fields.require("num_kv_heads", heads, 1 if is_multi_query else heads)  # beside multi_query it has no effect
    rope = fields.rope(head_dim, 10000.0)
    norm = Norm("layer", fields.number("layer_norm_epsilon", 1e-5), has_bias=True)
    return Architecture(
        family="falcon",
        vocab_size=fields.positive("vocab_size", 65024),
        embedding_dim=dim,
        hidden_dim=fields.positive("ffn_hidden_size", 4 * dim),
        num_heads=heads,
        num_kv_heads=1 if is_multi_query else heads,
        head_dim=head_dim,
        layers=(Layer(rope=None if alibi else rope),) * fields.num_layers(default=32),
        context_length=fields.positive("max_position_embeddings", 2048),
        activation=activation(fields, "gelu", "activation"),
        attention_scale=head_dim**-0.5,
        attention_norm=norm,
        feed_forward_norm=None if parallel else norm,
        final_norm=norm,
        gated=False,
        parallel_residual=parallel,
        alibi=alibi,
        tied_embedding=fields.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        attention_output_bias=bias,
        feed_forward_bias=bias,
    )


_LAYER = "transformer.h.{i}."

FALCON = Family(
    name="falcon",
    config_types=("falcon",),
    read_config=_read_config,
    checkpoint_names={
        "embedding": "transformer.word_embeddings.weight",
        **norm_names("transformer.ln_f", "final_norm"),
        "logits": "lm_head.weight",
        **norm_names(_LAYER + "input_layernorm", "layers.{i}.attention_norm"),
        **linear_names(_LAYER + "self_attention.query_key_value", *QKV, by_head=True),
        **linear_names(_LAYER + "self_attention.dense", "layers.{i}.attention.output"),
        **norm_names(_LAYER + "post_attention_layernorm", "layers.{i}.feed_forward_norm"),
        **linear_names(_LAYER + "mlp.dense_h_to_4h", "layers.{i}.feed_forward.up"),
        **linear_names(_LAYER + "mlp.dense_4h_to_h", "layers.{i}.feed_forward.down"),
    },
    bin_names={**PHI_BIN_NAMES, "logits": "params.lm.softmax.logits_ffn.w", **TWICE_NAMED_NORM},
    file_traits={  # FALCON_RW_1B; its gelu is the exact one
        5: FileTraits(context_length=2048, norm_eps=1e-5, rope_base=None, alibi=True, activation={"gelu": "gelu"})
    },
    bytes_to_unicode=True,
)
