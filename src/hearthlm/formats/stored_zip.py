"""A zip archive whose entries are stored as they are, so that they can be mapped and nothing is ever extracted.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Both records of an entry, its local header and its
line in the central directory, must tell the same; other readers believe either.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

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
_LARGE = _IN_ZIP64  # from here on a size or an offset is written with 64 bits
_ZIP64 = 0x0001  # tags of extra fields
_UNICODE_PATH = 0x7075
_UNIX = 3
_VERSION, _VERSION_ZIP64 = 20, 45
_DATE = 1 << 5 | 1  # 1980-01-01, the first day there is


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """Say where the bytes of an entry lie in the file."""

    name: str
    offset: int
    num_bytes: int
    crc32: int


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
    crc32: int


def read_zip_entries(
    file: MappedFile, *, max_entries: int = MAX_ENTRIES, max_padding_bytes: int | None = None
) -> Mapping[str, ZipEntry]:
    """Return the entries of the archive, in the order of its central directory.

    `max_padding_bytes` allows nothing but so many zero bytes before an entry and before the central directory.

    Raises UnsupportedModelError for compressed or encrypted entries; UnsafeFileError for a name that could be a path
    out of a folder, for a link, and for what could hide something else: a comment, a second name, padding that is not
    zero; CorruptFileError for entries that overlap, appear twice, are described in two ways or are more than
    `max_entries`; and TruncatedFileError for what lies beyond the file.
    """
    directory = _find_directory(file, max_entries)
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
        if max_padding_bytes is not None:
            _check_padding(file, end, first, max_padding_bytes)
        end = last
    if end > directory.offset:
        raise CorruptFileError(f"{file.path}: the last entry overlaps the central directory")
    if max_padding_bytes is not None:
        _check_padding(file, end, directory.offset, max_padding_bytes)
    return MappingProxyType(entries)


def _check_padding(file: MappedFile, begin: int, end: int, max_bytes: int) -> None:
    """Refuse bytes that belong to no entry: other readers could find another archive, or a program, in them."""
    if end - begin > max_bytes or any(file.read(begin, end - begin, "padding")):
        raise UnsafeFileError(
            f"{file.path}: bytes {begin} to {end} belong to no entry; expected at most {max_bytes} zero bytes there"
        )


def _find_directory(file: MappedFile, max_entries: int) -> _Directory:
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
    if comment:
        raise UnsafeFileError(f"{file.path}: the zip archive has a comment, in which another archive could hide")
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
    if directory.num_entries > max_entries:
        raise CorruptFileError(
            f"{file.path}: central directory: expected at most {max_entries} entries, got {directory.num_entries}"
        )
    if directory.num_entries * _CENTRAL.size > directory.size:
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
        signature, made_by, _, flags, method, _, _, crc, compressed, size = fields[:10]
        name_size, extra_size, comment_size, disk, _, attributes, header_offset = fields[10:]
        end = position + _CENTRAL.size + name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or end > len(data):
            raise CorruptFileError(f"{where}: its record is not one")
        name_end = position + _CENTRAL.size + name_size
        name = bytes(data[name_end - name_size : name_end])
        extra = bytes(data[name_end : name_end + extra_size])
        size, compressed, header_offset = _widen(extra, (size, compressed, header_offset), where)
        if (compressed != size and method == 0) or disk not in (0, 0xFFFF):
            raise CorruptFileError(f"{where}: stored in {compressed} bytes, but has {size}")
        kind = stat.S_IFMT(attributes >> 16) if made_by >> 8 == _UNIX else 0
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeFileError(f"{where}: {name[:120]!r} is a link or a device, expected a file")
        if any(tag == _UNICODE_PATH for tag, _ in _extra_fields(extra)):
            raise UnsafeFileError(f"{where}: {name[:120]!r} has a second name in its extra field")
        listed.append(_Listed(name, flags, method, size, header_offset, crc))
        position = end
    if position != len(data):
        raise CorruptFileError(f"{file.path}: central directory: {len(data) - position} bytes belong to no entry")
    return listed


def _widen(extra: bytes, values: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Replace each value that says "see zip64" by its 64 bits from the extra field, in the order of the format."""
    if _IN_ZIP64 not in values:
        return values
    for tag, data in _extra_fields(extra):
        if tag == _ZIP64:
            wide = iter(struct.unpack_from(f"<{len(data) // 8}Q", data))
            widened = tuple(next(wide, -1) if value == _IN_ZIP64 else value for value in values)
            if -1 not in widened:
                return widened
    raise CorruptFileError(f"{where}: announces 64-bit values that its extra field does not have")


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each extra field that is there whole."""
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if position + size <= len(extra):
            yield tag, extra[position : position + size]
        position += size


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
    return ZipEntry(name, offset, listed.num_bytes, listed.crc32)


def write_stored_zip(
    file: BinaryIO, entries: Iterable[tuple[str, int, Iterable[bytes | memoryview]]], *, alignment: int
) -> None:
    """Write an archive of (name, number of bytes, the bytes in pieces) to a new seekable file.

    The first byte of every entry lies at a multiple of `alignment`: 1 to `alignment` zero bytes are put before its
    local header, as MediaPipe's bundler does. Nothing but the content decides about the bytes: the time of every entry
    is 1980-01-01, its owner may read and write it. Sizes and offsets beyond 32 bits are written as zip64.

    Raises ValueError if an entry has other than the announced number of bytes.
    """
    directory = bytearray()
    num_entries = 0
    for name, num_bytes, pieces in entries:
        encoded = name.encode("ascii")
        is_large = num_bytes >= _LARGE
        size = _IN_ZIP64 if is_large else num_bytes
        extra = _zip64_field([num_bytes, num_bytes] if is_large else [])
        header_bytes = _LOCAL.size + len(encoded) + len(extra)
        file.write(bytes(alignment - (file.tell() + header_bytes) % alignment))
        offset = file.tell()
        file.write(bytes(header_bytes))  # until the checksum is known
        crc = written = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            written += file.write(piece)
        if written != num_bytes:
            raise ValueError(f"entry {name!r}: expected {num_bytes} bytes, got {written}; did a file change meanwhile?")
        end = file.tell()
        file.seek(offset)
        told = (0, 0, 0, _DATE, crc, size, size, len(encoded))
        version = _VERSION_ZIP64 if is_large else _VERSION
        file.write(_LOCAL.pack(b"PK\x03\x04", version, *told, len(extra)) + encoded + extra)
        file.seek(end)
        is_far = offset >= _LARGE
        if is_far:
            version = _VERSION_ZIP64
            extra = _zip64_field([*([num_bytes, num_bytes] if is_large else []), offset])
        place = (0, 0, 0, (stat.S_IRUSR | stat.S_IWUSR) << 16, _IN_ZIP64 if is_far else offset)
        record = (b"PK\x01\x02", _UNIX << 8 | version, version, *told, len(extra), *place)
        directory += _CENTRAL.pack(*record) + encoded + extra
        num_entries += 1
    start = file.tell()
    file.write(directory)
    is_far = start >= _LARGE
    if is_far:
        position = file.tell()
        versions = (_UNIX << 8 | _VERSION_ZIP64, _VERSION_ZIP64)
        large = (_ZIP64_END.size - 12, *versions, 0, 0, num_entries, num_entries, len(directory), start)
        file.write(_ZIP64_END.pack(b"PK\x06\x06", *large))
        file.write(_ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, position, 1))
    file.write(
        _END.pack(b"PK\x05\x06", 0, 0, num_entries, num_entries, len(directory), _IN_ZIP64 if is_far else start, 0)
    )


def _zip64_field(values: list[int]) -> bytes:
    """Return the extra field with these 64-bit values, nothing for none."""
    return struct.pack(f"<2H{len(values)}Q", _ZIP64, 8 * len(values), *values) if values else b""
