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
from numpy.typing import NDArray

BLOCK_SIZE = 64  # positions
REWIND_SLACK = 256  # positions behind the window that are kept


class Block:
    """Hold one block, [num_layers, 2 (keys, values), kv_heads, BLOCK_SIZE, head_dim], and count who lists it."""

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
    # Held while `num_owners` changes: sequences that share blocks may live in different threads.
    ownership: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def new_block(self) -> Block:
        shape = (self.num_layers, 2, self.num_kv_heads, BLOCK_SIZE, self.head_dim)
        return Block(np.empty(shape, dtype=self.dtype))


class BlockCache:
    """List the blocks of one sequence for one group of layers; None stands for a block that left the window."""

    __slots__ = ("_layout", "_num_dropped", "blocks")

    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._num_dropped = 0
        self.blocks: list[Block | None] = []

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
        while len(self.blocks) * BLOCK_SIZE < stop:
            self.blocks.append(self._layout.new_block())

    def can_truncate(self, length: int) -> bool:
        """Say whether everything that the token after the first `length` has to see is still here."""
        if self._layout.window is None:
            return True
        first_visible = max(0, length - self._layout.window + 1)
        return first_visible // BLOCK_SIZE >= self._num_dropped

    def truncate(self, length: int) -> None:
        """Drop the blocks that hold only positions at and after `length`."""
        keep = -(-length // BLOCK_SIZE)
        for block in self.blocks[keep:]:
            if block is not None:
                self._release(block)
        del self.blocks[keep:]
        self._num_dropped = min(self._num_dropped, len(self.blocks))

    def drop_outside_window(self, length: int) -> None:
        """Drop the blocks that no later token can see, nor one after a rewind within the slack."""
        if self._layout.window is None:
            return
        first_kept = max(0, length - self._layout.window + 1 - REWIND_SLACK) // BLOCK_SIZE
        while self._num_dropped < first_kept:
            block = self.blocks[self._num_dropped]
            if block is not None:
                self._release(block)
            self.blocks[self._num_dropped] = None
            self._num_dropped += 1

    def fork(self) -> BlockCache:
        copy = BlockCache(self._layout)
        with self._layout.ownership:
            for block in self.blocks:
                if block is not None:
                    block.num_owners += 1
        copy.blocks = list(self.blocks)
        copy._num_dropped = self._num_dropped
        return copy

    def _release(self, block: Block) -> None:
        with self._layout.ownership:
            block.num_owners -= 1

    @property
    def num_bytes(self) -> int:
        return sum(block.array.nbytes for block in self.blocks if block is not None)
