"""A Hugging Face checkpoint: a folder with config.json and weights in safetensors or torch files, or one such file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import CorruptFileError, TensorMismatchError, UnsafeFileError, UnsupportedModelError
from hearthlm.formats.json_document import parse_json_object
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.safetensors_file import SafetensorsFile
from hearthlm.formats.stored_float import StoredFloat
from hearthlm.formats.torch_zip import TorchZip
from hearthlm.quantization import WeightMatrix, bfloat16_to_float32

MAX_JSON_BYTES = 16 << 20
MAX_SHARDS = 1024

_SINGLE_FILES: dict[str, Callable[[Path], SafetensorsFile | TorchZip]] = {
    "model.safetensors": SafetensorsFile.open,
    "pytorch_model.bin": TorchZip.open,
    "adapter_model.safetensors": SafetensorsFile.open,
    "adapter_model.bin": TorchZip.open,
}
_INDEX_FILES = {
    "model.safetensors": "model.safetensors.index.json",
    "pytorch_model.bin": "pytorch_model.bin.index.json",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


class Checkpoint:
    """An open checkpoint: where each tensor is, and the settings beside the weights.

    `config`, `generation_config` and `adapter_config` are the JSON files of these names, None where there is none;
    `tokenizer_files` are the paths of those of tokenizer.json, tokenizer.model, tokenizer_config.json and
    chat_template.jinja that exist, by name. `names` are those of the tensors, in the order of the files.
    """

    def __init__(self, folder: Path, files: list[SafetensorsFile | TorchZip], owners: dict[str, int]) -> None:
        self.folder = folder
        self._files = files
        self._owners = owners
        self.config = _read_optional_json(folder / "config.json")
        self.generation_config = _read_optional_json(folder / "generation_config.json")
        self.adapter_config = _read_optional_json(folder / "adapter_config.json")
        self.tokenizer_files: Mapping[str, Path] = MappingProxyType(
            {name: folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()}
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a checkpoint's folder, one file of weights, or those that a pattern such as `model*.safetensors` finds.

        For files, the settings are those beside them. Raises FileNotFoundError where nothing is at `path`,
        UnsupportedModelError for a folder without weights and for weights that are not readable,
        TensorMismatchError for a tensor that two files have, and the errors of SafetensorsFile and TorchZip.
        """
        path = Path(path)
        files: list[SafetensorsFile | TorchZip] = []
        try:
            if path.is_dir():
                owners = _open_folder(path, files)
                return cls(path, files, owners)
            is_pattern = bool(set("*?[") & set(path.name)) and not path.exists()
            paths = sorted(path.parent.glob(path.name)) if is_pattern else [path]
            if not paths:
                raise FileNotFoundError(errno.ENOENT, "no file matches the pattern", os.fspath(path))
            return cls(path.parent, files, _open_files(paths, files))
        except BaseException:
            for file in files:
                file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; arrays that were given out stay valid."""
        for file in self._files:
            file.close()

    def release_pages(self) -> None:
        """Let the system take back the memory of what has been read."""
        for file in self._files:
            file.release_pages()

    @property
    def format(self) -> Literal["safetensors", "pytorch"]:
        """What the files of weights are."""
        return "safetensors" if isinstance(self._files[0], SafetensorsFile) else "pytorch"

    @property
    def names(self) -> list[str]:
        return list(self._owners)

    def __contains__(self, name: object) -> bool:
        return name in self._owners

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the tensor `name`; TensorMismatchError where there is none."""
        return self._file(name).shape(name)

    def array(self, name: str) -> tuple[StoredFloat, NDArray[Any]]:
        """Return the type and the values of `name` as stored (uint16 bits for bfloat16), without a copy if possible.

        Raises TensorMismatchError where there is none, UnsupportedModelError where it is no float of 16 or 32 bits.
        """
        return self._file(name).array(name)

    def matrix(self, name: str) -> WeightMatrix:
        """Return the tensor `name` [out, in] in the type in which it is stored."""
        dtype, values = self.array(name)
        if values.ndim != 2:
            raise self._mismatch(name, "a matrix [out, in]", values)
        return WeightMatrix(dtype, (values.shape[0], values.shape[1]), values)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a copy of the tensor `name` as float32 [n]."""
        dtype, values = self.array(name)
        if values.ndim != 1:
            raise self._mismatch(name, "a vector [n]", values)
        return bfloat16_to_float32(values) if dtype == "bfloat16" else values.astype(np.float32)

    def _file(self, name: str) -> SafetensorsFile | TorchZip:
        if name not in self._owners:
            raise TensorMismatchError(
                f"{self.folder}: there is no tensor {name[:120]!r} among the {len(self._owners)} of this checkpoint"
            )
        return self._files[self._owners[name]]

    def _mismatch(self, name: str, wanted: str, got: NDArray[Any]) -> TensorMismatchError:
        return TensorMismatchError(
            f"{self._file(name).path}: tensor {name[:120]!r}: expected {wanted}, got {list(got.shape)}"
        )


def _open_file(path: Path) -> SafetensorsFile | TorchZip:
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return TorchZip.open(path)
    return SafetensorsFile.open(path)


def _open_folder(folder: Path, files: list[SafetensorsFile | TorchZip]) -> dict[str, int]:
    """Append the open files of `folder` to `files` and return which of them has which tensor."""
    for name, open_file in _SINGLE_FILES.items():
        if (folder / name).is_file():
            files.append(open_file(folder / name))
            return dict.fromkeys(files[0].tensors, 0)
        index = folder / _INDEX_FILES.get(name, name)
        if index.is_file():
            return _open_shards(index, open_file, files)
    if paths := sorted(folder.glob("*.safetensors")):  # as MediaPipe's converter takes a folder
        return _open_files(paths, files)
    wanted = [*_SINGLE_FILES, *_INDEX_FILES.values(), "*.safetensors"]
    found = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(found[:20]) + (", ..." if len(found) > 20 else "") if found else "nothing"
    raise UnsupportedModelError(f"{folder}: there are no weights: looked for {', '.join(wanted)}; found {listed}")


def _open_files(paths: list[Path], files: list[SafetensorsFile | TorchZip]) -> dict[str, int]:
    """Append the open files at `paths` to `files` and return which of them has which tensor."""
    if len(paths) > MAX_SHARDS:
        raise UnsupportedModelError(f"{paths[0].parent}: expected at most {MAX_SHARDS} files, got {len(paths)}")
    owners: dict[str, int] = {}
    for number, path in enumerate(paths):
        files.append(_open_file(path))
        for name in files[-1].tensors:
            if name in owners:
                raise TensorMismatchError(f"{path}: tensor {name[:120]!r} is in {paths[owners[name]].name}, too")
            owners[name] = number
    return owners


def _open_shards(
    index: Path, open_file: Callable[[Path], SafetensorsFile | TorchZip], files: list[SafetensorsFile | TorchZip]
) -> dict[str, int]:
    weight_map = read_json_file(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CorruptFileError(f"{index}: weight_map: expected an object from tensor names to file names")
    shards = list(dict.fromkeys(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise CorruptFileError(f"{index}: weight_map: expected at most {MAX_SHARDS} files, got {len(shards)}")
    for shard in shards:
        if not shard or len(shard) > 255 or shard in (".", "..") or not shard.isprintable() or set("/\\:") & set(shard):
            raise UnsafeFileError(f"{index}: weight_map: {shard[:120]!r} is not the name of a file in the same folder")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index}: weight_map: the file {shard!r} is not in {index.parent}")
        files.append(open_file(index.parent / shard))
    owners = {name: shards.index(shard) for name, shard in weight_map.items()}
    for name, owner in owners.items():
        if name not in files[owner].tensors:
            raise TensorMismatchError(f"{index}: weight_map: {shards[owner]!r} has no tensor {name[:120]!r}")
    return owners


def read_json_file(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`, at most 16 MiB; CorruptFileError where it is something else."""
    with MappedFile(path) as file:
        size = min(file.size, MAX_JSON_BYTES + 1)
        return parse_json_object(bytes(file.read(0, size, "JSON")), str(path), MAX_JSON_BYTES)


def _read_optional_json(path: Path) -> dict[str, Any] | None:
    return read_json_file(path) if path.is_file() else None
