"""What a model is: its architecture as plain data, read by one forward pass for every family."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hearthlm.errors import UnsupportedModelError

Activation = Literal["gelu_tanh", "gelu", "silu", "relu"]

# No published model comes near these; a file that declares more is refused before anything is sized by it.
MAX_LAYERS = 1024
MAX_DIMENSION = 1 << 20
MAX_VOCABULARY = 1 << 24


@dataclass(frozen=True)
class Norm:
    """Describe a normalisation over the last axis.

    rms: x / sqrt(mean(x^2) + eps) * (scale + scale_offset); layer: (x - mean) / sqrt(var + eps) * scale + bias.
    """

    kind: Literal["rms", "layer"]
    eps: float
    scale_offset: float = 0.0
    has_bias: bool = False


@dataclass(frozen=True)
class Llama3Scaling:
    """Describe how Llama 3.1 stretches its rotary positions: long wavelengths by `factor`, short ones not at all.

    A wavelength is long beyond original_context_length / low_frequency_factor and short below
    original_context_length / high_frequency_factor; between the two the stretch fades.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_length: int


@dataclass(frozen=True)
class Rope:
    """Describe rotary positions on the first `rotary_dim` channels, in pairs (c, c + rotary_dim / 2).

    angle(c) = position * base^(-2c / rotary_dim) / linear_factor, then scaled by `llama3` if given.
    """

    base: float
    rotary_dim: int
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None


@dataclass(frozen=True)
class Layer:
    """Describe what may differ from layer to layer: `window` counts the visible positions, the own one included."""

    window: int | None = None
    rope: Rope | None = None


@dataclass(frozen=True)
class Architecture:
    """Describe a decoder-only transformer completely, tensors aside.

    A layer computes, with every norm that is None left out:
    x += post_attention_norm(attention(attention_norm(x))); x += post_feed_forward_norm(mlp(feed_forward_norm(x))),
    or with `parallel_residual` x += attention(h) + mlp(h), h = attention_norm(x).
    """

    family: str
    vocab_size: int
    embedding_dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    context_length: int
    activation: Activation
    attention_scale: float
    final_norm: Norm
    attention_norm: Norm | None = None
    post_attention_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    post_feed_forward_norm: Norm | None = None
    query_key_norm: Norm | None = None
    query_key_norm_axis: Literal["head", "projection"] = "head"
    embedding_scale: float = 1.0
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    gated: bool = True
    parallel_residual: bool = False
    alibi: bool = False
    learned_positions: bool = False
    tied_embedding: bool = True
    qkv_bias: bool = False
    attention_output_bias: bool = False
    feed_forward_bias: bool = False
    logits_bias: bool = False

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise UnsupportedModelError(f"{name}: expected 1 to {limit}, got {value!r}")
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise UnsupportedModelError(f"number of layers: expected 1 to {MAX_LAYERS}, got {len(self.layers)}")
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        if self.activation not in get_args(Activation):
            raise UnsupportedModelError(
                f"activation: expected one of {', '.join(get_args(Activation))}, got {self.activation!r}"
            )
        for field in dataclasses.fields(self):
            norm = getattr(self, field.name)
            if isinstance(norm, Norm) and not norm.eps >= 0:
                raise UnsupportedModelError(f"{field.name}: expected an eps of at least 0, got {norm.eps}")
        for name in ("attention_soft_cap", "final_soft_cap"):
            cap = getattr(self, name)
            if cap is not None and not cap > 0:
                raise UnsupportedModelError(f"{name}: expected a positive number, got {cap}")
        for i, layer in enumerate(self.layers):
            if layer.window is not None and layer.window < 1:
                raise UnsupportedModelError(f"layers[{i}].window: expected at least 1, got {layer.window}")
            if layer.rope is not None and (
                layer.rope.rotary_dim % 2
                or not 2 <= layer.rope.rotary_dim <= self.head_dim
                or not layer.rope.base > 0
                or not layer.rope.linear_factor > 0
            ):
                raise UnsupportedModelError(
                    f"layers[{i}].rope: expected an even rotary_dim in 2..{self.head_dim} and positive numbers, "
                    f"got {layer.rope}"
                )
            scaling = None if layer.rope is None else layer.rope.llama3
            if scaling is not None and not (
                scaling.factor > 0 and 0 < scaling.low_frequency_factor < scaling.high_frequency_factor
            ):
                raise UnsupportedModelError(
                    f"layers[{i}].rope: expected a positive factor and 0 < low_freq_factor < high_freq_factor, "
                    f"got {scaling}"
                )

    @property
    def query_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return the architecture as JSON values; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Architecture:
        """Rebuild an architecture; raise UnsupportedModelError for a field missing, unknown or of another type."""
        layers = values.get("layers")
        if not isinstance(layers, (list, tuple)) or not 1 <= len(layers) <= MAX_LAYERS:
            raise UnsupportedModelError(f"architecture.layers: expected a list of 1 to {MAX_LAYERS} layers")
        built = dict(values)
        built["layers"] = tuple(_build_layer(layer) for layer in layers)
        for name in get_type_hints(cls):
            if name.endswith("_norm") and name in built:
                built[name] = _optional(Norm, built[name])
        return _build(cls, built)


_LIMITS = {
    "vocab_size": MAX_VOCABULARY,
    "embedding_dim": MAX_DIMENSION,
    "hidden_dim": MAX_DIMENSION,
    "num_heads": MAX_DIMENSION,
    "num_kv_heads": MAX_DIMENSION,
    "head_dim": MAX_DIMENSION,
    "context_length": 1 << 31,
}


_T = TypeVar("_T")


def _build_layer(values: Any) -> Layer:
    if isinstance(values, dict) and isinstance(values.get("rope"), dict):
        rope = dict(values["rope"])
        rope["llama3"] = _optional(Llama3Scaling, rope.get("llama3"))
        values = {**values, "rope": _build(Rope, rope)}
    return _build(Layer, values)


def _optional(kind: type[_T], values: Any) -> _T | None:
    return None if values is None else _build(kind, values)


def _build(kind: type[_T], values: Any) -> _T:
    """Call the dataclass `kind` with `values` after checking names and scalar types against its annotations."""
    if not isinstance(values, dict):
        raise UnsupportedModelError(f"{kind.__name__}: expected an object, got {type(values).__name__}")
    hints = get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise UnsupportedModelError(f"{kind.__name__}: unknown field {unknown[0]!r}; a newer hearthlm may know it")
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise UnsupportedModelError(f"{kind.__name__}.{name}: expected {hints[name]}, got {value!r:.80}")
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default is missing
        raise UnsupportedModelError(f"{kind.__name__}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple)
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
