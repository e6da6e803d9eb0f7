"""Blocks are shared until somebody writes, and dropped once no token can see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hearthlm.errors import SessionFileError
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


def test_int8_rows_take_a_byte_for_each_value_and_four_for_the_scale() -> None:
    group = CacheLayout(num_layers=2, num_kv_heads=3, head_dim=10, dtype=np.dtype(np.int8), window=None)
    cache = BlockCache(group)
    cache.reserve(0, 2 * BLOCK_SIZE)
    assert cache.num_bytes == group.max_bytes(2 * BLOCK_SIZE, 1) == 2 * BLOCK_SIZE * 2 * 2 * 3 * (10 + 4)
    assert cache.table.block_shape == (2, 2, 3, BLOCK_SIZE, 14)
    assert cache.save(70).shape == (2, 2, 3, 70, 14)


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


def test_blocks_can_be_given_back_while_the_same_thread_counts_owners() -> None:
    group = layout()
    cache = BlockCache(group)
    cache.reserve(0, 10)
    with group.ownership:  # as when the garbage collector finds a forgotten state just then
        cache.truncate(0)
    assert cache.blocks == []


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


@pytest.mark.parametrize("window", [None, 1, 24, 100])
@pytest.mark.parametrize(("length", "rewind"), [(0, 0), (1, 0), (64, 0), (65, 3), (3000, 0), (3000, 200), (300, 300)])
def test_what_is_saved_is_what_is_kept_and_comes_back(window: int | None, length: int, rewind: int) -> None:
    group = layout(window)
    cache = BlockCache(group)
    for position in range(length):
        fill(cache, position, position + 1, float(position))
    cache.drop_outside_window(length)
    length -= rewind
    assert cache.can_truncate(length) or length == 0
    cache.truncate(length)
    saved = cache.save(length)
    kept = sum(block is not None for block in cache.blocks) * BLOCK_SIZE - -length % BLOCK_SIZE
    assert saved.shape == (2, 2, 1, kept, 4)
    assert np.array_equal(saved[0, 0, 0, :, 0], np.arange(length - kept, length))
    group.check_saved(length, saved)
    loaded = BlockCache.load(group, length, saved)
    assert [block is None for block in loaded.blocks] == [block is None for block in cache.blocks]
    assert np.array_equal(loaded.save(length), saved)
    for shorter in range(0, length, 7):
        assert loaded.can_truncate(shorter) == cache.can_truncate(shorter)


@pytest.mark.parametrize("num_kept", [23, 24, 63, 64, 65, 100, 199, 200])
def test_a_window_may_be_saved_from_any_position_on(num_kept: int) -> None:
    group = layout(24)
    saved = np.zeros((2, 2, 1, num_kept, 4), np.float32)
    saved[:] = np.arange(200 - num_kept, 200)[:, None]
    group.check_saved(200, saved)
    cache = BlockCache.load(group, 200, saved)
    assert np.array_equal(cache.save(200), saved)
    first_visible = 200 - num_kept
    assert cache.can_truncate(first_visible + 23)
    assert first_visible == 0 or not cache.can_truncate(first_visible + 22)
    assert read(cache, 199) == 199.0
    cache.reserve(200, 1000)
    cache.drop_outside_window(1000)
    assert cache.save(1000).shape[3] <= 24 + REWIND_SLACK + BLOCK_SIZE


@pytest.mark.parametrize(
    ("window", "length", "saved", "message"),
    [
        (None, 5, np.zeros((2, 2, 1, 5, 4), np.float16), r"expected float32 \[2, 2, 1, 5, 4\].*got float16"),
        (None, 5, np.zeros((2, 2, 1, 4, 4), np.float32), r"'full': expected float32 \[2, 2, 1, 5, 4\] for 5 tokens"),
        (None, 5, np.zeros((2, 2, 1, 6, 4), np.float32), r"got float32 \[2, 2, 1, 6, 4\]"),
        (None, 5, np.zeros((2, 2, 2, 5, 4), np.float32), r"got float32 \[2, 2, 2, 5, 4\]"),
        (None, 5, np.zeros((2, 1, 5, 4), np.float32), r"got float32 \[2, 1, 5, 4\]"),
        (None, 0, np.zeros((), np.float32), r"expected float32 \[2, 2, 1, 0, 4\] for 0 tokens, got float32 \[\]"),
        (4, 5, np.zeros((2, 2, 1, 2, 4), np.float32), r"'window_4': expected float32 \[2, 2, 1, 3 to 5, 4\]"),
        (4, 5, np.zeros((2, 2, 1, 6, 4), np.float32), r"'window_4': expected float32 \[2, 2, 1, 3 to 5, 4\]"),
    ],
)
def test_a_saved_array_that_does_not_fit_is_refused(window: int | None, length: int, saved: Any, message: str) -> None:
    with pytest.raises(SessionFileError, match=message):
        layout(window).check_saved(length, saved)
