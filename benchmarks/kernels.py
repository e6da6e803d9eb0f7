"""How fast the kernels are at the shapes of Gemma 3 1B: bytes read per second in decode, operations in prefill.

Weights are copied in turn from a pool larger than the cache, so every call reads memory, as decoding does. Each figure
is the best of several runs, to leave out what else the machine did. Prints one JSON document last.

    python benchmarks/kernels.py [--threads 2] [--rows 512]
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator

import numpy as np

from hearthlm import kernels
from hearthlm.kernels import BlockTable, CacheBatch, QuantizedRows, ThreadPool
from hearthlm.kernels.interface import Floats
from hearthlm.quantization import WeightMatrix, WeightType

SHAPES = ((6912, 1152), (1152, 6912), (262_144, 1152), (1024, 1152))
DTYPES: tuple[WeightType, ...] = ("int4", "int8", "float16", "float32")
POOL_BYTES = 256 << 20  # several times the last cache


def best_seconds(call: Callable[..., object], *arguments: object, least: float = 0.4) -> float:
    best, end, runs = float("inf"), time.perf_counter() + least, 0
    while time.perf_counter() < end or runs < 3:
        start = time.perf_counter()
        call(*arguments)
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


def random_matrices(dtype: WeightType, n: int, k: int) -> list[WeightMatrix]:
    """Return views of one random buffer, enough of them to fall out of the cache."""
    columns = {"int8": k, "int4": (k + 1) // 2, "float32": 4 * k}.get(dtype, 2 * k)
    stored = {"int8": np.int8, "int4": np.uint8, "float32": np.float32, "float16": np.float16}.get(dtype, np.uint16)
    scales = np.ones(n, np.float32) if dtype in ("int8", "int4") else None
    copies = max(1, -(-POOL_BYTES // (n * columns)))
    data = np.random.default_rng(0).integers(0, 60, (copies, n, columns), dtype=np.uint8)
    return [WeightMatrix(dtype, (n, k), d.view(stored), scales) for d in data]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=512)
    arguments = parser.parse_args()
    results: dict[str, float] = {}

    def report(name: str, value: float, unit: str) -> None:
        results[f"{name} [{unit}]"] = round(value, 2)
        print(f"{name:50} {value:9.2f} {unit}")

    rng = np.random.default_rng(0)
    with ThreadPool(arguments.threads) as pool:
        for n, k in SHAPES:
            x = rng.standard_normal((arguments.rows, k), dtype=np.float32)
            for dtype in DTYPES:
                weights = itertools.cycle(random_matrices(dtype, n, k))
                for m in (1, arguments.rows) if n * k < 1 << 24 else (1,):
                    floats = np.ascontiguousarray(x[:m])
                    inputs: dict[str, Floats | QuantizedRows] = {"float32": floats}
                    if dtype in ("int4", "int8"):
                        inputs["int8"] = kernels.quantize_rows(floats, pool)
                    for name, rows in inputs.items():
                        seconds = best_seconds(linear_with_the_next, rows, weights, pool)
                        name = f"linear {dtype} x {name} {n}x{k} m={m}"
                        if m == 1:
                            report(name, next(weights).data.nbytes / seconds / 1e9, "GB/s")
                        else:
                            report(name, 2 * m * n * k / seconds / 1e12, "TOPS")
        for positions in (512, 4096):
            whole, last = attention_batches(positions)
            for name, batch in (("prefill", whole), ("decode", last)):
                q = rng.standard_normal((batch.num_rows, 4, 256), dtype=np.float32)
                seconds = best_seconds(kernels.attention, q, batch, 0, 1, 0.06, 0.0, 0, None, pool)
                report(f"attention {name} {positions}", seconds * 1e6, "us")
        logits = rng.standard_normal(262_144, dtype=np.float32)
        report("top_k 40 of 262144", best_seconds(kernels.top_k, logits, 40) * 1e6, "us")
        ids = np.zeros(1, np.int32)
        report("log_softmax_at 262144", best_seconds(kernels.log_softmax_at, logits[None], ids, pool) * 1e6, "us")
        for m in (1, arguments.rows):
            x = rng.standard_normal((m, 1152), dtype=np.float32)
            heads = rng.standard_normal((m, 4, 256), dtype=np.float32)
            cos = rng.standard_normal((m, 128), dtype=np.float32)
            gate = rng.standard_normal((m, 6912), dtype=np.float32)
            weight = np.ones(1152, np.float32)
            report(f"rms_norm m={m}", best_seconds(kernels.rms_norm, x, weight, 1e-6, pool) * 1e6, "us")
            report(f"quantize_rows m={m}", best_seconds(kernels.quantize_rows, x, pool) * 1e6, "us")
            report(f"rope m={m}", best_seconds(kernels.rope, heads, cos, cos) * 1e6, "us")
            seconds = best_seconds(kernels.gated_activation, gate, gate, "gelu_tanh", pool)
            report(f"gated gelu_tanh m={m}", seconds * 1e6, "us")
        tiny = WeightMatrix("int4", (1, 2), np.zeros((1, 1), np.uint8), np.ones(1, np.float32))
        row = kernels.quantize_rows(np.ones((1, 2), np.float32), pool)
        report("linear 1x2, that is, the call", best_seconds(kernels.linear, row, tiny, None, pool) * 1e6, "us")
    print(json.dumps({"instruction_set": kernels.instruction_set, "threads": arguments.threads, **results}))


def linear_with_the_next(rows: Floats | QuantizedRows, weights: Iterator[WeightMatrix], pool: ThreadPool) -> Floats:
    return kernels.linear(rows, next(weights), None, pool)


def attention_batches(positions: int) -> tuple[CacheBatch, CacheBatch]:
    """Return all rows of one sequence, and its last row alone, as Gemma 3 1B caches them."""
    blocks = [np.zeros((1, 2, 1, 64, 256), np.float16) for _ in range(positions // 64)]
    table = BlockTable(blocks, 64, "float16")
    return CacheBatch([0, positions], [0], [table]), CacheBatch([0, 1], [positions - 1], [table])


if __name__ == "__main__":
    main()
