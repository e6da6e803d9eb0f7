"""Qwen 2, 2.5 and 3, dense: https://huggingface.co/docs/transformers/model_doc/qwen3."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import LLAMA_CHECKPOINT_NAMES, Family, activation, dimensions
from hearthlm.models.params import Architecture, Layer, Norm


def _layers(fields: ConfigFields, head_dim: int) -> tuple[Layer, ...]:
    """Read the layers; with `use_sliding_window` those from `max_window_layers` on have a window."""
    count = fields.num_layers(default=32)
    rope = fields.rope(head_dim, 10000.0)
    window = fields.get("sliding_window")
    first = fields.integer("max_window_layers", 28)
    if not fields.flag("use_sliding_window", False) or window is None:
        fields.require("layer_types", ["full_attention"] * count)
        return (Layer(rope=rope),) * count
    sliding = tuple(i >= first for i in range(count))
    if fields.get("layer_types") is not None:
        sliding = fields.layer_is_sliding(count, count)
    return tuple(Layer(fields.positive("sliding_window") if is_sliding else None, rope) for is_sliding in sliding)


def _read_qwen2(fields: ConfigFields) -> Architecture:
    return _read_config(fields, "qwen2", head_dim=None)


def _read_qwen3(fields: ConfigFields) -> Architecture:
    return _read_config(fields, "qwen3", head_dim=128)


def _read_config(fields: ConfigFields, family: str, head_dim: int | None) -> Architecture:
    defaults = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    }
    sizes = dimensions(fields, **defaults, **({} if head_dim is None else {"head_dim": head_dim}))
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    bias = family == "qwen3" and fields.flag("attention_bias", False)
    return Architecture(
        family=family,
        layers=_layers(fields, sizes["head_dim"]),
        activation=activation(fields, "silu"),
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        query_key_norm=norm if family == "qwen3" else None,
        tied_embedding=fields.flag("tie_word_embeddings", False),
        qkv_bias=bias or family == "qwen2",
        attention_output_bias=bias,
        **sizes,
    )


QWEN2 = Family(
    name="qwen2",
    config_types=("qwen2",),
    read_config=_read_qwen2,
    checkpoint_names=LLAMA_CHECKPOINT_NAMES,
    bin_names={},
    file_traits={},
    litert_lm_type="qwen2p5",
)

QWEN3 = Family(
    name="qwen3",
    config_types=("qwen3",),
    read_config=_read_qwen3,
    checkpoint_names=LLAMA_CHECKPOINT_NAMES,
    bin_names={},
    file_traits={},
    litert_lm_type="qwen3",
)
