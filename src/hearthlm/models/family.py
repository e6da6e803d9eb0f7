"""What a family of models is: how its configs are read, what its tensors are called, how its chats are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hearthlm.errors import UnsupportedModelError
from hearthlm.models.config_fields import ConfigFields
from hearthlm.models.params import Activation, Architecture, Layer, Norm, Rope

QuantizationGroup = Literal["attention", "feed_forward", "embedding"]


@dataclass(frozen=True)
class Stored:
    """Say how a checkpoint stores a tensor that is not alone under its name as (out, in).

    `roles` are those whose rows lie in the tensor `name`, the own one included, one below the other; with `by_head`
    head by head: the rows of the first key-value head of each role, then those of the second ...
    `transposed` says that the tensor is (in, out).
    """

    name: str
    roles: tuple[str, ...] = ()
    by_head: bool = False
    transposed: bool = False


def linear_names(name: str, *roles: str, by_head: bool = False, transposed: bool = False) -> dict[str, Stored]:
    """Return the entries of `checkpoint_names` for a matrix, or several in one, and for the bias beside it."""
    biases = tuple(f"{role}.bias" for role in roles)
    return {
        **dict.fromkeys(roles, Stored(f"{name}.weight", roles, by_head, transposed)),
        **dict.fromkeys(biases, Stored(f"{name}.bias", biases, by_head)),
    }


def norm_names(name: str, role: str) -> dict[str, str]:
    """Return the entries of `checkpoint_names` for a norm and its bias."""
    return {f"{role}.scale": f"{name}.weight", f"{role}.bias": f"{name}.bias"}


@dataclass(frozen=True)
class StoredRows:
    """Say which rows of a checkpoint's tensor are a tensor of the model.

    `shape` is that of the whole as stored. Its rows, the columns if `transposed`, are `num_groups` groups of one
    length; in each the wanted ones begin at `begin`.
    """

    shape: tuple[int, ...]
    begin: int = 0
    num_groups: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class TensorSpec:
    """Name one tensor of a model in the checkpoint and in a MediaPipe file.

    `shape` is (out, in) for a matrix and (length,) for a vector; `group` is None for what is never quantised.
    `checkpoint_rows` says where it lies in the checkpoint's tensor. A MediaPipe file may use any of `bin_names`; the
    first is the one that is written for a CPU, the last for a GPU.
    """

    role: str
    shape: tuple[int, ...]
    checkpoint_name: str
    checkpoint_rows: StoredRows
    bin_names: tuple[str, ...]
    group: QuantizationGroup | None


@dataclass(frozen=True)
class PromptTemplate:
    """Hold what is written before and after one role's turn."""

    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class PromptTemplates:
    """Hold the turns of a conversation as MediaPipe's message PromptTemplates does."""

    user: PromptTemplate = PromptTemplate()
    model: PromptTemplate = PromptTemplate()
    system: PromptTemplate = PromptTemplate()
    session_prefix: str = ""  # written once, before the first turn


@dataclass(frozen=True)
class FileParameters:
    """Hold what the message TransformerParameters of a MediaPipe file declares, with its enums as names.

    Norms are "none", "rms", "layer" or "rms_no_scale"; 0 and None mean that the field is absent.
    """

    model_type: int
    vocab_size: int
    embedding_dim: int
    hidden_dim: int
    head_dim: int
    num_heads: int
    num_kv_heads: int
    num_layers: int
    pre_norm: str
    post_norm: str
    final_norm: str
    feed_forward_pre_norm: str
    feed_forward_post_norm: str
    activation: str
    qkv_bias: bool
    attention_output_bias: bool
    feed_forward_bias: bool
    logits_bias: bool
    attention_soft_cap: float
    final_soft_cap: float
    attention_scale_type: str
    query_rescale_factor: float | None
    sliding_window: int
    query_key_norm: bool
    local_layers_per_global: int
    global_rope_base: float | None
    global_rope_scaling: float | None


@dataclass(frozen=True)
class FileTraits:
    """State what a MediaPipe file does not declare and the model of that type has nevertheless."""

    context_length: int
    norm_eps: float
    norm_scale_offset: float = 0.0
    scaled_embedding: bool = False
    rope_base: float | None = 10000.0
    rotary_part: float = 1.0  # of the head's channels
    window: int | None = None
    local_layers_per_global: int = 0
    parallel_residual: bool = False
    alibi: bool = False
    activation: Mapping[str, Activation] | None = None
    lora_output_swapped: bool = False  # MediaPipe's runtime looks for each of its factors under the other's name


@dataclass(frozen=True)
class Family:
    """Describe one family; everything that differs between families is in here."""

    name: str
    config_types: tuple[str, ...]  # `model_type` of config.json
    read_config: Callable[[ConfigFields], Architecture]
    checkpoint_names: Mapping[str, str | Stored]
    bin_names: Mapping[str, str | tuple[str, ...]]
    file_traits: Mapping[int, FileTraits]  # by LlmModelType
    chat: PromptTemplates | None = None
    stop_tokens: tuple[str, ...] = ()
    bytes_to_unicode: bool = False
    litert_lm_type: str = "generic_model"  # LiteRT-LM's name for models that are talked to in this way

    def read_file_parameters(self, declared: FileParameters) -> Architecture:
        """Return the architecture of a MediaPipe file: what it declares, completed by the traits of its type.

        Raises UnsupportedModelError for a declared value that no forward pass here computes.
        """
        traits = self.file_traits[declared.model_type]
        d = declared

        def norm(kind: str) -> Norm | None:
            if kind == "none":
                return None
            if kind == "rms":
                return Norm("rms", traits.norm_eps, traits.norm_scale_offset)
            if kind == "layer":
                return Norm("layer", traits.norm_eps, has_bias=True)
            raise UnsupportedModelError(f"norm {kind!r} is not supported; expected none, rms or layer")

        final_norm = norm(d.final_norm)
        if final_norm is None:
            raise UnsupportedModelError("final_norm: expected rms or layer, got none")
        per_global = d.local_layers_per_global or traits.local_layers_per_global
        window = d.sliding_window or traits.window
        head_dim = d.head_dim
        rotary_dim = int(head_dim * traits.rotary_part) // 2 * 2

        def layer(i: int) -> Layer:
            is_local = window is not None and per_global > 0 and (i + 1) % (per_global + 1) != 0
            is_local = is_local or (window is not None and per_global == 0)
            if traits.rope_base is None:
                return Layer(window if is_local else None)
            if is_local or per_global == 0:
                return Layer(window if is_local else None, Rope(traits.rope_base, rotary_dim))
            base = d.global_rope_base or traits.rope_base
            return Layer(None, Rope(base, rotary_dim, d.global_rope_scaling or 1.0))

        activations = {"gelu": "gelu_tanh", "silu": "silu", "relu": "relu"} | dict(traits.activation or {})
        if d.activation not in activations:
            raise UnsupportedModelError(f"activation {d.activation!r} is not supported")
        query_key_norm = Norm("rms", traits.norm_eps, traits.norm_scale_offset) if d.query_key_norm else None
        return Architecture(
            family=self.name,
            vocab_size=d.vocab_size,
            embedding_dim=d.embedding_dim,
            hidden_dim=d.hidden_dim,
            num_heads=d.num_heads,
            num_kv_heads=d.num_kv_heads or d.num_heads,
            head_dim=head_dim,
            layers=tuple(layer(i) for i in range(d.num_layers)),
            context_length=traits.context_length,
            activation=activations[d.activation],  # type: ignore[arg-type]
            attention_scale=_attention_scale(d),
            final_norm=final_norm,
            attention_norm=norm(d.pre_norm),
            post_attention_norm=norm(d.post_norm),
            feed_forward_norm=norm(d.feed_forward_pre_norm),
            post_feed_forward_norm=norm(d.feed_forward_post_norm),
            query_key_norm=query_key_norm,
            embedding_scale=math.sqrt(d.embedding_dim) if traits.scaled_embedding else 1.0,
            attention_soft_cap=d.attention_soft_cap or None,
            final_soft_cap=d.final_soft_cap or None,
            gated="layers.{i}.feed_forward.gate" in self.bin_names,
            parallel_residual=traits.parallel_residual,
            alibi=traits.alibi,
            tied_embedding="embedding" not in self.bin_names or "logits" not in self.bin_names,
            qkv_bias=d.qkv_bias,
            attention_output_bias=d.attention_output_bias,
            feed_forward_bias=d.feed_forward_bias,
            logits_bias=d.logits_bias,
        )

    def tensors(self, architecture: Architecture) -> Iterator[TensorSpec]:
        """Yield every tensor that `architecture` needs, layer by layer."""
        roles = [(*role.partition("#")[::2], shape, group) for role, shape, group in _roles(architecture)]
        shapes = {template: shape for template, _, shape, _ in roles}
        for template, number, shape, group in roles:
            stored = self.checkpoint_names[template]
            stored = Stored(stored) if isinstance(stored, str) else stored
            bin_names = self.bin_names.get(template) or _OTHER_BIN_NAMES[template]
            bin_names = (bin_names,) if isinstance(bin_names, str) else bin_names
            yield TensorSpec(
                role=template.replace("{i}", number),
                shape=shape,
                checkpoint_name=stored.name.replace("{i}", number),
                checkpoint_rows=_stored_rows(stored, template, shapes, architecture.num_kv_heads),
                bin_names=tuple(name.replace("{i}", number) for name in bin_names),
                group=group,
            )


def _stored_rows(stored: Stored, role: str, shapes: Mapping[str, tuple[int, ...]], num_kv_heads: int) -> StoredRows:
    roles = stored.roles or (role,)
    whole = (sum(shapes[r][0] for r in roles), *shapes[role][1:])
    num_groups = num_kv_heads if stored.by_head else 1
    before = sum(shapes[r][0] for r in roles[: roles.index(role)])
    return StoredRows(
        shape=whole[::-1] if stored.transposed else whole,
        begin=before // num_groups,
        num_groups=num_groups,
        transposed=stored.transposed,
    )


def _attention_scale(d: FileParameters) -> float:
    """Return what the scores are multiplied by; the enum's meaning is MediaPipe's (specs of AttentionScaleType)."""
    kind = d.attention_scale_type
    if kind == "inv_sqrt_head_dim" or (kind == "unspecified" and 0 < d.num_kv_heads < d.num_heads):
        return float(d.head_dim**-0.5)
    if kind == "inv_sqrt_d_model_div_num_heads":
        return float((d.embedding_dim // max(1, d.num_heads)) ** -0.5)
    if kind == "rescale_factor_inv_head_dim":
        return (d.query_rescale_factor or 1.0) / d.head_dim
    raise UnsupportedModelError(f"attention scale {kind!r} is not supported")


def _roles(a: Architecture) -> Iterator[tuple[str, tuple[int, ...], QuantizationGroup | None]]:
    """Yield (role, shape, group) of every tensor; "{i}" in a role stands for the layer number after "#"."""

    def norm(role: str, kind: Norm | None, length: int) -> Iterator[tuple[str, tuple[int, ...], None]]:
        if kind is not None:
            name, mark, number = role.partition("#")
            yield f"{name}.scale{mark}{number}", (length,), None
            if kind.has_bias:
                yield f"{name}.bias{mark}{number}", (length,), None

    def linear(
        role: str, out: int, columns: int, group: QuantizationGroup, bias: bool
    ) -> Iterator[tuple[str, tuple[int, ...], QuantizationGroup | None]]:
        yield role, (out, columns), group
        if bias:
            name, mark, number = role.partition("#")
            yield f"{name}.bias{mark}{number}", (out,), None

    dim = a.embedding_dim
    yield from linear("embedding", a.vocab_size, dim, "embedding", False)
    if a.learned_positions:
        yield "position_embedding", (a.context_length, dim), None
    for i in range(a.num_layers):
        p = "layers.{i}."
        yield from norm(f"{p}attention_norm#{i}", a.attention_norm, dim)
        yield from linear(f"{p}attention.query#{i}", a.query_dim, dim, "attention", a.qkv_bias)
        yield from linear(f"{p}attention.key#{i}", a.kv_dim, dim, "attention", a.qkv_bias)
        yield from linear(f"{p}attention.value#{i}", a.kv_dim, dim, "attention", a.qkv_bias)
        per_head = a.query_key_norm_axis == "head"
        yield from norm(f"{p}attention.query_norm#{i}", a.query_key_norm, a.head_dim if per_head else a.query_dim)
        yield from norm(f"{p}attention.key_norm#{i}", a.query_key_norm, a.head_dim if per_head else a.kv_dim)
        yield from linear(f"{p}attention.output#{i}", dim, a.query_dim, "attention", a.attention_output_bias)
        yield from norm(f"{p}post_attention_norm#{i}", a.post_attention_norm, dim)
        yield from norm(f"{p}feed_forward_norm#{i}", a.feed_forward_norm, dim)
        if a.gated:
            yield from linear(f"{p}feed_forward.gate#{i}", a.hidden_dim, dim, "feed_forward", a.feed_forward_bias)
        yield from linear(f"{p}feed_forward.up#{i}", a.hidden_dim, dim, "feed_forward", a.feed_forward_bias)
        yield from linear(f"{p}feed_forward.down#{i}", dim, a.hidden_dim, "feed_forward", a.feed_forward_bias)
        yield from norm(f"{p}post_feed_forward_norm#{i}", a.post_feed_forward_norm, dim)
    yield from norm("final_norm", a.final_norm, dim)
    if not a.tied_embedding:
        yield from linear("logits", a.vocab_size, dim, "embedding", a.logits_bias)


_ATTENTION = "params.lm.transformer.x_layers_{i}.self_attention."
_LAYER = "params.lm.transformer.x_layers_{i}."

# Gemma's names in a MediaPipe file: the embedding is the (tied) output matrix.
GEMMA_BIN_NAMES: Mapping[str, str] = {
    "embedding": "params.lm.softmax.logits_ffn.w",
    "final_norm.scale": "params.lm.final_ln.scale",
    "layers.{i}.attention_norm.scale": _LAYER + "pre_layer_norm.scale",
    "layers.{i}.attention.query": _ATTENTION + "q.w",
    "layers.{i}.attention.key": _ATTENTION + "k.w",
    "layers.{i}.attention.value": _ATTENTION + "v.w",
    "layers.{i}.attention.output": _ATTENTION + "post.w",
    "layers.{i}.attention.query_norm.scale": _ATTENTION + "q_norm.scale",
    "layers.{i}.attention.key_norm.scale": _ATTENTION + "k_norm.scale",
    "layers.{i}.post_attention_norm.scale": _LAYER + "post_layer_norm.scale",
    "layers.{i}.feed_forward_norm.scale": _LAYER + "ff_layer.pre_layer_norm.scale",
    "layers.{i}.post_feed_forward_norm.scale": _LAYER + "ff_layer.post_layer_norm.scale",
    "layers.{i}.feed_forward.gate": _LAYER + "ff_layer.ffn_layer1_gate.w",
    "layers.{i}.feed_forward.up": _LAYER + "ff_layer.ffn_layer1.w",
    "layers.{i}.feed_forward.down": _LAYER + "ff_layer.ffn_layer2.w",
}

# Phi's, with biases.
PHI_BIN_NAMES: Mapping[str, str] = {
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
}

# The converter names this norm one way for the CPU and another for the GPU.
TWICE_NAMED_NORM: Mapping[str, tuple[str, str]] = {
    "layers.{i}.feed_forward_norm.scale": (_LAYER + "ff_layer.pre_layer_norm.scale", _LAYER + "post_layer_norm.scale"),
    "layers.{i}.feed_forward_norm.bias": (_LAYER + "ff_layer.pre_layer_norm.bias", _LAYER + "post_layer_norm.bias"),
}

# What MediaPipe's own families have no word for, in their manner.
_OTHER_BIN_NAMES: Mapping[str, str] = {
    **PHI_BIN_NAMES,
    **GEMMA_BIN_NAMES,
    "embedding": "params.lm.token_embedding.w",
    "position_embedding": "params.lm.position_embedding.w",
    "logits": "params.lm.softmax.logits_ffn.w",
    "layers.{i}.attention.query_norm.bias": _ATTENTION + "q_norm.bias",
    "layers.{i}.attention.key_norm.bias": _ATTENTION + "k_norm.bias",
    "layers.{i}.post_attention_norm.bias": _LAYER + "post_layer_norm.bias",
    "layers.{i}.feed_forward_norm.bias": _LAYER + "ff_layer.pre_layer_norm.bias",
    "layers.{i}.feed_forward.gate.bias": _LAYER + "ff_layer.ffn_layer1_gate.bias.b",
    "layers.{i}.post_feed_forward_norm.bias": _LAYER + "ff_layer.post_layer_norm.bias",
}

# What lies in one tensor where a checkpoint joins the projections.
QKV = ("layers.{i}.attention.query", "layers.{i}.attention.key", "layers.{i}.attention.value")

# The names that Llama gave its tensors, and most families after it.
LLAMA_CHECKPOINT_NAMES: Mapping[str, str] = {
    "embedding": "model.embed_tokens.weight",
    "final_norm.scale": "model.norm.weight",
    "logits": "lm_head.weight",
    "layers.{i}.attention_norm.scale": "model.layers.{i}.input_layernorm.weight",
    "layers.{i}.attention.query": "model.layers.{i}.self_attn.q_proj.weight",
    "layers.{i}.attention.key": "model.layers.{i}.self_attn.k_proj.weight",
    "layers.{i}.attention.value": "model.layers.{i}.self_attn.v_proj.weight",
    "layers.{i}.attention.output": "model.layers.{i}.self_attn.o_proj.weight",
    "layers.{i}.attention.query_norm.scale": "model.layers.{i}.self_attn.q_norm.weight",
    "layers.{i}.attention.key_norm.scale": "model.layers.{i}.self_attn.k_norm.weight",
    "layers.{i}.feed_forward_norm.scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.feed_forward.gate": "model.layers.{i}.mlp.gate_proj.weight",
    "layers.{i}.feed_forward.up": "model.layers.{i}.mlp.up_proj.weight",
    "layers.{i}.feed_forward.down": "model.layers.{i}.mlp.down_proj.weight",
    "final_norm.bias": "model.norm.bias",
    "layers.{i}.attention_norm.bias": "model.layers.{i}.input_layernorm.bias",
    "layers.{i}.attention.query.bias": "model.layers.{i}.self_attn.q_proj.bias",
    "layers.{i}.attention.key.bias": "model.layers.{i}.self_attn.k_proj.bias",
    "layers.{i}.attention.value.bias": "model.layers.{i}.self_attn.v_proj.bias",
    "layers.{i}.attention.output.bias": "model.layers.{i}.self_attn.o_proj.bias",
    "layers.{i}.feed_forward_norm.bias": "model.layers.{i}.post_attention_layernorm.bias",
    "layers.{i}.feed_forward.gate.bias": "model.layers.{i}.mlp.gate_proj.bias",
    "layers.{i}.feed_forward.up.bias": "model.layers.{i}.mlp.up_proj.bias",
    "layers.{i}.feed_forward.down.bias": "model.layers.{i}.mlp.down_proj.bias",
}

# Gemma 2 and 3 have four norms per layer; `post_attention_layernorm` means what it says there.
SANDWICH_CHECKPOINT_NAMES: Mapping[str, str] = {
    **LLAMA_CHECKPOINT_NAMES,
    "layers.{i}.post_attention_norm.scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers.{i}.feed_forward_norm.scale": "model.layers.{i}.pre_feedforward_layernorm.weight",
    "layers.{i}.post_feed_forward_norm.scale": "model.layers.{i}.post_feedforward_layernorm.weight",
}

# transformers names its activations after their formulas.
GELU_TANH_NAMES: Mapping[str, str] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
ACTIVATION_NAMES: Mapping[str, Activation] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}

GEMMA_CHAT = PromptTemplates(
    user=PromptTemplate("<start_of_turn>user\n", "<end_of_turn>\n"),
    model=PromptTemplate("<start_of_turn>model\n", "<end_of_turn>\n"),
)


def gemma_dimensions(fields: ConfigFields, **defaults: int) -> dict[str, Any]:
    """Read the dimensions of a Gemma config and refuse what no Gemma has."""
    fields.require("attention_bias", False)
    fields.require("use_bidirectional_attention", False)
    fields.require("tie_word_embeddings", True)
    return dimensions(fields, **{"head_dim": 256, "max_position_embeddings": 8192, **defaults})


def gemma_norm(fields: ConfigFields) -> Norm:
    """Return Gemma's RMS norm, whose stored scale is the true one minus 1."""
    return Norm("rms", fields.number("rms_norm_eps", 1e-6), scale_offset=1.0)


def activation(fields: ConfigFields, default: str, name: str = "hidden_act") -> Activation:
    """Read the activation from the field `name`."""
    return ACTIVATION_NAMES[fields.choice(name, {known: known for known in ACTIVATION_NAMES}, default)]


def dimensions(fields: ConfigFields, **defaults: int) -> dict[str, Any]:
    """Read the fields that nearly every config.json has, as arguments of Architecture."""
    heads = fields.positive("num_attention_heads", defaults.get("num_attention_heads"))
    embedding_dim = fields.positive("hidden_size", defaults.get("hidden_size"))
    return {
        "vocab_size": fields.positive("vocab_size", defaults.get("vocab_size")),
        "embedding_dim": embedding_dim,
        "hidden_dim": fields.positive("intermediate_size", defaults.get("intermediate_size")),
        "num_heads": heads,
        "num_kv_heads": fields.positive("num_key_value_heads", defaults.get("num_key_value_heads", heads)),
        "head_dim": fields.positive("head_dim", defaults.get("head_dim", embedding_dim // heads)),
        "context_length": fields.positive("max_position_embeddings", defaults.get("max_position_embeddings")),
    }
