"""Measures what an unmerged adapter costs, with and without it in turn: `python lora_cost.py MODEL.bin [RANK]`."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions, inspect_model
from hearthlm.models import FAMILIES
from hearthlm.runtime.lora import Adapter

PROMPT_TOKENS, OUTPUT_TOKENS, PAIRS = 512, 64, 5


def write_random_adapter(folder: Path, model: Path, rank: int) -> None:
    """Write a PEFT adapter for every matrix of attention and feed-forward layers, too weak to change much."""
    info, tensors = inspect_model(model), {}
    generator = np.random.default_rng(0)
    for spec in FAMILIES[info.family].tensors(info.architecture):
        if spec.group in ("attention", "feed_forward") and len(spec.shape) == 2:
            name = spec.checkpoint_name.removesuffix(".weight")
            down = generator.normal(size=(rank, spec.shape[1])) * 1e-3
            tensors[f"base_model.model.{name}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"base_model.model.{name}.lora_B.weight"] = np.full((spec.shape[0], rank), 1e-3, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))


def measure(llm: LlmInference, lora: Adapter | None) -> tuple[float, float]:
    """Return tokens per second of prefill and decode."""
    options = LlmInferenceSessionOptions(top_k=1, lora=lora, max_output_tokens=OUTPUT_TOKENS)
    result = llm.generate(list(range(5, 5 + PROMPT_TOKENS)), options)
    return PROMPT_TOKENS / result.prefill_s, (result.num_output_tokens - 1) / result.decode_s


def main() -> None:
    """Print both speeds and their ratios."""
    model, rank = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 16
    options = LlmInferenceOptions(model, max_tokens=1024, prefix_cache_mb=0)
    with tempfile.TemporaryDirectory() as folder, LlmInference.create_from_options(options) as llm:
        write_random_adapter(Path(folder), model, rank)
        lora = llm.load_lora(folder)
        measure(llm, lora)
        pairs = [(measure(llm, None), measure(llm, lora)) for _ in range(PAIRS)]
        for i, what in enumerate(("prefill", "decode")):
            plain, adapted = (statistics.median(pair[j][i] for pair in pairs) for j in range(2))
            ratio = statistics.median(with_it[i] / without[i] for without, with_it in pairs)
            print(f"{what}: {plain:.1f} tokens/s, with rank {rank} {adapted:.1f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
