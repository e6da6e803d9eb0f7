"""LiteRT-LM's `.litertlm`: a header that lists sections, and the sections, each at a multiple of 16 KiB.

Bytes 0 to 31: `LITERTLM`, the version (u32 major, minor, patch), 4 zero bytes, the u64 end of the header. From byte 32
to there a flatbuffer, LiteRTLMMetaData of google-ai-edge/LiteRT-LM's schema/core/litertlm_header_schema.fbs.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats.flatbuffer import FlatbufferReader, Table
from hearthlm.formats.mapped_file import MappedFile

MAGIC = b"LITERTLM"
MAX_HEADER_BYTES = 1 << 20
MAX_SECTIONS = 1024
MAX_TOKENIZER_BYTES = 64 << 20

_HEADER_START = 32
_UINT8, _UINT32, _UINT64 = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<Q")
_STRING_VALUE = 9  # of the union VData
_KINDS = {
    1: "binary",
    2: "binary",
    3: "tflite",
    4: "sentencepiece",
    5: "LlmMetadata",
    6: "tokenizer.json, zlib",
    7: "tflite weights",
    9: "ExecutorMetadata",
}


@dataclass(frozen=True)
class Section:
    """Say what a section is and where it lies; `labels` are its texts in the header, such as `model_type`."""

    kind: str
    labels: dict[str, str]
    offset: int
    num_bytes: int


class LiteRtLmFile:
    """An open `.litertlm`: its `version`, its own `labels` and its `sections`, in the order of the file."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self._file = file
        head = bytes(file.read(0, _HEADER_START, "header"))
        if head[:8] != MAGIC:
            raise CorruptFileError(f"{file.path}: expected {MAGIC!r} at offset 0, got {head[:8]!r}")
        self.version: tuple[int, int, int] = struct.unpack_from("<3I", head, 8)
        if self.version[0] != 1:
            raise UnsupportedModelError(f"{file.path}: expected version 1 of the format, got {self.version[0]}")
        (end,) = _UINT64.unpack_from(head, 24)
        if not _HEADER_START < end <= MAX_HEADER_BYTES:
            raise CorruptFileError(
                f"{file.path}: end of the header: expected {_HEADER_START + 1} to {MAX_HEADER_BYTES}, got {end}"
            )
        where = f"{file.path}: header"
        with file.read(_HEADER_START, end - _HEADER_START, "header") as data:
            reader = FlatbufferReader(data, where)
            root = Table(reader, reader.unpack(_UINT32, 0, "root table"), "root table")
            system = root.table(0, "system metadata")
            self.labels = {} if system is None else dict(_texts(system))
            listed = root.table(1, "list of sections")
            if listed is None:
                raise CorruptFileError(f"{where}: there is no list of sections")
            if listed.count(0) > MAX_SECTIONS:
                raise CorruptFileError(f"{where}: expected at most {MAX_SECTIONS} sections, got {listed.count(0)}")
            self.sections = tuple(_section(table) for table in listed.tables(0, "section"))
        previous_end, previous = end, "the header"
        for number, section in sorted(enumerate(self.sections), key=lambda item: item[1].offset):
            what = f"section {number} ({section.kind})"
            if section.num_bytes < 0:
                raise CorruptFileError(f"{file.path}: {what}: ends before it begins")
            file.check_range(section.offset, section.num_bytes, what)
            if section.offset < previous_end:
                raise CorruptFileError(f"{file.path}: {what}: overlaps {previous}, which ends at {previous_end}")
            previous_end, previous = section.offset + section.num_bytes, what

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the file at `path`, reading its header only.

        Raises TruncatedFileError and CorruptFileError for bytes that contradict the format, UnsupportedModelError for
        another version of it.
        """
        file = MappedFile(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def data(self, section: Section) -> memoryview:
        """Return the bytes of a section as they lie in the file."""
        return self._file.read(section.offset, section.num_bytes, section.kind)

    @property
    def sentencepiece_model(self) -> bytes | None:
        """The SentencePiece model, None where there is none."""
        return next((bytes(self.data(s)) for s in self.sections if s.kind == "sentencepiece"), None)

    @property
    def tokenizer_json(self) -> bytes | None:
        """The tokenizer.json, None where there is none; CorruptFileError for one that does not unpack.

        It is stored as its u64 size and a zlib stream; MAX_TOKENIZER_BYTES at most are unpacked.
        """
        section = next((s for s in self.sections if s.kind == "tokenizer.json, zlib"), None)
        if section is None:
            return None
        where = f"{self.path}: {section.kind}"
        data = self.data(section)
        if len(data) < 8:
            raise CorruptFileError(f"{where}: expected a size of 8 bytes, got {len(data)}")
        (size,) = _UINT64.unpack_from(data)
        if size > MAX_TOKENIZER_BYTES:
            raise CorruptFileError(f"{where}: expected at most {MAX_TOKENIZER_BYTES} bytes, got {size}")
        try:
            unpacked = zlib.decompressobj().decompress(data[8:], size + 1)
        except zlib.error as error:
            raise CorruptFileError(f"{where}: cannot be unpacked: {error}") from None
        if len(unpacked) != size:
            raise CorruptFileError(f"{where}: expected {size} bytes unpacked, got {len(unpacked)} or more")
        return unpacked


def _section(table: Table) -> Section:
    begin, end = table.scalar(1, _UINT64), table.scalar(2, _UINT64)
    number = table.scalar(3, _UINT8)
    return Section(_KINDS.get(number, f"type {number}"), dict(_texts(table)), begin, end - begin)


def _texts(table: Table) -> Iterator[tuple[str, str]]:
    """Yield the pairs of key and value whose value is a text; numbers say nothing that is needed here."""
    for pair in table.tables(0, "entry"):
        value = pair.table(2, "value")
        if value is not None and pair.scalar(1, _UINT8) == _STRING_VALUE:
            yield pair.text(0), value.text(0)
