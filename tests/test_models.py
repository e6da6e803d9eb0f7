"""Configs become architectures, and what is not understood is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from random_models import CONFIGS

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats.llm_parameters import file_parameters, llm_parameters, prompt_templates
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.models import FAMILIES, read_config
from hearthlm.models.family import PromptTemplate
from hearthlm.models.params import Architecture, Rope

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
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **text}, "vision_config": {"x": 1}}
    family, a = read_config(config)
    assert (family.name, a.embedding_dim, a.num_layers, a.num_heads, a.num_kv_heads) == ("gemma3", 2560, 34, 8, 4)


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
