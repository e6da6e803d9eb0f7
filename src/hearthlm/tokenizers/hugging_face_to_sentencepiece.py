"""A Hugging Face `tokenizer.json` written as a SentencePiece model, for readers that know nothing else.

MediaPipe's runtimes read SentencePiece only. A BPE vocabulary can be told in it: SentencePiece merges the pair whose
piece has the highest score, so a piece scores minus the rank of the first merge that makes it. What cannot be told is
left out, which makes the model an approximation: how a text is cut before merging (GPT-2's regular expression, of
which only the rule about spaces is kept), a normaliser other than the one for spaces, and `lstrip`, `rstrip` and
`single_word` of added tokens. Whoever needs the exact tokens reads the `tokenizer.json` itself.

A byte-level vocabulary stays spelled in GPT-2's alphabet: the reader has to spell a text before it encodes it
(`BYTES_TO_UNICODE` in MediaPipe's files, `bytes_to_unicode` here).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from hearthlm.errors import TokenizerFormatError, UnsupportedModelError
from hearthlm.tokenizers import byte_alphabet, hugging_face, sentencepiece_model
from hearthlm.tokenizers.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

MAX_CONFIG_BYTES = 16 << 20

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BPE = 2  # TrainerSpec.ModelType
_COMPATIBLE_ADDED_SCORE = float(1 << 64)  # MediaPipe computes minus the id without a sign


def to_sentencepiece(
    tokenizer_json: bytes, tokenizer_config_json: bytes = b"", *, mediapipe_compatible: bool = False
) -> bytes:
    """Return the serialised SentencePiece `ModelProto` of a BPE `tokenizer.json`; piece i is token i.

    `tokenizer_config_json` is the file of that name, empty if there is none; it names the start, end, padding and
    unknown tokens. The start and padding tokens become control pieces; other added tokens become user-defined ones, so
    that every reader finds them in a prompt, as transformers does. A vocabulary without an unknown token gets one
    behind its last token.

    `mediapipe_compatible` writes the bytes that MediaPipe's converter does, errors included: scores are minus the id
    (a mistake where merges are in another order), added tokens come behind the vocabulary whatever their id, with a
    score of 1.8e19, and those without `normalized` are dropped. The unknown token must be in the vocabulary proper.

    Raises TokenizerFormatError for bytes that are no sound tokenizer, UnsupportedModelError for one that is not BPE,
    or neither byte-level nor with a mark for spaces.
    """
    document = hugging_face.document(tokenizer_json)
    config = _config(tokenizer_config_json)
    model = document["model"]
    if model["type"] != "BPE":
        raise UnsupportedModelError(
            f"the tokenizer.json holds a {model['type']} model; only BPE can be written as a SentencePiece model"
        )
    data = _mediapipe_model(document, config) if mediapipe_compatible else _model(document, config)
    sentencepiece_model.parse(data)
    return data


def is_byte_level(tokenizer_json: bytes) -> bool:
    """Tell whether the vocabulary is spelled in GPT-2's alphabet, so that readers have to map bytes to characters."""
    return _is_byte_level(hugging_face.document(tokenizer_json))


def _mediapipe_model(document: Mapping[str, Any], config: Mapping[str, Any]) -> bytes:
    """Return the model as MediaPipe writes it; see `to_sentencepiece`."""
    unknown = _named(config, "unk_token")
    vocabulary = sorted(document["model"]["vocab"].items(), key=lambda item: item[1])
    pieces = [_piece(token, -token_id, UNKNOWN if token == unknown else NORMAL) for token, token_id in vocabulary]
    pieces += [
        _piece(added["content"], _COMPATIBLE_ADDED_SCORE, USER_DEFINED)
        for added in document["added_tokens"]
        if added["normalized"]
    ]
    trainer = _number(3, _BPE) + _number(4, len(pieces))
    spaces = _number(3, 0) + _number(4, 0) + _number(5, 0)
    return b"".join(pieces) + _bytes(2, trainer) + _bytes(3, spaces) + _bytes(5, spaces)


def _model(document: Mapping[str, Any], config: Mapping[str, Any]) -> bytes:
    """Return the model that encodes as the tokenizer does, as far as a SentencePiece model can."""
    model = document["model"]
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):
            raise UnsupportedModelError(
                f"the tokenizer.json has {affix} {model[affix]!r}, which a SentencePiece model cannot express"
            )
    byte_level = _is_byte_level(document)
    stages = [*_stages(document["normalizer"]), *_stages(document["pre_tokenizer"])]
    marks_spaces = any(
        stage["type"] == "Metaspace" or (stage["type"] == "Replace" and stage["content"] == _SPACE) for stage in stages
    )
    if not byte_level and not marks_spaces:
        raise UnsupportedModelError(
            f"the tokenizer.json is neither byte-level nor writes spaces as {_SPACE!r}, "
            "so it cannot be written as a SentencePiece model"
        )
    dummy_prefix = not byte_level and any(
        (stage["type"] == "Prepend" and stage["prepend"] == _SPACE)
        or (stage["type"] == "Metaspace" and stage["prepend_scheme"] != "never")
        for stage in stages
    )

    ranks = _ranks(model["merges"], spaces_last=byte_level)
    vocabulary: dict[int, str] = {token_id: token for token, token_id in model["vocab"].items()}
    byte_pieces = {f"<0x{byte:02X}>" for byte in range(256)}
    byte_fallback = bool(model.get("byte_fallback")) and byte_pieces <= model["vocab"].keys()
    added = {token["id"]: token["content"] for token in document["added_tokens"]}
    ids = {token: token_id for token_id, token in (vocabulary | added).items()}
    named = {role: ids.get(_named(config, f"{role}_token") or "") for role in ("bos", "eos", "pad")}
    unknown = ids.get(model["unk_token"] or "", ids.get(_named(config, "unk_token") or ""))
    if unknown in (named["bos"], named["eos"]):
        unknown = None  # readers take the id of the unknown token for "not found" when they ask for the start by name
    control = {token_id for role, token_id in named.items() if role != "eos" and token_id != named["eos"]}
    taken = set(ids)
    for token_id, content in added.items():
        spelled = byte_alphabet.spell(content) if byte_level else content.replace(" ", _SPACE)
        # A reader looks in the text for the spelled form, but asks for the start and the end by name. Where the
        # vocabulary has the spelled form as another token, only that one is found.
        is_asked_by_name = token_id in (unknown, *named.values())
        vocabulary[token_id] = content if is_asked_by_name or spelled in taken else spelled
    size = max(vocabulary, default=-1) + 1
    if size > sentencepiece_model.MAX_PIECES:
        raise TokenizerFormatError(
            f"the largest token id of the tokenizer.json is {size - 1}, "
            f"expected at most {sentencepiece_model.MAX_PIECES - 1}"
        )
    if unknown is None:
        unknown = next((i for i in range(size) if i not in vocabulary), size)
        vocabulary[unknown] = _unused_name("<unk>", taken)
        size = max(size, unknown + 1)

    def kind(token_id: int, token: str) -> int:
        if token_id == unknown:
            return UNKNOWN
        if token_id in control:
            return CONTROL
        if token_id in added:
            return USER_DEFINED
        if byte_fallback and token in byte_pieces:
            return BYTE
        # What no merge makes must not be made here either, though it can be a result of the network.
        reachable = token in ranks or len(token) == 1 or bool(model.get("ignore_merges"))
        return NORMAL if reachable else UNUSED

    pieces = []
    for token_id in range(size):
        if token_id not in vocabulary:
            pieces.append(_piece(_unused_name(f"<unused id {token_id}>", taken), 0.0, UNUSED))
            continue
        token = vocabulary[token_id]
        pieces.append(_piece(token, -ranks.get(token, 2 * len(model["merges"])), kind(token_id, token)))

    trainer = _number(3, _BPE) + _number(4, size)
    if byte_fallback:
        trainer += _number(35, 1)
    roles = {"unk": unknown, **named}
    for field, role_id in enumerate(roles.values(), start=40):
        trainer += _number(field, -1 if role_id is None else role_id)
    for field, role_id in enumerate(roles.values(), start=45):
        if role_id is not None:
            trainer += _bytes(field, vocabulary[role_id].encode("utf-8"))
    normalizer = _number(3, int(dummy_prefix)) + _number(4, 0) + _number(5, int(not byte_level))
    return b"".join(pieces) + _bytes(2, trainer) + _bytes(3, normalizer)


def _ranks(merges: list[Any], *, spaces_last: bool) -> dict[str, int]:
    """Return for each piece that a merge makes the place of the first such merge.

    `spaces_last` puts the merges of nothing but white space behind all others. GPT-2's regular expression leaves the
    last of several spaces to the word behind them, and so this does: the word takes its space first.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        is_space = spaces_last and byte_alphabet.spelled_bytes(left + right).isspace()
        ranks.setdefault(left + right, rank + len(merges) * is_space)
    return ranks


def _is_byte_level(document: Mapping[str, Any]) -> bool:
    """Tell whether bytes are mapped to characters before encoding or back after decoding."""
    parts = ("normalizer", "pre_tokenizer", "decoder")
    return any(stage["type"] == "ByteLevel" for part in parts for stage in _stages(document[part]))


def _stages(stage: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder one by one."""
    if stage is None:
        return
    if stage["type"] == "Sequence":
        inner = next(stage[key] for key in ("normalizers", "pretokenizers", "decoders") if key in stage)
        for part in inner:
            yield from _stages(part)
    else:
        yield stage


def _config(data: bytes) -> dict[str, Any]:
    """Return what a tokenizer_config.json says."""
    if not data.strip():
        return {}
    if len(data) > MAX_CONFIG_BYTES:
        raise TokenizerFormatError(
            f"the tokenizer_config.json has {len(data)} bytes, more than the {MAX_CONFIG_BYTES} allowed"
        )
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerFormatError(f"the tokenizer_config.json is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise TokenizerFormatError(f"the tokenizer_config.json holds a {type(config).__name__}, expected an object")
    return config


def _named(config: Mapping[str, Any], role: str) -> str | None:
    """Return the text of a token that tokenizer_config.json names."""
    return hugging_face.token_content(config.get(role))


def _unused_name(name: str, taken: set[str]) -> str:
    """Return `name`, made longer until no token has it, and count it as taken."""
    while name in taken:
        name = f"{name[:-1]}_>"
    taken.add(name)
    return name


def _piece(text: str, score: float, kind: int) -> bytes:
    """Return one piece as a field of the ModelProto."""
    return _bytes(1, _bytes(1, text.encode("utf-8")) + b"\x15" + struct.pack("<f", score) + _number(3, kind))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
