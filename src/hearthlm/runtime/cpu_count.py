"""How many threads to use when nobody says: one per physical core that this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def default_num_threads() -> int:
    """Return the number of physical cores within the affinity mask and the container's quota, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:
        cpus = set(range(os.cpu_count() or 1))
    cores = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return max(1, min(len(cores), _container_quota() or len(cores)))


def _container_quota() -> int | None:
    """Return the cgroup v2 limit in whole processors, rounded down but at least 1."""
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "").partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, int(quota) // int(period))


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
