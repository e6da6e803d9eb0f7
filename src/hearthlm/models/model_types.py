"""The model types that MediaPipe's converter knows by name, with the published model that each one means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelType:
    """Describe one LlmModelType.

    `config` is the published model's config.json, as far as its family's defaults differ. The start token and the stop
    tokens are those that MediaPipe's converter writes.
    """

    number: int
    name: str
    config: Mapping[str, Any]
    start_token_id: int
    stop_tokens: tuple[str, ...]
    needs_bfloat16_range: bool = False  # its activations overflow float16: a GPU scales them
    needs_float32: bool = False  # on a GPU; its LoRA files hold float32
    declares_all_kv_heads: bool = False  # where other types declare 0 for as many as there are heads

    @property
    def family(self) -> str:
        return _FAMILY_NAMES[self.config["model_type"]]

    @property
    def dimensions(self) -> tuple[int, int, int, int]:
        """What tells the models of one family apart: embedding, heads, layers, and length of a head."""
        config = self.config
        heads, dim = config["num_attention_heads"], config["hidden_size"]
        return dim, heads, config["num_hidden_layers"], config.get("head_dim", dim // heads)


_FAMILY_NAMES = {
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi": "phi",
    "stablelm": "stablelm",
}


def _config(
    model_type: str, vocab: int, dim: int, hidden: int, layers: int, heads: int, kv_heads: int, **fields: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": vocab,
        "hidden_size": dim,
        "ffn_hidden_size" if model_type == "falcon" else "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **({} if model_type == "falcon" else {"num_key_value_heads": kv_heads}),
        **fields,
    }


def _gemma(
    model_type: str, vocab: int, dim: int, hidden: int, layers: int, heads: int, kv_heads: int, **fields: Any
) -> dict[str, Any]:
    head_dim = fields.pop("head_dim", 256)
    scale = {} if model_type == "gemma" else {"query_pre_attn_scalar": head_dim}
    sizes = _config(model_type, vocab, dim, hidden, layers, heads, kv_heads)
    return {**sizes, "head_dim": head_dim, "max_position_embeddings": 8192, **scale, **fields}


_FALCON = {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True, "tie_word_embeddings": False}
_GEMMA3_1B = {"sliding_window": 512, "max_position_embeddings": 32768}
_GEMMA3_4B = {
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
_GEMMA3_300M = _gemma("gemma3_text", 262144, 640, 2048, 18, 4, 1, **_GEMMA3_1B)
_TURNS = ("<eos>", "<end_of_turn>")
_END = ("<|endoftext|>",)

_ALL = (
    ModelType(6, "GEMMA_2B", _gemma("gemma", 256000, 2048, 16384, 18, 8, 1), 2, ("<eos>",)),
    ModelType(12, "GEMMA_7B", _gemma("gemma", 256000, 3072, 24576, 28, 16, 16), 2, ("<eos>",)),
    ModelType(18, "GEMMA2_2B", _gemma("gemma2", 256000, 2304, 9216, 26, 8, 4), 2, ("<eos>",)),
    ModelType(38, "GEMMA3_300M", _GEMMA3_300M, 2, _TURNS, True),
    ModelType(27, "GEMMA3_1B", _gemma("gemma3_text", 262144, 1152, 6912, 26, 4, 1, **_GEMMA3_1B), 2, _TURNS),
    ModelType(28, "GEMMA3_4B", _gemma("gemma3_text", 262208, 2560, 10240, 34, 8, 4, **_GEMMA3_4B), 2, _TURNS, True),
    ModelType(29, "GEMMA3_12B", _gemma("gemma3_text", 262208, 3840, 15360, 48, 16, 8, **_GEMMA3_4B), 2, _TURNS, True),
    ModelType(
        30,
        "GEMMA3_27B",
        _gemma("gemma3_text", 262208, 5376, 21504, 62, 32, 16, head_dim=128, **_GEMMA3_4B)
        | {"query_pre_attn_scalar": 168},
        2,
        _TURNS,
        True,
    ),
    ModelType(47, "FUNCTIONGEMMA3_300M", _GEMMA3_300M, 2, (*_TURNS, "<start_function_response>"), True),
    ModelType(
        5,
        "FALCON_RW_1B",
        _config("falcon", 50304, 2048, 8192, 24, 32, 32, **_FALCON),
        1,
        _END,
        needs_float32=True,
        declares_all_kv_heads=True,
    ),
    ModelType(8, "STABLELM_4E1T_3B", _config("stablelm", 50304, 2560, 6912, 32, 32, 32), 0, _END),
    ModelType(
        11,
        "PHI_2",
        _config("phi", 51200, 2560, 10240, 32, 32, 32, partial_rotary_factor=0.4),
        50256,
        _END,
        needs_float32=True,
    ),
)

MODEL_TYPES: Mapping[str, ModelType] = {model_type.name: model_type for model_type in _ALL}
MODEL_TYPES_BY_NUMBER: Mapping[int, ModelType] = {model_type.number: model_type for model_type in _ALL}
