"""Keys and values of one sequence, in blocks that sequences can share.

A block holds `block_size` consecutive positions of all layers of one kind (those that see everything, or those with
the same window). A fork lists the same blocks; the first to write into a shared block copies it. Blocks that have
left the window by more than a slack are dropped, so that a window costs window + slack positions however long the
text grows, and a rewind within the slack costs nothing.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hearthlm.errors import SessionFileError
from hearthlm.kernels import BlockTable
from hearthlm.kernels.cache_batch import row_length
from hearthlm.models.params import Architecture

BLOCK_SIZE = 64  # positions
REWIND_SLACK = 256  # positions behind the window that are kept


class Block:
    """Hold one block, [num_layers, 2 (keys, values), kv_heads, BLOCK_SIZE, row], and count who lists it."""

    __slots__ = ("address", "array", "num_owners")

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.address: int = array.__array_interface__["data"][0]
        self.num_owners = 1


@dataclass(frozen=True)
class CacheLayout:
    """Say what one group of layers keeps per position; shared by all sequences of a model."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: np.dtype[Any]
    window: int | None
    # Held while `num_owners` changes: sequences that share blocks may live in different threads. Reentrant, since the
    # garbage collector may close a forgotten state in the middle of it.
    ownership: threading.RLock = field(default_factory=threading.RLock, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Name the group in a saved state; no two groups of a model have the same window."""
        return "full" if self.window is None else f"window_{self.window}"

    def max_bytes(self, num_tokens: int, max_new: int) -> int:
        """Return the most that a sequence of up to `num_tokens` takes, `max_new` at most being added in one step."""
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        if self.window is not None:  # what `drop_outside_window` leaves, with both ends inside a block
            num_blocks = min(num_blocks, (self.window - 1 + REWIND_SLACK + max_new) // BLOCK_SIZE + 2)
        return num_blocks * BLOCK_SIZE * self._position_bytes

    def read_bytes(self, num_tokens: int) -> int:
        """Return how much is in sight of the last of `num_tokens`."""
        positions = num_tokens if self.window is None else min(num_tokens, self.window)
        return positions * self._position_bytes

    @property
    def _position_bytes(self) -> int:
        return self.num_layers * 2 * self.num_kv_heads * self.row_length * self.dtype.itemsize

    @property
    def row_length(self) -> int:
        """Count the elements of one position's keys or values for one kv head."""
        return row_length(self.head_dim, self.dtype)

    def new_block(self) -> Block:
        shape = (self.num_layers, 2, self.num_kv_heads, BLOCK_SIZE, self.row_length)
        return Block(np.empty(shape, dtype=self.dtype))

    def check_saved(self, length: int, array: NDArray[Any]) -> None:
        """Raise SessionFileError unless `array` is what `BlockCache.save` returns of this group at `length`."""
        fewest = length if self.window is None else min(length, self.window - 1)
        count = array.shape[3] if array.ndim == 5 else -1
        wanted = (self.num_layers, 2, self.num_kv_heads, count, self.row_length)
        if array.dtype != self.dtype or array.shape != wanted or not fewest <= count <= length:
            positions = str(length) if fewest == length else f"{fewest} to {length}"
            raise SessionFileError(
                f"the saved state's {self.name!r}: expected {self.dtype} [{self.num_layers}, 2, {self.num_kv_heads}, "
                f"{positions}, {self.row_length}] for {length} tokens, got {array.dtype} {list(array.shape)[:8]}"
            )


def cache_layouts(architecture: Architecture, dtype: DTypeLike) -> tuple[CacheLayout, ...]:
    """Return the groups of layers that a model keeps apart: one for each window, those that see everything first."""
    windows = sorted({layer.window or 0 for layer in architecture.layers})
    return tuple(
        CacheLayout(
            num_layers=sum((layer.window or 0) == window for layer in architecture.layers),
            num_kv_heads=architecture.num_kv_heads,
            head_dim=architecture.head_dim,
            dtype=np.dtype(dtype),
            window=window or None,
        )
        for window in windows
    )


class BlockCache:
    """List the blocks of one sequence for one group of layers; None stands for a block that left the window."""

    __slots__ = ("_first_kept", "_layout", "_table", "blocks")

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._first_kept = 0  # position; those before it are gone, with their blocks or inside one that was loaded
        self.blocks: list[Block | None] = []
        self._table: BlockTable | None = None  # of `blocks` as they are

    @property
    def table(self) -> BlockTable:
        """The blocks as kernels take them."""
        if self._table is None:
            arrays = [None if block is None else block.array for block in self.blocks]
            self._table = BlockTable(arrays, BLOCK_SIZE, self._layout.dtype)
        return self._table

    @classmethod
    def load(cls, layout: CacheLayout, length: int, array: NDArray[Any]) -> BlockCache:
        """Return a cache of `length` positions with the last ones from `array`, which `layout` has checked."""
        cache = cls(layout)
        first = cache._first_kept = length - array.shape[3]
        cache.blocks = [None] * (first // BLOCK_SIZE)
        for begin in range(len(cache.blocks) * BLOCK_SIZE, length, BLOCK_SIZE):
            low, high = max(first, begin), min(length, begin + BLOCK_SIZE)
            block = layout.new_block()
            block.array[:, :, :, : low - begin] = 0
            block.array[:, :, :, low - begin : high - begin] = array[:, :, :, low - first : high - first]
            cache.blocks.append(block)
        return cache

    def save(self, length: int) -> NDArray[Any]:
        """Copy the positions kept of the first `length`: [num_layers, 2, kv_heads, positions kept, row]."""
        first = self._first_kept
        shape = (self._layout.num_layers, 2, self._layout.num_kv_heads, length - first, self._layout.row_length)
        array = np.empty(shape, dtype=self._layout.dtype)
        for index, block in enumerate(self.blocks):
            if block is not None:
                begin = index * BLOCK_SIZE
                low, high = max(first, begin), min(length, begin + BLOCK_SIZE)
                array[:, :, :, low - first : high - first] = block.array[:, :, :, low - begin : high - begin]
        return array

    def reserve(self, start: int, stop: int) -> None:
        """Make the positions start to stop - 1 writable: their blocks exist and belong to this sequence alone."""
        for index in range(start // BLOCK_SIZE, min(len(self.blocks), -(-stop // BLOCK_SIZE))):
            block = self.blocks[index]
            assert block is not None  # positions at and after the length are never dropped
            with self._layout.ownership:
                shared = block.num_owners > 1
            if shared:
                copy = Block(block.array.copy())
                self._release(block)
                self.blocks[index] = copy
                self._table = None
        while len(self.blocks) * BLOCK_SIZE < stop:
            self.blocks.append(self._layout.new_block())
            self._table = None

    def can_truncate(self, length: int) -> bool:
        """Say whether everything that the token after the first `length` has to see is still here."""
        if self._layout.window is None:
            return True
        return max(0, length - self._layout.window + 1) >= self._first_kept

    def truncate(self, length: int) -> None:
        """Drop the blocks that hold only positions at and after `length`."""
        keep = -(-length // BLOCK_SIZE)
        if keep < len(self.blocks):
            self._table = None
        for block in self.blocks[keep:]:
            if block is not None:
                self._release(block)
        del self.blocks[keep:]
        self._first_kept = min(self._first_kept, len(self.blocks) * BLOCK_SIZE)

    def drop_outside_window(self, length: int) -> None:
        """Drop the blocks that no later token can see, nor one after a rewind within the slack."""
        if self._layout.window is None:
            return
        num_dropped = max(0, length - self._layout.window + 1 - REWIND_SLACK) // BLOCK_SIZE
        for index in range(self._first_kept // BLOCK_SIZE, num_dropped):
            block = self.blocks[index]
            if block is not None:
                self._release(block)
            self.blocks[index] = None
            self._table = None
        self._first_kept = max(self._first_kept, num_dropped * BLOCK_SIZE)

    def fork(self) -> BlockCache:
        copy = BlockCache(self._layout)
        with self._layout.ownership:
            for block in self.blocks:
                if block is not None:
                    block.num_owners += 1
        copy.blocks = list(self.blocks)
        copy._table = self._table
        copy._first_kept = self._first_kept
        return copy

    def _release(self, block: Block) -> None:
        with self._layout.ownership:
            block.num_owners -= 1

    @property
    def num_bytes(self) -> int:
        return sum(block.array.nbytes for block in self.blocks if block is not None)
