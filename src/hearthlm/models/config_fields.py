"""Reads a Hugging Face `config.json` field by field, and refuses what nobody read.

Both schemas are understood: version 4 of transformers (`rope_theta`, `rope_scaling`, `rope_local_base_freq`) and
version 5 (`rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hearthlm.errors import UnsupportedModelError
from hearthlm.models.params import MAX_LAYERS, Llama3Scaling, Rope

# Fields that do not change what a forward pass computes.
_WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path _num_labels architectures attention_dropout
    attn_pdrop auto_map
    begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward diversity_penalty do_sample dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_llama_config label2id length_penalty max_length min_length model_type n_special
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_past output_scores pad_token_id predict_special_tokens prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    use_cache
    """.split()  # noqa: SIM905
)

# Fields that must keep these values: anything else would change the result, and nothing here computes it.
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "bad_words_ids": (None,),
    "cross_attention_hidden_size": (None,),
    "decoder_start_token_id": (None,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}

_LARGEST_INTEGER = 1 << 53  # of those that a float can count


class ConfigFields:
    """Hand out the fields of one config and remember which were asked for."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self._config = config
        self._read: set[str] = set()
        self._where = where

    def _refuse(self, name: str, expected: str, got: Any) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._where}: {name}: expected {expected}, got {got!r:.80}")

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        value = self._config.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST_INTEGER:
            raise self._refuse(name, "an integer", value)
        return value

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.integer(name, default)
        if value < 1:
            raise self._refuse(name, "a positive integer", value)
        return value

    def optional_positive(self, name: str, default_if_absent: int | None = None) -> int | None:
        """Return the positive integer; null means None, an absent field the default."""
        if name not in self._config:
            return default_if_absent
        return None if self.get(name) is None else self.positive(name)

    def divisor(self, name: str, of: int, default: int) -> int:
        """Return a positive integer that divides `of`."""
        value = self.positive(name, default)
        if of % value:
            raise self._refuse(name, f"a divisor of {of}", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _LARGEST_INTEGER:  # nor is NaN
            raise self._refuse(name, "a number", value)
        return float(value)

    def optional_number(self, name: str, default_if_absent: float | None = None) -> float | None:
        """Return the number; null means None, an absent field the default."""
        if name not in self._config:
            return default_if_absent
        return None if self.get(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._refuse(name, "true or false", value)
        return value

    def flags(self, name: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
        """Return a list of true or false, or of 1 or 0, as long as the default."""
        value = self.get(name, list(default))
        if not isinstance(value, list) or len(value) != len(default) or any(entry not in (0, 1) for entry in value):
            raise self._refuse(name, f"a list of {len(default)} ones and zeros", value)
        return tuple(map(bool, value))

    def choice(self, name: str, options: Mapping[str, str], default: str) -> str:
        """Return what `options` maps the field to."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in options:
            raise self._refuse(name, f"one of {', '.join(options)}", value)
        return options[value]

    def require(self, name: str, *allowed: Any) -> None:
        """Refuse the config unless the field is absent, null or one of `allowed`."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise self._refuse(name, " or ".join(repr(a) for a in allowed), value)

    def num_layers(self, name: str = "num_hidden_layers", default: int | None = None) -> int:
        value = self.integer(name, default)
        if not 1 <= value <= MAX_LAYERS:
            raise self._refuse(name, f"1 to {MAX_LAYERS}", value)
        return value

    def layer_is_sliding(self, num_layers: int, pattern: int, names_period: str | None = None) -> tuple[bool, ...]:
        """Return for each layer whether its window slides: from `layer_types`, else every `pattern`-th layer is global.

        `names_period` names the field that may override `pattern`.
        """
        types = self.get("layer_types")
        period = self.integer(names_period, pattern) if names_period else pattern
        if types is None:
            if period < 1:
                raise self._refuse(str(names_period), "at least 1", period)
            return tuple((i + 1) % period != 0 for i in range(num_layers))
        if not isinstance(types, list) or len(types) != num_layers:
            raise self._refuse("layer_types", f"a list of {num_layers} entries", types)
        known = {"sliding_attention": True, "full_attention": False}
        for entry in types:
            if entry not in known:
                raise self._refuse("layer_types", f"entries among {', '.join(known)}", entry)
        return tuple(known[entry] for entry in types)

    def rope(self, head_dim: int, default_base: float, default_partial: float | None = None) -> Rope:
        """Read the one set of rotary parameters of a model, in either schema.

        `default_partial` is the part of the head that turns where the config does not say it; None: all, always.
        """
        theta = self.number("rope_theta", default_base)
        scaling, parameters = self._rope_objects()
        partial = 1.0
        if default_partial is not None:
            partial = self.number("partial_rotary_factor", default_partial)
            if isinstance(parameters, dict):
                partial = ConfigFields(parameters, self._where).number("partial_rotary_factor", partial)
        name = "rope_parameters" if parameters else "rope_scaling"
        return self._rope(name, parameters or scaling, int(head_dim * partial), theta, partial)

    def rope_by_layer_type(self, rotary_dim: int, default_global: float, default_local: float) -> tuple[Rope, Rope]:
        """Read (global, local) rotary parameters in either schema."""
        base_global = self.number("rope_theta", default_global)
        base_local = self.number("rope_local_base_freq", default_local)
        scaling, parameters = self._rope_objects()
        if parameters is None:
            return self._rope("rope_scaling", scaling, rotary_dim, base_global), Rope(base_local, rotary_dim)
        if not isinstance(parameters, dict) or set(parameters) - {"full_attention", "sliding_attention"}:
            raise self._refuse("rope_parameters", "an object with full_attention and sliding_attention", parameters)
        full, sliding = parameters.get("full_attention"), parameters.get("sliding_attention")
        return (
            self._rope("rope_parameters.full_attention", full, rotary_dim, base_global),
            self._rope("rope_parameters.sliding_attention", sliding, rotary_dim, base_local),
        )

    def _rope_objects(self) -> tuple[Any, Any]:
        """Return (rope_scaling, rope_parameters), of which one config has one."""
        scaling, parameters = self.get("rope_scaling"), self.get("rope_parameters")
        if scaling and parameters and scaling != parameters:
            raise self._refuse("rope_scaling", "nothing, or the same, beside rope_parameters", scaling)
        return scaling, parameters

    def _rope(self, name: str, parameters: Any, rotary_dim: int, default_base: float, partial: float = 1.0) -> Rope:
        if parameters is None:
            return Rope(default_base, rotary_dim)
        if not isinstance(parameters, dict):
            raise self._refuse(name, "an object", parameters)
        fields = ConfigFields(parameters, f"{self._where}: {name}")
        kinds = {kind: kind for kind in ("default", "linear", "llama3")}
        kind = fields.choice("rope_type", kinds, fields.get("type", "default"))
        base = fields.number("rope_theta", default_base)
        factor, llama3 = 1.0, None
        if kind == "linear":
            factor = fields.number("factor", 1.0)
        elif kind == "llama3":
            llama3 = Llama3Scaling(
                factor=fields.number("factor"),
                low_frequency_factor=fields.number("low_freq_factor"),
                high_frequency_factor=fields.number("high_freq_factor"),
                original_context_length=fields.positive("original_max_position_embeddings"),
            )
        else:
            fields.require("factor", 1, 1.0)
        fields.require("partial_rotary_factor", 1, 1.0, partial)
        fields.finish()
        return Rope(base, rotary_dim, factor, llama3)

    def finish(self) -> None:
        """Raise UnsupportedModelError for a field that may change the result and that nobody read."""
        for name, allowed in _MUST_BE.items():
            if name in self._config and self._config[name] not in allowed:
                raise self._refuse(name, " or ".join(repr(a) for a in allowed), self._config[name])
        for name in sorted(set(self._config) - self._read - _WITHOUT_EFFECT - set(_MUST_BE)):
            value = self._config[name]
            if value is not None:
                raise UnsupportedModelError(
                    f"{self._where}: the field {name} = {value!r:.80} is not understood and may change the result"
                )
