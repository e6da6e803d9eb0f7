"""Model files: bytes to objects and back. What a file is, is told by its bytes, never by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.safetensors_file import MAX_HEADER_BYTES
from hearthlm.formats.stored_zip import read_zip_entries
from hearthlm.formats.torch_zip import LEGACY_MAGIC
from hearthlm.formats.weights_bin import IDENTIFIER, MAX_HEAD_BYTES, is_weights_bin

Format = Literal["weights_bin", "task", "litertlm", "tflite", "checkpoint", "safetensors", "torch_zip"]


def detect_format(path: str | os.PathLike[str]) -> Format:
    """Return what the file or folder at `path` is.

    Raises UnsupportedModelError for bytes of no known format, Python's own errors for a path that cannot be read, and
    ModelFormatError for an empty file and for an archive whose list of entries cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return "checkpoint"
    with MappedFile(path) as file:
        head = bytes(file.read(0, min(file.size, 16), "magic number"))
        if head[4:8] == IDENTIFIER:
            with file.read(0, min(file.size, MAX_HEAD_BYTES), "head") as whole_head:
                return "weights_bin" if is_weights_bin(whole_head) else "tflite"
        if head[:8] == b"LITERTLM":
            return "litertlm"
        if head[:2] == b"PK" or head[:6] == b"\0\0\0\0PK":
            entries = read_zip_entries(file)
            return "torch_zip" if any(name.endswith("/data.pkl") for name in entries) else "task"
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(MAX_HEADER_BYTES, file.size - 8):
            return "safetensors"
    advice = ""
    if head.startswith(LEGACY_MAGIC):
        advice = "; torch wrote it in its format before version 1.6: load it with torch and save it again"
    elif head[:4] == b"GGUF":
        advice = "; it is a GGUF file: use the checkpoint that it was made from"
    raise UnsupportedModelError(
        f"{path}: expected a MediaPipe .bin or .task, a LiteRT .tflite or .litertlm, a folder with a Hugging Face "
        f"checkpoint, a safetensors file or a torch checkpoint; the file begins with {head!r}{advice}"
    )


__all__ = ["Format", "detect_format"]
