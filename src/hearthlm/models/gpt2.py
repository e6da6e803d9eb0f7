"""GPT-2, of every size: https://huggingface.co/docs/transformers/model_doc/gpt2."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import QKV, Family, activation, linear_names, norm_names
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    dim = fields.positive("n_embd", 768)
    heads = fields.divisor("n_head", dim, 12)
    fields.require("scale_attn_weights", True)
    fields.require("scale_attn_by_inverse_layer_idx", False)
    for name in ("n_ctx", "reorder_and_upcast_attn"):  # the context again; how half precision is computed
        fields.get(name)
    norm = Norm("layer", fields.number("layer_norm_epsilon", 1e-5), has_bias=True)
    return Architecture(
        family="gpt2",
        vocab_size=fields.positive("vocab_size", 50257),
        embedding_dim=dim,
        hidden_dim=fields.positive("n_inner", 4 * dim),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        layers=(Layer(),) * fields.num_layers("n_layer", 12),
        context_length=fields.positive("n_positions", 1024),
        activation=activation(fields, "gelu_new", "activation_function"),
        attention_scale=(dim // heads) ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        gated=False,
        learned_positions=True,
        tied_embedding=fields.flag("tie_word_embeddings", True),
        qkv_bias=True,
        attention_output_bias=True,
        feed_forward_bias=True,
    )


_LAYER = "transformer.h.{i}."

GPT2 = Family(
    name="gpt2",
    config_types=("gpt2",),
    read_config=_read_config,
    checkpoint_names={
        "embedding": "transformer.wte.weight",
        "position_embedding": "transformer.wpe.weight",
        **norm_names("transformer.ln_f", "final_norm"),
        "logits": "lm_head.weight",
        **norm_names(_LAYER + "ln_1", "layers.{i}.attention_norm"),
        **linear_names(_LAYER + "attn.c_attn", *QKV, transposed=True),
        **linear_names(_LAYER + "attn.c_proj", "layers.{i}.attention.output", transposed=True),
        **norm_names(_LAYER + "ln_2", "layers.{i}.feed_forward_norm"),
        **linear_names(_LAYER + "mlp.c_fc", "layers.{i}.feed_forward.up", transposed=True),
        **linear_names(_LAYER + "mlp.c_proj", "layers.{i}.feed_forward.down", transposed=True),
    },
    bin_names={},
    file_traits={},
)
