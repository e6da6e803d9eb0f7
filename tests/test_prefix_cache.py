"""What was computed before is used again, within a budget, and changes no bit of a result."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids
from test_transformer import executor

from hearthlm.runtime.executor import ForwardRequest, State
from hearthlm.runtime.prefix_cache import MIN_SHARED, PrefixCache

MANY = 1 << 30


class FakeState:
    """Hold `piece` bytes for each of its ids, and see no further back than `window` once it has gone on."""

    num_open = 0

    def __init__(self, ids: Sequence[int], piece: int = 1, window: int | None = None, pool: int = 0) -> None:
        self.ids = list(ids)
        self.piece = piece
        self.window = window
        self.pool = pool  # states of one pool share what they have in common
        FakeState.num_open += 1

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> int:
        if self.window is not None and length < self.length - self.window:
            length = 0
        del self.ids[length:]
        return length

    def fork(self) -> FakeState:
        return FakeState(self.ids, self.piece, self.window, self.pool)

    def save(self) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def memory(self) -> Mapping[int, int]:
        num_pieces = self.length if self.piece else 0
        return {hash((self.pool, *self.ids[: i + 1])): self.piece for i in range(num_pieces)}

    def close(self) -> None:
        FakeState.num_open -= 1


@pytest.fixture(autouse=True)
def no_open_states() -> None:
    FakeState.num_open = 0


def taken(cache: PrefixCache, ids: Sequence[int]) -> list[int] | None:
    state = cache.take(ids)
    if state is None:
        return None
    assert isinstance(state, FakeState)
    seen = list(state.ids)
    state.close()
    return seen


def keep(cache: PrefixCache, ids: Sequence[int], **options: Any) -> None:
    state = FakeState(ids, **options)
    cache.keep(ids, state)
    assert state.ids == list(ids)
    state.close()


A = list(range(100, 120))


def test_the_longest_common_prefix_is_given() -> None:
    cache = PrefixCache(MANY)
    keep(cache, [*A, 1, 2, 3])
    keep(cache, [*A, 5, 6, 7, 8])
    assert taken(cache, [*A, 5, 6, 9]) == [*A, 5, 6]
    assert taken(cache, [*A, 1, 9]) == [*A, 1]
    assert taken(cache, [*A, 9, 9]) == A
    assert taken(cache, [9, *A]) is None
    assert taken(cache, []) is None


def test_the_last_id_is_left_for_the_logits_after_it() -> None:
    cache = PrefixCache(MANY)
    keep(cache, A)
    assert taken(cache, A) == A[:-1]
    assert taken(cache, [*A, 1]) == A
    assert taken(cache, A[:12]) == A[:11]


def test_a_few_ids_are_shared_only_if_they_are_everything() -> None:
    cache = PrefixCache(MANY)
    keep(cache, A)
    assert taken(cache, [*A[: MIN_SHARED - 1], 1, 2]) is None
    assert taken(cache, [*A[:MIN_SHARED], 1, 2]) == A[:MIN_SHARED]
    assert taken(cache, A[:4]) == A[:3]
    assert taken(cache, A[:1]) is None


def test_only_what_the_state_has_seen_is_known() -> None:
    cache = PrefixCache(MANY)
    cache.keep([*A, 1, 2], FakeState(A))
    assert taken(cache, [*A, 1, 2, 3]) == A
    with pytest.raises(ValueError, match="expected the 20 that the state has seen, got 19"):
        cache.keep(A[:-1], FakeState(A))
    cache.clear()
    cache.keep(A, FakeState([]))
    assert len(cache) == 0


def test_one_text_that_goes_on_is_one_entry() -> None:
    cache = PrefixCache(MANY)
    for end in (5, 10, 20, 15, 20):
        keep(cache, A[:end])
        assert len(cache) == 1
    assert cache.num_bytes == 20
    assert FakeState.num_open == 1


def test_a_window_that_cannot_go_back_gives_the_next_best_and_keeps_the_shorter_entry() -> None:
    cache = PrefixCache(MANY)
    keep(cache, A[:10], window=4)
    keep(cache, A, window=4)
    assert len(cache) == 2  # twenty ids cannot be cut to ten
    assert taken(cache, [*A[:12], 1, 2]) == A[:10]
    assert taken(cache, [*A[:18], 1, 2]) == A[:18]
    assert taken(cache, [*A[:9], 1, 2]) == A[:9]
    keep(cache, [*A, 1, 2], window=4)
    assert len(cache) == 2  # the one of twenty-two stands in for that of twenty
    keep(cache, A[:15], window=4)
    assert len(cache) == 3
    assert FakeState.num_open == 3


def test_what_is_used_least_recently_goes_first() -> None:
    cache = PrefixCache(60)
    texts = [[i] * 20 for i in range(3)]
    for text in texts:
        keep(cache, text)
    assert taken(cache, texts[0]) == texts[0][:-1]
    keep(cache, texts[2])  # known already: used
    keep(cache, [7] * 20)
    assert [taken(cache, text) is not None for text in texts] == [True, False, True]
    assert (len(cache), cache.num_bytes, FakeState.num_open) == (3, 60, 3)


def test_shared_memory_is_counted_once_and_freed_with_its_last_owner() -> None:
    cache = PrefixCache(45)
    for i in range(5):
        keep(cache, [*A, *[i] * 5])
    assert (len(cache), cache.num_bytes) == (5, 45)
    keep(cache, [9] * 10)
    assert (len(cache), cache.num_bytes) == (4, 20 + 3 * 5 + 10)
    cache.clear()
    assert (len(cache), cache.num_bytes, FakeState.num_open) == (0, 0, 0)
    assert taken(cache, A) is None


def test_adapters_share_the_budget_and_nothing_else() -> None:
    cache = PrefixCache(50)
    for adapter in ("", "one", "two"):
        state = FakeState(A, pool=hash(adapter))
        cache.keep(A, state, adapter)
        state.close()
    assert len(cache) == 2
    assert cache.num_bytes == 40
    assert taken(cache, [*A, 1]) is None  # the first is the least recently used
    for adapter in ("one", "two"):
        known = cache.take([*A, 1], adapter)
        assert known is not None
        assert known.length == len(A)
        known.close()
    assert cache.take([*A, 1], "three") is None
    assert FakeState.num_open == 2


def test_what_exceeds_the_budget_alone_is_not_kept_and_evicts_nothing() -> None:
    cache = PrefixCache(20)
    keep(cache, A)
    keep(cache, [*A, 1])
    assert taken(cache, [*A, 1]) == A
    nothing = PrefixCache(0)
    keep(nothing, A)
    assert len(nothing) == 0
    with pytest.raises(ValueError, match="max_bytes"):
        PrefixCache(-1)


def test_the_longest_of_many_long_texts_is_found() -> None:
    cache = PrefixCache(MANY)
    common = random.Random(0).choices(range(1 << 18), k=3900)
    for i in range(64):
        cache.keep([*common, *[i] * 100], FakeState([*common, *[i] * 100], piece=0))
    assert len(cache) == 64
    for last, length in ((99, 3900), (7, 3901)):
        state = cache.take([*common, last, 99])
        assert state is not None
        assert state.length == length


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_mqa", "mistral_window"])
@pytest.mark.parametrize("bits", [None, 8])
def test_reuse_changes_no_bit(name: str, bits: int | None) -> None:
    e = executor(name, bits=bits)
    cache = PrefixCache(1 << 20)
    dice = random.Random(0)
    texts: list[list[int]] = []
    num_reused = 0
    for seed in range(25):
        start = dice.choice(texts)[: dice.randrange(1, 600)] if texts and dice.random() < 0.8 else []
        ids = start + random_ids(CONFIGS[name], dice.randrange(1, 150), seed)
        texts.append(ids)
        state: State = cache.take(ids) or e.new_state()
        num_reused += state.length
        assert state.length < len(ids)
        (got,) = e.forward([ForwardRequest(state, ids[state.length :], "last")])
        cache.keep(ids, state)
        (following,) = e.forward([ForwardRequest(state, ids[:3], "all")])  # the state goes on; what was kept must not
        fresh = e.new_state()
        assert np.array_equal(e.forward([ForwardRequest(fresh, ids, "last")])[0], got)  # type: ignore[arg-type]
        assert np.array_equal(e.forward([ForwardRequest(fresh, ids[:3], "all")])[0], following)  # type: ignore[arg-type]
        assert cache.num_bytes <= 1 << 20
    assert num_reused > 1000


def test_the_budget_is_that_of_the_blocks_that_are_held() -> None:
    e = executor("gemma_mqa")
    cache = PrefixCache(MANY)
    common, states = random_ids(CONFIGS["gemma_mqa"], 128), []
    trunk = e.new_state()
    e.forward([ForwardRequest(trunk, common, "none")])
    for i in range(4):
        states.append(trunk.fork())
        e.forward([ForwardRequest(states[-1], [5 + i] * 10, "none")])
        cache.keep([*common, *[5 + i] * 10], states[-1])
    block = trunk.num_bytes // 2
    assert cache.num_bytes == (2 + 4) * block
    blocks = {b.address: b for state in states for c in state.caches for b in c.blocks if b is not None}
    for state in (trunk, *states):
        state.close()
    assert sorted(b.num_owners for b in blocks.values()) == [1, 1, 1, 1, 4, 4]
    cache.clear()
    assert all(b.num_owners == 0 for b in blocks.values())


def test_many_threads_share_one_cache() -> None:
    e = executor("gemma3_mqa", bits=8)
    cache = PrefixCache(400_000)
    texts = [random_ids(CONFIGS["gemma3_mqa"], 90, seed % 2)[:60] + [5 + seed] * 30 for seed in range(6)]
    wanted = [e.forward([ForwardRequest(e.new_state(), ids, "last")])[0] for ids in texts]
    errors: list[BaseException] = []
    lock = threading.Lock()  # an executor's forward is the scheduler's; states are each thread's own

    def hammer(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(60):
                i = dice.randrange(len(texts))
                state: State = cache.take(texts[i]) or e.new_state()
                with lock:
                    (got,) = e.forward([ForwardRequest(state, texts[i][state.length :], "last")])
                assert np.array_equal(got, wanted[i])  # type: ignore[arg-type]
                cache.keep(texts[i], state)
                state.close()
                if dice.random() < 0.05:
                    cache.clear()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert cache.num_bytes <= 400_000
    cache.clear()
    assert cache.num_bytes == 0
