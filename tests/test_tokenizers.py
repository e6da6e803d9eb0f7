"""Tokenizers against the libraries they stand on, against hostile bytes, and the rule about special tokens."""

from __future__ import annotations

import functools
import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hearthlm.errors import TokenizerFormatError, UnsupportedModelError
from hearthlm.tokenizers import Tokenizer, encode_parts, from_hugging_face, from_sentencepiece, sentencepiece_model
from hearthlm.tokenizers.markup import is_markup

GOLDEN = Path(__file__).parent / "golden"
REAL = Path(__file__).parents[2] / "shared" / "tokenizers"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real tokenizers are not here")

SENTENCES = """the house stood by the river and the river ran past the house to the sea
she said hello and he said hello, and they walked on through the old town until the evening
when the rain came they went home; the lamp was lit and the kettle sang on the stove
do you remember the start of it all? yes, she said, I remember every turn of the road
numbers such as 12 and 345 and 6789 stand here, with (brackets) and <angles> and "quotes\""""
PIECES = ["<start_of_turn>", "<end_of_turn>", "[multimodal]", "<table>", "\n\n", "  "]


@functools.cache
def train(algorithm: str, dummy_prefix: bool = True) -> bytes:
    """Return a small SentencePiece model with control pieces, user-defined pieces and byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.splitlines() * 20),
        model_writer=model,
        model_type=algorithm,
        vocab_size=390,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=["<bos>x"],
        user_defined_symbols=PIECES,
        normalization_rule_name="nmt_nfkc" if algorithm == "unigram" else "identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        minloglevel=2,
    )
    return model.getvalue()


@functools.cache
def real_tokenizers() -> dict[str, Tokenizer]:
    """Return the tokenizers of real models, none where they are not stored."""
    if not REAL.exists():
        return {}
    return {
        "sentencepiece_4000": from_sentencepiece((REAL / "sentencepiece_4000.model").read_bytes()),
        "byte_bpe_49152": from_hugging_face((REAL / "byte_bpe_49152.tokenizer.json").read_bytes()),
    }


MODELS = {
    "bpe_64": (GOLDEN / "inputs/spm64/tokenizer.model").read_bytes(),
    "bpe_512": (GOLDEN / "tokenizers/bpe_512_byte_fallback.model").read_bytes(),
    "trained_bpe": train("bpe"),
    "trained_unigram": train("unigram"),
    "gemma_like": train("bpe", dummy_prefix=False),
    **({"real": (REAL / "sentencepiece_4000.model").read_bytes()} if REAL.exists() else {}),
}
OURS = {name: from_sentencepiece(model) for name, model in MODELS.items()}
THEIRS = {name: sentencepiece.SentencePieceProcessor(model_proto=model) for name, model in MODELS.items()}
every_model = pytest.mark.parametrize("name", list(MODELS))

BYTE_BPE = (GOLDEN / "inputs/hf_bpe/tokenizer.json").read_bytes()
BYTE_BPE_CONFIG = json.loads((GOLDEN / "inputs/hf_bpe/tokenizer_config.json").read_bytes())
CONVERTED = (GOLDEN / "tokenizers/byte_bpe_converted.model").read_bytes()


def pieces(tokenizer: Tokenizer, text: str, *, parse_special: bool = True) -> list[str]:
    """Return the pieces of a text as the vocabulary spells them."""
    return [tokenizer.piece(i) for i in tokenizer.encode(text, parse_special=parse_special)]


@every_model
@given(text=st.text(max_size=80) | st.text("the hou<>[]_ \n\t▁12é漢🙂", max_size=40))
@settings(max_examples=1000, deadline=None)
def test_text_is_encoded_as_the_library_does(name: str, text: str) -> None:
    assume(not any(control in text for control in ("<s>", "</s>", "<bos>", "<eos>", "<pad>")))
    ids = THEIRS[name].encode(text)
    assert OURS[name].encode(text) == ids
    assert OURS[name].encode(text, parse_special=False) == ids or any(map(OURS[name].is_special, ids))
    assert OURS[name].decode(ids) == THEIRS[name].decode(ids)


@every_model
@given(numbers=st.lists(st.integers(0, 1 << 20), max_size=40))
@settings(max_examples=1000, deadline=None)
def test_any_ids_are_decoded_as_the_library_does(name: str, numbers: list[int]) -> None:
    ids: list[int] = []
    for i in (number % OURS[name].vocab_size for number in numbers):
        # Control pieces inside a character, one or several, are the documented difference.
        if not (THEIRS[name].is_control(i) and ids and THEIRS[name].is_byte(ids[-1])):
            ids.append(i)
    assert OURS[name].decode(ids) == THEIRS[name].decode(ids)


@every_model
def test_pieces_and_ids_are_the_library_s(name: str) -> None:
    ours, theirs = OURS[name], THEIRS[name]
    assert ours.vocab_size == theirs.vocab_size()
    assert ours.start_id == theirs.bos_id()
    for i in range(ours.vocab_size):
        assert ours.piece(i) == theirs.id_to_piece(i)
        assert ours.token_id(ours.piece(i)) == i
        assert ours.decode([i], at_start=False, skip_special=False) == (
            theirs.id_to_piece(i).replace("▁", " ")
            if not theirs.is_byte(i) and not theirs.is_unknown(i)
            else theirs.decode([i])
        )
    assert ours.token_id("no such piece") is None


def test_a_space_before_a_text_is_put_once_and_only_at_its_start() -> None:
    tokenizer = OURS["trained_bpe"]
    assert pieces(tokenizer, "the house") == ["▁the", "▁house"]
    assert pieces(tokenizer, "<bos>the house") == ["<bos>", *pieces(OURS["gemma_like"], "the"), "▁house"]
    assert pieces(tokenizer, "<bos> the house") == ["<bos>", "▁the", "▁house"]
    assert pieces(tokenizer, "the<eos>the") == ["▁the", "<eos>", *pieces(OURS["gemma_like"], "the")]
    assert tokenizer.encode("") == []


def test_the_longest_control_piece_is_read() -> None:
    assert pieces(OURS["gemma_like"], "<bos>x<bos><bos>") == ["<bos>x", "<bos>", "<bos>"]


@given(
    st.lists(
        st.sampled_from(["<bos>", "<eos>", "<start_of_turn>", "user", "\n", "the house", " ", "<", "é"]), max_size=8
    )
)
@settings(max_examples=500, deadline=None)
def test_control_pieces_divide_a_text_into_stretches(parts: list[str]) -> None:
    ours, theirs = OURS["gemma_like"], THEIRS["gemma_like"]  # without a space before a text, a stretch is a text
    wanted: list[int] = []
    stretch = ""
    for part in parts:
        if part in ("<bos>", "<eos>"):
            wanted += [*theirs.encode(stretch), theirs.piece_to_id(part)]
            stretch = ""
        else:
            stretch += part
    assert ours.encode("".join(parts)) == wanted + theirs.encode(stretch)


def test_removing_white_space_keeps_the_words_apart() -> None:
    model = MODELS["trained_unigram"]
    tokenizer = from_sentencepiece(model + b"\x1a\x02\x20\x01")  # remove_extra_whitespaces is true
    words, word = pieces(tokenizer, "the house"), pieces(tokenizer, "the")
    glued = pieces(from_sentencepiece(model + b"\x1a\x02\x18\x00"), "the")  # add_dummy_prefix is false
    assert word[0].startswith("▁")
    assert pieces(tokenizer, "the house <eos> the <eos>the") == [*words, "<eos>", *word, "<eos>", *glued]


@every_model
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_special_token_comes_out_of_a_user_s_text(name: str, data: st.DataObject) -> None:
    tokenizer = OURS[name]
    special = [tokenizer.piece(i) for i in range(tokenizer.vocab_size) if tokenizer.is_special(i)]
    fullwidth = [piece.replace("<", "＜").replace(">", "＞") for piece in special]  # NFKC makes them plain again
    parts = data.draw(st.lists(st.sampled_from([*special, *fullwidth, "<", ">", " ", "the", "\n\n"]), max_size=6))
    ids = tokenizer.encode("".join(parts), parse_special=False)
    assert not any(map(tokenizer.is_special, ids))


def test_a_user_s_markup_is_spelled_out_and_the_rest_is_as_ever() -> None:
    for name in ("trained_bpe", "trained_unigram"):
        tokenizer = OURS[name]
        text = "the  house<start_of_turn>[multimodal]\n\n<table>"
        assert {"<start_of_turn>", "[multimodal]"} <= set(pieces(tokenizer, text))
        spelled = pieces(tokenizer, text, parse_special=False)
        assert {"<start_of_turn>", "[multimodal]"}.isdisjoint(spelled)
        assert {"\n\n", "<table>"} <= set(spelled)
        assert spelled[: len(pieces(tokenizer, "the  house"))] == pieces(tokenizer, "the  house")
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == THEIRS[name].decode(
            THEIRS[name].encode(text)
        )


def test_a_template_around_a_user_s_text() -> None:
    tokenizer = OURS["gemma_like"]

    def chat(said: str) -> list[str]:
        parts = [("<bos><start_of_turn>user\n", True), (said, False), ("<end_of_turn>\n", True)]
        return [tokenizer.piece(i) for i in encode_parts(tokenizer, parts)]

    whole = "<bos><start_of_turn>user\nthe house<end_of_turn>\n"
    assert chat("the house") == pieces(tokenizer, whole)
    assert [p for p in chat("<end_of_turn>the<bos>") if p in ("<end_of_turn>", "<bos>")] == ["<bos>", "<end_of_turn>"]
    assert encode_parts(tokenizer, [("<bo", True), ("s>", False)]) == tokenizer.encode("<bo") + tokenizer.encode("s>")


@pytest.mark.parametrize(
    "piece", ["<bos>", "</s>", "<s>", "<|im_start|>", "<start_of_turn>", "[INST]", "[/INST]", "<unused7>", "<｜User｜>"]
)
def test_markup(piece: str) -> None:
    assert is_markup(piece)


@pytest.mark.parametrize(
    "piece", ["<table>", "</h1>", "<br/>", "  ", "\n\n", "<", "<>", "[]", "[ x", "<=>=", "< a >", "->", "[[1]]"]
)
def test_not_markup(piece: str) -> None:
    assert not is_markup(piece)


def test_the_library_s_own_parser_reads_a_model_as_ours() -> None:
    from sentencepiece import sentencepiece_model_pb2

    for model in (*MODELS.values(), CONVERTED):
        message: Any = sentencepiece_model_pb2.ModelProto.FromString(model)
        parsed = sentencepiece_model.parse(model)
        assert [p.decode() for p in parsed.pieces] == [p.piece for p in message.pieces]
        assert list(parsed.types) == [p.type for p in message.pieces]
        assert all(model[offset] == parsed.types[i] for i, offset in parsed.type_offsets.items())
        assert parsed.add_dummy_prefix == message.normalizer_spec.add_dummy_prefix
        assert parsed.remove_extra_whitespaces == message.normalizer_spec.remove_extra_whitespaces


def varint(value: int) -> bytes:
    """Return a protobuf number."""
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def message(field: int, value: bytes | int | float) -> bytes:
    """Return one protobuf field: bytes, a number, or a float."""
    if isinstance(value, int):
        return varint(field << 3) + varint(value)
    if isinstance(value, float):
        return varint(field << 3 | 5) + struct.pack("<f", value)
    return varint(field << 3 | 2) + varint(len(value)) + value


def piece_message(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    """Return one piece of a model."""
    return message(1, message(1, text) + message(2, score) + message(3, kind))


UNK = piece_message(b"<unk>", kind=2)


def table_message(value: int, texts: bytes) -> bytes:
    """Return a normaliser whose table has one entry, which points to `value` in its texts."""
    units = struct.pack("<II", 1 << 10 | 0x100, value) + bytes(1016)
    return message(3, message(2, struct.pack("<I", len(units)) + units + texts))


def test_the_smallest_model_loads() -> None:
    tokenizer = from_sentencepiece(UNK + piece_message(b"a") + message(2, message(3, 2)))
    assert tokenizer.vocab_size == 2
    assert tokenizer.start_id is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (b"", "is empty"),
        (b"\0" * ((64 << 20) + 1), "67108865 bytes, more than the 67108864 allowed"),
        (b"\0", "field number 0"),
        (b"garbage", "wire type|ends|field"),
        (b"\x0a\xff", "ends inside a number"),
        (b"\x08" + b"\xff" * 11, "more than ten bytes"),
        (b"\x0a\x7f", "ends at byte 129, but 2 is the end"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x01", "field 1 of the SentencePiece model at byte 0 is not a message"),
        (message(2, b""), "has no pieces"),
        (piece_message(b"a"), "defines 0 unknown pieces, expected 1"),
        (UNK + piece_message(b"b", kind=2), "defines 2 unknown pieces, expected 1"),
        (UNK + piece_message(b"a", kind=7), "piece 1 of the SentencePiece model has type 7, expected 1 to 6"),
        (UNK + piece_message(b"a", kind=0), "piece 1 of the SentencePiece model has type 0, expected 1 to 6"),
        (UNK + message(1, message(1, b"a") + b"\x18\x81\x01"), "has no known type"),
        (UNK + message(1, message(1, b"a") + message(3, 1) * 2), "repeats field 3"),
        (UNK + message(1, message(1, 5)), "field 1 of the piece at byte 18 of the SentencePiece model is mistyped"),
        (UNK + piece_message(b""), "piece 1 of the SentencePiece model is empty"),
        (UNK + piece_message(b"a\0b"), "holds a NUL character"),
        (UNK + piece_message(b"a" * 4097), "has 4097 bytes, more than the 4096 allowed"),
        (UNK + piece_message(b"\xc3") + piece_message(b"\xa9"), "piece 1 of the SentencePiece model is not UTF-8"),
        (UNK + piece_message(b"a") * 2, "defines a piece twice"),
        (UNK + piece_message(b"a", float("nan")), "the score of piece 1 of the SentencePiece model is not finite"),
        (
            UNK + piece_message(b"<0x-1>", kind=6),
            r"byte piece 1 of the SentencePiece model is b'<0x-1>', expected the form <0x0A>",
        ),
        (UNK + message(2, message(3, 9)), "algorithm 9, expected 1 to 4"),
        (UNK + message(2, message(44, 1)), "field 44 of the SentencePiece model's trainer_spec is not a short text"),
        (
            UNK + message(2, message(46, b"\xff")),
            "field 46 of the SentencePiece model's trainer_spec is not a short text",
        ),
        (UNK + message(3, message(2, 1)), "table of the SentencePiece model is not bytes"),
        (UNK + message(3, message(2, b"\x01")), "has a table of 1 bytes in 1"),
        (UNK + message(3, message(2, b"\xff\xff\xff\x7f" + b"\0" * 9)), "has a table of 2147483647 bytes in 13"),
        (UNK + message(3, message(2, struct.pack("<II", 4, 0) + b"a\0")), "leads outside itself"),
        (UNK + message(3, message(2, struct.pack("<I", 1024) + bytes(1024) + b"a")), "unfinished text"),
        (UNK + table_message(0x80000000, b"\xff\0"), "holds a text that is not UTF-8"),
        (UNK + table_message(0x80000002, b"a\0"), "leads outside its texts"),
        (UNK + piece_message(b"a") + message(2, message(3, 2) + message(35, 1)), "cannot be loaded"),
    ],
)
def test_unsound_models_are_refused(model: bytes, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TokenizerFormatError, match=reason):
        from_sentencepiece(model)
    assert capfd.readouterr() == ("", "")


def test_a_denormaliser_is_not_supported() -> None:
    with pytest.raises(UnsupportedModelError, match="denormaliser"):
        from_sentencepiece(UNK + message(5, message(2, b"x")))


@given(seed=st.sampled_from([MODELS["bpe_64"], MODELS["bpe_512"], CONVERTED]), data=st.data())
@settings(max_examples=1500, deadline=None)
def test_damaged_models_are_refused_or_work(seed: bytes, data: st.DataObject) -> None:
    damaged = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        tokenizer = from_sentencepiece(bytes(damaged[: data.draw(st.integers(len(seed) // 2, len(seed)))]))
    except (TokenizerFormatError, UnsupportedModelError):
        return
    for parse_special in (True, False):
        ids = tokenizer.encode("the house <bos>é\n", parse_special=parse_special)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)


def test_a_damaged_normaliser_table_is_refused_or_works() -> None:
    seed = MODELS["trained_unigram"]
    table = seed.index(b"nmt_nfkc")
    for step in range(200):
        damaged = bytearray(seed)
        for offset in range(step, 237_000, 2000):
            damaged[table + 16 + offset] ^= 0xFF
        try:
            tokenizer = from_sentencepiece(bytes(damaged))
        except TokenizerFormatError:
            continue
        tokenizer.encode("the ＨＯＵＳＥ é ﬁ ½ 漢")


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    for tokenizer in (OURS["bpe_64"], from_hugging_face(BYTE_BPE)):
        beyond = tokenizer.vocab_size
        assert tokenizer.piece(beyond) == tokenizer.decode([beyond, beyond + 10**6]) == ""
        assert tokenizer.token_bytes(beyond) == b""
        assert tokenizer.is_special(beyond)
        for call in (tokenizer.piece, tokenizer.token_bytes, tokenizer.first_bytes, tokenizer.is_special):
            with pytest.raises(ValueError, match="a token id must be at least 0, got -1"):
                call(-1)


def test_a_lone_surrogate_is_refused() -> None:
    for tokenizer in (OURS["bpe_64"], from_hugging_face(BYTE_BPE)):
        with pytest.raises(ValueError, match="a lone surrogate at character 1"):
            tokenizer.encode("a\ud800")


def test_a_converted_byte_vocabulary_gives_the_ids_of_its_source() -> None:
    ours, theirs = from_sentencepiece(CONVERTED, bytes_to_unicode=True), tokenizers.Tokenizer.from_buffer(BYTE_BPE)
    for text in ("the hello world", "  x    y", "é漢🙂", "a<|endoftext|>b", "\n\tdef f(x):\n    return x\0", ""):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False) == text
    end = ours.token_id("<|endoftext|>")
    assert end is not None
    assert ours.is_special(end)
    assert end not in ours.encode("a<|endoftext|>b", parse_special=False)


@given(text=st.text(max_size=60) | st.text("the helowrdin \n,.é漢", max_size=60))
@settings(max_examples=1000, deadline=None)
def test_a_converted_byte_vocabulary_loses_no_text(text: str) -> None:
    tokenizer = from_sentencepiece(CONVERTED, bytes_to_unicode=True)
    for parse_special in (True, False):
        ids = tokenizer.encode(text, parse_special=parse_special)
        assert tokenizer.decode(ids, skip_special=False) == text


@needs_real
@given(text=st.text(max_size=80) | st.text("the house<|im_start|>_ \n\t12é漢🙂", max_size=40))
@settings(max_examples=2000, deadline=None)
def test_a_real_tokenizer_json_as_the_library_does(text: str) -> None:
    ours, theirs = real_tokenizers()["byte_bpe_49152"], real_library()
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids)
    spelled = ours.encode(text, parse_special=False)
    assert not any(map(ours.is_special, spelled))
    assert ours.decode(spelled) == ours.decode(ids, skip_special=False)


@needs_real
@given(ids=st.lists(st.integers(0, 49_151), max_size=40), skip=st.booleans())
@settings(max_examples=2000, deadline=None)
def test_any_ids_of_a_real_tokenizer_json_as_the_library_does(ids: list[int], skip: bool) -> None:
    ours, theirs = real_tokenizers()["byte_bpe_49152"], real_library()
    assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)


@functools.cache
def real_library() -> Any:
    """Return the library's own tokenizer of the real file."""
    return tokenizers.Tokenizer.from_buffer((REAL / "byte_bpe_49152.tokenizer.json").read_bytes())


def hugging_face(**changes: Any) -> bytes:
    """Return a small tokenizer.json whose pieces are spelled as in Llama's, with byte tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": token, "special": True} | flags for i, token in enumerate(["<unk>", "<s>", "</s>"])]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [["▁", "a"], ["a", "b"], ["▁a", "b"]]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [*added, {"id": 265, "content": "<think>", "special": False} | flags],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": {
                "type": "BPE",
                "unk_token": "<unk>",
                "byte_fallback": True,
                "vocab": {piece: i for i, piece in enumerate(vocabulary)},
                "merges": merges,
            },
        }
        | changes
    ).encode()


DECODERS: dict[str, Any] = {
    "llama": json.loads(hugging_face())["decoder"],
    "gemma": {"type": "Sequence", "decoders": json.loads(hugging_face())["decoder"]["decoders"][:3]},
    "metaspace_always": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
    "metaspace_never": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
    "byte_level": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "none": None,
}


@pytest.mark.parametrize("kind", list(DECODERS))
@given(
    ids=st.lists(st.integers(0, 2) | st.integers(259, 265) | st.integers(0x20 + 3, 0x7E + 3), max_size=10),
    skip=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_decoders_as_the_library_does(kind: str, ids: list[int], skip: bool) -> None:
    raw = hugging_face(decoder=DECODERS[kind])
    ours, theirs = loaded(raw)
    assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)


@functools.lru_cache
def loaded(raw: bytes) -> tuple[Tokenizer, Any]:
    """Return our tokenizer and the library's."""
    return from_hugging_face(raw), tokenizers.Tokenizer.from_buffer(raw)


def test_byte_tokens_make_characters() -> None:
    ours, theirs = loaded(hugging_face())
    ids = theirs.encode("a é漢", add_special_tokens=False).ids
    assert ours.encode("a é漢") == ids
    assert ours.decode(ids) == theirs.decode(ids) == "a é漢"
    assert ours.decode([*ids, 0xC3 + 3]) == "a é漢\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "decoder is WordPiece; supported are"),
        ({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}, "decoder is Replace; supported are"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}, "ByteFallback after Fuse"),
        (
            {
                "type": "Sequence",
                "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}],
            },
            "Strip after Fuse",
        ),
    ],
)
def test_decoders_that_need_what_follows_are_not_supported(decoder: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        from_hugging_face(hugging_face(decoder=decoder))


def test_special_and_markup_tokens_of_a_tokenizer_json() -> None:
    tokenizer = from_hugging_face(hugging_face())
    assert pieces(tokenizer, "<s>a<think>") == ["<s>", "a", "<think>"]
    spelled = tokenizer.encode("<s>a<think>", parse_special=False)
    assert not any(map(tokenizer.is_special, spelled))
    assert tokenizer.decode(spelled) == "<s>a<think>"
    assert tokenizer.decode(tokenizer.encode("<s>a<think>")) == "a<think>"
    assert tokenizer.token_id("<think>") == 265
    assert tokenizer.token_id("no such token") is None


def test_a_special_token_that_the_model_itself_would_produce_is_broken() -> None:
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "<": 2, "s>": 3}, "unk_token": "<unk>"}
    tokenizer = from_hugging_face(hugging_face(model=model, normalizer=None))
    assert pieces(tokenizer, "<s>") == ["<s>"]
    assert pieces(tokenizer, "<s>", parse_special=False) == ["<", "s>"]


BOS_PROCESSOR = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
EOS_PROCESSOR = BOS_PROCESSOR | {"single": BOS_PROCESSOR["single"][::-1]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("processor", "config", "start_id"),
    [
        (None, None, None),
        (None, {"bos_token": "<s>"}, None),
        (None, {"bos_token": "<s>", "add_bos_token": True}, 1),
        (None, {"bos_token": {"content": "<s>"}, "add_bos_token": True}, 1),
        (None, {"bos_token": None, "add_bos_token": True}, None),
        (None, {"bos_token": "<no such token>", "add_bos_token": True}, None),
        (BOS_PROCESSOR, None, 1),
        (BOS_PROCESSOR, {"bos_token": "<s>", "add_bos_token": False}, None),
        (EOS_PROCESSOR, None, None),
    ],
)
def test_the_start_token(processor: Any, config: Any, start_id: int | None) -> None:
    tokenizer = from_hugging_face(hugging_face(post_processor=processor), config)
    assert tokenizer.start_id == start_id
    assert pieces(tokenizer, "ab") == ["ab"]


def test_tokens_that_the_config_names_are_special() -> None:
    tokenizer = from_hugging_face(
        hugging_face(), {"eos_token": "ab", "additional_special_tokens": ["b", {"content": "a"}, 7]}
    )
    assert pieces(tokenizer, "ab") == ["ab"]
    assert tokenizer.decode(tokenizer.encode("ab")) == ""
    assert tokenizer.token_id("<think>") == 265


def test_truncation_and_padding_of_a_tokenizer_json_are_not_applied() -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    tokenizer = from_hugging_face(hugging_face(truncation=truncation, padding=padding))
    assert pieces(tokenizer, "abababab") == ["ab"] * 4


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, BYTE_BPE[:1000], b" " * ((64 << 20) + 1)])
def test_unsound_tokenizer_json_is_refused(raw: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TokenizerFormatError, match=r"the tokenizer\.json (cannot be loaded: |has 67108865 bytes)"):
        from_hugging_face(raw)
    assert capfd.readouterr() == ("", "")


def test_ids_that_would_need_a_huge_table_are_refused() -> None:
    model = {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}
    with pytest.raises(TokenizerFormatError, match="the largest token id of the tokenizer.json is 4294967295"):
        from_hugging_face(json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode())


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_damaged_tokenizer_json_is_refused_or_works(data: st.DataObject) -> None:
    damaged = bytearray(hugging_face())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0x20, 0x7E))
    try:
        tokenizer = from_hugging_face(bytes(damaged))
        tokenizer.decode(tokenizer.encode("ab <s>é", parse_special=False))
    except (TokenizerFormatError, UnsupportedModelError):
        return


def test_an_old_sentencepiece_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece, "__version__", "0.2.0")
    with pytest.raises(ImportError, match="install sentencepiece 0.2.1 or later"):
        from_sentencepiece(MODELS["bpe_64"])


def test_the_libraries_are_imported_only_when_they_are_needed() -> None:
    code = "import sys, hearthlm.tokenizers.stream; print({'sentencepiece', 'tokenizers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
