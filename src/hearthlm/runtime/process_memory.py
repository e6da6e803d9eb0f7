"""What the system says about memory: this process's, and what the machine and the container have left."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessMemory:
    """Hold the pages of a process that are in memory, in bytes: its own, and those it shares with files."""

    anonymous_bytes: int
    file_bytes: int


def process_memory(except_files: Collection[str | os.PathLike[str]] = ()) -> ProcessMemory | None:
    """Return what this process has in memory, the pages of `except_files` not counted; None where nothing says so."""
    try:
        if not except_files:
            fields = _status_fields(Path("/proc/self/status"))
            return ProcessMemory(fields["RssAnon"], fields["RssFile"] + fields.get("RssShmem", 0))
        return _mapped_memory({os.path.realpath(path) for path in except_files})
    except (OSError, KeyError, ValueError):
        return None


def peak_memory() -> int | None:
    """Return the most bytes that this process has had in memory so far; None where nothing says so."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def give_back_freed_memory() -> None:
    """Let the system have what this process has freed and the C library keeps, where it is glibc."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> int:
    """Return how many bytes could be taken now without others being pushed out; 4 GiB where nothing says so.

    That is the system's estimate, or what the container's limit leaves (cgroup v2) if that is less.
    """
    free = 4 << 30
    with suppress(OSError, ValueError, AttributeError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, KeyError, ValueError):  # with what the system would give back from its caches
        free = _status_fields(Path("/proc/meminfo"))["MemAvailable"]
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        with suppress(OSError, KeyError, ValueError):  # files that were read count as used until somebody needs more
            statistics = Path("/sys/fs/cgroup/memory.stat").read_text().split()
            used -= int(statistics[statistics.index("inactive_file") + 1])
        free = min(free, max(0, limit - used))
    return free


def total_memory() -> int | None:
    """Return how much memory the machine, or the container if it has less, has; None where nothing says so."""
    total: int | None = None
    with suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        total = limit if total is None else min(total, limit)
    return total


def _status_fields(path: Path) -> dict[str, int]:
    """Return the sizes in a file of /proc, in bytes."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.removesuffix(" kB")) << 10
    return fields


def _mapped_memory(except_files: Collection[str]) -> ProcessMemory:
    anonymous = in_files = 0
    is_counted = True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(" ")
        if not name.endswith(":"):  # the head of a mapping: range, permissions, offset, device, inode, path
            is_counted = line.split(maxsplit=5)[5:] == [] or line.split(maxsplit=5)[5] not in except_files
        elif is_counted and name == "Rss:":
            in_files += int(value.split()[0]) << 10
        elif is_counted and name == "Anonymous:":
            anonymous += int(value.split()[0]) << 10
    return ProcessMemory(anonymous, in_files - anonymous)
