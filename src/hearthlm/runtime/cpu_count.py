"""How many threads to use when nobody says: one per physical core that this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def default_num_threads() -> int:
    """Return the number of physical cores within the affinity mask and the container's quota, at least 1."""
    cpus = usable_cpus()
    cores = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    quota = container_quota()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def usable_cpus() -> set[int]:
    """Return the numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def container_quota() -> float | None:
    """Return the cgroup v2 limit in processors, None where there is none."""
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "").partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
