"""Gemma 3, the text part: https://huggingface.co/docs/transformers/model_doc/gemma3."""

from __future__ import annotations

import math
from functools import partial

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import (
    GELU_TANH_NAMES,
    GEMMA_BIN_NAMES,
    GEMMA_CHAT,
    SANDWICH_CHECKPOINT_NAMES,
    Family,
    FileTraits,
    gemma_dimensions,
    gemma_norm,
)
from hearthlm.models.params import Architecture, Layer


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = gemma_dimensions(
        fields,
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
    )
    fields.choice("hidden_activation", GELU_TANH_NAMES, "gelu_pytorch_tanh")
    norm = gemma_norm(fields)
    rope_global, rope_local = fields.rope_by_layer_type(sizes["head_dim"], 1_000_000.0, 10_000.0)
    window = fields.positive("sliding_window", 4096)
    fields.get("_sliding_window_pattern")  # version 5 repeats the period here; `layer_types` decides
    sliding = fields.layer_is_sliding(fields.num_layers(default=26), 6, names_period="sliding_window_pattern")
    return Architecture(
        family="gemma3",
        layers=tuple(Layer(window, rope_local) if is_sliding else Layer(None, rope_global) for is_sliding in sliding),
        activation="gelu_tanh",
        attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
        attention_norm=norm,
        post_attention_norm=norm,
        feed_forward_norm=norm,
        post_feed_forward_norm=norm,
        query_key_norm=norm,
        final_norm=norm,
        embedding_scale=math.sqrt(sizes["embedding_dim"]),
        attention_soft_cap=fields.optional_number("attn_logit_softcapping"),
        final_soft_cap=fields.optional_number("final_logit_softcapping"),
        **sizes,
    )


_traits = partial(FileTraits, norm_eps=1e-6, norm_scale_offset=1.0, scaled_embedding=True, lora_output_swapped=True)

GEMMA3 = Family(
    name="gemma3",
    config_types=("gemma3_text",),
    read_config=_read_config,
    checkpoint_names=SANDWICH_CHECKPOINT_NAMES,
    bin_names=GEMMA_BIN_NAMES,
    file_traits={
        27: _traits(32768),  # GEMMA3_1B
        28: _traits(131072),  # GEMMA3_4B
        29: _traits(131072),  # GEMMA3_12B
        30: _traits(131072),  # GEMMA3_27B
        38: _traits(32768),  # GEMMA3_300M
        47: _traits(32768),  # FUNCTIONGEMMA3_300M
    },
    chat=GEMMA_CHAT,
    stop_tokens=("<eos>", "<end_of_turn>"),
    litert_lm_type="gemma3",
)
