"""A file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# What a file system answers that cannot make files without a name.
_NAMELESS_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a new binary file that becomes `path` when the block ends without an exception.

    After any exception, KeyboardInterrupt included, whatever `path` was before is untouched and nothing is left over.
    On Linux the file has no name until it is whole, so that a process that is killed leaves nothing either; elsewhere,
    and on file systems that cannot do that, it has another name in the same folder. A file that is mapped keeps its
    bytes when it is replaced so. Raises Python's own errors, which name `path`, where it cannot be
    made.
    """
    target = Path(path)
    if target.is_dir():
        raise FileExistsError(errno.EEXIST, "expected the name of a file, got a folder", str(target))
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = _open_nameless(target.parent)
        is_nameless = descriptor is not None
        if descriptor is None:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(target)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if is_nameless and not _give_name(file.fileno(), target):
                _give_name(file.fileno(), temporary)
                temporary.replace(target)
        if not is_nameless:
            temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name must outlive a crash, too
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_folder(folder: Path) -> None:
    """Create a folder and those above it; raises FileExistsError where a file is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileExistsError(error.errno, f"the folder cannot be made: {error.strerror}", str(folder)) from None


def check_space(path: Path, num_bytes: int) -> None:
    """Raise OSError (ENOSPC), before anything is written, where the disk of `path` has no room for `num_bytes`."""
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC, f"the file takes {num_bytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free", str(path)
        )


def _open_nameless(folder: Path) -> int | None:
    """Return the descriptor of a new file without a name on the file system of `folder`; None where that cannot be."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o666)
    except OSError as error:
        if error.errno in _NAMELESS_UNSUPPORTED and folder.is_dir():
            return None
        raise


def _give_name(descriptor: int, path: Path) -> bool:
    """Link a file without a name at `path`; return False where that name is taken."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:  # with a folder's descriptor it is linkat, which follows the link in /proc to the file
        os.link(f"/proc/self/fd/{descriptor}", path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
        return True
    except FileExistsError:
        return False
    finally:
        os.close(folder)
