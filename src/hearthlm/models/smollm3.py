"""SmolLM3, in which every fourth layer has no positions: https://huggingface.co/docs/transformers/model_doc/smollm3."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import LLAMA_CHECKPOINT_NAMES, Family, activation, dimensions
from hearthlm.models.params import Architecture, Layer, Norm


def _layers(fields: ConfigFields, head_dim: int) -> tuple[Layer, ...]:
    count = fields.num_layers(default=36)
    period = fields.positive("no_rope_layer_interval", 4)
    turns = fields.flags("no_rope_layers", tuple((i + 1) % period != 0 for i in range(count)))  # 1: has positions
    window = fields.optional_positive("sliding_window")
    if not fields.flag("use_sliding_window", False):
        window = None
    fields.get("max_window_layers")  # of an earlier schema, read by nobody
    slides = [window is not None and not has_rope for has_rope in turns]
    fields.require("layer_types", ["sliding_attention" if s else "full_attention" for s in slides])
    rope = fields.rope(head_dim, 2_000_000.0)
    return tuple(
        Layer(window if s else None, rope if has_rope else None) for s, has_rope in zip(slides, turns, strict=True)
    )


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = dimensions(
        fields,
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    )
    attention_bias = fields.flag("attention_bias", False)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    return Architecture(
        family="smollm3",
        layers=_layers(fields, sizes["head_dim"]),
        activation=activation(fields, "silu"),
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        tied_embedding=fields.flag("tie_word_embeddings", True),
        qkv_bias=attention_bias,
        attention_output_bias=attention_bias,
        feed_forward_bias=fields.flag("mlp_bias", False),
        **sizes,
    )


SMOLLM3 = Family(
    name="smollm3",
    config_types=("smollm3",),
    read_config=_read_config,
    checkpoint_names=LLAMA_CHECKPOINT_NAMES,
    bin_names={},
    file_traits={},
)
