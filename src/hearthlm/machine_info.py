"""What this machine offers a model, and what of this package is there to use it."""

from __future__ import annotations

import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import hearthlm
from hearthlm import kernels
from hearthlm.quantization import WeightMatrix
from hearthlm.runtime.cpu_count import cpu_quota, default_num_threads, usable_cpus
from hearthlm.runtime.process_memory import free_memory, total_memory

KERNELS_VARIABLE = "HEARTHLM_KERNELS"

# What the kernels look for, as Linux writes it in /proc/cpuinfo.
_FEATURES = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)

_POOL_BYTES = 256 << 20  # of weights: several times the last cache, so that each reading comes from memory
_ROWS, _COLUMNS, _NUM_ROWS = 1024, 1024, 128  # of a matrix that stays in the cache, and a prompt's rows


@dataclass(frozen=True)
class MachineLimits:
    """Say what the kernels reach on this machine with `num_threads`, the best of a second each.

    `read_gb_per_s`: weights read from memory, as for each token of one answer. `int8_tops`: 10**12 int8 multiplications
    and additions in a second, as in reading a prompt.
    """

    num_threads: int
    read_gb_per_s: float
    int8_tops: float


@dataclass(frozen=True)
class MachineInfo:
    """Say what this machine offers.

    `kernels` are in use, for the reason `kernels_reason`, of `available_kernels`, the best first. `num_threads` is what
    a model gets by default: the physical cores among `usable_cpus`, within `cpu_quota`, the control groups' limit.
    `extras` has the libraries of each optional extra with their versions, None for one that is not installed.
    """

    version: str
    python: str
    platform: str
    cpu: str
    cpu_features: tuple[str, ...]
    kernels: str
    kernels_reason: str
    available_kernels: tuple[str, ...]
    usable_cpus: tuple[int, ...]
    num_cpus: int
    cpu_quota: float | None
    num_threads: int
    free_memory_bytes: int
    total_memory_bytes: int | None
    extras: dict[str, dict[str, str | None]]

    def to_json(self) -> dict[str, Any]:
        """Return the document of `hearthlm doctor --json`."""
        return asdict(self)


def inspect_machine() -> MachineInfo:
    """Describe this machine, what limits this process on it, and which optional libraries are installed."""
    cpu, features = _cpu()
    return MachineInfo(
        version=hearthlm.__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cpu_features=features,
        kernels=kernels.instruction_set,
        kernels_reason=_kernels_reason(),
        available_kernels=kernels.available_instruction_sets(),
        usable_cpus=tuple(sorted(usable_cpus())),
        num_cpus=os.cpu_count() or 1,
        cpu_quota=cpu_quota(),
        num_threads=default_num_threads(),
        free_memory_bytes=free_memory(),
        total_memory_bytes=total_memory(),
        extras=_extras(),
    )


def measure_machine(num_threads: int | None = None, *, seconds: float = 1.0) -> MachineLimits:
    """Measure for `seconds` each how fast weights are read and int8 numbers multiplied; it takes 256 MiB meanwhile."""
    num_threads = num_threads or default_num_threads()
    generator = np.random.default_rng(0)
    with kernels.ThreadPool(num_threads) as pool:
        data = np.full((_POOL_BYTES // 4096, 4096), 3, np.int8)
        matrix = WeightMatrix("int8", (len(data), 4096), data, np.ones(len(data), np.float32))
        row = kernels.quantize_rows(generator.standard_normal((1, 4096), np.float32), pool)
        read_s = _best_s(lambda: kernels.linear(row, matrix, None, pool), seconds)
        del data, matrix
        small = generator.integers(-127, 128, (_ROWS, _COLUMNS), dtype=np.int8)
        matrix = WeightMatrix("int8", (_ROWS, _COLUMNS), small, np.ones(_ROWS, np.float32))
        rows = kernels.quantize_rows(generator.standard_normal((_NUM_ROWS, _COLUMNS), np.float32), pool)
        multiply_s = _best_s(lambda: kernels.linear(rows, matrix, None, pool), seconds)
    return MachineLimits(num_threads, _POOL_BYTES / read_s / 1e9, 2 * _NUM_ROWS * _ROWS * _COLUMNS / multiply_s / 1e12)


def _best_s(call: Any, seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - started)
        if now >= end:
            return best


def _kernels_reason() -> str:
    available = kernels.available_instruction_sets()
    if wanted := os.environ.get(KERNELS_VARIABLE):
        return f"{KERNELS_VARIABLE} is {wanted}"
    if available == ("reference",):
        return "there are no native kernels in this installation: NumPy computes, slowly"
    return "the best that this CPU runs"


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Return the CPU's name and those of its features that matter, as far as the system tells."""
    name, found = platform.processor() or platform.machine(), set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name, ()
    for line in lines:
        field, _, value = (part.strip() for part in line.partition(":"))
        if field == "model name":
            name = value
        elif field in ("flags", "Features"):
            found |= set(value.split())
    return name, tuple(feature for feature in _FEATURES if feature in found)


def _extras() -> dict[str, dict[str, str | None]]:
    """Return the versions of the libraries that each extra asks for, but for those that only developers need."""
    extras: dict[str, dict[str, str | None]] = {}
    try:
        requirements = metadata.requires("hearthlm") or []
    except metadata.PackageNotFoundError:  # not installed, but found by PYTHONPATH
        return extras
    for requirement in requirements:
        named = re.fullmatch(r"([\w.-]+)[^;]*;.*extra == ['\"]([\w-]+)['\"].*", requirement)
        if named is None or named[2] in _FOR_DEVELOPERS or named[1] == "hearthlm":
            continue
        try:
            version: str | None = metadata.version(named[1])
        except metadata.PackageNotFoundError:
            version = None
        extras.setdefault(named[2], {})[named[1]] = version
    return extras


_FOR_DEVELOPERS = ("test", "oracles", "docs")
