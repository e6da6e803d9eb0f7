"""Where the keys and values of one forward call lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int8))  # as the enum in kernels.h

SCALE_BYTES = 4  # behind the values of an int8 row: what they are multiples of, float32


def row_length(head_dim: int, dtype: np.dtype[Any]) -> int:
    """Return how many elements of `dtype` the keys or values of one position and kv head take in a block."""
    return head_dim + SCALE_BYTES if dtype == np.int8 else head_dim


class BlockTable:
    """List the blocks of one sequence: position p lies in block p // block_size, at p % block_size.

    A block is an array [num_layers, 2, kv_heads, block_size, head_dim] (keys, then values) that belongs to one
    sequence; None stands for one that was dropped because every window has passed it. The rows of int8 blocks are
    head_dim values and, behind them, the bytes of their scale, see `row_length`. `addresses` [len(blocks)] repeats the
    blocks as addresses, 0 for None. Raises ValueError for a block of another type or shape than the others.
    """

    __slots__ = ("addresses", "block_shape", "block_size", "blocks", "dtype")

    def __init__(self, blocks: Sequence[NDArray[Any] | None], block_size: int, dtype: np.dtype[Any] | str) -> None:
        self.blocks = tuple(blocks)
        self.block_size = block_size
        self.dtype = np.dtype(dtype)
        if self.dtype not in CACHE_DTYPES:
            raise ValueError(f"dtype: expected float32, float16 or int8, got {self.dtype}")
        if block_size < 1:
            raise ValueError(f"block_size: expected at least 1, got {block_size}")
        self.block_shape: tuple[int, ...] = next((block.shape for block in blocks if block is not None), ())
        shape = self.block_shape
        if shape and (len(shape) != 5 or shape[1] != 2 or shape[3] != block_size):
            raise ValueError(f"block: expected [num_layers, 2, kv_heads, {block_size}, head_dim], got {list(shape)}")
        if shape and shape[4] < row_length(1, self.dtype):
            raise ValueError(f"block: expected rows of {row_length(1, self.dtype)} bytes or more, got {list(shape)}")
        for block in blocks:
            if block is not None and (block.shape != shape or block.dtype != self.dtype):
                raise ValueError(
                    f"block: expected {self.dtype} {list(shape)} as the others, got {block.dtype} {list(block.shape)}"
                )
            if block is not None and not block.flags.c_contiguous:
                raise ValueError("block: expected a C-contiguous array")
        addresses = [0 if block is None else block.__array_interface__["data"][0] for block in blocks]
        self.addresses = np.array(addresses, dtype=np.uint64)


class CacheBatch:
    """Hold the rows of one forward call, grouped by sequence, and the tables of what was computed of each.

    Rows `row_begin[i]` to `row_begin[i + 1]` belong to sequence i, of `tables[i]`, and stand at consecutive absolute
    positions from `first_positions[i]`. `addresses` are those of all tables, one after the other, from
    `block_begin[i]` to `block_begin[i + 1]` those of table i. Raises ValueError where the rows go beyond the blocks.
    """

    def __init__(self, row_begin: Sequence[int], first_positions: Sequence[int], tables: Sequence[BlockTable]) -> None:
        if not tables or len(first_positions) != len(tables) or len(row_begin) != len(tables) + 1:
            raise ValueError(
                f"row_begin and first_positions: expected {len(tables) + 1} and {len(tables)} for {len(tables)} "
                f"tables, at least one, got {len(row_begin)} and {len(first_positions)}"
            )
        if row_begin[0] != 0 or any(end < begin for begin, end in pairwise(row_begin)):
            raise ValueError(f"row_begin: expected bounds that rise from 0 to the rows, got {list(row_begin)}")
        if min(first_positions) < 0:
            raise ValueError(f"first_positions: expected none below 0, got {min(first_positions)}")
        self.tables = tuple(tables)
        self.block_size, self.dtype = tables[0].block_size, tables[0].dtype
        self.block_shape: tuple[int, ...] = next((table.block_shape for table in tables if table.block_shape), ())
        self.head_dim = self.block_shape[4] - row_length(0, self.dtype) if self.block_shape else 0
        for i, table in enumerate(tables):
            if (table.block_size, table.dtype) != (self.block_size, self.dtype):
                raise ValueError(
                    f"tables: expected blocks of {self.block_size} positions of {self.dtype} as in the first, got "
                    f"{table.block_size} of {table.dtype} in table {i}"
                )
            if table.block_shape not in ((), self.block_shape):
                raise ValueError(
                    f"tables: expected blocks {list(self.block_shape)} as in the others, got {list(table.block_shape)}"
                )
            end, capacity = first_positions[i] + row_begin[i + 1] - row_begin[i], len(table.blocks) * table.block_size
            if end > capacity:
                raise ValueError(f"sequence {i} ends at position {end}, but its blocks hold {capacity} positions")
        self.num_rows = row_begin[-1]
        self.row_begin = np.array(row_begin, dtype=np.int32)
        self.first_positions = np.array(first_positions, dtype=np.int32)
        self.block_begin = np.array([0, *accumulate(len(table.blocks) for table in tables)], dtype=np.int32)
        self.addresses: NDArray[np.uint64] = (
            tables[0].addresses if len(tables) == 1 else np.concatenate([table.addresses for table in tables])
        )
