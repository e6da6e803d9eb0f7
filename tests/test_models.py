"""Configs become architectures, and what is not understood is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from published_configs import NUM_PARAMETERS, PUBLISHED
from random_models import CONFIGS, random_tensors, write_checkpoint

from hearthlm.errors import TensorMismatchError, UnsupportedModelError
from hearthlm.formats.llm_parameters import file_parameters, llm_parameters, prompt_templates
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.models import FAMILIES, read_config
from hearthlm.models.family import PromptTemplate, TensorSpec
from hearthlm.models.params import Architecture, Rope
from hearthlm.runtime.checkpoint_source import rows_of, view_of
from hearthlm.runtime.model import Model

GEMMA3_1B = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "vocab_size": 262144,
}


def test_gemma3_has_five_local_layers_to_one_global_and_two_bases() -> None:
    _, a = read_config(GEMMA3_1B)
    assert [layer.window for layer in a.layers[:12]] == ([512] * 5 + [None]) * 2
    assert a.layers[0].rope == Rope(10_000.0, 256)
    assert a.layers[5].rope == Rope(1_000_000.0, 256)
    assert a.embedding_scale == 1152**0.5


def test_both_schemas_of_config_json_give_the_same_architecture() -> None:
    old = {
        **GEMMA3_1B,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    new = {
        **GEMMA3_1B,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    assert read_config(old) == read_config(new)
    assert read_config(old)[1].layers[5].rope == Rope(1e6, 256, linear_factor=8.0)


def test_the_text_part_of_a_model_of_text_and_images_is_read_from_text_config() -> None:
    family, a = read_config(PUBLISHED["gemma-3-4b-it"])
    assert (family.name, a.embedding_dim, a.num_layers, a.num_heads, a.num_kv_heads) == ("gemma3", 2560, 34, 8, 4)
    assert a.layers[5].rope == Rope(1e6, 256, linear_factor=8.0)


@pytest.mark.oracle
@pytest.mark.parametrize("name", [*CONFIGS, *PUBLISHED])
def test_a_config_that_transformers_writes_today_means_the_same(name: str) -> None:
    from transformers import AutoConfig

    config = CONFIGS.get(name) or PUBLISHED[name]
    written = AutoConfig.for_model(**config)
    for values in (written.to_dict(), written.to_diff_dict()):
        assert read_config(json.loads(json.dumps(values))) == read_config(config)


def test_gelu_in_a_first_generation_config_means_the_tanh_form() -> None:
    config = {**CONFIGS["gemma_mqa"], "hidden_act": "gelu", "hidden_activation": None}
    assert read_config(config)[1].activation == "gelu_tanh"


@pytest.mark.parametrize("name", CONFIGS)
def test_an_architecture_survives_json(name: str) -> None:
    _, a = read_config(CONFIGS[name])
    assert Architecture.from_json(json.loads(json.dumps(a.to_json()))) == a


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "bert"}, "model_type"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attention_sinks": 4}, "attention_sinks"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_kv_heads"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 26}, "layer_types"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_the_name_of_the_field(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read_config({**GEMMA3_1B, **change})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_give_models_of_the_published_size(name: str) -> None:
    family, a = read_config(PUBLISHED[name])
    assert sum(math.prod(spec.shape) for spec in family.tensors(a)) == NUM_PARAMETERS[name]


def test_every_family_has_a_published_config_and_random_models() -> None:
    assert {read_config(config)[0].name for config in PUBLISHED.values()} == set(FAMILIES)
    assert {read_config(config)[0].name for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_data_and_short(name: str) -> None:
    module = Path(sys.modules[FAMILIES[name].read_config.__module__].__file__ or "")
    assert len(module.read_text(encoding="utf-8").splitlines()) < 80


_LLAMA3 = PUBLISHED["Llama-3.2-1B-Instruct"]["rope_scaling"]
_LONG_ROPE = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma-3-4b-it", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("gemma-3-4b-it", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("gemma-3-4b-it", {"audio_config": {}}, "config.json: the field audio_config"),
    ("gemma-3-4b-it", {"text_config": None}, "text_config: expected an object"),
    ("gemma-3-4b-it", {"text_config": {"model_type": "llama"}}, "text_config: model_type: expected 'gemma3_text'"),
    ("gemma-3-4b-it", {"text_config": {"final_scale": 2}}, "text_config: the field final_scale"),
    ("gemma-3-1b-it", {"attn_logit_softcapping": -1.0}, "attention_soft_cap"),
    ("gemma-3-1b-it", {"model_type": ["gemma3_text"]}, "model_type"),
    ("Llama-3.2-1B-Instruct", {"rms_norm_eps": -1e-5}, "eps"),
    ("Llama-3.2-1B-Instruct", {"rope_parameters": {"rope_theta": 1e4}}, "rope_scaling: expected nothing, or the same"),
    ("Llama-3.2-1B-Instruct", {"rope_scaling": _LLAMA3 | {"high_freq_factor": 1.0}}, "high_frequency_factor=1.0"),
    ("Llama-3.2-1B-Instruct", {"rope_scaling": _LLAMA3 | {"factor": 0.0}}, "factor=0.0"),
    ("Llama-3.2-1B-Instruct", {"num_attention_heads": 4096, "head_dim": None}, "head_dim"),
    ("Mistral-7B-v0.1", {"sliding_window": 0}, "sliding_window"),
    ("Mistral-7B-v0.1", {"sliding_window": 2.5}, "sliding_window"),
    ("Qwen3-0.6B", {"num_experts": 8}, "num_experts"),
    ("Qwen3-0.6B", {"layer_types": ["sliding_attention"] * 28}, "layer_types"),
    ("OLMo-2-0425-1B", {"layer_types": ["sliding_attention"] * 16}, "layer_types"),
    ("OLMo-2-0425-1B", {"clip_qkv": 8.0}, "clip_qkv"),
    ("phi-2", {"qk_layernorm": True}, "qk_layernorm"),
    ("phi-2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("phi-2", {"partial_rotary_factor": 1.5}, "rotary_dim"),
    ("SmolLM3-3B", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("SmolLM3-3B", {"no_rope_layers": [2] * 36}, "no_rope_layers"),
    ("SmolLM3-3B", {"layer_types": ["sliding_attention"] * 36}, "layer_types"),
    ("stablelm-3b-4e1t", {"use_parallel_residual": True}, "use_parallel_residual"),
    ("stablelm-3b-4e1t", {"qk_layernorm": True}, "qk_layernorm"),
    ("SmolLM2-135M-Instruct", {"rope_interleaved": True}, "rope_interleaved"),
    ("falcon-rw-1b", {"new_decoder_architecture": True}, "new_decoder_architecture"),
    ("falcon-rw-1b", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ("falcon-rw-1b", {"num_kv_heads": 8}, "num_kv_heads"),
    ("falcon-rw-1b", {"activation": "gelu_10"}, "activation"),
    ("falcon-rw-1b", {"n_head": 16}, "n_head"),
    ("falcon-rw-1b", {"num_attention_heads": 4096}, "num_attention_heads"),
    ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
    ("falcon-7b", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
    ("gpt2-medium", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2-medium", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2-medium", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2-medium", {"activation_function": "tanh"}, "activation_function"),
    ("gpt2-medium", {"hidden_size": 512}, "hidden_size"),
    ("gpt2-medium", {"n_head": 15}, "n_head"),
    ("gpt2-medium", {"n_embd": 10**400}, "n_embd"),
    ("gpt2-medium", {"layer_norm_epsilon": math.nan}, "layer_norm_epsilon"),
    ("gpt2-medium", {"layer_norm_epsilon": 10**400}, "layer_norm_epsilon"),
    ("Phi-3-mini-4k-instruct", {"rope_scaling": {"type": "longrope", **_LONG_ROPE}}, "rope_type.*'longrope'"),
    ("Phi-3-mini-4k-instruct", {"rope_scaling": {"type": "su", **_LONG_ROPE}}, "rope_type.*'su'"),
    ("Phi-3-mini-4k-instruct", {"attention_bias": True}, "attention_bias"),
    ("Phi-3-mini-4k-instruct", {"sliding_window": 0}, "sliding_window"),
]


@pytest.mark.parametrize(("name", "change", "named"), REFUSED)
def test_a_published_config_with_one_change_is_refused_by_the_name_of_the_field(
    name: str, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read_config({**PUBLISHED[name], **change})


@pytest.mark.parametrize("absent", ["alibi", "multi_query", "parallel_attn", "bias"])
def test_an_absent_field_means_what_transformers_takes_it_for(absent: str) -> None:
    config = {name: value for name, value in PUBLISHED["falcon-rw-1b"].items() if name != absent}
    default = {"alibi": False, "multi_query": True, "parallel_attn": True, "bias": False}[absent]
    assert read_config(config) == read_config({**config, absent: default})
    assert read_config(config) != read_config(PUBLISHED["falcon-rw-1b"])


def specs(config: str) -> dict[str, TensorSpec]:
    family, a = read_config(CONFIGS[config])
    return {spec.role: spec for spec in family.tensors(a)}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_tensors_of_a_model_fill_those_of_the_checkpoint_once(config: str) -> None:
    stored: dict[str, NDArray[np.int32]] = {}
    for spec in specs(config).values():
        counts = stored.setdefault(spec.checkpoint_name, np.zeros(spec.checkpoint_rows.shape, np.int32))
        view_of(counts, spec)[...] += 1
    assert all((counts == 1).all() for counts in stored.values())


def test_rows_are_found_one_below_the_other_head_by_head_and_as_columns() -> None:
    below = specs("phi3_window")["layers.1.attention.key"]  # 4 query heads and 2 others of 24
    stored = np.arange(np.prod(below.checkpoint_rows.shape)).reshape(below.checkpoint_rows.shape)
    assert (below.checkpoint_name, stored.shape) == ("model.layers.1.self_attn.qkv_proj.weight", (192, 64))
    assert np.array_equal(rows_of(stored, below), stored[96:144])
    assert np.shares_memory(rows_of(stored, below), stored)

    by_head = specs("falcon_alibi")["layers.0.attention.value.bias"]  # 6 heads of 16
    bias = np.arange(288)
    assert np.array_equal(rows_of(bias, by_head), bias.reshape(6, 3, 16)[:, 2].reshape(-1))

    columns = specs("gpt2")["layers.0.attention.key"]
    stored = np.arange(96 * 288).reshape(96, 288)
    assert columns.checkpoint_rows.shape == stored.shape
    assert np.array_equal(rows_of(stored, columns), stored[:, 96:192].T)
    assert rows_of(stored, columns).flags.c_contiguous


def test_a_joined_tensor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIGS["gpt2"])
    tensors["transformer.h.2.attn.c_attn.weight"] = tensors["transformer.h.2.attn.c_attn.weight"].T.copy()
    with Model.open(write_checkpoint(tmp_path / "gpt2", CONFIGS["gpt2"], tensors)) as model:
        wanted = r"h\.2\.attn\.c_attn\.weight: expected \[96, 288\] \(in, out\), got \[288, 96\]"
        with pytest.raises(TensorMismatchError, match=wanted):
            model.load_weights()


def test_names_without_the_prefix_of_the_model_are_found(tmp_path: Path) -> None:  # as in GPT-2's own checkpoints
    tensors = {name.removeprefix("transformer."): values for name, values in random_tensors(CONFIGS["gpt2"]).items()}
    with Model.open(write_checkpoint(tmp_path / "gpt2", CONFIGS["gpt2"], tensors)) as model:
        assert len(model.load_weights().layers) == 3


def test_what_does_not_change_the_result_is_ignored() -> None:
    read_config({**GEMMA3_1B, "use_cache": False, "attention_dropout": 0.1, "torch_dtype": "bfloat16", "id2label": {}})


@pytest.mark.parametrize(
    "changed", [{"layers": []}, {"layers": [{"window": "x"}]}, {"new_field": 1}, {"head_dim": 2.5}]
)
def test_an_architecture_of_other_fields_or_types_is_refused(changed: dict[str, Any]) -> None:
    _, a = read_config(GEMMA3_1B)
    with pytest.raises(UnsupportedModelError):
        Architecture.from_json({**a.to_json(), **changed})


@pytest.mark.parametrize(
    ("config", "model_type"),
    [("gemma_mqa", 6), ("gemma_mha", 12), ("gemma3_mqa", 27)],
)
def test_the_message_of_a_file_declares_the_whole_architecture(config: str, model_type: int) -> None:
    family, a = read_config(CONFIGS[config])
    message = llm_parameters(a, family, model_type)
    parsed = LlmParameters.FromString(message.SerializeToString())
    again = family.read_file_parameters(file_parameters(parsed, model_type))
    assert again.layers == a.layers
    assert again.tied_embedding
    assert abs(again.attention_scale - a.attention_scale) < 1e-9


def test_a_falcon_file_means_alibi_the_exact_gelu_and_a_matrix_of_its_own_for_the_logits() -> None:
    family, a = read_config(CONFIGS["falcon_32_heads"])
    parsed = LlmParameters.FromString(llm_parameters(a, family, 5).SerializeToString())
    again = family.read_file_parameters(file_parameters(parsed, 5))
    assert (again.alibi, again.activation, again.tied_embedding) == (True, "gelu", False)
    assert again == dataclasses.replace(a, context_length=2048, attention_scale=again.attention_scale)


def test_what_the_message_cannot_say_is_refused_when_writing() -> None:
    family, a = read_config(CONFIGS["gemma2_gqa"])  # the type says a window of 4096, this model has 24
    with pytest.raises(UnsupportedModelError, match="layers|attention_scale"):
        llm_parameters(a, family, 18)


def test_gemma2_files_get_the_window_that_the_converter_leaves_out() -> None:
    traits = FAMILIES["gemma2"].file_traits[18]
    assert (traits.window, traits.local_layers_per_global) == (4096, 1)


def test_the_older_template_is_split_as_mediapipe_splits_it() -> None:
    message = LlmParameters()
    message.prompt_template.prompt_prefix = "<start_of_turn>user\n"
    message.prompt_template.prompt_suffix = "<end_of_turn>\n<start_of_turn>model\n"
    turns = prompt_templates(message)
    assert turns.user == PromptTemplate("<start_of_turn>user\n", "<end_of_turn>\n")
    assert turns.model == PromptTemplate("<start_of_turn>model\n", "<end_of_turn>\n")
    assert prompt_templates(LlmParameters()).user == PromptTemplate()
