"""Where the keys and values of one forward call lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_DTYPES = (np.dtype(np.float32), np.dtype(np.float16))


@dataclass(frozen=True, eq=False)
class CacheBatch:
    """Hold the rows of one forward call, grouped by sequence, and the blocks that their keys and values lie in.

    Rows `row_begin[i]` to `row_begin[i + 1]` belong to sequence i and stand at consecutive absolute positions from
    `first_positions[i]`. Its block table is `blocks[block_begin[i] : block_begin[i + 1]]`: position p lies in block
    p // block_size of the table, at p % block_size. A block is an array [num_layers, 2, kv_heads, block_size,
    head_dim] (keys, then values) that belongs to one sequence; None stands for one that was dropped because every
    window has passed it. `addresses` repeats the blocks as addresses, 0 for None.
    """

    row_begin: NDArray[np.int32]  # [sequences + 1]
    first_positions: NDArray[np.int32]  # [sequences]
    blocks: tuple[NDArray[Any] | None, ...]
    addresses: NDArray[np.uint64]  # [len(blocks)]
    block_begin: NDArray[np.int32]  # [sequences + 1]
    block_size: int
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        if self.dtype not in CACHE_DTYPES:
            raise ValueError(f"dtype: expected float32 or float16, got {self.dtype}")
        if self.block_size < 1:
            raise ValueError(f"block_size: expected at least 1, got {self.block_size}")
        sequences = len(self.first_positions)
        for name, dtype, length in (
            ("row_begin", np.int32, sequences + 1),
            ("first_positions", np.int32, sequences),
            ("block_begin", np.int32, sequences + 1),
            ("addresses", np.uint64, len(self.blocks)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (length,) or not array.flags.c_contiguous:
                raise ValueError(
                    f"{name}: expected a contiguous {np.dtype(dtype)} [{length}], got {array.dtype} {list(array.shape)}"
                )
        for name, last in (("row_begin", None), ("block_begin", len(self.blocks))):
            bounds = getattr(self, name)
            if bounds[0] != 0 or (last is not None and bounds[-1] != last) or np.any(bounds[1:] < bounds[:-1]):
                raise ValueError(f"{name}: expected bounds that rise from 0 to {last or 'the rows'}, got {bounds}")
        if sequences and self.first_positions.min() < 0:
            raise ValueError(f"first_positions: expected none below 0, got {self.first_positions.min()}")
        ends = self.first_positions + np.diff(self.row_begin)
        capacity = np.diff(self.block_begin) * np.int64(self.block_size)
        if np.any(ends > capacity):
            i = int(np.argmax(ends > capacity))
            raise ValueError(f"sequence {i} ends at position {ends[i]}, but its blocks hold {capacity[i]} positions")
        shape = self.block_shape
        present = self.addresses != 0
        for block, is_present in zip(self.blocks, present.tolist(), strict=True):
            if (block is not None) != is_present:
                raise ValueError("addresses: expected 0 for None and only for None")
            if block is not None and (block.shape != shape or block.dtype != self.dtype):
                raise ValueError(
                    f"block: expected {self.dtype} {list(shape)} as the others, got {block.dtype} {list(block.shape)}"
                )
        if shape and (len(shape) != 5 or shape[1] != 2 or shape[3] != self.block_size):
            raise ValueError(
                f"block: expected [num_layers, 2, kv_heads, {self.block_size}, head_dim], got {list(shape)}"
            )

    @property
    def num_rows(self) -> int:
        return int(self.row_begin[-1])

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Return [num_layers, 2, kv_heads, block_size, head_dim], or () when no block is present."""
        return next((block.shape for block in self.blocks if block is not None), ())


def block_address(block: NDArray[Any] | None) -> int:
    """Return the address of a block's first byte, 0 for None. Raises ValueError if it is not C-contiguous."""
    if block is None:
        return 0
    if not block.flags.c_contiguous:
        raise ValueError("block: expected a C-contiguous array")
    return int(block.__array_interface__["data"][0])
