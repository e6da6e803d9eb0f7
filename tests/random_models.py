"""Small random models of every family, the same on every machine: recipes instead of stored weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hearthlm.models import read_config
from hearthlm.runtime.checkpoint_source import view_of

_GEMMA = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "attention_bias": False,
}
_GEMMA1 = _GEMMA | {
    "model_type": "gemma",
    "architectures": ["GemmaForCausalLM"],
    "hidden_act": "gelu_pytorch_tanh",
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}
_GEMMA2 = _GEMMA | {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 40,
    "sliding_window": 24,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 12.0,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}
_GEMMA3 = _GEMMA | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 32,
    "sliding_window": 24,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "torch_dtype": "float32",
}

# Both schemas of config.json, one, some and all heads for keys and values, windows smaller than the texts of the tests.
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma_mqa": _GEMMA1,
    "gemma_mha": {name: value for name, value in _GEMMA1.items() if name not in ("rope_theta", "torch_dtype")}
    | {
        "num_key_value_heads": 4,
        "dtype": "float32",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "gemma2_gqa": _GEMMA2,
    "gemma2_mha_capless": _GEMMA2
    | {"num_key_value_heads": 4, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_mqa": _GEMMA3,
    "gemma3_gqa_scaled": {
        name: value
        for name, value in _GEMMA3.items()
        if not name.startswith("rope_") and name not in ("torch_dtype", "sliding_window_pattern")
    }
    | {
        "num_key_value_heads": 2,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "dtype": "float32",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    },
}


_LLAMA = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "hidden_act": "silu",
}
CONFIGS |= {
    "llama_untied": _LLAMA
    | {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "attention_bias": True,
        "mlp_bias": True,
        "intermediate_size": 136,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama_tied": _LLAMA | {"model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "llama_nine_heads": _LLAMA  # as SmolLM
    | {
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 144,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "is_llama_config": True,
        "rope_interleaved": False,
    },
    "mistral_window": _LLAMA | {"model_type": "mistral", "sliding_window": 24, "rms_norm_eps": 1e-5, "head_dim": 16},
    "qwen2_bias": _LLAMA | {"model_type": "qwen2", "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "qwen2_window": _LLAMA
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3_qk_norm": _LLAMA | {"model_type": "qwen3", "rms_norm_eps": 1e-6, "head_dim": 32},
    "olmo2": _LLAMA | {"model_type": "olmo2", "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
    "stablelm_partial": _LLAMA
    | {"model_type": "stablelm", "partial_rotary_factor": 0.25, "use_qkv_bias": True, "num_key_value_heads": 4},
    "phi_parallel": {name: value for name, value in _LLAMA.items() if name != "hidden_act"}
    | {"model_type": "phi", "partial_rotary_factor": 0.5, "hidden_act": "gelu_new", "num_key_value_heads": 4},
}


_FALCON = {
    "model_type": "falcon",
    "vocab_size": 320,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "alibi": True,
    "bias": True,
    "multi_query": False,
    "parallel_attn": False,
    "new_decoder_architecture": False,
}
CONFIGS |= {
    "falcon_alibi": _FALCON,
    "falcon_32_heads": _FALCON
    | {"num_attention_heads": 32, "hidden_size": 256, "num_hidden_layers": 2, "tie_word_embeddings": False},
    "falcon_multi_query": _FALCON
    | {
        "alibi": False,
        "bias": False,
        "multi_query": True,
        "parallel_attn": True,
        "ffn_hidden_size": 200,
        "num_hidden_layers": 3,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 320,
        "n_embd": 96,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "n_inner": 136,
        "activation_function": "gelu_new",
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    "phi3_window": _LLAMA | {"model_type": "phi3", "sliding_window": 24, "head_dim": 24, "pad_token_id": 0},
    "phi3_partial": _LLAMA
    | {"model_type": "phi3", "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "pad_token_id": 0},
}
CONFIGS |= {
    "smollm3": _LLAMA | {"model_type": "smollm3", "num_hidden_layers": 4, "pad_token_id": 0},
    "smollm3_window": _LLAMA
    | {
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 24,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
}


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Draw a checkpoint's tensors so that logits spread by about 3 and depend on the whole text."""
    generator = np.random.default_rng(seed)
    family, architecture = read_config(config)
    tensors: dict[str, NDArray[np.float32]] = {}
    for spec in family.tensors(architecture):
        if len(spec.shape) == 1:
            values = generator.uniform(-0.3, 0.3, spec.shape)
            if spec.role.endswith(("post_attention_norm.scale", "post_feed_forward_norm.scale")):
                values += 6.0
            elif spec.role.endswith("scale") and architecture.final_norm.scale_offset == 0:
                values += 1.0
        else:
            std = 3.0 if spec.role.endswith("embedding") or spec.group == "embedding" else 1.6
            if architecture.post_attention_norm is None and spec.role.endswith(("output", "down")):
                std = 10.0  # else the residual stream is little more than the last token's own embedding
            std /= spec.shape[1] ** 0.5
            values = generator.normal(0.0, std, spec.shape)
        stored = tensors.setdefault(spec.checkpoint_name, np.zeros(spec.checkpoint_rows.shape, np.float32))
        view = view_of(stored, spec)
        view[...] = values.reshape(view.shape)
    return tensors


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, NDArray[Any]] | None = None) -> Path:
    """Write a Hugging Face folder of a random (or the given) model and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def random_ids(config: dict[str, Any], count: int, seed: int = 1) -> list[int]:
    """Draw a text: the start token, then anything."""
    ids = np.random.default_rng(seed).integers(4, config["vocab_size"], count)
    ids[0] = config["bos_token_id"]
    return [int(i) for i in ids]
