"""The model inside the package as a float checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from random_models import CONFIGS, write_checkpoint

from hearthlm.demo import model_path
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.models import FAMILIES
from hearthlm.quantization import dequantize
from hearthlm.runtime.model import Model


def read_demo() -> tuple[dict[str, Any], dict[str, NDArray[Any]], bytes]:
    """Return the config.json, the tensors and the SentencePiece model of such a checkpoint."""
    with Model.open(model_path()) as model, WeightsBin.open(model_path()) as file:
        a = model.architecture
        tensors: dict[str, NDArray[Any]] = {}
        for spec in FAMILIES["gemma3"].tensors(a):
            name = spec.bin_names[0]
            is_matrix = len(spec.shape) == 2
            tensors[spec.checkpoint_name] = (
                dequantize(file.matrix(name, (spec.shape[0], spec.shape[1])))
                if is_matrix
                else file.vector(name, spec.shape[0]).copy()
            )
        config = CONFIGS["gemma3_mqa"] | {
            "vocab_size": a.vocab_size,
            "hidden_size": a.embedding_dim,
            "intermediate_size": a.hidden_dim,
            "num_hidden_layers": a.num_layers,
            "num_attention_heads": a.num_heads,
            "num_key_value_heads": a.num_kv_heads,
            "head_dim": a.head_dim,
            "query_pre_attn_scalar": a.head_dim,
            "sliding_window": 512,
        }
        return config, tensors, file.tokenizer or b""


def write_demo_checkpoint(folder: Path) -> Path:
    """Write the checkpoint into a folder and return it."""
    config, tensors, tokenizer = read_demo()
    write_checkpoint(folder, config, tensors)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder
