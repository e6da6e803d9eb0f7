"""A file mapped for reading, in which every range is checked before it is touched."""

from __future__ import annotations

import math
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hearthlm.errors import TruncatedFileError


class MappedFile:
    """Map the regular file at `path` for reading.

    Views and arrays share the pages of the file and keep the mapping alive, also after `close`. Raises Python's own
    FileNotFoundError, IsADirectoryError and PermissionError, OSError for what is not a regular file, and
    TruncatedFileError for an empty one. A file must not be cut short while it is mapped: the system answers that
    with SIGBUS, which is why every writer of this package replaces files instead of overwriting them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        mode = self.path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{self.path}: expected a file, got a folder")
        if not stat.S_ISREG(mode):  # opening a named pipe would wait for its writer
            raise OSError(f"{self.path}: expected a regular file")
        with self.path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size == 0:
                raise TruncatedFileError(f"{self.path}: the file is empty")
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mapping; it ends with the last view of it."""
        mapping, self._map = self._map, None
        if mapping is not None:
            with suppress(BufferError):  # arrays that are still in use now own it
                mapping.close()

    def release_pages(self) -> None:
        """Let the system take back the memory of what has been read; what is read again comes from the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping().madvise(mmap.MADV_DONTNEED)

    def check_range(self, offset: int, size: int, what: str) -> None:
        """Raise TruncatedFileError unless bytes [offset, offset + size) lie in the file."""
        if offset < 0 or size < 0 or offset > self.size or size > self.size - offset:
            raise TruncatedFileError(
                f"{self.path}: {what}: expected {size} bytes at offset {offset}, but the file has {self.size}"
            )

    def read(self, offset: int, size: int, what: str) -> memoryview:
        """Return a view of bytes [offset, offset + size); `what` names them in a TruncatedFileError."""
        self.check_range(offset, size, what)
        return memoryview(self._mapping())[offset : offset + size]

    def array(self, offset: int, dtype: DTypeLike, shape: tuple[int, ...], what: str) -> NDArray[Any]:
        """Return the values at `offset` as a read-only, C-contiguous array of `dtype` and `shape`.

        It shares the file's pages, unless the offset is not aligned for `dtype`: then it is a copy, as compiled code
        may not read unaligned values.
        """
        item = np.dtype(dtype)
        count = math.prod(shape)
        self.check_range(offset, count * item.itemsize, what)
        if count == 0:
            return np.empty(shape, item)
        values = np.frombuffer(self._mapping(), item, count, offset)
        if offset % item.alignment:
            values = np.copy(values)
            values.flags.writeable = False
        return values.reshape(shape)

    def drop_pages(self, offset: int, size: int) -> None:
        """Let the system take back the memory of bytes [offset, offset + size); they are read again when touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            begin = offset - offset % mmap.PAGESIZE
            self._mapping().madvise(mmap.MADV_DONTNEED, begin, offset + size - begin)

    def _mapping(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._map
