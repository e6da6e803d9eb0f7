"""A tokenizer on google/sentencepiece, for the models inside MediaPipe's files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from hearthlm.errors import TokenizerFormatError
from hearthlm.tokenizers import byte_alphabet, sentencepiece_model, stream
from hearthlm.tokenizers.markup import alternation, is_markup
from hearthlm.tokenizers.sentencepiece_model import BYTE, CONTROL, UNKNOWN, USER_DEFINED

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class SentencePieceTokenizer:
    """Encode and decode as the sentencepiece library does, and read special tokens out of raw prompts.

    The library matches user-defined pieces in a text, but never control pieces. With `parse_special` the text is split
    at control pieces, the longest first where several match. What lies between is encoded by the library, each stretch
    by itself: the space before a text (`add_dummy_prefix`) is put only at the very start, as the Llama and Gemma
    tokenizers of transformers do, so `<bos>Hi` is `<bos>`, `Hi`. A model that removes extra white space
    does so in each stretch; a space after a special token then still begins a word.

    Without `parse_special`, markup (see `markup.is_markup`) is encoded as though the vocabulary lacked it.

    `bytes_to_unicode`: the pieces are spelled in GPT-2's alphabet, and so is text before it is encoded.
    What the vocabulary was converted from matched its added tokens (runs of spaces among them) in the text itself, and
    so does this. Where MediaPipe converted it, the unknown piece is the token that ends a text, and counts as a control
    piece.
    """

    def __init__(self, model: bytes, *, bytes_to_unicode: bool = False) -> None:
        parsed = sentencepiece_model.parse(model)
        self._model = parsed
        self._bytes_to_unicode = bytes_to_unicode
        self._processor = _load(parsed.data)
        self._pieces = parsed.pieces
        self._types = parsed.types
        unknown = self._types.index(UNKNOWN)
        ends_a_text = bytes_to_unicode and self._pieces[unknown] != parsed.unknown_piece
        self._control = frozenset(
            i for i in parsed.type_offsets if self._types[i] == CONTROL or (ends_a_text and i == unknown)
        )
        user_defined = {i for i in parsed.type_offsets if self._types[i] == USER_DEFINED}
        self._markup = frozenset(i for i in user_defined if is_markup(self.piece(i)))
        self._special = self._control | self._markup
        matched_here = user_defined if bytes_to_unicode else set()
        self._split_special = self._splitter(self._control | matched_here)
        self._split_text = self._splitter(matched_here - self._markup)
        self._ids = {self._written(i): i for i in self._control | user_defined}
        self._unknown_bytes = str(self._processor.decode([unknown])).encode("utf-8")
        start = int(self._processor.bos_id())
        self._start_id = start if start >= 0 else None

    @property
    def kind(self) -> str:
        """What it was made from."""
        return "sentencepiece"

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return len(self._pieces)

    @property
    def start_id(self) -> int | None:
        """The control piece that the model names as the beginning of a text."""
        return self._start_id

    @property
    def byte_errors(self) -> str:
        """One U+FFFD per byte, as the library; per beginning of a character, as byte-level BPE."""
        return "replace" if self._bytes_to_unicode else stream.EACH_BYTE

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the ids of `text`, without a start token; raises ValueError for a lone surrogate."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate at character {error.start}, which is not Unicode"
            ) from None
        pattern = self._split_special if parse_special else self._split_text
        if pattern is None or pattern.search(text) is None:
            return self._encode_stretch(text, parse_special=parse_special, at_start=True)
        ids: list[int] = []
        for index, part in enumerate(pattern.split(text)):
            if index % 2:
                ids.append(self._ids[part])
            elif part:
                ids += self._encode_stretch(part, parse_special=parse_special, at_start=index == 0)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, at_start: bool = True) -> str:
        """Return the text of `ids`; see `Tokenizer.decode`.

        It is the library's, but for a control piece between the bytes of one character, where no text has one: the
        library then prints U+FFFD for each byte, here the character is whole.
        """
        joined = stream.join_bytes(self, ids, skip_special=skip_special, at_start=at_start)
        return joined.decode("utf-8", self.byte_errors)

    def token_id(self, piece: str) -> int | None:
        """Return the id of `piece`, None if there is none."""
        token_id: int = self._processor.piece_to_id(piece)
        return token_id if self.piece(token_id) == piece else None

    def piece(self, token_id: int) -> str:
        """Return the piece as it is spelled in the model, `▁` for a space; "" beyond the vocabulary."""
        _check(token_id)
        return self._pieces[token_id].decode("utf-8") if token_id < len(self._pieces) else ""

    def is_special(self, token_id: int) -> bool:
        """Tell whether this is a control piece, markup, or beyond the vocabulary."""
        _check(token_id)
        return token_id in self._special or token_id >= len(self._pieces)

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """Return what the piece adds to a text: a space for each `▁`, one byte for `<0x0A>`."""
        piece = self.piece(token_id)
        if not piece:
            return b""
        if token_id in self._control:
            return b"" if skip_special else piece.encode("utf-8")
        kind = self._types[token_id]
        if kind == UNKNOWN:
            return self._unknown_bytes
        if kind == BYTE:
            return bytes([int(piece[3:5], 16)])
        if self._bytes_to_unicode:
            return byte_alphabet.spelled_bytes(piece)
        return piece.replace(_SPACE, " ").encode("utf-8")

    def first_bytes(self, token_id: int, *, skip_special: bool = True) -> tuple[bytes, bool]:
        """Return what the piece adds at the start of a text, where the dummy prefix is dropped again."""
        text = self.token_bytes(token_id, skip_special=skip_special)
        trims = self._model.add_dummy_prefix or self._model.remove_extra_whitespaces
        if not trims or not text or self._types[token_id] in (BYTE, UNKNOWN, CONTROL):
            return text, not text
        if not self._pieces[token_id].startswith(_SPACE.encode("utf-8")):
            return text, False
        return text[1:], len(text) == 1 and self._model.remove_extra_whitespaces

    def _encode_stretch(self, text: str, *, parse_special: bool, at_start: bool) -> list[int]:
        """Encode a stretch without control pieces; `at_start` puts the dummy prefix."""
        model = self._model
        if self._bytes_to_unicode:
            text = byte_alphabet.spell(text)
        # Where the library trims spaces, the dummy prefix stands for the one that was there.
        at_start = at_start or not model.add_dummy_prefix or (model.remove_extra_whitespaces and text[0].isspace())
        ids: list[int] = (self._processor if at_start else self._processor_without_prefix).encode(text)
        if parse_special or self._markup.isdisjoint(ids):
            return ids
        # Only now, because the library normalises a text before it looks for pieces: a text need not spell them itself.
        ids = (self._processor_without_markup if at_start else self._processor_without_either).encode(text)
        return ids  # noqa: RET504  the library has no types

    def _splitter(self, ids: Iterable[int]) -> re.Pattern[str] | None:
        """Return the pattern that splits a text at these pieces, None for no pieces."""
        written = [self._written(i) for i in ids]
        return alternation(written) if written else None

    def _written(self, token_id: int) -> str:
        """Return how a special or user-defined piece stands in a text; it may be spelled in the alphabet itself."""
        piece = self.piece(token_id)
        if not self._bytes_to_unicode:
            return piece
        try:
            return byte_alphabet.spelled_bytes(piece).decode("utf-8")
        except UnicodeDecodeError:
            return piece

    @cached_property
    def _processor_without_prefix(self) -> Any:
        return _load(self._model.without_dummy_prefix())

    @cached_property
    def _processor_without_markup(self) -> Any:
        return _load(self._model.without(self._markup))

    @cached_property
    def _processor_without_either(self) -> Any:
        return _load(self._model.without(self._markup, dummy_prefix=False))


def _check(token_id: int) -> None:
    """Raise ValueError for a negative id."""
    if token_id < 0:
        raise ValueError(f"a token id must be at least 0, got {token_id}")


def _load(model: bytes) -> Any:
    """Return the library's processor for checked bytes; raises TokenizerFormatError for what it still refuses."""
    import sentencepiece

    version = tuple(int(part) for part in re.findall(r"\d+", sentencepiece.__version__)[:3])
    if version < (0, 2, 1):
        raise ImportError(
            f"sentencepiece {sentencepiece.__version__} can be made to overwrite memory by a model (CVE-2026-1260); "
            "install sentencepiece 0.2.1 or later"
        )
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except Exception as error:
        raise TokenizerFormatError(f"the SentencePiece model cannot be loaded: {error}") from error
    return processor
