"""Phi-1, 1.5 and 2, attention beside feed-forward: https://huggingface.co/docs/transformers/model_doc/phi."""

from __future__ import annotations

from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.family import LLAMA_CHECKPOINT_NAMES, Family, FileTraits, activation, dimensions
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


_LAYER = "params.lm.transformer.x_layers_{i}."
_ATTENTION = _LAYER + "self_attention."

PHI = Family(
    name="phi",
    config_types=("phi",),
    read_config=_read_config,
    checkpoint_names={
        **LLAMA_CHECKPOINT_NAMES,
        "final_norm.scale": "model.final_layernorm.weight",
        "final_norm.bias": "model.final_layernorm.bias",
        "logits.bias": "lm_head.bias",
        "layers.{i}.attention.output": "model.layers.{i}.self_attn.dense.weight",
        "layers.{i}.attention.output.bias": "model.layers.{i}.self_attn.dense.bias",
        "layers.{i}.feed_forward.up": "model.layers.{i}.mlp.fc1.weight",
        "layers.{i}.feed_forward.up.bias": "model.layers.{i}.mlp.fc1.bias",
        "layers.{i}.feed_forward.down": "model.layers.{i}.mlp.fc2.weight",
        "layers.{i}.feed_forward.down.bias": "model.layers.{i}.mlp.fc2.bias",
    },
    bin_names={
        "embedding": "params.lm.token_embedding.w",
        "final_norm.scale": "params.lm.final_ln.scale",
        "final_norm.bias": "params.lm.final_ln.bias",
        "logits": "params.lm.softmax.logits_ffn.linear.w",
        "logits.bias": "params.lm.softmax.logits_ffn.bias.b",
        "layers.{i}.attention_norm.scale": _LAYER + "pre_layer_norm.scale",
        "layers.{i}.attention_norm.bias": _LAYER + "pre_layer_norm.bias",
        "layers.{i}.attention.query": _ATTENTION + "q.linear.w",
        "layers.{i}.attention.query.bias": _ATTENTION + "q.bias.b",
        "layers.{i}.attention.key": _ATTENTION + "k.linear.w",
        "layers.{i}.attention.key.bias": _ATTENTION + "k.bias.b",
        "layers.{i}.attention.value": _ATTENTION + "v.linear.w",
        "layers.{i}.attention.value.bias": _ATTENTION + "v.bias.b",
        "layers.{i}.attention.output": _ATTENTION + "post.linear.w",
        "layers.{i}.attention.output.bias": _ATTENTION + "post.bias.b",
        "layers.{i}.feed_forward.up": _LAYER + "ff_layer.ffn_layer1.linear.w",
        "layers.{i}.feed_forward.up.bias": _LAYER + "ff_layer.ffn_layer1.bias.b",
        "layers.{i}.feed_forward.down": _LAYER + "ff_layer.ffn_layer2.linear.w",
        "layers.{i}.feed_forward.down.bias": _LAYER + "ff_layer.ffn_layer2.bias.b",
    },
    file_traits={  # PHI_2
        11: FileTraits(context_length=2048, norm_eps=1e-5, rotary_part=0.4, parallel_residual=True)
    },
    bytes_to_unicode=True,
)
