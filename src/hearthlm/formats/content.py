"""What a writer puts into a file: bytes, another file, or a range of an open one; copied in pieces."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hearthlm.formats.mapped_file import MappedFile

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRange:
    """Name bytes [offset, offset + num_bytes) of a mapped file, which stays open until they are written."""

    file: MappedFile
    offset: int
    num_bytes: int
    what: str


Content = bytes | str | os.PathLike[str] | FileRange


def content_size(content: Content) -> int:
    """Return the number of bytes; raises IsADirectoryError and OSError for a path to what is not a regular file."""
    if isinstance(content, bytes):
        return len(content)
    if isinstance(content, FileRange):
        return content.num_bytes
    status = Path(content).stat()
    if not stat.S_ISREG(status.st_mode):
        error = IsADirectoryError if stat.S_ISDIR(status.st_mode) else OSError
        raise error(f"{os.fspath(content)}: expected a regular file")
    return status.st_size


def content_pieces(content: Content) -> Iterator[bytes | memoryview]:
    """Yield the bytes in pieces of at most 1 MiB, which do not stay in memory."""
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, FileRange):
        for done in range(0, content.num_bytes, COPY_BYTES):
            offset, size = content.offset + done, min(COPY_BYTES, content.num_bytes - done)
            with content.file.read(offset, size, content.what) as piece:
                yield piece
            content.file.drop_pages(offset, size)
    else:
        with Path(content).open("rb") as file:
            while read := file.read(COPY_BYTES):
                yield read
