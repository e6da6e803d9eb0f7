"""Gemma (2B and 7B): https://huggingface.co/docs/transformers/model_doc/gemma."""

from __future__ import annotations

import math

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import (
    GELU_TANH_NAMES,
    GEMMA_BIN_NAMES,
    GEMMA_CHAT,
    LLAMA_CHECKPOINT_NAMES,
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
        hidden_size=3072,
        intermediate_size=24576,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    # The first published configs say "gelu" and mean the tanh form that the model was trained with.
    fields.choice("hidden_act", {**GELU_TANH_NAMES, "gelu": "gelu_tanh"}, "gelu_pytorch_tanh")
    fields.choice("hidden_activation", GELU_TANH_NAMES, "gelu_pytorch_tanh")
    norm = gemma_norm(fields)
    rope = fields.rope(sizes["head_dim"], 10000.0)
    return Architecture(
        family="gemma",
        layers=(Layer(rope=rope),) * fields.num_layers(default=28),
        activation="gelu_tanh",
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        embedding_scale=math.sqrt(sizes["embedding_dim"]),
        **sizes,
    )


_TRAITS = FileTraits(
    context_length=8192, norm_eps=1e-6, norm_scale_offset=1.0, scaled_embedding=True, lora_output_swapped=True
)

GEMMA = Family(
    name="gemma",
    config_types=("gemma",),
    read_config=_read_config,
    checkpoint_names=LLAMA_CHECKPOINT_NAMES,
    bin_names=GEMMA_BIN_NAMES,
    file_traits={6: _TRAITS, 12: _TRAITS},  # GEMMA_2B, GEMMA_7B
    chat=GEMMA_CHAT,
    stop_tokens=("<eos>", "<end_of_turn>"),
)
