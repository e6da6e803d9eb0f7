"""GPT-2's alphabet: 256 printable characters that stand for the 256 bytes in a byte-level vocabulary."""

from __future__ import annotations


def _characters() -> list[str]:
    """Return the character of each byte: itself where it is printable Latin-1, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


CHARACTERS = _characters()
_TO_CHARACTERS = dict(enumerate(CHARACTERS))
_TO_BYTE = {character: byte for byte, character in enumerate(CHARACTERS)}


def spell(text: str) -> str:
    """Return the UTF-8 bytes of `text`, one character of the alphabet for each."""
    return text.encode("utf-8").decode("latin-1").translate(_TO_CHARACTERS)


def spelled_bytes(piece: str) -> bytes:
    """Return the bytes that `piece` spells; a piece with a character outside the alphabet stands for itself."""
    try:
        return bytes(map(_TO_BYTE.__getitem__, piece))
    except KeyError:
        return piece.encode("utf-8")
