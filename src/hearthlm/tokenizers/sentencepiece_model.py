"""A SentencePiece model read by hand: its pieces, and every check that must hold before a library gets the bytes.

The format is the protobuf message `ModelProto` of google/sentencepiece (`sentencepiece_model.proto`). The library
trusts its input in places (CVE-2026-1260; the lookup table of the normaliser is indexed as it lies in the file), so
nothing reaches it that was not walked through here. Reading is linear in the size of the bytes.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hearthlm.errors import TokenizerFormatError, UnsupportedModelError

MAX_MODEL_BYTES = 64 << 20
MAX_PIECES = 1 << 20
MAX_PIECE_BYTES = 4096

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES_AT_A_TIME = 4096  # so that few numbers are objects at the same time
_FEWEST_TOGETHER = 64  # arrays for less would cost more, and a hostile model could ask for millions
_BYTE_PIECE = re.compile(rb"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model declares; `pieces` are UTF-8, `types` one of the constants above for each piece."""

    data: bytes
    pieces: list[bytes]
    types: bytes
    type_offsets: dict[int, int]  # of pieces that are not NORMAL: where in `data` the type's byte lies
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    unknown_piece: bytes  # what the trainer called the unknown piece; a converter may have made another one unknown

    def without(self, ids: Iterable[int], *, dummy_prefix: bool = True) -> bytes:
        """Return the model's bytes with these pieces marked as unused: no text is encoded as one of them."""
        data = bytearray(self.data if dummy_prefix else self.without_dummy_prefix())
        for token_id in ids:
            data[self.type_offsets[token_id]] = UNUSED
        return bytes(data)

    def without_dummy_prefix(self) -> bytes:
        """Return the model's bytes with no space put before a text: of two values for a field, the last counts."""
        return self.data + b"\x1a\x02\x18\x00"


def parse(data: bytes) -> SentencePieceModel:
    """Walk through a serialised `ModelProto` and refuse what no sound model holds.

    Raises TokenizerFormatError; UnsupportedModelError for a denormaliser, whose work cannot be done token by token.
    """
    if not data:
        raise TokenizerFormatError("the SentencePiece model is empty")
    if len(data) > MAX_MODEL_BYTES:
        raise TokenizerFormatError(
            f"the SentencePiece model has {len(data)} bytes, more than the {MAX_MODEL_BYTES} allowed"
        )
    pieces: list[bytes] = []
    scores: list[bytes] = []
    declared: dict[int, int] = {}  # the types that are written down
    type_offsets: dict[int, int] = {}
    normalizer: dict[int, int | bytes] = {}
    trainer: dict[int, int | bytes] = {}
    position, end = 0, len(data)
    while position < end:
        if len(begins := _short_messages(data, position)) >= _FEWEST_TOGETHER:
            position = _read_pieces(data, begins, pieces, scores, declared, type_offsets)
            continue
        field, wire, start, stop = _field(data, position, end)
        if field in (1, 2, 3, 5) and wire != _BYTES:
            raise TokenizerFormatError(f"field {field} of the SentencePiece model at byte {position} is not a message")
        if field == 1:
            _read_piece(data, start, stop, pieces, scores, declared, type_offsets)
        elif field == 2:
            trainer.update(_fields(data, start, stop))
        elif field == 3:
            normalizer.update(_fields(data, start, stop))
        elif field == 5 and _fields(data, start, stop).get(2):
            raise UnsupportedModelError("the SentencePiece model has a denormaliser table, which is not supported")
        position = stop
    types = bytearray([NORMAL]) * len(pieces)
    for index, kind in declared.items():
        types[index] = kind
    _check_pieces(pieces, bytes(types), b"".join(scores))
    _check_trainer(trainer)
    table = normalizer.get(2, b"")
    if not isinstance(table, bytes):
        raise TokenizerFormatError("the normaliser table of the SentencePiece model is not bytes")
    _check_table(table)
    unknown_piece = trainer.get(45, b"<unk>")
    assert isinstance(unknown_piece, bytes)  # _check_trainer has seen to it
    return SentencePieceModel(
        data,
        pieces,
        bytes(types),
        type_offsets,
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
        unknown_piece,
    )


def have_same_pieces(original: bytes, converted: bytes) -> bool:
    """Say whether a SentencePiece model has the pieces of `converted`, made from the tokenizer.json beside it.

    Then that file was made from this model, and both stand for one vocabulary. A model that is not sound has none.
    """
    try:
        return parse(original).pieces == parse(converted).pieces
    except (TokenizerFormatError, UnsupportedModelError):
        return False


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Read a base-128 number of at most ten bytes; return it and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise TokenizerFormatError(f"the SentencePiece model ends inside a number at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise TokenizerFormatError(f"a number of the SentencePiece model before byte {position} has more than ten bytes")


def _field(data: bytes, position: int, end: int) -> tuple[int, int, int, int]:
    """Read one field's head; return its number, its wire type, where its value starts and where it ends."""
    tag, start = _varint(data, position, end)
    field, wire = tag >> 3, tag & 7
    if field == 0 or tag >= 1 << 32:
        raise TokenizerFormatError(f"the SentencePiece model has field number {field} at byte {position}")
    if wire == _VARINT:
        _, stop = _varint(data, start, end)
    elif wire == _BYTES:
        size, start = _varint(data, start, end)
        stop = start + size
    elif wire in (_FIXED32, _FIXED64):
        stop = start + (4 if wire == _FIXED32 else 8)
    else:
        raise TokenizerFormatError(f"the SentencePiece model has wire type {wire} at byte {position}")
    if stop > end:
        raise TokenizerFormatError(
            f"field {field} of the SentencePiece model at byte {position} ends at byte {stop}, but {end} is the end"
        )
    return field, wire, start, stop


def _walk(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field of a message as `_field` returns it."""
    while position < end:
        yield (found := _field(data, position, end))
        position = found[3]


def _fields(data: bytes, position: int, end: int) -> dict[int, int | bytes]:
    """Return the numbers and the byte strings of a message; of two values for a field, the last."""
    values: dict[int, int | bytes] = {}
    for field, wire, start, stop in _walk(data, position, end):
        values[field] = _varint(data, start, stop)[0] if wire == _VARINT else data[start:stop]
    return values


def _short_messages(data: bytes, position: int) -> array[int]:
    """Return where the pieces begin that follow each other from `position` on, each of less than 128 bytes."""
    begins, end = array("q"), len(data) - 1
    # How long loading takes is decided here and in `_read_pieces`: a quarter of a million of them is common.
    while position < end and data[position] == 0x0A and (size := data[position + 1]) < 0x80:
        begins.append(position)
        position += 2 + size
    if begins and position > len(data):
        begins.pop()
    return begins


def _read_pieces(
    data: bytes,
    begins: array[int],
    pieces: list[bytes],
    scores: list[bytes],
    declared: dict[int, int],
    type_offsets: dict[int, int],
) -> int:
    """Add the pieces that `_short_messages` found; return where the last one ends.

    Nearly all are of one layout: text, score, perhaps type, each length in one byte. Where all are, they are read
    together.
    """
    octets = np.frombuffer(data, np.uint8)
    for low in range(0, len(begins), _PIECES_AT_A_TIME):
        part = begins[low : low + _PIECES_AT_A_TIME]
        begin = np.frombuffer(part, np.int64)
        stop = begin + 2 + octets[begin + 1]
        text_end = begin + 4 + octets[np.minimum(begin + 3, len(data) - 1)]
        has_type = stop - text_end == 7
        is_plain = (
            (octets[np.minimum(begin + 2, len(data) - 1)] == 0x0A)
            & ((stop - text_end == 5) | has_type)
            & (octets[np.minimum(text_end, len(data) - 1)] == 0x15)
            & (~has_type | (octets[stop - 2] == 0x18))
        )
        if not is_plain.all():
            for a, b in zip(part, stop.tolist(), strict=True):
                _read_piece(data, a + 2, b, pieces, scores, declared, type_offsets)
            continue
        for i in np.flatnonzero(has_type).tolist():
            offset = int(stop[i]) - 1
            type_offsets[len(pieces) + i], declared[len(pieces) + i] = offset, data[offset]
        pieces += [data[a + 4 : b] for a, b in zip(part, text_end.tolist(), strict=True)]
        scores.append(octets[text_end[:, None] + np.arange(1, 5)].tobytes())
    return begins[-1] + 2 + data[begins[-1] + 1]


def _read_piece(
    data: bytes,
    start: int,
    stop: int,
    pieces: list[bytes],
    scores: list[bytes],
    declared: dict[int, int],
    type_offsets: dict[int, int],
) -> None:
    text, score, kind, offset = _piece(data, start, stop)
    if offset is not None:
        type_offsets[len(pieces)] = offset
        declared[len(pieces)] = kind
    pieces.append(text)
    scores.append(score)


def _piece(data: bytes, position: int, end: int) -> tuple[bytes, bytes, int, int | None]:
    """Read one piece; return its text, the four bytes of its score, its type and where the type lies."""
    text, score, kind, offset = b"", b"\0\0\0\0", NORMAL, None
    seen: set[int] = set()
    for field, wire, start, stop in _walk(data, position, end):
        if field > 3:
            continue
        if field in seen:
            raise TokenizerFormatError(f"the piece at byte {position} of the SentencePiece model repeats field {field}")
        seen.add(field)
        if wire != (_BYTES, _FIXED32, _VARINT)[field - 1]:
            raise TokenizerFormatError(
                f"field {field} of the piece at byte {position} of the SentencePiece model is mistyped"
            )
        if field == 1:
            text = data[start:stop]
        elif field == 2:
            score = data[start:stop]
        else:
            if stop - start != 1:
                raise TokenizerFormatError(f"the piece at byte {position} of the SentencePiece model has no known type")
            kind, offset = data[start], start
    return text, score, kind, offset


def _check_pieces(pieces: list[bytes], types: bytes, scores: bytes) -> None:
    """Refuse a vocabulary that no trainer writes."""
    if not pieces:
        raise TokenizerFormatError("the SentencePiece model has no pieces")
    if len(pieces) > MAX_PIECES:
        raise TokenizerFormatError(
            f"the SentencePiece model has {len(pieces)} pieces, more than the {MAX_PIECES} allowed"
        )
    if unknown := set(types) - set(range(NORMAL, BYTE + 1)):
        index = types.index(min(unknown))
        raise TokenizerFormatError(f"piece {index} of the SentencePiece model has type {types[index]}, expected 1 to 6")
    if types.count(UNKNOWN) != 1:
        raise TokenizerFormatError(f"the SentencePiece model defines {types.count(UNKNOWN)} unknown pieces, expected 1")
    if len(longest := max(pieces, key=len)) > MAX_PIECE_BYTES:
        raise TokenizerFormatError(
            f"piece {pieces.index(longest)} of the SentencePiece model has {len(longest)} bytes, "
            f"more than the {MAX_PIECE_BYTES} allowed"
        )
    if b"" in pieces:
        raise TokenizerFormatError(f"piece {pieces.index(b'')} of the SentencePiece model is empty")
    joined = b"\0".join(pieces)
    if joined.count(b"\0") != len(pieces) - 1:
        raise TokenizerFormatError("a piece of the SentencePiece model holds a NUL character")
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError as error:
        index = joined.count(b"\0", 0, error.start)
        raise TokenizerFormatError(f"piece {index} of the SentencePiece model is not UTF-8") from None
    if len(set(pieces)) != len(pieces):
        raise TokenizerFormatError("the SentencePiece model defines a piece twice")
    finite = np.isfinite(np.frombuffer(scores, "<f4"))
    if not finite.all():
        raise TokenizerFormatError(
            f"the score of piece {int(finite.argmin())} of the SentencePiece model is not finite"
        )
    index = types.find(BYTE)
    while index >= 0:
        if not _BYTE_PIECE.fullmatch(pieces[index]):
            raise TokenizerFormatError(
                f"byte piece {index} of the SentencePiece model is {pieces[index][:32]!r}, expected the form <0x0A>"
            )
        index = types.find(BYTE, index + 1)


def _check_trainer(trainer: dict[int, int | bytes]) -> None:
    """Refuse an algorithm that does not exist, and strings that are not text."""
    if trainer.get(3, 1) not in (1, 2, 3, 4):
        raise TokenizerFormatError(f"the SentencePiece model has algorithm {trainer[3]!r}, expected 1 to 4")
    for field in (44, 45, 46, 47, 48):  # unk_surface, unk_piece, bos_piece, eos_piece, pad_piece
        value = trainer.get(field, b"")
        try:
            sound = isinstance(value, bytes) and len(value) <= MAX_PIECE_BYTES and "\0" not in value.decode("utf-8")
        except UnicodeDecodeError:
            sound = False
        if not sound:
            raise TokenizerFormatError(f"field {field} of the SentencePiece model's trainer_spec is not a short text")


def _check_table(table: bytes) -> None:
    """Refuse a normaliser table that would be read outside its bounds.

    It is uint32 size, then a Darts double array of that many bytes, then NUL-terminated texts. A unit without bit 31
    leads to the 256 units around `index ^ offset`; where bit 8 is set, the unit at `index ^ offset` is a position in
    the texts.
    """
    if not table:
        return
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 4 or size == 0 or size > len(table) - 4:
        raise TokenizerFormatError(
            f"the normaliser of the SentencePiece model has a table of {size} bytes in {len(table)}"
        )
    units = np.frombuffer(table, "<u4", size // 4, offset=4)
    texts = table[4 + size :]
    if not texts or texts[-1]:
        raise TokenizerFormatError("the normaliser table of the SentencePiece model has an unfinished text")
    inner = np.flatnonzero((units >> np.uint32(31)) == 0)
    values = units[inner].astype(np.int64)
    targets = inner ^ ((values >> 10) << ((values & 0x200) >> 6))
    if inner.size == 0 or inner[0] != 0 or np.any(targets | 0xFF >= units.size):
        raise TokenizerFormatError("the normaliser table of the SentencePiece model leads outside itself")
    positions = units[targets[(values & 0x100) != 0]].astype(np.int64) & 0x7FFFFFFF
    if np.any(positions >= len(texts)):
        raise TokenizerFormatError("the normaliser table of the SentencePiece model leads outside its texts")
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        raise TokenizerFormatError(
            "the normaliser table of the SentencePiece model holds a text that is not UTF-8"
        ) from None
