"""States of earlier calls, kept so that a text which begins like one of them is not computed again."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hearthlm.runtime.executor import State

MIN_SHARED = 8  # ids; sharing fewer saves less than it costs to look after


@dataclass(frozen=True, eq=False)
class _Entry:
    adapter: str  # the digest of what changed the weights, "" where nothing did
    ids: NDArray[np.int64]  # as many as the state has seen
    state: State
    memory: Mapping[int, int]

    def num_shared(self, ids: NDArray[np.int64], adapter: str) -> int:
        """Count the ids from the first on that are the same in `ids` and were computed with the same adapter."""
        count = min(len(self.ids), len(ids)) if adapter == self.adapter else 0
        different = self.ids[:count] != ids[:count]
        first = int(different.argmax()) if count else 0
        return first if count and different[first] else count

    def fork_at(self, length: int) -> State | None:
        """Return a fork that has seen the first `length` ids, None where a window has dropped what it needs."""
        fork = self.state.fork()
        if fork.truncate(length) == length:
            return fork
        fork.close()
        return None

    def serves(self, length: int) -> bool:
        """Say whether `take` could answer with this entry for the first `length` of its ids and no more."""
        fork = self.fork_at(length - 1)
        if fork is not None:
            fork.close()
        return fork is not None


class PrefixCache:
    """Keep states up to `max_bytes` of keys and values, the least recently used forgotten first.

    Memory that kept states share is counted once. Any thread may call.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected at least 0, got {max_bytes}")
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []  # the most recently used last
        self._num_listed: dict[int, int] = {}  # how many entries hold a piece of memory
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, ids: Sequence[int], adapter: str = "") -> State | None:
        """Return a state that has seen as much of the beginning of `ids` as is known, at most all but the last.

        It belongs to the caller. None where nothing is known, or fewer than 8 ids (unless those are all but the last).
        """
        wanted = np.asarray(ids, dtype=np.int64)
        fewest = max(1, min(MIN_SHARED, len(wanted) - 1))
        with self._lock:
            shared = [
                (min(entry.num_shared(wanted, adapter), len(wanted) - 1), i) for i, entry in enumerate(self._entries)
            ]
            for length, i in sorted(shared, reverse=True):
                if length < fewest:
                    break
                fork = self._entries[i].fork_at(length)
                if fork is not None:
                    self._entries.append(self._entries.pop(i))
                    return fork
        return None

    def keep(self, ids: Sequence[int], state: State, adapter: str = "") -> None:
        """Store a fork of `state`, which has seen the first `state.length` of `ids` and stays the caller's.

        Entries that the new one can stand in for are dropped; nothing is stored where an entry stands in for it, or
        where it is larger than `max_bytes` by itself.
        """
        if state.length > len(ids):
            raise ValueError(f"ids: expected the {state.length} that the state has seen, got {len(ids)}")
        memory = dict(state.memory())
        if state.length == 0 or sum(memory.values()) > self.max_bytes:
            return
        seen = np.array(ids[: state.length], dtype=np.int64)
        with self._lock:
            shared = [entry.num_shared(seen, adapter) for entry in self._entries]
            for i, length in enumerate(shared):
                if length == len(seen) and self._entries[i].serves(length):
                    self._entries.append(self._entries.pop(i))
                    return
            new = _Entry(adapter, seen, state.fork(), memory)
            for entry, length in zip(list(self._entries), shared, strict=True):
                if length == len(entry.ids) and new.serves(length):
                    self._remove(entry)
            self._entries.append(new)
            for address, num_bytes in memory.items():
                count = self._num_listed.get(address, 0)
                self._num_listed[address] = count + 1
                self._num_bytes += 0 if count else num_bytes
            while self._num_bytes > self.max_bytes:
                self._remove(self._entries[0])

    def clear(self) -> None:
        """Forget everything; states that were taken stay valid."""
        with self._lock:
            while self._entries:
                self._remove(self._entries[-1])

    def _remove(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        for address, num_bytes in entry.memory.items():
            self._num_listed[address] -= 1
            if not self._num_listed[address]:
                del self._num_listed[address]
                self._num_bytes -= num_bytes
        entry.state.close()
