"""A tokenizer.json as a SentencePiece model: MediaPipe's bytes, and the tokens of its source."""

from __future__ import annotations

import functools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from hearthlm.errors import TokenizerFormatError, UnsupportedModelError
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.tokenizers import (
    Tokenizer,
    byte_alphabet,
    from_hugging_face,
    from_sentencepiece,
    sentencepiece_model,
)
from hearthlm.tokenizers.hugging_face_to_sentencepiece import is_byte_level, to_sentencepiece
from hearthlm.tokenizers.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

GOLDEN = Path(__file__).parent / "golden"
BYTE_BPE = (GOLDEN / "inputs/hf_bpe/tokenizer.json").read_bytes()
BYTE_BPE_CONFIG = (GOLDEN / "inputs/hf_bpe/tokenizer_config.json").read_bytes()

TEXT = """the house stood by the river and the river ran past the house to the sea
she said hello and he said hello, and they walked on through the old town until the evening
when the rain came they went home; the lamp was lit and the kettle sang on the stove
numbers such as 12 and 345 and 6789 stand here, with (brackets) and <angles> and "quotes\""""


@functools.cache
def llama_like() -> bytes:
    """Return a tokenizer.json in the manner of Llama 2: `▁` for spaces, byte tokens, merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=first, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # in training only: no piece spans words
    tokenizer.train_from_iterator(TEXT.splitlines() * 5, trainer)
    document = json.loads(tokenizer.to_str())
    document["pre_tokenizer"] = None
    document["added_tokens"] = [added for added in document["added_tokens"] if added["id"] < 3]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    tokenizer.add_tokens([tokenizers.AddedToken("<|turn|>", special=True, normalized=False)])
    return tokenizer.to_str().encode()


LLAMA_CONFIG = b'{"bos_token": "<s>", "eos_token": "</s>", "unk_token": {"content": "<unk>"}}'


@functools.cache
def byte_level_tokenizers() -> tuple[Tokenizer, Tokenizer]:
    """Return the tokenizer of the source and that of the converted model."""
    model = to_sentencepiece(BYTE_BPE, BYTE_BPE_CONFIG)
    return from_hugging_face(BYTE_BPE, json.loads(BYTE_BPE_CONFIG)), from_sentencepiece(model, bytes_to_unicode=True)


@functools.cache
def space_marking_tokenizers() -> tuple[Tokenizer, Tokenizer]:
    """Return the tokenizer of the source and that of the converted model."""
    model = to_sentencepiece(llama_like(), LLAMA_CONFIG)
    return from_hugging_face(llama_like(), json.loads(LLAMA_CONFIG)), from_sentencepiece(model)


def changed(raw: bytes, **model: Any) -> bytes:
    """Return the tokenizer.json with these fields of its model."""
    document = json.loads(raw)
    document["model"] |= model
    return json.dumps(document).encode()


def test_mediapipe_compatible_is_what_mediapipe_wrote() -> None:
    expected = (GOLDEN / "tokenizers/byte_bpe_converted.model").read_bytes()
    assert to_sentencepiece(BYTE_BPE, BYTE_BPE_CONFIG, mediapipe_compatible=True) == expected


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_mediapipe_compatible_is_what_lies_in_mediapipe_s_files(backend: str) -> None:
    with WeightsBin.open(GOLDEN / f"outputs/0.10.14/phi_2_{backend}_hftok.bin") as file:
        assert file.tokenizer == to_sentencepiece(BYTE_BPE, BYTE_BPE_CONFIG, mediapipe_compatible=True)


WORDS = [
    "the",
    " quick",
    "  ",
    "\n",
    " ",
    "ju",
    "mp",
    "<|endoftext|>",
    "<unk>",
    "</s>",
    "<|turn|>",
    "é",
    "漢",
    "Ġ",
    "▁",
    "x",
]
words = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


@given(text=st.text(max_size=60) | words)
@settings(max_examples=500, deadline=None)
def test_a_byte_level_vocabulary_keeps_its_tokens(text: str) -> None:
    source, ours = byte_level_tokenizers()
    ids = source.encode(text)
    assert ours.encode(text) == ids
    ids = [i for i in ids if not source.is_special(i)]  # one that is user-defined here is printed
    assert ours.decode(ids) == source.decode(ids)


@given(text=st.text(max_size=60) | words)
@settings(max_examples=500, deadline=None)
def test_a_vocabulary_with_marked_spaces_keeps_its_tokens(text: str) -> None:
    source, ours = space_marking_tokenizers()
    # Behind an added token Llama's normaliser puts another `▁`, SentencePiece does not.
    assume(not any(token in text for token in ("<unk>", "<s>", "</s>", "<|turn|>")))
    assert ours.encode(text) == source.encode(text)


def test_readers_of_mediapipe_find_added_tokens_in_a_mapped_text() -> None:
    """They spell a text in GPT-2's alphabet and give it to the library as it is."""
    library = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(BYTE_BPE, BYTE_BPE_CONFIG))
    ids = from_hugging_face(BYTE_BPE, json.loads(BYTE_BPE_CONFIG)).encode("the quick  box")
    assert 297 in ids
    assert library.encode(byte_alphabet.spell("the quick  box")) == ids


def test_an_added_token_keeps_its_text_where_the_spelling_is_taken() -> None:
    document = json.loads(BYTE_BPE)
    document["model"]["vocab"]["ĠĠ"] = 297
    document["model"]["merges"].append("Ġ Ġ")
    document["added_tokens"][1]["id"] = 298
    raw = json.dumps(document).encode()
    model = to_sentencepiece(raw, BYTE_BPE_CONFIG)
    assert sentencepiece_model.parse(model).pieces[297:299] == ["ĠĠ".encode(), b"  "]
    assert from_sentencepiece(model, bytes_to_unicode=True).encode("  ") == [298]


def test_every_kind_of_token_has_its_type() -> None:
    model = sentencepiece_model.parse(to_sentencepiece(llama_like(), LLAMA_CONFIG))
    kinds = {piece.decode(): kind for piece, kind in zip(model.pieces, model.types, strict=True)}
    assert kinds["<unk>"] == UNKNOWN
    assert kinds["<s>"] == CONTROL
    assert kinds["</s>"] == USER_DEFINED  # a prompt of several turns holds it, and has to be read
    assert kinds["<|turn|>"] == USER_DEFINED
    assert kinds["<0x0A>"] == BYTE
    assert kinds["▁the"] == kinds["e"] == NORMAL
    assert model.add_dummy_prefix
    assert not model.remove_extra_whitespaces


def test_the_library_knows_the_start_token() -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(llama_like(), LLAMA_CONFIG))
    assert library.bos_id() == 1
    assert library.unk_id() == 0
    assert library.pad_id() == -1


def test_without_an_unknown_token_one_comes_behind_the_vocabulary() -> None:
    model = sentencepiece_model.parse(to_sentencepiece(BYTE_BPE, b"{}"))
    assert model.types[298] == UNKNOWN
    assert len(model.pieces) == 299


def test_a_start_token_is_never_the_unknown_one() -> None:
    """Readers ask for it by name, and the library answers with the unknown token's id where there is no such piece."""
    library = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(BYTE_BPE, BYTE_BPE_CONFIG))
    assert library.piece_to_id("<|endoftext|>") == 296
    assert library.unk_id() == 298
    assert library.encode("<|endoftext|>") == [296]


def test_an_unknown_token_that_also_pads_stays_unknown() -> None:
    config = json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"})
    model = sentencepiece_model.parse(to_sentencepiece(llama_like(), config.encode()))
    assert (model.pieces[0], model.types[0]) == (b"<unk>", UNKNOWN)
    assert b"<unk_>" not in model.pieces


def test_ids_that_the_vocabulary_leaves_out_are_filled() -> None:
    document = json.loads(BYTE_BPE)
    document["model"]["vocab"]["Ġjug"] = 300
    document["model"]["merges"].append("Ġju g")
    document["added_tokens"].pop()
    model = sentencepiece_model.parse(to_sentencepiece(json.dumps(document).encode(), b""))
    assert model.types[297:301] == bytes([UNKNOWN, UNUSED, UNUSED, NORMAL])
    assert model.pieces[300] == "Ġjug".encode()


def test_what_no_merge_makes_is_not_made() -> None:
    document = json.loads(BYTE_BPE)
    document["model"]["vocab"]["Ġz"] = 298
    raw = json.dumps(document).encode()
    text = "a z"
    ids = from_hugging_face(raw).encode(text)
    assert 298 not in ids
    assert from_sentencepiece(to_sentencepiece(raw), bytes_to_unicode=True).encode(text) == ids


def test_a_word_takes_the_last_space_before_it() -> None:
    document = json.loads(BYTE_BPE)
    document["added_tokens"].pop()
    document["model"]["vocab"] |= {"ĠĠ": 297, "ĠĠĠĠ": 298}
    document["model"]["merges"] = ["Ġ Ġ", "ĠĠ ĠĠ", *document["model"]["merges"]]
    raw = json.dumps(document).encode()
    source, ours = from_hugging_face(raw), from_sentencepiece(to_sentencepiece(raw), bytes_to_unicode=True)
    for text in ("    quick", "the     box  ", "\n  do  ", "     "):
        assert ours.encode(text) == source.encode(text)


def test_merges_are_ranked_by_their_order_not_by_their_ids() -> None:
    document = json.loads(BYTE_BPE)
    document["model"]["merges"] = document["model"]["merges"][::-1]
    document["model"]["merges"].sort(key=lambda merge: len(merge))
    raw = json.dumps(document).encode()
    source, ours = from_hugging_face(raw), from_sentencepiece(to_sentencepiece(raw), bytes_to_unicode=True)
    for text in ("the quick", "jumping over my box", "thin"):
        assert ours.encode(text) == source.encode(text)


def test_what_is_spelled_in_gpt_2_s_alphabet_is_known() -> None:
    assert is_byte_level(BYTE_BPE)
    assert not is_byte_level(llama_like())


UNTOLD = {
    "another algorithm": (
        tokenizers.Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>")).to_str().encode(),
        "holds a WordLevel model",
    ),
    "a suffix for words": (changed(BYTE_BPE, end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
    "spaces unmarked": (
        tokenizers.Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>")).to_str().encode(),
        "neither byte-level nor writes spaces",
    ),
}


@pytest.mark.parametrize("name", list(UNTOLD))
def test_what_sentencepiece_cannot_tell_is_refused(name: str) -> None:
    raw, reason = UNTOLD[name]
    with pytest.raises(UnsupportedModelError, match=reason):
        to_sentencepiece(raw)


@pytest.mark.parametrize(
    ("raw", "config", "reason"),
    [
        (b"", b"", "the tokenizer.json cannot be loaded"),
        (BYTE_BPE, b"[1]", "holds a list, expected an object"),
        (BYTE_BPE, b"{", "not valid JSON"),
        (BYTE_BPE, b"[" * 100_000, "not valid JSON"),
        (BYTE_BPE, b" " * (16 << 20) + b"{}", "more than the 16777216 allowed"),
        (b" " * (64 << 20) + BYTE_BPE, b"", "more than the 67108864 allowed"),
        (changed(BYTE_BPE, vocab={"a": 0, "b": 1 << 24}, merges=[]), b"", "largest token id"),
    ],
)
def test_unsound_files_are_refused(raw: bytes, config: bytes, reason: str) -> None:
    with pytest.raises(TokenizerFormatError, match=reason):
        to_sentencepiece(raw, config)


def test_an_empty_vocabulary_is_refused_or_only_has_an_unknown_piece() -> None:
    raw = changed(BYTE_BPE, vocab={}, merges=[])
    document = json.loads(raw)
    document["added_tokens"] = []
    model = sentencepiece_model.parse(to_sentencepiece(json.dumps(document).encode()))
    assert model.pieces == [b"<unk>"]


@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_damaged_files_are_refused_or_give_a_sound_model(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([BYTE_BPE[:800] + BYTE_BPE[-600:], BYTE_BPE, llama_like()])))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw) - 1))
        change = st.sampled_from(
            [b"", b"null", b"0", b"-1", b'""', b"{}", b"[]", b"true", b"4294967295", b'"Sequence"']
        )
        raw[start : start + data.draw(st.integers(0, 12))] = data.draw(change | st.binary(max_size=3))
    config = bytes(data.draw(st.sampled_from([b"", BYTE_BPE_CONFIG, b'{"bos_token": 1, "eos_token": ["x"]}'])))
    for compatible in (False, True):
        with suppress(TokenizerFormatError, UnsupportedModelError):
            assert sentencepiece_model.parse(
                to_sentencepiece(bytes(raw), config, mediapipe_compatible=compatible)
            ).pieces


def test_changed_fields_are_refused_or_give_a_sound_model() -> None:
    values: list[Any] = [None, 0, -1, "", "x", [], {}, True, {"type": "ByteLevel"}, {"type": "Sequence"}]
    for source in (BYTE_BPE, llama_like()):
        document = json.loads(source)
        for part in (document, document["model"], document["added_tokens"][0]):
            for key in list(part):
                old = part[key]
                for value in values:
                    part[key] = value
                    with suppress(TokenizerFormatError, UnsupportedModelError):
                        to_sentencepiece(json.dumps(document).encode(), LLAMA_CONFIG)
                part[key] = old


def test_mediapipe_compatible_needs_the_unknown_token_in_the_vocabulary() -> None:
    with pytest.raises(TokenizerFormatError, match="defines 0 unknown pieces"):
        to_sentencepiece(BYTE_BPE, b"{}", mediapipe_compatible=True)
