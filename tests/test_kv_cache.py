"""Blocks are shared until somebody writes, and dropped once no token can see them."""

from __future__ import annotations

import numpy as np
import pytest

from hearthlm.runtime.kv_cache import BLOCK_SIZE, REWIND_SLACK, BlockCache, CacheLayout


def layout(window: int | None = None) -> CacheLayout:
    return CacheLayout(num_layers=2, num_kv_heads=1, head_dim=4, dtype=np.dtype(np.float32), window=window)


def fill(cache: BlockCache, start: int, stop: int, value: float) -> None:
    cache.reserve(start, stop)
    for position in range(start, stop):
        block = cache.blocks[position // BLOCK_SIZE]
        assert block is not None
        block.array[:, :, :, position % BLOCK_SIZE] = value


def read(cache: BlockCache, position: int) -> float:
    block = cache.blocks[position // BLOCK_SIZE]
    assert block is not None
    return float(block.array[0, 0, 0, position % BLOCK_SIZE, 0])


def test_memory_grows_block_by_block() -> None:
    cache = BlockCache(layout())
    cache.reserve(0, 1)
    assert len(cache.blocks) == 1
    cache.reserve(1, BLOCK_SIZE)
    assert len(cache.blocks) == 1
    cache.reserve(BLOCK_SIZE, BLOCK_SIZE + 1)
    assert len(cache.blocks) == 2


def test_a_fork_shares_blocks_until_either_side_writes() -> None:
    first = BlockCache(layout())
    fill(first, 0, BLOCK_SIZE + 10, 1.0)
    second = first.fork()
    assert [a is b for a, b in zip(first.blocks, second.blocks, strict=True)] == [True, True]
    fill(second, BLOCK_SIZE + 10, BLOCK_SIZE + 11, 2.0)
    assert [a is b for a, b in zip(first.blocks, second.blocks, strict=True)] == [True, False]
    fill(first, BLOCK_SIZE + 10, BLOCK_SIZE + 11, 3.0)
    assert (read(first, BLOCK_SIZE + 10), read(second, BLOCK_SIZE + 10)) == (3.0, 2.0)
    assert (read(first, BLOCK_SIZE + 9), read(second, BLOCK_SIZE + 9)) == (1.0, 1.0)


def test_the_last_owner_of_a_block_writes_in_place() -> None:
    first = BlockCache(layout())
    fill(first, 0, 10, 1.0)
    second = first.fork()
    block = first.blocks[0]
    first.truncate(0)
    fill(second, 10, 11, 2.0)
    assert second.blocks[0] is block


def test_truncating_inside_a_shared_block_leaves_the_other_owner_alone() -> None:
    first = BlockCache(layout())
    fill(first, 0, 20, 1.0)
    second = first.fork()
    second.truncate(5)
    fill(second, 5, 20, 2.0)
    assert [read(first, p) for p in (4, 5, 19)] == [1.0, 1.0, 1.0]
    assert [read(second, p) for p in (4, 5, 19)] == [1.0, 2.0, 2.0]


def test_a_window_keeps_window_and_slack_however_long_the_text() -> None:
    window = 100
    cache = BlockCache(layout(window))
    for length in range(1, 5000, 7):
        cache.reserve(max(0, length - 7), length)
        cache.drop_outside_window(length)
        kept = sum(block is not None for block in cache.blocks)
        assert kept * BLOCK_SIZE <= window + REWIND_SLACK + 2 * BLOCK_SIZE
        assert cache.blocks[max(0, length - window) // BLOCK_SIZE] is not None
    assert cache.num_bytes == kept * 2 * 2 * BLOCK_SIZE * 4 * 4


@pytest.mark.parametrize("rewind", [1, REWIND_SLACK])
def test_a_rewind_within_the_slack_finds_all_it_has_to_see(rewind: int) -> None:
    cache = BlockCache(layout(window=64))
    cache.reserve(0, 3000)
    cache.drop_outside_window(3000)
    assert cache.can_truncate(3000 - rewind)
    cache.truncate(3000 - rewind)
    assert cache.blocks[(3000 - rewind - 64) // BLOCK_SIZE] is not None


def test_a_deeper_rewind_is_known_to_be_impossible() -> None:
    cache = BlockCache(layout(window=64))
    cache.reserve(0, 3000)
    cache.drop_outside_window(3000)
    assert not cache.can_truncate(3000 - REWIND_SLACK - 64 - 2 * BLOCK_SIZE)
    cache.truncate(0)
    assert cache.blocks == []
    cache.reserve(0, 100)  # usable again from the start
    assert all(block is not None for block in cache.blocks)
