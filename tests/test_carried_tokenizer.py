"""What a converted file carries of a tokenizer: one vocabulary once, the exact one where two differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from hearthlm import carried_tokenizer
from hearthlm.carried_tokenizer import CarriedTokenizer
from hearthlm.tokenizers import from_hugging_face
from hearthlm.tokenizers.hugging_face_to_sentencepiece import to_sentencepiece

GOLDEN = Path(__file__).parent / "golden"
BYTE_LEVEL = GOLDEN / "inputs" / "hf_bpe"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((BYTE_LEVEL / name).read_bytes())
    return tmp_path


def test_a_vocabulary_that_is_there_twice_is_carried_once(folder: Path) -> None:
    made = to_sentencepiece((folder / "tokenizer.json").read_bytes(), (folder / "tokenizer_config.json").read_bytes())
    original = made + b"\x1a\x02\x18\x00"  # the same pieces, another setting
    (folder / "tokenizer.model").write_bytes(original)
    carried = CarriedTokenizer.find(folder, mediapipe_compatible=False)
    assert (carried.sentencepiece, carried.tokenizer_json) == (original, None)


def test_other_pieces_make_way_for_those_of_the_exact_tokenizer(folder: Path) -> None:
    """As many pieces are not the same pieces."""
    made = to_sentencepiece((folder / "tokenizer.json").read_bytes(), (folder / "tokenizer_config.json").read_bytes())
    for other in (made.replace(b"ing", b"xyz", 1), (GOLDEN / "inputs/spm64/tokenizer.model").read_bytes(), b"no model"):
        assert other != made
        (folder / "tokenizer.model").write_bytes(other)
        carried = CarriedTokenizer.find(folder, mediapipe_compatible=False)
        assert carried.sentencepiece == made
        assert carried.tokenizer_json == (folder / "tokenizer.json").read_bytes()
        assert carried.tokenizer.kind == "hugging_face"


def test_a_tokenizer_that_was_read_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = from_hugging_face((folder / "tokenizer.json").read_bytes())

    def again(*_: object) -> None:
        raise AssertionError("tokenizer.json was read again")

    monkeypatch.setattr(carried_tokenizer, "from_hugging_face", again)
    carried = CarriedTokenizer.find(folder, mediapipe_compatible=False, needs_sentencepiece=False, parsed=parsed)
    assert carried.tokenizer is parsed
