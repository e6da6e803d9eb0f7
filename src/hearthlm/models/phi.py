"""Phi-1, 1.5 and 2, attention beside feed-forward: https://huggingface.co/docs/transformers/model_doc/phi."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import (
    LLAMA_CHECKPOINT_NAMES,
    PHI_BIN_NAMES,
    Family,
    FileTraits,
    activation,
    dimensions,
    linear_names,
    norm_names,
)
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = dimensions(
        fields,
        vocab_size=51200,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )
    fields.require("qk_layernorm", False)
    fields.require("tie_word_embeddings", False)
    norm = Norm("layer", fields.number("layer_norm_eps", 1e-5), has_bias=True)
    return Architecture(
        family="phi",
        layers=(Layer(rope=fields.rope(sizes["head_dim"], 10000.0, 0.5)),) * fields.num_layers(default=24),
        activation=activation(fields, "gelu_new"),
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        final_norm=norm,
        gated=False,
        parallel_residual=True,
        tied_embedding=False,
        qkv_bias=True,
        attention_output_bias=True,
        feed_forward_bias=True,
        logits_bias=True,
        **sizes,
    )


PHI = Family(
    name="phi",
    config_types=("phi",),
    read_config=_read_config,
    checkpoint_names={
        **LLAMA_CHECKPOINT_NAMES,
        **norm_names("model.final_layernorm", "final_norm"),
        "logits.bias": "lm_head.bias",
        **linear_names("model.layers.{i}.self_attn.dense", "layers.{i}.attention.output"),
        **linear_names("model.layers.{i}.mlp.fc1", "layers.{i}.feed_forward.up"),
        **linear_names("model.layers.{i}.mlp.fc2", "layers.{i}.feed_forward.down"),
    },
    bin_names=PHI_BIN_NAMES,
    file_traits={  # PHI_2
        11: FileTraits(context_length=2048, norm_eps=1e-5, rotary_part=0.4, parallel_residual=True)
    },
    bytes_to_unicode=True,
)
