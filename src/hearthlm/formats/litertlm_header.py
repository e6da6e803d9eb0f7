"""The flatbuffer at the beginning of a `.litertlm`, written byte for byte as LiteRT-LM's builder writes it.

Schema: LiteRTLMMetaData of google-ai-edge/LiteRT-LM's schema/core/litertlm_header_schema.fbs. Google's Python builder
writes a flatbuffer from its end to its beginning, children before parents; what lies where follows from that.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_STRING_VALUE = 9  # of the union VData


@dataclass(frozen=True)
class SectionEntry:
    """Say what a section is and where it lies; `number` is its AnySectionDataType."""

    number: int
    labels: Mapping[str, str]
    begin: int
    end: int


def build_litertlm_header(labels: Mapping[str, str], sections: Sequence[SectionEntry]) -> bytes:
    """Return the header; its size does not depend on where the sections lie, unless one begins or ends at 0."""
    b = _Builder()
    system = b.table({0: b.tables([_pair(b, *item) for item in labels.items()])})
    objects = []
    for section in sections:
        items = b.tables([_pair(b, *item) for item in section.labels.items()])
        objects.append(b.table({0: items, 1: ("Q", section.begin), 2: ("Q", section.end), 3: ("B", section.number)}))
    listed = b.table({0: b.tables(objects)})
    return b.finish(b.table({0: system, 1: listed}))


def _pair(b: _Builder, key: str, value: str) -> int:
    name = b.text(key)
    content = b.table({0: b.text(value)})
    return b.table({0: name, 1: ("B", _STRING_VALUE), 2: content})


class _Builder:
    """Build from the end; what was written is told by its distance from there, in bytes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # the last of the file first
        self._size = 0
        self._widest = 1
        self._vtables: dict[tuple[int, ...], int] = {}

    def text(self, value: str) -> int:
        data = value.encode()
        self._pad(4, len(data) + 1)
        self._prepend(data + b"\0")
        return self._prepend(struct.pack("<I", len(data)))

    def tables(self, positions: Sequence[int]) -> int:
        self._pad(4, 4 * len(positions))
        for position in reversed(positions):
            self._distance(position)
        return self._prepend(struct.pack("<I", len(positions)))

    def table(self, fields: Mapping[int, int | tuple[str, int]]) -> int:
        """Write a table of positions and (layout, number), the last nearest to its beginning; 0 is left out."""
        end = self._size
        at: dict[int, int] = {}
        for field, value in fields.items():
            if isinstance(value, tuple):
                layout, number = value
                if number == 0:
                    continue
                size = struct.calcsize(layout)
                self._pad(size, 0)
                at[field] = self._prepend(struct.pack(f"<{layout}", number))
            else:
                at[field] = self._distance(value)
        self._pad(4, 0)
        position = self._size + 4
        vtable = [position - at[i] if i in at else 0 for i in range(max(at, default=-1) + 1)]
        key = (*vtable, position - end)
        if (known := self._vtables.get(key)) is not None:
            return self._prepend(struct.pack("<i", known - position))
        size = 2 * (len(vtable) + 2)
        self._prepend(struct.pack("<i", size))  # to the vtable, which comes right before
        self._prepend(struct.pack(f"<{len(vtable) + 2}H", size, position - end, *vtable))
        self._vtables[key] = self._size
        return position

    def finish(self, root: int) -> bytes:
        self._pad(self._widest, 4)
        self._distance(root)
        return b"".join(reversed(self._pieces))

    def _distance(self, position: int) -> int:
        self._pad(4, 0)
        return self._prepend(struct.pack("<I", self._size + 4 - position))

    def _pad(self, alignment: int, size: int) -> None:
        """Write zeros so that `size` more bytes end at a multiple of `alignment`."""
        self._widest = max(self._widest, alignment)
        self._prepend(bytes(-(self._size + size) % alignment))

    def _prepend(self, data: bytes) -> int:
        self._pieces.append(data)
        self._size += len(data)
        return self._size
