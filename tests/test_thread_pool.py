"""The threads of the kernels: how many there are, that they sleep, and what becomes of them in a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import Sequences, floats, matrix, quantised

from hearthlm.kernels import Kernels, ThreadPool

native = pytest.importorskip("hearthlm.kernels.native")
TASKS = Path("/proc/self/task")
needs_proc = pytest.mark.skipif(not TASKS.exists(), reason="needs /proc")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def k() -> Kernels:
    result: Kernels = native.NativeKernels(native.instruction_sets()[0])
    return result


def tasks() -> set[str]:
    return {task.name for task in TASKS.iterdir()}


def state_and_time(task: str) -> tuple[str, int, int]:
    """Return the state of a thread, its processor time in ticks and how often it was switched to."""
    fields = (TASKS / task / "stat").read_text().rpartition(")")[2].split()
    status = (TASKS / task / "status").read_text()
    switches = sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)
    return fields[0], int(fields[11]) + int(fields[12]), switches


def share_work(k: Kernels, pool: ThreadPool, rng: np.random.Generator) -> None:
    k.linear(quantised(rng, 1, 512), matrix(rng, "int8", 4000, 512), None, pool)


@needs_proc
def test_there_are_as_many_threads_as_asked_for_from_the_first_shared_call_to_the_end(
    k: Kernels, rng: np.random.Generator
) -> None:
    before = tasks()
    with ThreadPool(1) as one, ThreadPool(4) as four:
        k.quantize_rows(floats(rng, 1, 8), four)  # too little to share
        share_work(k, one, rng)
        assert tasks() == before
        share_work(k, four, rng)
        share_work(k, four, rng)
        assert len(tasks() - before) == 3
    deadline = time.monotonic() + 10
    while tasks() != before and time.monotonic() < deadline:  # the kernel removes an entry after the join
        time.sleep(0.01)
    assert tasks() == before


@needs_proc
def test_idle_workers_sleep_and_cost_nothing(k: Kernels, rng: np.random.Generator) -> None:
    before = tasks()
    with ThreadPool(3) as pool:
        share_work(k, pool, rng)
        workers = tasks() - before
        assert len(workers) == 2
        deadline = time.monotonic() + 30
        while any(state_and_time(task)[0] != "S" for task in workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        asleep = [state_and_time(task) for task in sorted(workers)]
        time.sleep(0.2)
        assert [state_and_time(task) for task in sorted(workers)] == asleep
        assert {state for state, _, _ in asleep} == {"S"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("is_busy", [False, True])
def test_a_forked_child_computes_with_the_pool_and_ends(is_busy: bool) -> None:
    code = f"""
import os, sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from kernel_cases import matrix, quantised
from hearthlm import kernels
rng = np.random.default_rng(0)
x, w, pool = quantised(rng, 3, 512), matrix(rng, "int4", 4000, 512), kernels.ThreadPool(3)
expected = kernels.linear(x, w, None, pool)
is_over = threading.Event()
def compute():
    while not is_over.is_set():
        kernels.linear(x, w, None, pool)
threads = [threading.Thread(target=compute) for _ in range(2 if {is_busy} else 0)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if not child:
        same = all(np.array_equal(kernels.linear(x, w, None, pool), expected) for _ in range(3))
        pool.close()
        same = same and np.array_equal(kernels.linear(x, w, None, pool), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
is_over.set()
for thread in threads:
    thread.join()
assert np.array_equal(kernels.linear(x, w, None, pool), expected)
pool.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def long_calls(k: Kernels, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a call of every kernel that takes a while."""
    pool = ThreadPool(1)
    x, w = floats(rng, 64, 2048), matrix(rng, "int8", 2048, 2048)
    other = x.copy()
    rows, logits = k.quantize_rows(x, pool), floats(rng, 1, 1 << 20)
    heads, angles = x.reshape(64, 8, 256), floats(rng, 64, 128)
    sequences = Sequences([64], 8, 256, 64)
    batch = sequences.batch([(0, 0, 64)])
    k.kv_append(heads, heads, batch, 0)
    ids, weight = np.zeros(64, np.int32), np.ones(2048, np.float32)
    yield "quantize_rows", lambda: k.quantize_rows(x, pool)
    yield "linear_int8", lambda: k.linear(rows, w, None, pool)
    yield "linear_float", lambda: k.linear(x, w, None, pool)
    yield "embed_rows", lambda: k.embed_rows(ids, w, 1.0)
    yield "rms_norm", lambda: k.rms_norm(x, weight, 1e-6, pool)
    yield "layer_norm", lambda: k.layer_norm(x, weight, None, 1e-6, pool)
    yield "rope", lambda: k.rope(heads, angles, angles)
    yield "activation", lambda: k.activation(x, "silu", pool)
    yield "add", lambda: k.add(x, other, pool)
    yield "soft_cap", lambda: k.soft_cap(x, 30.0, pool)
    yield "kv_append", lambda: k.kv_append(heads, heads, batch, 0)
    yield "attention", lambda: k.attention(heads, batch, 0, 8, 1.0, 0.0, 0, None, pool)
    yield "top_k", lambda: k.top_k(logits[0], 40)
    yield "draw", lambda: k.draw(logits[0], 1.0, 0.9, 0.0, 0.5)
    yield "log_softmax_at", lambda: k.log_softmax_at(logits, ids[:1], pool)


def test_other_python_threads_run_while_a_kernel_computes(k: Kernels, rng: np.random.Generator) -> None:
    """With a switch interval without end, another thread runs only if a call gives the interpreter lock away."""
    interval = sys.getswitchinterval()
    turns, is_over = 0, False

    def take_turns() -> None:
        nonlocal turns
        while not is_over:
            turns += 1
            time.sleep(0)  # gives the lock back

    watcher = threading.Thread(target=take_turns)
    watcher.start()
    sys.setswitchinterval(1000)
    try:
        for name, call in long_calls(k, rng):
            before = turns
            for _ in range(10_000):
                call()
                if turns > before:
                    break
            assert turns > before, name
    finally:
        is_over = True
        sys.setswitchinterval(interval)
        watcher.join()
