"""Choosing tokens: exact random numbers, the order of the steps, and the distributions that come out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.runtime.sampler import Sampler, apply_penalties, philox, uniform

U64 = st.integers(0, 2**64 - 1)


def logits_of(*probabilities: float) -> NDArray[np.float32]:
    """Return logits that give these probabilities at temperature 1."""
    return np.log(np.array(probabilities, np.float32))


def counts(sampler: Sampler, logits: NDArray[np.float32], draws: int) -> NDArray[np.int64]:
    """Return how often each token is chosen at positions 0 to draws - 1."""
    chosen = [sampler.sample(logits, position) for position in range(draws)]
    return np.bincount(chosen, minlength=len(logits))


def chi_square(observed: NDArray[np.int64], probabilities: Any) -> float:
    """Return the statistic for these counts, over the tokens that have a probability."""
    expected = np.asarray(probabilities, np.float64) * observed.sum()
    assert not observed[expected == 0].any()
    kept = expected > 0
    return float(((observed - expected)[kept] ** 2 / expected[kept]).sum())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of DEShawResearch/random123, "philox4x64 10"
        ("0 0 0 0", "0 0", "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (
            "ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff",
            "ffffffffffffffff ffffffffffffffff",
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
        (
            "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89",
            "452821e638d01377 be5466cf34e90c6c",
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    numbers = [tuple(int(word, 16) for word in words.split()) for words in (key, counter, expected)]
    assert philox(numbers[0], numbers[1]) == numbers[2]  # type: ignore[arg-type]


@given(st.tuples(U64, U64), st.tuples(U64, U64, U64, U64))
@settings(max_examples=300)
def test_philox_equals_numpy(key: tuple[int, int], counter: tuple[int, int, int, int]) -> None:
    before = (sum(word << (64 * i) for i, word in enumerate(counter)) - 1) % 2**256  # NumPy counts before it draws
    words = np.array([(before >> (64 * i)) % 2**64 for i in range(4)], np.uint64)
    theirs = np.random.Philox(counter=words, key=np.array(key, np.uint64))  # type: ignore[arg-type,unused-ignore]
    assert philox(key, counter) == tuple(int(n) for n in theirs.random_raw(4))


@given(U64, U64, st.integers(0, 2**40))
def test_uniform_lies_in_its_interval_and_has_53_bits(seed: int, response: int, position: int) -> None:
    number = uniform(seed, response, position)
    assert 0 <= number < 1
    assert (number * 2**53).is_integer()


def test_uniform_is_uniform() -> None:
    numbers = np.array([uniform(3, 0, position) for position in range(20_000)])
    assert chi_square(np.histogram(numbers, 50, (0, 1))[0], np.full(50, 0.02)) < 85.4  # 49 degrees, p = 0.001


@pytest.mark.parametrize("sampler", [Sampler(temperature=0), Sampler(top_k=1), Sampler(top_k=0, temperature=0)])
def test_greedy_takes_the_lowest_of_the_most_likely(sampler: Sampler) -> None:
    logits = np.array([0, 3, -1, 3, 3], np.float32)
    assert {sampler.sample(logits, position) for position in range(20)} == {1}


def test_temperature_0_ignores_seed_and_position() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    chosen = {
        Sampler(temperature=0, seed=s, response_index=r).sample(logits, p)
        for s in range(5)
        for r in (0, 3)
        for p in (0, 9)
    }
    assert chosen == {int(logits.argmax())}


@pytest.mark.parametrize("top_k", [0, 4, 40])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_probabilities(top_k: int, temperature: float) -> None:
    logits = logits_of(0.5, 0.1, 0.3, 0.1)
    wanted = np.exp(logits.astype(np.float64) / temperature)
    observed = counts(Sampler(top_k=top_k, temperature=temperature, seed=11), logits, 6000)
    assert chi_square(observed, wanted / wanted.sum()) < 16.3  # 3 degrees, p = 0.001


def test_top_k_comes_before_temperature_and_top_p() -> None:
    # Of the 2 tokens kept, the first has 0.4 / 0.7 = 0.571 of the probability: enough for top_p 0.57, not for 0.58.
    logits = logits_of(0.3, 0.4, 0.2, 0.1)
    assert set(np.flatnonzero(counts(Sampler(2, 0.57, 1), logits, 200))) == {1}
    assert set(np.flatnonzero(counts(Sampler(2, 0.58, 1), logits, 200))) == {0, 1}
    # At temperature 0.5 the shares of 4:3 become 16:9, so the first alone has 0.64.
    assert set(np.flatnonzero(counts(Sampler(2, 0.63, 0.5), logits, 200))) == {1}
    assert set(np.flatnonzero(counts(Sampler(2, 0.65, 0.5), logits, 200))) == {0, 1}


@pytest.mark.parametrize("top_k", [0, 10])
@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.91, 4), (1.0, 4)]
)
def test_top_p_keeps_the_token_that_crosses(top_k: int, top_p: float, kept: int) -> None:
    observed = counts(Sampler(top_k, top_p, 1.0), logits_of(0.4, 0.3, 0.2, 0.1), 400)
    assert set(np.flatnonzero(observed)) == set(range(kept))


@pytest.mark.parametrize("top_k", [0, 10])
@pytest.mark.parametrize(
    ("min_p", "kept"), [(0.0, 4), (0.24, 4), (0.26, 3), (0.49, 3), (0.51, 2), (0.76, 1), (0.99, 1)]
)
def test_min_p_is_a_part_of_the_highest(top_k: int, min_p: float, kept: int) -> None:
    observed = counts(Sampler(top_k, 1.0, 1.0, min_p=min_p), logits_of(0.4, 0.3, 0.2, 0.1), 400)
    assert set(np.flatnonzero(observed)) == set(range(kept))


def test_top_p_and_min_p_both_hold() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert set(np.flatnonzero(counts(Sampler(0, 0.8, 1.0, min_p=0.6), logits, 300))) == {0, 1}
    assert set(np.flatnonzero(counts(Sampler(0, 0.5, 1.0, min_p=0.3), logits, 300))) == {0, 1}


@given(st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_a_choice_is_one_of_top_k(top_k: int, seed: int, position: int) -> None:
    logits = np.random.default_rng(seed).normal(size=50).astype(np.float32)
    best = np.argsort(-logits, kind="stable")[:top_k]
    assert Sampler(top_k, seed=seed, temperature=1.5).sample(logits, position) in best


def test_top_p_over_a_large_vocabulary_equals_the_plain_computation() -> None:
    logits = np.random.default_rng(1).normal(size=20_000).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(logits[order].astype(np.float64))
    probabilities /= probabilities.sum()
    for top_p in (0.001, 0.3, 0.9, 0.99999):
        kept = probabilities[: int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1]
        for position in range(5):
            wanted = np.searchsorted(np.cumsum(kept), uniform(0, 0, position) * kept.sum(), side="right")
            assert Sampler(0, top_p, 1.0).sample(logits, position) == order[wanted]


def test_the_choice_depends_on_seed_response_and_position_alone() -> None:
    logits = np.zeros(1000, np.float32)
    settings_of = [(seed, response) for seed in (0, 1, 2**63) for response in (0, 1, 2)]
    draws = {
        pair: [Sampler(0, seed=pair[0], response_index=pair[1]).sample(logits, p) for p in range(30)]
        for pair in settings_of
    }
    assert len({tuple(chosen) for chosen in draws.values()}) == len(settings_of)
    again = Sampler(0, seed=1, response_index=2)
    assert [again.sample(logits, p) for p in reversed(range(30))] == draws[1, 2][::-1]


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_masked_tokens_are_never_chosen(top_k: int, top_p: float) -> None:
    logits = np.array([-math.inf, 1, -math.inf, math.nan, 1], np.float32)
    observed = counts(Sampler(top_k, top_p), logits, 200)
    assert set(np.flatnonzero(observed)) == {1, 4}


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0), Sampler(0, 0.5), Sampler(1), Sampler(3)])
def test_logits_without_a_finite_highest_are_refused(sampler: Sampler, value: float) -> None:
    with pytest.raises(ValueError, match="no token can be chosen: the highest logit is"):
        sampler.sample(np.full(5, value, np.float32), 0)


@pytest.mark.parametrize("top_k", [0, 3])
def test_a_temperature_near_0_is_greedy(top_k: int) -> None:
    logits = np.array([1, 2, 1.9], np.float32)
    assert {Sampler(top_k, temperature=5e-324).sample(logits, p) for p in range(20)} == {1}


def test_top_k_comes_from_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "top_k", lambda logits, k: (np.array([7], np.int32), np.array([0], np.float32)))
    assert Sampler().sample(np.zeros(100, np.float32), 0) == 7


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("top_k", -1, "top_k must be at least 0, got -1"),
        ("top_p", 0.0, r"top_p must be in \(0, 1\], got 0.0"),
        ("top_p", 1.1, r"top_p must be in \(0, 1\], got 1.1"),
        ("top_p", math.nan, r"top_p must be in \(0, 1\], got nan"),
        ("temperature", -0.1, "temperature must be at least 0 and finite, got -0.1"),
        ("temperature", math.inf, "temperature must be at least 0 and finite, got inf"),
        ("min_p", 1.0, r"min_p must be in \[0, 1\), got 1.0"),
        ("seed", -1, r"seed must be in \[0, 2\*\*64\), got -1"),
        ("seed", 2**64, r"seed must be in \[0, 2\*\*64\), got 18446744073709551616"),
        ("response_index", -1, r"response_index must be in \[0, 2\*\*64\), got -1"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(**{option: value})  # type: ignore[arg-type]


def test_penalties_on_a_small_distribution() -> None:
    logits = np.array([2, -2, 1, 0], np.float32)
    plain = logits.copy()
    ids, prompt = [0, 0, 1], [2]
    assert apply_penalties(logits, ids, prompt, presence_penalty=0.5).tolist() == [1.5, -2.5, 1, 0]
    assert apply_penalties(logits, ids, prompt, frequency_penalty=0.5).tolist() == [1, -2.5, 1, 0]
    assert apply_penalties(logits, ids, prompt, repetition_penalty=2).tolist() == [1, -4, 0.5, 0]
    assert apply_penalties(logits, ids, prompt, logit_bias={3: 5, 0: -1}).tolist() == [1, -2, 1, 5]
    everything = apply_penalties(
        logits, ids, prompt, presence_penalty=1, frequency_penalty=0.5, repetition_penalty=2, logit_bias={1: 100}
    )
    assert everything.tolist() == [1 - 2, -4 - 1.5 + 100, 0.5, 0]
    assert everything.dtype == np.float32
    assert np.array_equal(apply_penalties(logits, ids, prompt), plain)
    assert np.array_equal(apply_penalties(logits, [], presence_penalty=1, repetition_penalty=2), plain)
    assert np.array_equal(logits, plain)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_penalties_refuse_ids_outside_the_vocabulary(wrong: int) -> None:
    logits = np.zeros(4, np.float32)
    message = f"token id {wrong} is outside the vocabulary of 4"
    with pytest.raises(ValueError, match=message):
        apply_penalties(logits, [wrong], presence_penalty=1)
    with pytest.raises(ValueError, match=message):
        apply_penalties(logits, [], [wrong], repetition_penalty=2)
    with pytest.raises(ValueError, match=message):
        apply_penalties(logits, [], logit_bias={wrong: 1.0})
