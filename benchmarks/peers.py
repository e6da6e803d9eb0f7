"""hearthlm beside llama.cpp and LiteRT-LM on random weights of one geometry: in turns, medians, ratios.

python benchmarks/peers.py hearthlm=MODEL.bin llama.cpp=MODEL.gguf:PYTHON litert-lm=MODEL.litertlm:PYTHON
    [--threads N] [--rounds N] [--lengths 512,8192] [--plot FILE.svg] [--json]

PYTHON is an interpreter whose packages have that engine (llama-cpp-python built with -DGGML_NATIVE=ON, litert-lm-api).
Every engine runs in a process of its own, one after the other, and so again in every round; a value is the median of
the rounds, a ratio the median of each round's own. Models: benchmarks/random_model.py, random_gguf.py, and
`hearthlm export` of a checkpoint by random_checkpoint.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_DECODED = 48
Measured = dict[str, Any]  # load_s, peak_rss_mb, and for each length prefill and decode in tokens per second


def measure_hearthlm(path: str, threads: int, lengths: list[int]) -> Measured:
    import hearthlm

    started = time.perf_counter()
    options = hearthlm.LlmInferenceOptions(
        path, max_tokens=max(lengths) + NUM_DECODED + 64, num_threads=threads, prefix_cache_mb=0, prompt_lookup=False
    )
    with hearthlm.LlmInference.create_from_options(options) as llm:
        load_s = time.perf_counter() - started
        greedy = hearthlm.LlmInferenceSessionOptions(top_k=1, max_output_tokens=NUM_DECODED)
        llm.generate(_prompt(32), greedy)
        speeds: Measured = {}
        for length in lengths:
            results = [llm.generate(_prompt(length), greedy) for _ in range(2)]
            speeds[f"prefill {length}"] = length / min(result.prefill_s for result in results)
            speeds[f"decode at {length}"] = max((r.num_output_tokens - 1) / r.decode_s for r in results)
    return {"load s": load_s, **speeds}


def measure_llama_cpp(path: str, threads: int, lengths: list[int]) -> Measured:
    import ctypes

    import llama_cpp as llama

    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    started = time.perf_counter()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = max(lengths) + NUM_DECODED + 64, 512, 512
    params.n_threads = params.n_threads_batch = threads
    context = llama.llama_init_from_model(model, params)
    load_s = time.perf_counter() - started

    def feed(ids: list[int]) -> None:
        for begin in range(0, len(ids), 512):
            part = ids[begin : begin + 512]
            array = (llama.llama_token * len(part))(*part)  # the batch only points at it
            code = llama.llama_decode(context, llama.llama_batch_get_one(array, len(part)))
            if code:
                raise SystemExit(f"llama_decode failed: {code}")

    def decode() -> None:
        for token in _prompt(NUM_DECODED):
            feed([token])

    feed(_prompt(32))
    speeds: Measured = {}
    for length in lengths:
        prefill, decoded = [], []
        for _ in range(2):
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            prefill.append(_seconds(lambda n=length: feed(_prompt(n))))  # type: ignore[misc]
            decoded.append(_seconds(decode))
        speeds[f"prefill {length}"] = length / min(prefill)
        speeds[f"decode at {length}"] = NUM_DECODED / min(decoded)
    return {"load s": load_s, **speeds}


def measure_litert_lm(path: str, threads: int, lengths: list[int]) -> Measured:
    import litert_lm
    from litert_lm import interfaces

    load_s, speeds = 0.0, {}
    for length in lengths:
        info = litert_lm.Benchmark(
            path,
            backend=interfaces.CPU(thread_count=threads),
            prefill_tokens=length,
            decode_tokens=NUM_DECODED,
            max_num_tokens=max(lengths) + NUM_DECODED + 64,
            cache_dir=":nocache",
        ).run()
        load_s = load_s or info.init_time_in_second
        speeds[f"prefill {length}"] = info.last_prefill_tokens_per_second
        speeds[f"decode at {length}"] = info.last_decode_tokens_per_second
    return {"load s": load_s, **speeds}


ENGINES: dict[str, Callable[[str, int, list[int]], Measured]] = {
    "hearthlm": measure_hearthlm,
    "llama.cpp": measure_llama_cpp,
    "litert-lm": measure_litert_lm,
}


def _prompt(length: int) -> list[int]:
    return [2, *(300 + i * 7919 % 60000 for i in range(length - 1))]


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else float("nan")  # an engine that gave up says 0


def run_once(engine: str, where: str, threads: int, lengths: str) -> Measured:
    """Measure one engine in a process of its own."""
    path, _, python = where.partition(":")
    command = [python or sys.executable, __file__, f"{engine}={path}", "--here", "--threads", str(threads)]
    done = subprocess.run([*command, "--lengths", lengths], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine}: {done.stderr.strip()[-2000:]}")
    measured: Measured = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{engine}: {measured}", file=sys.stderr, flush=True)
    return measured


def plot(path: Path, medians: dict[str, Measured], lengths: list[int]) -> None:
    """Draw what a token costs, in milliseconds, against the length of the text, for reading and for writing."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, name in zip(axes, ("prefill", "decode at"), strict=True):
        for engine, measured in medians.items():
            known = [n for n in lengths if measured[f"{name} {n}"]]
            axis.plot(known, [1000 / measured[f"{name} {n}"] for n in known], marker="o", label=engine)
        axis.set(xscale="log", xlabel="tokens of the text", ylabel="ms per token", title=name.removesuffix(" at"))
        axis.set_ylim(bottom=0)
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axis.minorticks_off()
    axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", metavar="ENGINE=MODEL[:PYTHON]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lengths", default="512")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    engines = dict(engine.split("=", 1) for engine in arguments.engines)
    if arguments.here:
        ((engine, path),) = engines.items()
        measured = ENGINES[engine](path, arguments.threads, lengths)
        measured["peak RSS MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(json.dumps(measured))
        return
    rounds = [
        {engine: run_once(engine, where, arguments.threads, arguments.lengths) for engine, where in engines.items()}
        for _ in range(arguments.rounds)
    ]
    names = list(rounds[0]["hearthlm"])
    medians = {engine: {n: statistics.median(r[engine][n] for r in rounds) for n in names} for engine in engines}
    ratios = {
        engine: {n: statistics.median(_ratio(r["hearthlm"][n], r[engine][n]) for r in rounds) for n in names}
        for engine in engines
        if engine != "hearthlm"
    }
    if arguments.json:
        print(json.dumps({"rounds": rounds, "medians": medians, "hearthlm over": ratios}))
    else:
        print(f"{'':16}" + "".join(f"{engine:>12}" for engine in engines) + "".join(f"{'/ ' + e:>14}" for e in ratios))
        for n in names:
            values = "".join(f"{medians[engine][n]:12.2f}" for engine in engines)
            print(f"{n:16}" + values + "".join(f"{ratio[n]:14.2f}" for ratio in ratios.values()))
    if arguments.plot is not None:
        plot(arguments.plot, medians, lengths)


if __name__ == "__main__":
    main()
