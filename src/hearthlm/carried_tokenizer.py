"""What a `.bin` carries of a tokenizer."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats.checkpoint import read_json_file
from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece
from hearthlm.tokenizers.hugging_face_to_sentencepiece import is_byte_level, to_sentencepiece
from hearthlm.tokenizers.sentencepiece_model import have_same_pieces

_log = logging.getLogger("hearthlm")

# Of tokenizer_config.json, what changes ids.
_TOKENIZER_FIELDS = (
    "add_bos_token",
    "additional_special_tokens",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
)


@dataclass(frozen=True)
class CarriedTokenizer:
    """What is written of a tokenizer: a SentencePiece model, and the exact tokenizer.json where that says more."""

    sentencepiece: bytes | None
    tokenizer_json: bytes | None = None
    config: Mapping[str, Any] | None = None
    _parsed: Tokenizer | None = field(default=None, repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        return len(self.sentencepiece or b"") + len(self.tokenizer_json or b"")

    @property
    def is_byte_level(self) -> bool:
        return self.tokenizer_json is not None and is_byte_level(self.tokenizer_json)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer as the reader of the file will have it."""
        if self._parsed is not None:
            return self._parsed
        if self.tokenizer_json is not None:
            return from_hugging_face(self.tokenizer_json, self.config)
        return from_sentencepiece(self.sentencepiece or b"")

    def special_pieces(self, ids: Sequence[int]) -> list[str]:
        """Return how those ids are spelled that are no text: text may not end an answer wherever it is spelled."""
        if not ids:
            return []
        tokenizer = self.tokenizer
        return [piece for i in ids if i >= 0 and tokenizer.is_special(i) and (piece := tokenizer.piece(i))]

    def entry(self) -> dict[str, Any]:
        """Return the keys that carry the tokenizer.json in our metadata entry."""
        if self.tokenizer_json is None:
            return {}
        config = {name: value for name, value in (self.config or {}).items() if name in _TOKENIZER_FIELDS}
        return {"tokenizer_json": self.tokenizer_json.decode("utf-8"), "tokenizer_config": config}

    @classmethod
    def find(
        cls,
        path: Path,
        *,
        mediapipe_compatible: bool,
        needs_sentencepiece: bool = True,
        parsed: Tokenizer | None = None,
    ) -> CarriedTokenizer:
        """Read a SentencePiece model, a tokenizer.json, or what a folder has of the two.

        Where there is no SentencePiece model it is made, if `needs_sentencepiece`. `parsed` is the folder's tokenizer
        where the caller has it: with a large vocabulary, reading it takes as long as all the rest.
        Raises FileNotFoundError where there is none, TokenizerFormatError for one that is not sound.
        """
        if path.is_file():
            folder, names = path.parent, [path.name]
        else:
            folder, names = path, ["tokenizer.json", "tokenizer.model"]
        found = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
        if not found:
            raise FileNotFoundError(
                errno.ENOENT, "there is no tokenizer.json or tokenizer.model; name one with vocab_model_file", str(path)
            )
        as_json = next((data for data in found.values() if data.lstrip()[:1] == b"{"), None)
        as_pieces = next((data for data in found.values() if data.lstrip()[:1] != b"{"), None)
        settings = folder / "tokenizer_config.json"
        fields = read_json_file(settings) if settings.is_file() else None
        if as_json is None:
            return cls(as_pieces, _parsed=parsed or from_sentencepiece(as_pieces or b""))
        exact = parsed or from_hugging_face(as_json, fields)  # refuses what is not sound
        raw = settings.read_bytes() if settings.is_file() else b""
        if mediapipe_compatible:
            return cls(to_sentencepiece(as_json, raw, mediapipe_compatible=True))
        if as_pieces is None and not needs_sentencepiece:
            return cls(None, as_json, fields, exact)
        try:
            made = to_sentencepiece(as_json, raw)
        except UnsupportedModelError as error:
            if as_pieces is None:
                _log.warning("%s: only hearthlm can read the tokenizer of this file: %s", folder, error)
            return cls(as_pieces, as_json, fields, exact)
        if as_pieces is not None and have_same_pieces(as_pieces, made):
            return cls(as_pieces)  # the same vocabulary twice
        return cls(made, as_json, fields, exact)
