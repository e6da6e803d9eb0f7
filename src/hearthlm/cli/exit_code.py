"""What the process answers, and the line it says about an error."""

from __future__ import annotations

from enum import IntEnum

import hearthlm


class ExitCode(IntEnum):
    """What the process answers; the numbers are those of sysexits.h and of the shell."""

    OK = 0
    OTHER = 1
    USAGE = 2
    BAD_DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    CANNOT_CREATE = 73
    IO_ERROR = 74
    TRY_LATER = 75
    NO_PERMISSION = 77
    INTERRUPTED = 130
    TERMINATED = 143


def message_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def exit_code_of(error: BaseException) -> ExitCode:
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return ExitCode.NO_INPUT
    if isinstance(error, FileExistsError):
        return ExitCode.CANNOT_CREATE
    if isinstance(error, PermissionError):
        return ExitCode.NO_PERMISSION
    if isinstance(error, hearthlm.ResponseFormatError):
        return ExitCode.USAGE
    if isinstance(error, (hearthlm.HearthLMError, UnicodeError)):
        return ExitCode.BAD_DATA
    if isinstance(error, OSError):
        return ExitCode.IO_ERROR
    if isinstance(error, ValueError):
        return ExitCode.USAGE
    if isinstance(error, (NotImplementedError, ImportError)):  # a library of an extra is not installed
        return ExitCode.UNAVAILABLE
    if isinstance(error, MemoryError):
        return ExitCode.TRY_LATER
    return ExitCode.INTERNAL
