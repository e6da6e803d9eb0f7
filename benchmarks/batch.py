"""200 prompts together and one after the other, on the demo model and on 1B random int4, in tokens per second.

Greedy, 64 tokens each, stop tokens out of reach, so that every way makes the same tokens; it is checked that they are.
Prompts have 16 to 64 tokens. After one prompt that touches every page, each way runs once (`--repeat` takes the best),
in a process of its own. Start on a quiet machine; all ways run in the same sitting.

    python benchmarks/batch.py [--threads 2] [--prompts 200] [--at-once 16 32] [--model FILE.bin] [--repeat 1]
        [PEER ...]

A PEER is measured beside them, on the same prompts; PYTHON is an interpreter whose packages have it:

    llama.cpp=MODEL.gguf:PYTHON         its batches of several sequences, in process, as its server makes them
    llama_cpp.server=MODEL.gguf:PYTHON  llama-cpp-python's server, which answers one after the other
    llama-server=URL                    llama.cpp's own server: `llama-server -m MODEL.gguf -c N --parallel 16 -t 2`
    litert-lm=MODEL.litertlm:PYTHON     one after the other alone: it has no batches

Servers get as many connections as rows are at once. What takes text (`llama_cpp.server`, `litert-lm`) gets the text of
the same ids, which it may cut otherwise, and litert-lm ends an answer at a stop token; output tokens are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NUM_OUTPUT_TOKENS = 64
MAX_TOKENS = 256  # of prompt and answer
NUM_BATCH_TOKENS = 2048  # of one step of llama.cpp
Measured = tuple[float, int, int, str]  # seconds, tokens of prompts and of answers, and a digest of the answers


def prompts_of(count: int, vocab_size: int, start_id: int | None) -> list[list[int]]:
    """Return random prompts, which share nothing but the start token."""
    draw = random.Random(0)
    start = [] if start_id is None else [start_id]
    return [start + [draw.randrange(300, vocab_size) for _ in range(draw.randrange(16, 65))] for _ in range(count)]


def measure_hearthlm(model: str, threads: int, count: int, at_once: int) -> Iterator[Measured]:
    import hearthlm

    options = hearthlm.LlmInferenceOptions(model, max_tokens=MAX_TOKENS, num_threads=threads, prefix_cache_mb=0)
    with hearthlm.LlmInference.create_from_options(options) as llm:
        prompts = prompts_of(count, llm.vocab_size, llm.start_id)
        never = dict.fromkeys(llm.stop_ids, -1e9)
        greedy = hearthlm.LlmInferenceSessionOptions(top_k=1, max_output_tokens=NUM_OUTPUT_TOKENS, logit_bias=never)
        llm.generate(prompts[0], greedy)
        while True:
            digest, num_prompt, num_output = hashlib.blake2b(digest_size=8), 0, 0
            started = time.perf_counter()
            for outcome in llm.generate_each([(ids, greedy) for ids in prompts], max_at_once=at_once):
                if isinstance(outcome, Exception):
                    raise outcome
                digest.update(json.dumps(outcome.token_ids).encode())
                num_prompt += outcome.num_prompt_tokens
                num_output += outcome.num_output_tokens
            yield time.perf_counter() - started, num_prompt, num_output, digest.hexdigest()


def measure_llama_cpp(model: str, threads: int, count: int, at_once: int) -> Iterator[Measured]:
    """A free sequence takes the next prompt whole, beside one token of each that is being answered."""
    import llama_cpp as llama
    import numpy as np

    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    loaded = llama.llama_model_load_from_file(model.encode(), llama.llama_model_default_params())
    vocab = llama.llama_model_get_vocab(loaded)
    vocab_size = llama.llama_vocab_n_tokens(vocab)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_seq_max = MAX_TOKENS * at_once, at_once
    params.n_batch, params.n_ubatch = NUM_BATCH_TOKENS, 512
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(loaded, params)
    if context is None:
        raise SystemExit(f"llama.cpp made no context of {params.n_ctx} tokens for {at_once} sequences")
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(NUM_BATCH_TOKENS, 0, 1)

    def answer(prompts: list[list[int]]) -> list[list[int]]:
        waiting = list(range(len(prompts)))[::-1]
        outputs: list[list[int]] = [[] for _ in prompts]
        running: dict[int, tuple[int, list[int], int]] = {}  # sequence -> prompt, what it reads next, and from where
        while waiting or running:
            num = sum(len(ids) for _, ids, _ in running.values())
            for sequence in range(at_once):
                if sequence in running or not waiting or num + len(prompts[waiting[-1]]) > NUM_BATCH_TOKENS:
                    continue
                i = waiting.pop()
                running[sequence] = (i, prompts[i], 0)
                num += len(prompts[i])
            num, last = 0, {}
            for sequence, (_, ids, start) in running.items():
                for k, token in enumerate(ids):
                    batch.token[num], batch.pos[num] = token, start + k
                    batch.n_seq_id[num], batch.seq_id[num][0] = 1, sequence
                    batch.logits[num] = k == len(ids) - 1
                    num += 1
                last[sequence] = num - 1
            batch.n_tokens = num
            if code := llama.llama_decode(context, batch):
                raise SystemExit(f"llama_decode failed: {code}")
            for sequence, (i, ids, start) in list(running.items()):
                logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, last[sequence]), (vocab_size,))
                outputs[i].append(int(logits.argmax()))
                running[sequence] = (i, outputs[i][-1:], start + len(ids))
                if len(outputs[i]) == NUM_OUTPUT_TOKENS:
                    del running[sequence]
                    llama.llama_memory_seq_rm(memory, sequence, -1, -1)
        return outputs

    prompts = prompts_of(count, vocab_size, llama.llama_vocab_bos(vocab))
    answer(prompts[:1])
    while True:
        started = time.perf_counter()
        outputs = answer(prompts)
        seconds = time.perf_counter() - started
        digest = hashlib.blake2b(json.dumps(outputs).encode(), digest_size=8)
        yield seconds, sum(map(len, prompts)), sum(map(len, outputs)), digest.hexdigest()


def measure_llama_cpp_server(model: str, threads: int, count: int, at_once: int) -> Iterator[Measured]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "llama_cpp.server", "--model", model, "--port", str(port), "--n_ctx"]
    command += [str(MAX_TOKENS), "--n_threads", str(threads), "--n_threads_batch", str(threads), "--verbose", "false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if server.poll() is not None:
                raise SystemExit(f"it ended with {server.returncode}: {' '.join(command)}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/v1/models").close()
                break
            time.sleep(0.1)
        yield from _measure_server(
            prompts_of(count, _vocab_size_of(model), None),
            at_once,
            lambda ids: _post(f"{address}/extras/detokenize", {"tokens": ids})["text"],
            lambda text: _post(
                f"{address}/v1/completions",
                {"prompt": text, "max_tokens": NUM_OUTPUT_TOKENS, "min_tokens": NUM_OUTPUT_TOKENS, "temperature": 0},
            )["usage"],
        )
    finally:
        server.terminate()
        server.wait()


def measure_llama_server(address: str, threads: int, count: int, at_once: int) -> Iterator[Measured]:
    address = address.rstrip("/")
    with urllib.request.urlopen(f"{address}/v1/models") as response:
        vocab_size = json.load(response)["data"][0]["meta"]["n_vocab"]
    fixed = {"n_predict": NUM_OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def ask(ids: Any) -> dict[str, int]:
        answer = _post(f"{address}/completion", {"prompt": ids, **fixed})
        return {"prompt_tokens": answer["tokens_evaluated"], "completion_tokens": answer["tokens_predicted"]}

    yield from _measure_server(prompts_of(count, vocab_size, None), at_once, lambda ids: ids, ask)


def _measure_server(
    prompts: list[list[int]], at_once: int, prepare: Callable[[list[int]], Any], ask: Callable[[Any], dict[str, int]]
) -> Iterator[Measured]:
    bodies = [prepare(ids) for ids in prompts]
    ask(bodies[0])
    while True:
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            usages = list(pool.map(ask, bodies))
        seconds = time.perf_counter() - started
        num_prompt, num_output = (sum(u[f"{kind}_tokens"] for u in usages) for kind in ("prompt", "completion"))
        yield seconds, num_prompt, num_output, ""


def _post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def _vocab_size_of(model: str) -> int:
    import llama_cpp

    return int(llama_cpp.Llama(model, vocab_only=True, verbose=False).n_vocab())


def measure_litert_lm(model: str, threads: int, count: int, at_once: int) -> Iterator[Measured]:
    import litert_lm
    from litert_lm import interfaces

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
    with litert_lm.Engine(
        model, backend=interfaces.CPU(thread_count=threads), max_num_tokens=MAX_TOKENS, cache_dir=":nocache"
    ) as engine:

        def answer(text: str) -> str:
            with engine.create_session(
                apply_prompt_template=False, sampler_config=greedy, max_output_tokens=NUM_OUTPUT_TOKENS
            ) as session:
                session.run_prefill([text])
                return str(session.run_decode().texts[0])

        prompts = [
            engine.detokenize(ids) for ids in prompts_of(count, 2048, None)
        ]  # it does not say how many there are
        num_prompt = sum(len(engine.tokenize(text)) for text in prompts)
        answer(prompts[0])
        while True:
            started = time.perf_counter()
            texts = [answer(text) for text in prompts]
            seconds = time.perf_counter() - started
            yield seconds, num_prompt, sum(len(engine.tokenize(text)) for text in texts), ""


ENGINES: dict[str, Callable[[str, int, int, int], Iterator[Measured]]] = {
    "hearthlm": measure_hearthlm,
    "llama.cpp": measure_llama_cpp,
    "llama_cpp.server": measure_llama_cpp_server,
    "llama-server": measure_llama_server,
    "litert-lm": measure_litert_lm,
}


def run_alone(engine: str, model: str, threads: int, count: int, at_once: int, repeat: int) -> dict[str, Any]:
    """Return what answering `count` prompts took in this process, `at_once` at a time; 1 is one after the other."""
    ways = ENGINES[engine](model, threads, count, at_once)
    seconds, num_prompt, num_output, digest = min(next(ways) for _ in range(repeat))
    ways.close()  # type: ignore[attr-defined]
    return {
        "at_once": at_once,
        "seconds": round(seconds, 2),
        "output_tok_s": round(num_output / seconds, 1),
        "all_tok_s": round((num_prompt + num_output) / seconds, 1),
        "tokens": digest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--at-once", type=int, nargs="+", default=[16])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--model", type=Path, help="this model alone, instead of the two")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    threads, count, repeat = arguments.threads, arguments.prompts, arguments.repeat
    for peer in arguments.peers:
        if peer.partition("=")[0] not in ENGINES:
            parser.error(f"{peer}: expected ENGINE=MODEL:PYTHON with an engine of {', '.join(ENGINES)}")
    if arguments.alone:
        engine, _, model = arguments.peers[0].partition("=")
        print(json.dumps(run_alone(engine, model, threads, count, arguments.at_once[0], repeat)))
        return

    from random_model import write_random_model

    from hearthlm.demo import model_path

    with tempfile.TemporaryDirectory() as folder:
        models = [arguments.model] if arguments.model else [model_path(), Path(folder) / "gemma3-1b-int4.bin"]
        if not arguments.model:
            write_random_model(models[1], "gemma3-1b", 4)
        for what in (*(f"hearthlm={path}" for path in models), *arguments.peers):
            engine, _, model = what.partition("=")
            python = sys.executable
            if engine not in ("hearthlm", "llama-server"):
                model, _, python = model.rpartition(":")
            rows: list[dict[str, Any]] = []
            for at_once in (1, *(() if engine == "litert-lm" else arguments.at_once)):
                command = [python, __file__, f"{engine}={model}", "--alone", "--threads", str(threads)]
                command += ["--prompts", str(count), "--repeat", str(repeat), "--at-once", str(at_once)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{engine}: {done.stderr.strip()[-2000:]}")
                rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
                faster = round(rows[0]["seconds"] / rows[-1]["seconds"], 2)
                name = model if engine == "llama-server" else Path(model).name
                print(json.dumps({"engine": engine, "model": name, **rows[-1], "times_as_fast": faster}), flush=True)
            if engine == "hearthlm" and len({row["tokens"] for row in rows}) != 1:
                sys.exit(f"{model}: the tokens differ")


if __name__ == "__main__":
    main()
