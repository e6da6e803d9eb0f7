"""OLMo 2, with norms after the blocks: https://huggingface.co/docs/transformers/model_doc/olmo2."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import SANDWICH_CHECKPOINT_NAMES, Family, activation, dimensions
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = dimensions(
        fields,
        vocab_size=50304,
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )
    attention_bias = fields.flag("attention_bias", False)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-5))
    return Architecture(
        family="olmo2",
        layers=(Layer(rope=fields.rope(sizes["head_dim"], 10000.0)),) * fields.num_layers(default=32),
        activation=activation(fields, "silu"),
        attention_scale=sizes["head_dim"] ** -0.5,
        post_attention_norm=norm,
        post_feed_forward_norm=norm,
        query_key_norm=norm,
        query_key_norm_axis="projection",
        final_norm=norm,
        tied_embedding=fields.flag("tie_word_embeddings", False),
        qkv_bias=attention_bias,
        attention_output_bias=attention_bias,
        **sizes,
    )


OLMO2 = Family(
    name="olmo2",
    config_types=("olmo2",),
    read_config=_read_config,
    checkpoint_names=SANDWICH_CHECKPOINT_NAMES,
    bin_names={},
    file_traits={},
)
