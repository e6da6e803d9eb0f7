"""Gemma 2: https://huggingface.co/docs/transformers/model_doc/gemma2."""

from __future__ import annotations

import math

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
        vocab_size=256000,
        hidden_size=2304,
        intermediate_size=9216,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    fields.choice("hidden_act", GELU_TANH_NAMES, "gelu_pytorch_tanh")
    fields.choice("hidden_activation", GELU_TANH_NAMES, "gelu_pytorch_tanh")
    norm = gemma_norm(fields)
    rope = fields.rope(sizes["head_dim"], 10000.0)
    window = fields.positive("sliding_window", 4096)
    sliding = fields.layer_is_sliding(fields.num_layers(default=26), pattern=2)
    return Architecture(
        family="gemma2",
        layers=tuple(Layer(window if is_sliding else None, rope) for is_sliding in sliding),
        activation="gelu_tanh",
        attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
        attention_norm=norm,
        post_attention_norm=norm,
        feed_forward_norm=norm,
        post_feed_forward_norm=norm,
        final_norm=norm,
        embedding_scale=math.sqrt(sizes["embedding_dim"]),
        attention_soft_cap=fields.optional_number("attn_logit_softcapping", 50.0),
        final_soft_cap=fields.optional_number("final_logit_softcapping", 30.0),
        **sizes,
    )


GEMMA2 = Family(
    name="gemma2",
    config_types=("gemma2",),
    read_config=_read_config,
    checkpoint_names=SANDWICH_CHECKPOINT_NAMES,
    bin_names=GEMMA_BIN_NAMES,
    file_traits={
        18: FileTraits(  # GEMMA2_2B; the converter leaves the window out on purpose, the model has it
            context_length=8192,
            norm_eps=1e-6,
            norm_scale_offset=1.0,
            scaled_embedding=True,
            window=4096,
            local_layers_per_global=1,
            lora_output_swapped=True,
        )
    },
    chat=GEMMA_CHAT,
    stop_tokens=("<eos>", "<end_of_turn>"),
)
