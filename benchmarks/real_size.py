"""Load time, tokens/s and peak memory of random models of real size, each in a process of its own.

python benchmarks/real_size.py [--threads N] [--folder DIR]      one JSON line per model
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_model import write_random_model

MODELS = (("gemma3-1b", 4), ("gemma3-1b", 8), ("gemma-2b", 4))
NUM_PROMPT_TOKENS = 512
NUM_OUTPUT_TOKENS = 64


def measure(path: Path, threads: int, weights: str) -> dict[str, object]:
    """Return what one run in this process took."""
    import resource

    import hearthlm
    from hearthlm import kernels

    started = time.perf_counter()
    options = hearthlm.LlmInferenceOptions(
        path,
        max_tokens=1024,
        num_threads=threads,
        weights=weights,  # type: ignore[arg-type]
        prompt_lookup=False,  # random answers repeat themselves: guessing would flatter them
    )
    with hearthlm.LlmInference.create_from_options(options) as llm:
        load_s = time.perf_counter() - started
        prompt = [2, *range(4, 3 + NUM_PROMPT_TOKENS)]
        greedy = hearthlm.LlmInferenceSessionOptions(top_k=1, max_output_tokens=NUM_OUTPUT_TOKENS)
        llm.generate(prompt[:8], greedy)  # touches every page once
        best_prefill, best_decode = float("inf"), float("inf")
        for _ in range(3):
            result = llm.generate(prompt, greedy)
            best_prefill = min(best_prefill, result.prefill_s)
            best_decode = min(best_decode, result.decode_s / (result.num_output_tokens - 1))
    return {
        "file_mb": path.stat().st_size // 1_000_000,
        "weights": weights,
        "kernels": kernels.instruction_set,
        "load_s": round(load_s, 3),
        "prefill_tok_s": round(NUM_PROMPT_TOKENS / best_prefill, 1),
        "decode_tok_s": round(1 / best_decode, 2),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", default="auto", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.model is not None:
        print(json.dumps(measure(arguments.model, arguments.threads, arguments.weights)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for geometry, bits in MODELS:
            path = folder / f"{geometry}-int{bits}.bin"
            if not path.exists():
                write_random_model(path, geometry, bits)
            for weights in ("mmap", "ram"):
                command = [sys.executable, __file__, "--model", str(path), "--threads", str(arguments.threads)]
                command += ["--weights", weights]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                print(json.dumps({"model": f"{geometry} int{bits}", **json.loads(output)}), flush=True)
            if arguments.folder is None:
                path.unlink()


if __name__ == "__main__":
    main()
