"""Text to token ids and back.

A `Tokenizer` is made from the bytes of a SentencePiece model (`from_sentencepiece`) or of a Hugging Face
`tokenizer.json` (`from_hugging_face`). Both do what their library does; what is added here is the rule about
special tokens, and access to the exact bytes of every token, from which text is put together (see `stream`).

A token is *special* when it is not text: a control token such as `<bos>`, or a piece made to mark up a prompt, such as
`<start_of_turn>`. With `parse_special=True` (a raw prompt) special tokens written in the text become their ids. With
`parse_special=False` (what a user said in a chat) they are spelled out like any other text, so that nobody can end
their own turn and begin the model's. `encode_parts` mixes the two: a template around what was said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Turn text into token ids and ids into text; immutable, and safe to use from several threads."""

    @property
    def kind(self) -> str:
        """What it was made from: "sentencepiece" or "hugging_face"."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that means something. A model may have more rows: they have no text."""

    @property
    def start_id(self) -> int | None:
        """The id that the tokenizer itself would put before every text, if any."""

    @property
    def byte_errors(self) -> str:
        """The name of the codecs error handler that replaces bytes that are not UTF-8, as the library would."""

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the ids of `text`, without a start token.

        Raises ValueError if `text` holds a lone surrogate: it is no Unicode text.
        """

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, at_start: bool = True) -> str:
        """Return the text of `ids`.

        Bytes that are not UTF-8 become U+FFFD. `at_start=False` says that other text precedes: then the space
        that tokenizers put before a text is a real one, and stays. What `skip_special` leaves out is what the library
        does: control tokens, and what a `tokenizer.json` declares special; markup declared as text is printed.
        Raises ValueError if an id is negative.
        """

    def token_id(self, piece: str) -> int | None:
        """Return the id of the token spelled `piece` in the vocabulary, or None."""

    def piece(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it, for display; "" for an id beyond the vocabulary."""

    def is_special(self, token_id: int) -> bool:
        """Tell whether a token is not text: a control token or a piece that marks up prompts."""

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """Return the exact bytes a token adds to a text that has begun; b"" if it is skipped or beyond the vocabulary.

        They may be a part of a character. Raises ValueError if the id is negative.
        """

    def first_bytes(self, token_id: int, *, skip_special: bool = True) -> tuple[bytes, bool]:
        """Return the bytes a token adds at the start of a text, and whether the next token is still at its start."""


def from_sentencepiece(model: bytes, *, bytes_to_unicode: bool = False) -> Tokenizer:
    """Load a SentencePiece model, the serialised `ModelProto`.

    `bytes_to_unicode` is for models converted from byte-level BPE, whose pieces are spelled in GPT-2's alphabet.
    Raises TokenizerFormatError if the bytes are not a sound model, UnsupportedModelError for a field not understood.
    """
    from hearthlm.tokenizers.sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(model, bytes_to_unicode=bytes_to_unicode)


def from_hugging_face(tokenizer_json: bytes, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """Load a `tokenizer.json`; `config` is what `tokenizer_config.json` says, if there is one.

    Raises TokenizerFormatError if the bytes are not a sound tokenizer, UnsupportedModelError for a decoder that cannot
    be followed token by token.
    """
    from hearthlm.tokenizers.hugging_face import HuggingFaceTokenizer

    return HuggingFaceTokenizer(tokenizer_json, config)


def encode_parts(tokenizer: Tokenizer, parts: Sequence[tuple[str, bool]]) -> list[int]:
    """Return the ids of a text in parts, each with its `parse_special`.

    The text is encoded as one, so that words grow together where parts meet, just as in a template filled in by hand.
    Only where this would read a special token out of an unparsed part (or out of two parts that meet) is each part
    encoded alone.
    """
    together = tokenizer.encode("".join(text for text, _ in parts))
    meant = [i for text, parse in parts if parse for i in tokenizer.encode(text) if tokenizer.is_special(i)]
    if meant == [i for i in together if tokenizer.is_special(i)]:
        return together
    return [i for text, parse in parts for i in tokenizer.encode(text, parse_special=parse)]


__all__ = ["Tokenizer", "encode_parts", "from_hugging_face", "from_sentencepiece"]
