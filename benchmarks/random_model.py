"""Writes a `.bin` of a real model's size with random weights: what speed and memory depend on, without its words.

python benchmarks/random_model.py gemma3-1b int4 OUTPUT.bin
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.formats.llm_parameters import llm_parameters
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.formats.weights_bin import write_weights_bin
from hearthlm.models import read_config
from hearthlm.quantization import WeightMatrix, WeightType

# name -> (LlmModelType, config.json)
GEOMETRIES: dict[str, tuple[int, dict[str, Any]]] = {
    "gemma3-1b": (
        27,
        {
            "model_type": "gemma3_text",
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "max_position_embeddings": 32768,
        },
    ),
    "gemma-2b": (
        6,
        {
            "model_type": "gemma",
            "vocab_size": 256000,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "max_position_embeddings": 8192,
        },
    ),
}


def random_sentencepiece(vocab_size: int) -> bytes:
    """Return a SentencePiece model of `vocab_size` made-up words with Gemma's first four pieces."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    kinds = {"<pad>": 3, "<eos>": 3, "<bos>": 3, "<unk>": 2}  # CONTROL, CONTROL, CONTROL, UNKNOWN
    for piece, kind in kinds.items():
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for i in range(len(kinds), vocab_size):
        model.pieces.add(piece=f"\u2581t{i}", score=-float(i))
    model.trainer_spec.model_type = 1
    model.trainer_spec.vocab_size = vocab_size
    model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.bos_id = 0, 1, 2
    model.trainer_spec.unk_id = 3
    model.normalizer_spec.name = "identity"
    data: bytes = model.SerializeToString()
    return data


def write_random_model(path: Path, geometry: str, bits: int) -> None:
    """Write the model `geometry` with `bits` (4 or 8) per weight to `path`."""
    model_type, config = GEOMETRIES[geometry]
    family, architecture = read_config(config)
    generator = np.random.default_rng(0)

    def matrix(columns: int) -> Callable[[int, int], WeightMatrix]:
        def produce(first: int, last: int) -> WeightMatrix:
            out = last - first
            scales = np.full(out, 1.0 / columns**0.5 / 2 ** (bits - 2), np.float32)
            if bits == 8:
                data: NDArray[Any] = generator.integers(-127, 128, (out, columns), dtype=np.int8)
                return WeightMatrix("int8", (out, columns), data, scales)
            # -7 to 7, as symmetric conversions have it
            data = generator.integers(1, 16, (out, (columns + 1) // 2), dtype=np.uint8)
            data |= generator.integers(1, 16, data.shape, dtype=np.uint8) << np.uint8(4)
            return WeightMatrix("int4", (out, columns), data, scales)

        return produce

    plans = []
    for spec in family.tensors(architecture):
        if len(spec.shape) == 2:
            stored: WeightType = "int8" if bits == 8 else "int4"
            plans.append(TensorPlan(spec.bin_names[0], spec.shape, stored, matrix(spec.shape[1])))
        else:
            plans.append(TensorPlan.of(spec.bin_names[0], np.zeros(spec.shape, np.float32)))
    parameters = llm_parameters(architecture, family, model_type)
    parameters.start_token_id = 2
    parameters.stop_tokens.append("<eos>")
    write_weights_bin(path, parameters, model_type, plans, tokenizer=random_sentencepiece(architecture.vocab_size))


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in GEOMETRIES or sys.argv[2] not in ("int4", "int8"):
        sys.exit(f"usage: random_model.py {'|'.join(GEOMETRIES)} int4|int8 OUTPUT.bin")
    write_random_model(Path(sys.argv[3]), sys.argv[1], int(sys.argv[2].removeprefix("int")))
