"""Guess what an answer goes on with: where the last few ids have come before, what followed them then.

Answers that repeat their prompt (summaries, extracts, corrections, code) do so in runs. A guess costs little beside the
pass that it rides on, and it changes no token: what the model chooses after each guessed id decides whether it stands.
Source of the idea: Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

NUM_ALIKE = (3, 2)  # ids that must be alike, more of them first
MAX_PAUSE = 64


class PromptLookup:
    """Hold the ids of one text and what followed each short run of them; learn how far its guesses can be trusted.

    Guesses grow while they stand and shrink while they fall; after a guess of which nothing stood there is none for a
    while, and the while doubles, so that a text without repetitions pays next to nothing.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._followers: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in NUM_ALIKE)
        self._num_trusted = 4
        self._pause = 1
        self._resumes_at = 0
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Add the next id of the text."""
        ids, end = self._ids, len(self._ids)
        for count, followers in zip(NUM_ALIKE, self._followers, strict=True):
            if end >= count:
                followers[tuple(ids[end - count :])] = end
        ids.append(token)

    def guess(self, limit: int) -> list[int]:
        """Return at most `limit` ids that may come next, often none."""
        ids, end = self._ids, len(self._ids)
        if limit < 1 or end < self._resumes_at:
            return []
        for count, followers in zip(NUM_ALIKE, self._followers, strict=True):
            start = followers.get(tuple(ids[end - count :]))
            if start is not None:
                return ids[start : start + min(limit, self._num_trusted)]
        return []

    def learn(self, num_guessed: int, num_right: int) -> None:
        """Take in how many of the ids guessed last were what came."""
        if num_right == num_guessed:
            self._num_trusted *= 2
            self._pause = 1
        elif num_right > 0:
            self._num_trusted = num_right + 1
            self._pause = 1
        else:
            self._num_trusted = 2
            self._pause = min(2 * self._pause, MAX_PAUSE)
            self._resumes_at = len(self._ids) + self._pause
