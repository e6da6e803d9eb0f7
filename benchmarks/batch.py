"""200 prompts together and one after the other, on the demo model and on 1B random int4, in tokens per second.

Greedy, 64 tokens each, stop tokens out of reach, so that every way makes the same tokens; it is checked that they are.
Prompts have 16 to 64 tokens. After one prompt that touches every page, each way runs once (`--repeat` takes the best),
in a process of its own. Start on a quiet machine; both ways run in the same sitting.

    python benchmarks/batch.py [--threads 2] [--prompts 200] [--at-once 16 32] [--model FILE.bin] [--repeat 1]
    python benchmarks/batch.py --llama-server URL      the same prompts at llama.cpp's server, as many at once

With `--llama-server` (`llama-server -m MODEL.gguf -c N --parallel 16 --port ...`, started by you with as many threads)
they are sent as token ids, 16 connections at a time and then one, for the figures beside ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

NUM_OUTPUT_TOKENS = 64


def prompts_of(count: int, vocab_size: int, start_id: int | None) -> list[list[int]]:
    """Return random prompts, which share nothing but the start token."""
    generator = np.random.default_rng(0)
    start = [] if start_id is None else [start_id]
    return [
        start + generator.integers(10, vocab_size, int(length)).tolist() for length in generator.integers(16, 65, count)
    ]


def measure(path: Path, threads: int, count: int, at_once: int, repeat: int) -> dict[str, Any]:
    """Return what answering `count` prompts, `at_once` at a time, took in this process; 1 is one after the other."""
    import hearthlm

    options = hearthlm.LlmInferenceOptions(path, max_tokens=256, num_threads=threads, prefix_cache_mb=0)
    with hearthlm.LlmInference.create_from_options(options) as llm:
        prompts = prompts_of(count, llm.vocab_size, llm.start_id)
        never = dict.fromkeys(llm.stop_ids, -1e9)
        greedy = hearthlm.LlmInferenceSessionOptions(top_k=1, max_output_tokens=NUM_OUTPUT_TOKENS, logit_bias=never)
        llm.generate(prompts[0], greedy)
        best = float("inf")
        for _ in range(repeat):
            digest, num_prompt, num_output = hashlib.blake2b(digest_size=8), 0, 0
            started = time.perf_counter()
            for outcome in llm.generate_each([(ids, greedy) for ids in prompts], max_at_once=at_once):
                if isinstance(outcome, Exception):
                    raise outcome
                digest.update(json.dumps(outcome.token_ids).encode())
                num_prompt += outcome.num_prompt_tokens
                num_output += outcome.num_output_tokens
            best = min(best, time.perf_counter() - started)
    return {
        "at_once": at_once,
        "seconds": round(best, 2),
        "output_tok_s": round(num_output / best, 1),
        "all_tok_s": round((num_prompt + num_output) / best, 1),
        "tokens": digest.hexdigest(),
    }


def measure_llama_server(address: str, count: int, at_once: int, vocab_size: int) -> dict[str, Any]:
    """Return the same of llama.cpp's server, in its own API, with as many connections."""

    def ask(ids: list[int]) -> int:
        body = {
            "prompt": ids,
            "n_predict": NUM_OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        request = urllib.request.Request(
            f"{address.rstrip('/')}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return int(json.load(response)["tokens_predicted"])

    prompts = prompts_of(count, vocab_size, None)
    ask(prompts[0])
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        num_output = sum(pool.map(ask, prompts))
    seconds = time.perf_counter() - started
    return {"at_once": at_once, "seconds": round(seconds, 2), "output_tok_s": round(num_output / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--at-once", type=int, nargs="+", default=[16])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--model", type=Path, help="this model alone, instead of the two")
    parser.add_argument("--llama-server", metavar="URL")
    parser.add_argument("--vocab-size", type=int, default=32000, help="of the model at --llama-server")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        (at_once,) = arguments.at_once
        print(json.dumps(measure(arguments.model, arguments.threads, arguments.prompts, at_once, arguments.repeat)))
        return
    if arguments.llama_server:
        for at_once in (1, *arguments.at_once):
            print(
                json.dumps(
                    measure_llama_server(arguments.llama_server, arguments.prompts, at_once, arguments.vocab_size)
                )
            )
        return

    from random_model import write_random_model

    from hearthlm.demo import model_path

    with tempfile.TemporaryDirectory() as folder:
        models = [arguments.model] if arguments.model else [model_path(), Path(folder) / "gemma3-1b-int4.bin"]
        if not arguments.model:
            write_random_model(models[1], "gemma3-1b", 4)
        for path in models:
            rows = []
            for at_once in (1, *arguments.at_once):
                command = [sys.executable, __file__, "--alone", "--model", str(path), "--at-once", str(at_once)]
                for name in ("threads", "prompts", "repeat"):
                    command += [f"--{name}", str(getattr(arguments, name))]
                rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                faster = rows[0]["seconds"] / rows[-1]["seconds"]
                print(json.dumps({"model": path.name, **rows[-1], "times_as_fast": round(faster, 2)}), flush=True)
            if len({row["tokens"] for row in rows}) != 1:
                sys.exit(f"{path.name}: the tokens differ")


if __name__ == "__main__":
    main()
