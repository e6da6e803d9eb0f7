"""How many threads to use when nobody says: one per physical core that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def default_num_threads() -> int:
    """Return the number of physical cores within the affinity mask and the quotas of control groups, at least 1."""
    cpus = usable_cpus()
    cores = {_read(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or str(cpu) for cpu in cpus}
    quota = cpu_quota()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def usable_cpus() -> set[int]:
    """Return the numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the least quota of this process's control groups in processors, None where there is none.

    Version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`), of the process's own group and all above it, as far as the
    file system at `root` shows them.
    """
    quotas = []
    for folder, is_version_2 in _cgroups(root):
        if is_version_2:
            quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        else:
            quota, period = (_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):  # neither "max" nor -1
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroups(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the groups that limit processors, and whether they are of version 2.

    In a container the paths may be the host's: what does not exist is passed over, the container's own root is there.
    """
    mount = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "0::/").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_version_2 = hierarchy == "0" and not controllers
        if not is_version_2 and "cpu" not in controllers.split(","):
            continue
        top = mount if is_version_2 else mount / controllers
        if not is_version_2 and not top.exists():
            top = mount / "cpu"
        parts = PurePosixPath(path).parts[1:]
        if ".." in parts:  # a group outside of what is mounted
            parts = ()
        for depth in range(len(parts) + 1):
            yield top.joinpath(*parts[:depth]), is_version_2


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
