"""Measures a LiteRT model through both of ai-edge-litert's interfaces: `python litert.py MODEL [THREADS]`.

Load time (verifying and packing included), prefill of PROMPT_TOKENS, decode of OUTPUT_TOKENS and peak memory, each in a
process of its own: CompiledModel, CompiledModel with a cache file of XNNPACK (the first writes it), Interpreter;
greedy, random ids, no stop token, the best of RUNS after one that touches every page. One JSON line each.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions
from hearthlm.runtime import litert_graph, litert_language_model

PROMPT_TOKENS, OUTPUT_TOKENS, RUNS = 512, 64, 3
INTERFACES = ("compiled", "interpreter")


def measure(model: str, num_threads: int, interface: str, cache_dir: str | None) -> dict[str, float | str]:
    """Load the model in this process and return what it costs."""

    def load_graph(*args: object, **kwargs: object) -> litert_graph.Graph:
        return litert_graph.load_graph(*args, **kwargs, interface=interface)  # type: ignore[arg-type]

    options = LlmInferenceOptions(model, num_threads=num_threads, prefix_cache_mb=0, cache_dir=cache_dir)
    started = time.perf_counter()
    with mock.patch.object(litert_language_model, "load_graph", load_graph):
        llm = LlmInference.create_from_options(options)
    load_s = time.perf_counter() - started
    with llm:
        num_output = min(OUTPUT_TOKENS, llm.max_tokens // 4)
        num_prompt = min(PROMPT_TOKENS, llm.max_tokens - num_output)
        vocab_size = llm._model.vocab_size
        prompt = [(i * 7919 + 11) % vocab_size for i in range(num_prompt)]
        never = dict.fromkeys(llm._model.stop_ids, -1e4)
        call = LlmInferenceSessionOptions(top_k=1, max_output_tokens=num_output, logit_bias=never)
        results = [llm.generate(prompt, call) for _ in range(RUNS + 1)][1:]
    return {
        "model": Path(model).name,
        "interface": interface,
        "cache_file": cache_dir is not None,
        "threads": num_threads,
        "load_s": round(load_s, 3),
        "prefill_tokens_per_s": round(max(num_prompt / r.prefill_s for r in results), 1),
        "decode_tokens_per_s": round(max((r.num_output_tokens - 1) / r.decode_s for r in results if r.decode_s), 1),
        "num_output_tokens": results[0].num_output_tokens,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def main() -> None:
    """Measure every way in a process of its own."""
    if len(sys.argv) == 5:
        _, model, threads, interface, cache_dir = sys.argv
        print(json.dumps(measure(model, int(threads), interface, cache_dir or None)))
        return
    model, threads = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "2"
    with tempfile.TemporaryDirectory() as folder:
        for interface, cache_dir in (("compiled", ""), ("compiled", folder), ("compiled", folder), ("interpreter", "")):
            command = [sys.executable, __file__, model, threads, interface, cache_dir]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
