"""Phi-3 and Phi-4 with plain rotary positions: https://huggingface.co/docs/transformers/model_doc/phi3."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import LLAMA_CHECKPOINT_NAMES, QKV, Family, activation, dimensions, linear_names
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = dimensions(
        fields,
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        num_attention_heads=32,
        max_position_embeddings=4096,
    )
    fields.require("attention_bias", False)
    fields.require("lm_head_bias", False)
    fields.require("mlp_bias", False)
    fields.get("original_max_position_embeddings")  # said for longrope, which `rope` refuses
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-5))
    layer = Layer(fields.optional_positive("sliding_window"), fields.rope(sizes["head_dim"], 10000.0, 1.0))
    return Architecture(
        family="phi3",
        layers=(layer,) * fields.num_layers(default=32),
        activation=activation(fields, "silu"),
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        tied_embedding=fields.flag("tie_word_embeddings", False),
        **sizes,
    )


_GATE_UP = ("layers.{i}.feed_forward.gate", "layers.{i}.feed_forward.up")

PHI3 = Family(
    name="phi3",
    config_types=("phi3",),
    read_config=_read_config,
    checkpoint_names={
        **LLAMA_CHECKPOINT_NAMES,
        **linear_names("model.layers.{i}.self_attn.qkv_proj", *QKV),
        **linear_names("model.layers.{i}.mlp.gate_up_proj", *_GATE_UP),
    },
    bin_names={},
    file_traits={},
)
