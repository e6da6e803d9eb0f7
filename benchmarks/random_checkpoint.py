"""Writes a Hugging Face checkpoint of a published model's size with random weights, for benchmarks of the converter.

python benchmarks/random_checkpoint.py GEMMA3_1B FOLDER        (or any model type that MediaPipe names)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from random_model import random_sentencepiece

from hearthlm.models import read_config
from hearthlm.models.model_types import MODEL_TYPES
from hearthlm.quantization import float32_to_bfloat16

_BLOCK_VALUES = 1 << 22


def write_random_checkpoint(folder: Path, model_type: str) -> None:
    """Write config.json, model.safetensors in bfloat16 and tokenizer.model; a few MiB are in memory at a time."""
    config = dict(MODEL_TYPES[model_type].config)
    family, architecture = read_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(random_sentencepiece(architecture.vocab_size))
    shapes = {spec.checkpoint_name: spec.checkpoint_rows.shape for spec in family.tensors(architecture)}
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = np.random.default_rng(0).normal(0.0, 0.02, _BLOCK_VALUES).astype(np.float32)
    block = float32_to_bfloat16(values)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position:
            position -= file.write(block[: position // 2].data)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in MODEL_TYPES:
        sys.exit(f"usage: random_checkpoint.py {'|'.join(MODEL_TYPES)} FOLDER")
    write_random_checkpoint(Path(sys.argv[2]), sys.argv[1])
