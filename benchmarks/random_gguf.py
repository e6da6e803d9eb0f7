"""Writes a `.gguf` of a real model's size with random weights, for llama.cpp; needs the package gguf.

python benchmarks/random_gguf.py gemma3-1b Q4_0 OUTPUT.gguf [TYPE OF THE EMBEDDING]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

GEOMETRIES: dict[str, dict[str, int]] = {
    "gemma3-1b": {
        "layers": 26, "vocab": 262144, "width": 1152, "hidden": 6912, "heads": 4, "kv_heads": 1, "head_dim": 256
    },
}  # fmt: skip
_PAYLOADS = {"Q4_0": (16, 0.004), "Q8_0": (32, 0.0003)}  # bytes of a block of 32 after its scale, and that scale


def write_random_gguf(path: Path, geometry: str, body: str, embedding: str | None = None) -> None:
    """Write random values of type `body`, "Q4_0" or "Q8_0", and an embedding of type `embedding`, or `body` too."""
    import gguf

    g = GEOMETRIES[geometry]
    rng = np.random.default_rng(0)
    writer: Any = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_context_length(32768)
    writer.add_embedding_length(g["width"])
    writer.add_block_count(g["layers"])
    writer.add_feed_forward_length(g["hidden"])
    writer.add_head_count(g["heads"])
    writer.add_head_count_kv(g["kv_heads"])
    writer.add_key_length(g["head_dim"])
    writer.add_value_length(g["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(512)
    writer.add_tokenizer_model("llama")
    pieces = [b"<pad>", b"<eos>", b"<bos>", b"<unk>", *(b"<0x%02X>" % i for i in range(256))]
    pieces += [b"t%d" % i for i in range(g["vocab"] - len(pieces))]
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([3, 3, 3, 2] + [6] * 256 + [1] * (len(pieces) - 260))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)

    def matrix(name: str, rows: int, columns: int, kind: str) -> None:
        payload, scale = _PAYLOADS[kind]
        blocks = np.empty((rows * columns // 32, 2 + payload), np.uint8)
        blocks[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        blocks[:, 2:] = rng.integers(0, 256, (len(blocks), payload), dtype=np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType[kind])

    def norm(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    query, kv = g["heads"] * g["head_dim"], g["kv_heads"] * g["head_dim"]
    matrix("token_embd.weight", g["vocab"], g["width"], embedding or body)
    norm("output_norm.weight", g["width"])
    for i in range(g["layers"]):
        p = f"blk.{i}."
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            norm(f"{p}{name}.weight", g["width"])
        norm(f"{p}attn_q_norm.weight", g["head_dim"])
        norm(f"{p}attn_k_norm.weight", g["head_dim"])
        matrix(f"{p}attn_q.weight", query, g["width"], body)
        matrix(f"{p}attn_k.weight", kv, g["width"], body)
        matrix(f"{p}attn_v.weight", kv, g["width"], body)
        matrix(f"{p}attn_output.weight", g["width"], query, body)
        matrix(f"{p}ffn_gate.weight", g["hidden"], g["width"], body)
        matrix(f"{p}ffn_up.weight", g["hidden"], g["width"], body)
        matrix(f"{p}ffn_down.weight", g["width"], g["hidden"], body)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_random_gguf(Path(sys.argv[3]), sys.argv[1], sys.argv[2], *sys.argv[4:5])
