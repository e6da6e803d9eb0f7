"""StableLM 3B 4E1T: https://huggingface.co/docs/transformers/model_doc/stablelm."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import (
    GEMMA_BIN_NAMES,
    LLAMA_CHECKPOINT_NAMES,
    TWICE_NAMED_NORM,
    Family,
    FileTraits,
    activation,
    dimensions,
)
from hearthlm.models.params import Architecture, Layer, Norm


def _read_config(fields: ConfigFields) -> Architecture:
    sizes = dimensions(
        fields,
        vocab_size=50304,
        hidden_size=2560,
        intermediate_size=6912,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    )
    fields.require("qk_layernorm", False)
    fields.require("use_parallel_residual", False)
    norm = Norm("layer", fields.number("layer_norm_eps", 1e-5), has_bias=True)
    return Architecture(
        family="stablelm",
        layers=(Layer(rope=fields.rope(sizes["head_dim"], 10000.0, 0.25)),) * fields.num_layers(default=32),
        activation=activation(fields, "silu"),
        attention_scale=sizes["head_dim"] ** -0.5,
        attention_norm=norm,
        feed_forward_norm=norm,
        final_norm=norm,
        tied_embedding=fields.flag("tie_word_embeddings", False),
        qkv_bias=fields.flag("use_qkv_bias", False),
        **sizes,
    )


_LAYER = "params.lm.transformer.x_layers_{i}."

STABLELM = Family(
    name="stablelm",
    config_types=("stablelm",),
    read_config=_read_config,
    checkpoint_names=LLAMA_CHECKPOINT_NAMES,
    bin_names={
        **{name: bin_name for name, bin_name in GEMMA_BIN_NAMES.items() if name != "embedding"},
        "embedding": "params.lm.token_embedding.w",
        "logits": "params.lm.softmax.logits_ffn.w",
        "final_norm.bias": "params.lm.final_ln.bias",
        "layers.{i}.attention_norm.bias": _LAYER + "pre_layer_norm.bias",
        **TWICE_NAMED_NORM,
    },
    file_traits={8: FileTraits(context_length=4096, norm_eps=1e-5, rotary_part=0.25)},  # STABLELM_4E1T_3B
    bytes_to_unicode=True,
)
