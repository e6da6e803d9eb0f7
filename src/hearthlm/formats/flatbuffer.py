"""Flatbuffers read with every access checked, and built: as much as model files need.

Format: https://flatbuffers.dev/internals/. A table at position p begins with the signed distance back to its vtable
[u16 size of vtable, u16 size of table, u16 offset of field 0, ...]; strings, vectors and tables are reached through
u32 distances that point forward.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from hearthlm.errors import CorruptFileError, TruncatedFileError

MAX_STRING_BYTES = 4096
MAX_VECTOR_LENGTH = 65_536
_UINT32 = struct.Struct("<I")


class FlatbufferReader:
    """Read from `data`; `end` is the end of the last byte that was needed so far.

    Raises TruncatedFileError where something lies beyond the data and CorruptFileError where it contradicts itself.
    Nothing recurses: a caller steps from table to table.
    """

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self.data = memoryview(data)
        self.where = where
        self.end = 0

    def unpack(self, layout: struct.Struct, position: int, what: str) -> int:
        self.need(position, layout.size, what)
        value: int = layout.unpack_from(self.data, position)[0]
        return value

    def need(self, position: int, size: int, what: str) -> None:
        end = position + size
        if position < 0:
            raise CorruptFileError(f"{self.where}: {what}: lies {-position} bytes before the beginning")
        if end > len(self.data):
            raise TruncatedFileError(
                f"{self.where}: {what}: expected {size} bytes at offset {position}, but there are {len(self.data)}"
            )
        if end > self.end:
            self.end = end

    def root(self, identifier: bytes) -> Table:
        """Return the root table of a buffer with `identifier` at bytes 4 to 7."""
        self.need(0, 8, "identifier")
        found = bytes(self.data[4:8])
        if found != identifier:
            raise CorruptFileError(f"{self.where}: expected {identifier!r} at offset 4, got {found!r}")
        return Table(self, self.unpack(_UINT32, 0, "root table"), "root table")


class Table:
    """One table; fields are told by their index in the schema."""

    __slots__ = ("_fields", "_position", "_reader", "_size", "_what")

    def __init__(self, reader: FlatbufferReader, position: int, what: str) -> None:
        self._reader = reader
        self._position = position
        self._what = what
        vtable = position - reader.unpack(_INT32, position, what)
        vtable_size = reader.unpack(_UINT16, vtable, f"vtable of {what}")
        self._size = reader.unpack(_UINT16, vtable + 2, f"vtable of {what}")
        if vtable_size < 4 or vtable_size % 2 or self._size < 4:
            raise CorruptFileError(
                f"{reader.where}: {what}: a vtable of {vtable_size} and a table of {self._size} bytes are impossible"
            )
        reader.need(vtable, vtable_size, f"vtable of {what}")
        reader.need(position, self._size, what)
        self._fields = struct.unpack_from(f"<{vtable_size // 2 - 2}H", reader.data, vtable + 4)

    def scalar(self, field: int, layout: struct.Struct, default: int = 0) -> int:
        """Return the integer in `field`, or `default` where it is absent."""
        position = self._locate(field, layout.size)
        return default if position is None else self._reader.unpack(layout, position, self._what)

    def text(self, field: int, *, terminated: bool = False) -> str:
        """Return the string in `field`, "" where it is absent; `terminated` refuses one that does not end with a 0."""
        what = f"field {field} of {self._what}"
        begin, count = self._vector(field, 1, what)
        if count > MAX_STRING_BYTES:
            raise CorruptFileError(
                f"{self._reader.where}: {what}: expected at most {MAX_STRING_BYTES} bytes of text, got {count}"
            )
        if terminated and begin:
            self._reader.need(begin + count, 1, what)
            if self._reader.data[begin + count]:
                raise CorruptFileError(f"{self._reader.where}: {what}: the text does not end with a zero byte")
        try:
            return str(self._reader.data[begin : begin + count], "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{self._reader.where}: {what}: the text is not UTF-8: {error}") from None

    def integers(self, field: int, max_count: int = MAX_VECTOR_LENGTH) -> tuple[int, ...]:
        """Return the vector of int32 in `field`, empty where it is absent."""
        begin, count = self._vector(field, 4, f"field {field} of {self._what}", max_count)
        return struct.unpack_from(f"<{count}i", self._reader.data, begin)

    def has(self, field: int) -> bool:
        """Say whether a field is there."""
        return self._locate(field, 1) is not None

    def vector_range(self, field: int, item_size: int, max_count: int) -> tuple[int, int]:
        """Return where the vector in `field` begins and how many items it has, (0, 0) where it is absent."""
        return self._vector(field, item_size, f"field {field} of {self._what}", max_count)

    def byte_range(self, field: int) -> tuple[int, int]:
        """Return where the vector of bytes in `field` begins and how many there are, (0, 0) where it is absent."""
        return self._vector(field, 1, f"field {field} of {self._what}")

    def count(self, field: int) -> int:
        """Return the length of the vector of tables in `field`, 0 where it is absent."""
        return self._vector(field, 4, f"field {field} of {self._what}")[1]

    def tables(self, field: int, what: str) -> Iterator[Table]:
        """Yield the tables of the vector in `field`, one after the other; `what` names each in errors."""
        begin, count = self._vector(field, 4, f"{what} vector")
        for index in range(count):
            position = begin + 4 * index
            yield Table(
                self._reader, position + self._reader.unpack(_UINT32, position, what), f"{what} {index} of {count}"
            )

    def table(self, field: int, what: str) -> Table | None:
        """Return the table in `field`, None where it is absent; `what` names it in errors."""
        position = self._locate(field, 4)
        if position is None:
            return None
        return Table(self._reader, position + self._reader.unpack(_UINT32, position, what), what)

    def _locate(self, field: int, size: int) -> int | None:
        offset = self._fields[field] if field < len(self._fields) else 0
        if offset == 0:
            return None
        if offset < 4 or offset + size > self._size:
            raise CorruptFileError(
                f"{self._reader.where}: field {field} of {self._what}: offset {offset} lies outside the table's "
                f"{self._size} bytes"
            )
        return self._position + offset

    def _vector(self, field: int, item_size: int, what: str, max_count: int = MAX_VECTOR_LENGTH) -> tuple[int, int]:
        position = self._locate(field, 4)
        if position is None:
            return 0, 0
        position += self._reader.unpack(_UINT32, position, what)
        count = self._reader.unpack(_UINT32, position, what)
        self._reader.need(position + 4, count * item_size, what)
        if item_size > 1 and count > max_count:
            raise CorruptFileError(f"{self._reader.where}: {what}: expected at most {max_count} entries, got {count}")
        return position + 4, count


_INT32 = struct.Struct("<i")
_UINT16 = struct.Struct("<H")


@dataclass(frozen=True)
class Scalar:
    """A number of a table to be built, in the layout of `struct` without byte order."""

    layout: str
    value: int | float


@dataclass(frozen=True)
class Packed:
    """A vector of `count` numbers to be built, given as its bytes; the first number is aligned to `align`."""

    data: bytes
    count: int
    align: int = 4


@dataclass(frozen=True, eq=False)
class Shared:
    """A table that several others point to and that is written once, after all that is not shared."""

    fields: Fields


Value = Union["Scalar", "str", "Packed", "Shared", Sequence[int], Sequence["Fields"], "Fields"]
Fields = Mapping[int, Value]


def build_flatbuffer(root: Fields, identifier: bytes) -> bytes:
    """Serialise a table, given as {field index: value}: a number, a text, a vector of numbers or tables, or a table.

    The same fields give the same bytes, and their number of bytes does not depend on the numbers' values. Every
    value is aligned to its size from the beginning of the buffer. Plain integers are a vector of int32.
    """
    out = bytearray(8)
    out[4:8] = identifier
    vtables: dict[bytes, int] = {}
    shared: dict[Shared, list[int]] = {}
    pending: list[tuple[int, Value]] = [(0, root)]
    while pending or shared:
        if not pending:
            table = next(iter(shared))
            slots = shared.pop(table)
            position = _append_table(out, table.fields, vtables, pending)
            for slot in slots:
                _UINT32.pack_into(out, slot, position - slot)
            continue
        slot, value = pending.pop()
        if isinstance(value, Shared):
            shared.setdefault(value, []).append(slot)
            continue
        if isinstance(value, str):
            text = value.encode()
            position = _append(out, _UINT32.pack(len(text)) + text + b"\0", align=4)
        elif isinstance(value, Packed):
            out.extend(bytes(-(len(out) + 4) % max(4, value.align)))
            position = _append(out, _UINT32.pack(value.count) + value.data, align=4)
        elif isinstance(value, Mapping):
            position = _append_table(out, value, vtables, pending)
        else:
            assert not isinstance(value, Scalar)  # it is in its table already
            children = [item for item in value if isinstance(item, Mapping)]
            numbers = [0] * len(children) if children else [item for item in value if isinstance(item, int)]
            position = _append(out, struct.pack(f"<I{len(numbers)}i", len(numbers), *numbers), align=4)
            pending.extend((position + 4 + 4 * i, children[i]) for i in reversed(range(len(children))))
        _UINT32.pack_into(out, slot, position - slot)
    return bytes(out)


def _append_table(out: bytearray, fields: Fields, vtables: dict[bytes, int], pending: list[tuple[int, Value]]) -> int:
    sizes = {i: struct.calcsize(f"<{v.layout}") if isinstance(v, Scalar) else 4 for i, v in fields.items()}
    widest = max([4, *sizes.values()])
    offsets: dict[int, int] = {}
    size = widest  # the distance to the vtable comes first
    for field in sorted(fields, key=lambda i: (-sizes[i], i)):
        offsets[field] = size
        size += sizes[field]
    count = max(fields, default=-1) + 1
    vtable = struct.pack(f"<{count + 2}H", 4 + 2 * count, size, *(offsets.get(i, 0) for i in range(count)))
    if vtable not in vtables:
        vtables[vtable] = _append(out, vtable, align=2)
    position = _append(out, bytes(size), align=widest)
    _INT32.pack_into(out, position, position - vtables[vtable])
    for field in sorted(fields, reverse=True):
        value = fields[field]
        if isinstance(value, Scalar):
            struct.pack_into(f"<{value.layout}", out, position + offsets[field], value.value)
        else:
            pending.append((position + offsets[field], value))
    return position


def _append(out: bytearray, data: bytes, align: int) -> int:
    out.extend(bytes(-len(out) % align))
    position = len(out)
    out.extend(data)
    return position
