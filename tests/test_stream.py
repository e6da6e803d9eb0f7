"""Ids and text in parts: nothing may be lost, split, invented, or printed too early."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_tokenizers import BYTE_BPE, CONVERTED, OURS, REAL, THEIRS, hugging_face, real_library, real_tokenizers

from hearthlm.tokenizers import Tokenizer, from_hugging_face, from_sentencepiece
from hearthlm.tokenizers.stream import EACH_BYTE, StopMatcher, StreamDecoder

TOKENIZERS: dict[str, Tokenizer] = {
    "bpe_64": OURS["bpe_64"],
    "bpe_512": OURS["bpe_512"],
    "converted": from_sentencepiece(CONVERTED, bytes_to_unicode=True),
    "hugging_face": from_hugging_face(BYTE_BPE),
    "llama_like": from_hugging_face(hugging_face()),
    "trained": OURS["trained_unigram"],
    **real_tokenizers(),
}
every_tokenizer = pytest.mark.parametrize("name", list(TOKENIZERS))
IDS = st.lists(st.integers(0, 70_000), max_size=30)


def stream(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> str:
    """Return what a stream prints, and check that no part ends within a character."""
    decoder = StreamDecoder(tokenizer, prompt or [])
    return "".join([*map(decoder.push, ids), decoder.finish()])


@every_tokenizer
@given(text=st.text(max_size=60))
@settings(max_examples=400, deadline=None)
def test_a_stream_of_an_encoded_text_is_its_decoding(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    assert stream(tokenizer, ids) == tokenizer.decode(ids)
    assert stream(tokenizer, ids, [5]) == tokenizer.decode(ids, at_start=False)


@every_tokenizer
@given(numbers=IDS)
@settings(max_examples=400, deadline=None)
def test_a_stream_of_any_ids_is_their_decoding(name: str, numbers: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = [number % (tokenizer.vocab_size + 3) for number in numbers]
    assert stream(tokenizer, ids) == tokenizer.decode(ids)
    assert stream(tokenizer, ids, [5]) == tokenizer.decode(ids, at_start=False)


@given(raw=st.binary(max_size=40), errors=st.sampled_from(["replace", EACH_BYTE]))
@settings(max_examples=1000, deadline=None)
def test_any_bytes_are_decoded_as_a_whole_would_be(raw: bytes, errors: str) -> None:
    tokenizer = TOKENIZERS["bpe_512" if errors == EACH_BYTE else "converted"]
    table = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    ids = [table[byte] for byte in (raw[i : i + 1] for i in range(len(raw))) if byte in table]
    whole = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", errors)
    assert tokenizer.byte_errors == errors
    assert stream(tokenizer, ids) == whole


def test_a_character_is_printed_when_its_last_byte_comes() -> None:
    tokenizer = TOKENIZERS["bpe_512"]
    decoder = StreamDecoder(tokenizer)
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "é🙂".encode()]
    assert [decoder.push(i or 0) for i in ids] == ["", "é", "", "", "", "🙂"]
    assert decoder.finish() == ""


@pytest.mark.parametrize(
    ("name", "printed"), [("bpe_512", "\N{REPLACEMENT CHARACTER}" * 3), ("converted", "\N{REPLACEMENT CHARACTER}")]
)
def test_an_unfinished_character_is_replaced_at_the_end(name: str, printed: str) -> None:
    tokenizer = TOKENIZERS[name]
    spelled = ["<0xF0>", "<0x9F>", "<0x99>"] if name == "bpe_512" else ["ð", "Ł", "Ļ"]
    decoder = StreamDecoder(tokenizer)
    ids = [i for piece in spelled if (i := tokenizer.token_id(piece)) is not None]
    assert [decoder.push(i) for i in ids] == ["", "", ""]
    assert decoder.finish() == printed


def test_the_first_space_is_dropped_only_where_no_text_precedes() -> None:
    tokenizer = TOKENIZERS["trained"]  # puts a space before every text
    ids = tokenizer.encode("the house")
    start = tokenizer.start_id
    assert start is not None
    assert tokenizer.token_bytes(ids[0]).startswith(b" ")
    assert stream(tokenizer, ids) == stream(tokenizer, ids, [start]) == "the house"
    assert stream(tokenizer, ids, [start, ids[0]]) == " the house"


@pytest.mark.skipif(not REAL.exists(), reason="the real tokenizers are not here")
@pytest.mark.parametrize("name", list(real_tokenizers()))
@given(
    text=st.text(max_size=80)
    | st.text("the hou<>[]|_ \n\t▁12é漢🙂", max_size=60)
    | st.lists(
        st.sampled_from(["<|im_start|>", "<s>", "The", " quick", "  ", "\r\n", "👩‍👩‍👧", "नमस्ते", "１２", "don't"])
    ).map("".join)
)
@settings(max_examples=5000, deadline=None)
def test_five_thousand_texts_are_those_of_the_library_whole_and_in_parts(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    if name == "sentencepiece_4000":
        library = THEIRS["real"]
        assume(not any(control in text for control in ("<s>", "</s>", "<pad>")))  # the library does not read them
        assert ids == library.encode(text)
        assert tokenizer.decode(ids) == library.decode(ids)
    else:
        assert ids == real_library().encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == real_library().decode(ids)
    assert stream(tokenizer, ids) == tokenizer.decode(ids)
    for cut in range(0, len(ids) + 1, 1 + len(ids) // 4):  # an answer that goes on after a prompt
        rest = tokenizer.decode(ids[cut:], at_start=not cut)
        assert stream(tokenizer, ids[cut:], ids[:cut]) == rest


@pytest.mark.skipif(not REAL.exists(), reason="the real tokenizers are not here")
@pytest.mark.parametrize("name", list(real_tokenizers()))
def test_prompt_and_continuation_make_the_whole_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("The quick brown fox; jumps over 12 lazy dogs. \N{SNOWMAN} ünïcode")
    whole = tokenizer.decode(ids)
    for i in range(1, len(ids)):
        if "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode(ids[:i]):
            assert tokenizer.decode(ids[:i]) + stream(tokenizer, ids[i:], ids[:i]) == whole


def test_control_tokens_are_skipped_or_printed() -> None:
    tokenizer = TOKENIZERS["bpe_64"]
    ids = [2, *tokenizer.encode("hi"), 1]
    assert stream(tokenizer, ids) == "hi"
    decoder = StreamDecoder(tokenizer, skip_special=False)
    assert "".join(map(decoder.push, ids)) == tokenizer.decode(ids, skip_special=False) == "<bos> hi<eos>"


def cut(text: str, stops: list[str]) -> str:
    """Return the text before the first place where a stop string begins."""
    return text[: min((i for s in stops if (i := text.find(s)) >= 0), default=len(text))]


SMALL = st.text("ab", max_size=14)


@given(
    SMALL,
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 4), min_size=14, max_size=14),
)
@settings(max_examples=3000, deadline=None)
def test_a_text_is_cut_at_the_first_stop_string_however_it_is_divided(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    matcher = StopMatcher(stops)
    printed, position, stopped = "", 0, False
    for size in [*sizes, len(text)]:
        part, stopped = matcher.push(text[position : position + size])
        position += size
        printed += part
        assert cut(text, stops).startswith(printed)
        if stopped:
            break
        # What is held back could still become a stop string, or lies after a place that a longer one may precede.
        seen = cut(text[:position], stops)
        held = seen[len(printed) :]
        open_ends = [e for e in range(len(text[:position])) if any(s.startswith(text[e:position]) for s in stops)]
        assert not held or open_ends
        assert not held or len(printed) == min(open_ends)
    assert printed + matcher.finish() == cut(text, stops)
    if stopped:
        assert matcher.push("more") == ("", True)


def test_stop_strings_are_found_across_parts_and_never_printed() -> None:
    matcher = StopMatcher(["<end>", "\n\n"])
    parts = ["one <", "b> two\n", "three<e", "nd", ">four"]
    assert [matcher.push(part) for part in parts] == [
        ("one ", False),
        ("<b> two", False),
        ("\nthree", False),
        ("", False),
        ("", True),
    ]
    assert matcher.finish() == ""


def test_the_first_beginning_wins_and_decides_at_once() -> None:
    assert StopMatcher(["answer", "</answer>"]).push("yes</answer>") == ("yes", True)
    assert StopMatcher(["\n", "\n\nUser"]).push("yes\n") == ("yes", True)
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.push("abc") == ("", False)
    assert matcher.push("x") == ("a", True)
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.push("abc") == ("", False)
    assert matcher.finish() == "a"


def test_without_stop_strings_everything_is_printed_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push("text") == ("text", False)
    assert matcher.finish() == ""


def test_what_was_held_back_comes_out_at_the_end() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a<en") == ("a", False)
    assert matcher.finish() == "<en"


def test_wrong_stop_strings_are_refused() -> None:
    with pytest.raises(ValueError, match="a stop string must not be empty"):
        StopMatcher(["a", ""])
    with pytest.raises(TypeError, match="must be a sequence of strings, got the string 'abc'"):
        StopMatcher("abc")


def test_long_texts_take_linear_time() -> None:
    tokenizer = TOKENIZERS["bpe_512"]
    decoder, matcher = StreamDecoder(tokenizer), StopMatcher(["a" * 500 + "b", "c" * 3])
    ids = itertools.islice(itertools.cycle(tokenizer.encode("aaaaaaab")), 50_000)
    printed = sum(len(matcher.push(decoder.push(i))[0]) for i in ids)  # a quadratic method takes minutes
    assert printed + len(matcher.finish()) >= 50_000
