"""Llama 1 to 3, TinyLlama and SmolLM: https://huggingface.co/docs/transformers/model_doc/llama."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import LLAMA_CHECKPOINT_NAMES, Family, activation, dimensions
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = dimensions(
        fields,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )
    fields.require("rope_interleaved", False)
    attention_bias = fields.flag("attention_bias", False)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    return Architecture(
        family="llama",
        layers=(Layer(rope=fields.rope(sizes["head_dim"], 10000.0)),) * fields.num_layers(default=32),
        activation=activation(fields, "silu"),
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        tied_embedding=fields.flag("tie_word_embeddings", False),
        qkv_bias=attention_bias,
        attention_output_bias=attention_bias,
        feed_forward_bias=fields.flag("mlp_bias", False),
        **sizes,
    )


LLAMA = Family(
    name="llama",
    config_types=("llama",),
    read_config=_read_config,
    checkpoint_names=LLAMA_CHECKPOINT_NAMES,
    bin_names={},
    file_traits={},
)
