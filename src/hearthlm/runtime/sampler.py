"""Choosing the next token from its logits.

The order is: what may come at all, penalties, top-k, temperature, top-p, min-p, one draw. Random numbers are a pure
function of the seed, the response's index and the token's position, so that the same request gives the same text
whatever else runs, and however often it was interrupted, cloned or resumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels

_MASK = (1 << 64) - 1


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the four 64-bit numbers of Philox4x64-10 for a 128-bit key and a 256-bit counter, low words first.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        first = 0xD2E7470EE14C6C93 * c0
        second = 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (second >> 64) ^ c1 ^ k0, second & _MASK, (first >> 64) ^ c3 ^ k1, first & _MASK
        k0 = (k0 + 0x9E3779B97F4A7C15) & _MASK
        k1 = (k1 + 0xBB67AE8584CAA73B) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, response_index: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to these three, with 53 random bits."""
    return (philox((seed, response_index), (position, 0, 0, 0))[0] >> 11) * 2.0**-53


@dataclass(frozen=True)
class TokenLogprobs:
    """Hold a token's log-probability in the model's own distribution, and those of the most likely, highest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: NDArray[np.float32], token_id: int, num_top: int, pool: kernels.ThreadPool) -> TokenLogprobs:
    """Return the log-probability of `token_id` and of the `num_top` most likely by logits [vocab]."""
    logprob = float(kernels.log_softmax_at(logits[None], np.array([token_id], dtype=np.int32), pool)[0])
    log_sum = float(logits[token_id]) - logprob
    ids, values = kernels.top_k(logits, min(num_top, len(logits)))
    top = tuple((int(i), float(value) - log_sum) for i, value in zip(ids, values, strict=True))
    return TokenLogprobs(token_id, logprob, top)


def apply_penalties(
    logits: NDArray[np.float32],
    generated_ids: Sequence[int],
    prompt_ids: Sequence[int] = (),
    *,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    logit_bias: Mapping[int, float] | None = None,
) -> NDArray[np.float32]:
    """Return logits [vocab] with tokens that came before made less likely, and biases added; the input stays as it is.

    First `repetition_penalty` divides a positive and multiplies a negative logit of a token of the prompt or the answer
    (as in transformers); then of a token that the answer holds n times, `presence_penalty + n * frequency_penalty` is
    subtracted (as in OpenAI's API); then `logit_bias` is added. Raises ValueError for an id outside the vocabulary.
    """
    result = np.array(logits, dtype=np.float32)
    if repetition_penalty != 1 and (len(prompt_ids) or len(generated_ids)):
        seen = np.union1d(_ids(prompt_ids, len(result)), _ids(generated_ids, len(result)))
        values = result[seen]
        result[seen] = np.where(
            values > 0, values / np.float32(repetition_penalty), values * np.float32(repetition_penalty)
        )
    if (presence_penalty or frequency_penalty) and len(generated_ids):
        seen, counts = np.unique(_ids(generated_ids, len(result)), return_counts=True)
        result[seen] -= (presence_penalty + frequency_penalty * counts).astype(np.float32)
    if logit_bias:
        biased = _ids(list(logit_bias), len(result))
        result[biased] += np.fromiter(logit_bias.values(), np.float32, len(biased))
    return result


def _ids(ids: Sequence[int], vocab_size: int) -> NDArray[np.int64]:
    """Return ids as an array; raises ValueError for one outside the vocabulary."""
    array = np.asarray(ids, dtype=np.int64)
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        wrong = array[(array < 0) | (array >= vocab_size)][0]
        raise ValueError(f"token id {wrong} is outside the vocabulary of {vocab_size}")
    return array


class Sampler:
    """Choose tokens; holds settings only, so one sampler can serve any number of threads and sequences.

    `top_k` 0 keeps the whole vocabulary, `top_k` 1 or `temperature` 0 takes the most likely token (the lowest id among
    equals). `top_p` keeps the shortest run of most likely tokens whose probability reaches it; `min_p` drops what is
    less likely than this part of the most likely token. The penalties are those of `apply_penalties`. Raises
    ValueError for a setting out of range.
    """

    def __init__(
        self,
        top_k: int = 40,
        top_p: float = 1.0,
        temperature: float = 0.8,
        seed: int = 0,
        response_index: int = 0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
    ) -> None:
        if top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {top_k}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        if not 0 <= min_p < 1:
            raise ValueError(f"min_p must be in [0, 1), got {min_p}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be in [0, 2**64), got {seed}")
        if not 0 <= response_index < 1 << 64:
            raise ValueError(f"response_index must be in [0, 2**64), got {response_index}")
        for name, penalty in (("presence_penalty", presence_penalty), ("frequency_penalty", frequency_penalty)):
            if not -2 <= penalty <= 2:
                raise ValueError(f"{name} must be in [-2, 2], got {penalty}")
        if not 0 < repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0 and finite, got {repetition_penalty}")
        for token_id, bias in (logit_bias or {}).items():
            if not isinstance(token_id, int) or token_id < 0:
                raise ValueError(f"logit_bias: expected token ids of at least 0, got {token_id!r}")
            if not -math.inf <= bias < math.inf:
                raise ValueError(f"logit_bias: expected numbers below infinity, got {bias} for token {token_id}")
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.repetition_penalty = repetition_penalty
        self.logit_bias = dict(logit_bias or {})
        self.top_k = top_k
        self.top_p = top_p
        self.temperature = temperature
        self.seed = seed
        self.response_index = response_index
        self.min_p = min_p

    @property
    def penalises(self) -> bool:
        """Whether what came before changes the logits."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    def sample(
        self,
        logits: NDArray[np.float32],
        position: int,
        generated_ids: Sequence[int] = (),
        prompt_ids: Sequence[int] = (),
        allowed: NDArray[np.bool_] | None = None,
    ) -> int:
        """Return the id chosen by logits [vocab] for absolute `position` of the sequence.

        With `allowed`, bool [vocab], every other token counts as impossible before anything else is done.
        Raises ValueError if no token can be chosen: the highest logit is infinite or none is a number.
        """
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        if self.penalises or self.logit_bias:
            logits = apply_penalties(
                logits,
                generated_ids,
                prompt_ids,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                repetition_penalty=self.repetition_penalty,
                logit_bias=self.logit_bias,
            )
        if self.temperature == 0 or self.top_k == 1:
            ids, values = kernels.top_k(logits, 1)
            _check_highest(float(values[0]))
            return int(ids[0])
        draw = uniform(self.seed, self.response_index, position)
        if 0 < self.top_k < len(logits):
            ids, values = kernels.top_k(logits, self.top_k)
            weights = self._weights(values.tolist())
            return int(ids[_pick(weights[: self._kept(weights, math.fsum(weights))], draw)])
        chosen = kernels.draw(logits, self.temperature, self.top_p, self.min_p, draw)
        if chosen < 0:
            _check_highest(float(np.fmax.reduce(logits)))
        return chosen

    def _weights(self, values: list[float]) -> list[float]:
        """Return exp((value - highest) / temperature) for descending values."""
        highest = values[0]
        _check_highest(highest)
        temperature, exp = self.temperature, math.exp
        return [exp((value - highest) / temperature) for value in values]

    def _kept(self, weights: list[float], total: float) -> int:
        """Return how many of the descending weights, of `total` in all, top-p and then min-p keep."""
        count = len(weights)
        if self.top_p < 1:
            wanted, reached = self.top_p * total, 0.0
            for index, weight in enumerate(weights):
                reached += weight
                if reached >= wanted:
                    count = index + 1
                    break
        while weights[count - 1] < self.min_p:  # the highest weight is 1
            count -= 1
        return count


def _pick(weights: list[float], draw: float) -> int:
    """Return the index in whose share of the sum of weights `draw` in [0, 1) falls; never one of weight 0."""
    wanted = draw * sum(weights)
    reached = 0.0
    chosen = 0
    for index, weight in enumerate(weights):
        if weight > 0:
            chosen = index
        reached += weight
        if reached > wanted:
            break
    return chosen


def _check_highest(highest: float) -> None:
    """Raise ValueError unless the highest logit is a finite number."""
    if not math.isfinite(highest):
        raise ValueError(f"no token can be chosen: the highest logit is {highest}, expected a finite number")
