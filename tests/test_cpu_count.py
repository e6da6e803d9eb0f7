"""Threads by default: what affinity and control groups leave of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hearthlm.runtime import cpu_count
from hearthlm.runtime.cpu_count import cpu_quota, default_num_threads


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "0::/user.slice/app.scope"
V1 = "11:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "350000 100000"}, 3.5),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"sys/fs/cgroup/cpu.max": "200000 0"}, None),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/user.slice/app.scope/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/user.slice/cpu.max": "400000 100000"}, 4),
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/user.slice/cpu.max": "200000 100000",
                "sys/fs/cgroup/user.slice/app.scope/cpu.max": "400000 100000",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/../other", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
)
def test_the_least_quota_of_the_process_and_the_groups_above_counts(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    assert cpu_quota(tree(tmp_path, files)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_one_allowed_processor_means_one_thread() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from hearthlm.runtime.cpu_count import default_num_threads; print(default_num_threads())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


@pytest.mark.parametrize(("quota", "threads"), [(None, 3), (1.5, 1), (0.5, 1), (9.0, 3)])
def test_a_quota_bounds_the_threads(quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_count, "usable_cpus", lambda: {0, 1, 2})
    monkeypatch.setattr(cpu_count, "_read", lambda path: None)  # no siblings: three cores
    monkeypatch.setattr(cpu_count, "cpu_quota", lambda: quota)
    assert default_num_threads() == threads


def test_there_is_always_a_thread() -> None:
    assert 1 <= default_num_threads() <= (os.cpu_count() or 1)
