"""Mutated tokenizers are refused by an error of ours, or work.

`HEARTHLM_FUZZ_CASES=20000 pytest tests/test_tokenizer_fuzz.py` runs as many mutations as before a release.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from test_format_fuzz import mutated

from hearthlm.errors import ModelFormatError, UnsupportedModelError
from hearthlm.tokenizers import from_sentencepiece

MODEL = Path(__file__).parent / "golden" / "inputs" / "spm64" / "tokenizer.model"
CASES = int(os.environ.get("HEARTHLM_FUZZ_CASES", "2000"))


def test_a_mutated_tokenizer_entry_is_refused_or_works() -> None:
    data = MODEL.read_bytes()
    outcomes = {"refused": 0, "works": 0}
    for case in range(CASES):
        started = time.perf_counter()
        try:
            tokenizer = from_sentencepiece(mutated(data, len(data), random.Random(case)))
            ids = tokenizer.encode("a cab, <bos>\n\u00e9\U0001f600 <start_of_turn>")
            assert all(0 <= i < tokenizer.vocab_size for i in ids)
            tokenizer.decode([*ids, 0, 1, 2, 3, tokenizer.vocab_size - 1])
            outcomes["works"] += 1
        except (ModelFormatError, UnsupportedModelError):
            outcomes["refused"] += 1
        assert time.perf_counter() - started < 2, f"case {case}"
    assert min(outcomes.values()) > CASES // 100, outcomes


@pytest.mark.parametrize("size", [0, 1, 10, 100, 900])
def test_a_truncated_tokenizer_entry_is_refused(size: int) -> None:
    with pytest.raises(ModelFormatError):
        from_sentencepiece(MODEL.read_bytes()[:size])
