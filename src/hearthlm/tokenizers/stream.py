"""Token ids to printable text, whole or as they come.

Text is the bytes of its tokens put together, read as UTF-8. `StreamDecoder` gives it out as soon as it is certain,
`StopMatcher` cuts it where a stop string begins. Neither depends on how the ids or the text were divided.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hearthlm.tokenizers import Tokenizer

# SentencePiece puts one U+FFFD for every byte that is not part of a character; Python's "replace" (and every library
# that follows the Unicode recommendation) puts one for the whole beginning of a character.
EACH_BYTE = "hearthlm.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


def join_bytes(tokenizer: Tokenizer, ids: Iterable[int], *, skip_special: bool, at_start: bool) -> bytes:
    """Return the bytes of `ids`, one after another."""
    parts = []
    for token_id in ids:
        if at_start:
            part, at_start = tokenizer.first_bytes(token_id, skip_special=skip_special)
        else:
            part = tokenizer.token_bytes(token_id, skip_special=skip_special)
        parts.append(part)
    return b"".join(parts)


class StreamDecoder:
    """Decode ids one at a time: all that `push` and `finish` return, put together, is `decode(ids)`.

    A character is given out when its last byte has come; what can no longer become a character, at once as U+FFFD.
    `prompt_tail_ids` are ids that stand before: if there are any beside the start token, the text continues theirs, and
    a space before its first word is kept. It then equals `decode(ids, at_start=False)`. The time is linear. Tokens of
    `shown_ids` are never skipped.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tail_ids: Iterable[int] = (),
        *,
        skip_special: bool = True,
        shown_ids: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._shown_ids = frozenset(shown_ids)
        start_id = tokenizer.start_id
        self._at_start = all(token_id == start_id for token_id in prompt_tail_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.byte_errors)

    def push(self, token_id: int) -> str:
        """Return the text that is certain once `token_id` has come, often ""; raises ValueError if it is negative."""
        skip_special = self._skip_special and token_id not in self._shown_ids
        if self._at_start:
            part, self._at_start = self._tokenizer.first_bytes(token_id, skip_special=skip_special)
        else:
            part = self._tokenizer.token_bytes(token_id, skip_special=skip_special)
        return self._decoder.decode(part)

    def finish(self) -> str:
        """Return what a character that never became whole leaves behind: "" or U+FFFD. No `push` may follow."""
        return self._decoder.decode(b"", True)


class StopMatcher:
    """Cut a text where the first stop string begins; the text comes in parts of any size.

    Of all places at which a stop string begins, the first is taken, even if another stop string is complete earlier:
    with the stops `</answer>` and `answer`, the text `yes</answer>` is cut after `yes`. Text is held back while it may
    still be the beginning of a stop string, and no longer. The automaton takes time linear in the text.

    Raises ValueError if a stop string is empty.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        if isinstance(stop_strings, str):
            raise TypeError(f"stop_strings must be a sequence of strings, got the string {stop_strings!r}")
        if "" in stop_strings:
            raise ValueError("a stop string must not be empty: it would stop before the first character")
        # An Aho-Corasick automaton. A node is a beginning of stop strings; `depth` is its length, `fail` the longest
        # proper ending that is a node too, `match` the length of the longest stop string that it ends with.
        self._next: list[dict[str, int]] = [{}]
        self._depth, self._fail, self._match = [0], [0], [0]
        for stop in stop_strings:
            node = 0
            for depth, character in enumerate(stop, start=1):
                node = self._next[node].setdefault(character, len(self._next))
                if node == len(self._next):
                    self._next.append({})
                    self._depth.append(depth)
                    self._fail.append(0)
                    self._match.append(0)
            self._match[node] = len(stop)
        self._link()
        self._node = 0
        self._position = 0
        self._held = ""
        self._cut: int | None = None
        self._stopped = False

    def _link(self) -> None:
        """Fill `fail` and `match`, the shorter beginnings first."""
        level = [0]
        while level:
            following = []
            for node in level:
                for character, child in self._next[node].items():
                    self._fail[child] = self._step(self._fail[node], character) if node else 0
                    self._match[child] = self._match[child] or self._match[self._fail[child]]
                    following.append(child)
            level = following

    def _step(self, node: int, character: str) -> int:
        """Return the node after `character` has come."""
        while node and character not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(character, 0)

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that can be printed now, and whether a stop string was found, after which nothing comes."""
        if self._stopped:
            return "", True
        if len(self._next) == 1:
            return text, False
        printed = self._position - len(self._held)
        held = self._held + text
        for character in text:
            self._node = self._step(self._node, character)
            self._position += 1
            if length := self._match[self._node]:
                start = self._position - length
                self._cut = start if self._cut is None else min(self._cut, start)
            if self._cut is not None and self._position - self._depth[self._node] >= self._cut:
                self._stopped = True
                self._held = ""
                return held[: self._cut - printed], True
        certain = self._position - self._depth[self._node] - printed
        self._held = held[certain:]
        return held[:certain], False

    def finish(self) -> str:
        """Return what was held back, now that the text has ended; cut if a stop string was in it."""
        held, self._held = self._held, ""
        if self._cut is not None and not self._stopped:
            self._stopped = True
            return held[: self._cut - (self._position - len(held))]
        return held
