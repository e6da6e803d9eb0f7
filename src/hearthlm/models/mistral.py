"""Mistral 7B: https://huggingface.co/docs/transformers/model_doc/mistral."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import LLAMA_CHECKPOINT_NAMES, Family, activation, dimensions
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = dimensions(
        fields,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    )
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    window = fields.optional_positive("sliding_window", 4096)  # null since version 0.2: no window
    layer = Layer(window, fields.rope(sizes["head_dim"], 10000.0))
    return Architecture(
        family="mistral",
        layers=(layer,) * fields.num_layers(default=32),
        activation=activation(fields, "silu"),
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        tied_embedding=fields.flag("tie_word_embeddings", False),
        **sizes,
    )


MISTRAL = Family(
    name="mistral",
    config_types=("mistral",),
    read_config=_read_config,
    checkpoint_names=LLAMA_CHECKPOINT_NAMES,
    bin_names={},
    file_traits={},
)
