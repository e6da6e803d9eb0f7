"""A zip archive whose entries are stored as they are, so that they can be mapped and nothing is ever extracted.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Both records of an entry, its local header and its
line in the central directory, must tell the same; other readers believe either.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from hearthlm.errors import CorruptFileError, TruncatedFileError, UnsafeFileError, UnsupportedModelError
from hearthlm.formats.mapped_file import MappedFile

MAX_ENTRIES = 100_000
MAX_NAME_BYTES = 4096

_END = struct.Struct("<4s4H2IH")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_COMMENT = 65535
_IN_ZIP64 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """Say where the bytes of an entry lie in the file."""

    name: str
    offset: int
    num_bytes: int


class _Directory(NamedTuple):
    num_entries: int
    size: int
    offset: int


class _Listed(NamedTuple):
    name: bytes
    flags: int
    method: int
    num_bytes: int
    header_offset: int


def read_zip_entries(file: MappedFile) -> Mapping[str, ZipEntry]:
    """Return the entries of the archive, in the order of its central directory.

    Raises UnsupportedModelError for compressed or encrypted entries, UnsafeFileError for a name that could be a path
    out of a folder, CorruptFileError for entries that overlap, appear twice or are described in two ways, and
    TruncatedFileError for what lies beyond the file.
    """
    directory = _find_directory(file)
    entries: dict[str, ZipEntry] = {}
    ranges: list[tuple[int, int, str]] = []
    for listed in _list_directory(file, directory):
        name = _checked_name(file, listed)
        what = f"{file.path}: entry {name[:120]!r}"
        if listed.method != 0:
            raise UnsupportedModelError(f"{what}: expected it stored, got compression method {listed.method}")
        if listed.flags & 0x2041:
            raise UnsupportedModelError(f"{what}: the entry is encrypted")
        if name in entries:
            raise CorruptFileError(f"{what}: appears twice")
        entry = _read_local(file, listed, name)
        entries[name] = entry
        ranges.append((listed.header_offset, entry.offset + entry.num_bytes, name))
    end = 0
    for first, last, name in sorted(ranges):
        if first < end:
            raise CorruptFileError(f"{file.path}: entry {name[:120]!r}: overlaps the entry before it")
        end = last
    if end > directory.offset:
        raise CorruptFileError(f"{file.path}: the last entry overlaps the central directory")
    return MappingProxyType(entries)


def _find_directory(file: MappedFile) -> _Directory:
    if file.size < _END.size:
        raise TruncatedFileError(f"{file.path}: expected at least {_END.size} bytes of zip archive, got {file.size}")
    begin = max(0, file.size - _END.size - _MAX_COMMENT)
    tail = bytes(file.read(begin, file.size - begin, "end of the zip archive"))
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or position + _END.size > len(tail):
        raise TruncatedFileError(f"{file.path}: the zip archive has no end record; the file may be incomplete")
    _, disk, start_disk, on_disk, count, size, offset, comment = _END.unpack_from(tail, position)
    if position + _END.size + comment != len(tail):
        raise CorruptFileError(f"{file.path}: the end record of the zip archive is not at its end")
    end = begin + position
    if disk or start_disk or on_disk != count:
        raise CorruptFileError(f"{file.path}: a zip archive in several parts is not readable")
    directory = _Directory(count, size, offset)
    if end >= _ZIP64_LOCATOR.size:
        locator = _ZIP64_LOCATOR.unpack(file.read(end - _ZIP64_LOCATOR.size, _ZIP64_LOCATOR.size, "zip64 locator"))
        if locator[0] == b"PK\x06\x07":
            end, directory = _read_zip64(file, locator, directory)
    if directory.offset > end or directory.size != end - directory.offset:
        raise CorruptFileError(
            f"{file.path}: central directory: expected it to end at {end}, got {directory.size} bytes at "
            f"{directory.offset}"
        )
    if directory.num_entries > MAX_ENTRIES or directory.num_entries * _CENTRAL.size > directory.size:
        raise CorruptFileError(
            f"{file.path}: central directory: {directory.num_entries} entries do not fit into {directory.size} bytes"
        )
    return directory


def _read_zip64(file: MappedFile, locator: tuple[Any, ...], small: _Directory) -> tuple[int, _Directory]:
    _, disk, position, disks = locator
    where = f"{file.path}: zip64 record"
    record = _ZIP64_END.unpack(file.read(position, _ZIP64_END.size, "zip64 record"))
    signature, size_of_record, _, _, disk_number, start_disk, on_disk, count, size, offset = record
    if signature != b"PK\x06\x06" or size_of_record != _ZIP64_END.size - 12:
        raise CorruptFileError(f"{where}: not found at offset {position}")
    if disk or disks != 1 or disk_number or start_disk or on_disk != count:
        raise CorruptFileError(f"{where}: a zip archive in several parts is not readable")
    large = _Directory(count, size, offset)
    for field, in_small, in_large, placeholder in zip(
        _Directory._fields, small, large, (0xFFFF, _IN_ZIP64, _IN_ZIP64), strict=True
    ):
        if in_small not in (placeholder, in_large):
            raise CorruptFileError(f"{where}: {field}: expected {in_small} as in the end record, got {in_large}")
    return position, large


def _list_directory(file: MappedFile, directory: _Directory) -> list[_Listed]:
    data = file.read(directory.offset, directory.size, "central directory")
    listed = []
    position = 0
    for index in range(directory.num_entries):
        where = f"{file.path}: central directory: entry {index}"
        if position + _CENTRAL.size > len(data):
            raise TruncatedFileError(f"{where}: expected it at {position} of {len(data)} bytes")
        fields = _CENTRAL.unpack_from(data, position)
        signature, _, _, flags, method, _, _, _, compressed, size, name_size, extra_size, comment_size = fields[:13]
        disk, header_offset = fields[13], fields[16]
        end = position + _CENTRAL.size + name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or end > len(data):
            raise CorruptFileError(f"{where}: its record is not one")
        name_end = position + _CENTRAL.size + name_size
        name = bytes(data[name_end - name_size : name_end])
        extra = bytes(data[name_end : name_end + extra_size])
        size, compressed, header_offset = _widen(extra, (size, compressed, header_offset), where)
        if (compressed != size and method == 0) or disk not in (0, 0xFFFF):
            raise CorruptFileError(f"{where}: stored in {compressed} bytes, but has {size}")
        listed.append(_Listed(name, flags, method, size, header_offset))
        position = end
    if position != len(data):
        raise CorruptFileError(f"{file.path}: central directory: {len(data) - position} bytes belong to no entry")
    return listed


def _widen(extra: bytes, values: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Replace each value that says "see zip64" by its 64 bits from the extra field, in the order of the format."""
    if _IN_ZIP64 not in values:
        return values
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if tag == 1 and position + size <= len(extra):
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, position))
            widened = tuple(next(wide, -1) if value == _IN_ZIP64 else value for value in values)
            if -1 not in widened:
                return widened
        position += size
    raise CorruptFileError(f"{where}: announces 64-bit values that its extra field does not have")


def _checked_name(file: MappedFile, listed: _Listed) -> str:
    try:
        name = listed.name.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptFileError(f"{file.path}: the name of an entry is not UTF-8: {listed.name[:120]!r}") from None
    if not name or len(listed.name) > MAX_NAME_BYTES:
        raise CorruptFileError(f"{file.path}: an entry has a name of {len(listed.name)} bytes")
    is_path_out = name.startswith("/") or ".." in name.split("/") or name[1:2] == ":"
    if is_path_out or "\\" in name or "\0" in name:
        raise UnsafeFileError(f"{file.path}: the entry name {name[:120]!r} could lead out of a folder")
    return name


def _read_local(file: MappedFile, listed: _Listed, name: str) -> ZipEntry:
    where = f"{file.path}: entry {name[:120]!r}"
    record = _LOCAL.unpack(file.read(listed.header_offset, _LOCAL.size, f"local header of {name[:120]!r}"))
    signature, _, flags, method, _, _, _, compressed, size, name_size, extra_size = record
    if signature != b"PK\x03\x04":
        raise CorruptFileError(f"{where}: there is no local header at offset {listed.header_offset}")
    rest = bytes(file.read(listed.header_offset + _LOCAL.size, name_size + extra_size, f"name of {name[:120]!r}"))
    size, compressed = _widen(rest[name_size:], (size, compressed), where)
    is_told_after_the_data = flags & 8 and size == compressed == 0
    if (rest[:name_size], flags, method) != (listed.name, listed.flags, listed.method) or not (
        is_told_after_the_data or size == compressed == listed.num_bytes
    ):
        raise CorruptFileError(f"{where}: its local header contradicts the central directory")
    offset = listed.header_offset + _LOCAL.size + name_size + extra_size
    file.check_range(offset, listed.num_bytes, f"entry {name[:120]!r}")
    return ZipEntry(name, offset, listed.num_bytes)
