"""A checkpoint that torch.save wrote (`pytorch_model.bin`), read without running its pickle.

Such a file is a zip archive of stored entries: `<folder>/data.pkl` describes tensors and `<folder>/data/<key>` holds
their storages. The pickle is interpreted here, opcode by opcode, with values that are only data: the few callables
that describe tensors are known by name and never looked up, every other name is refused.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import (
    CorruptFileError,
    TensorMismatchError,
    TruncatedFileError,
    UnsafeFileError,
    UnsupportedModelError,
)
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.stored_float import STORED_FLOATS, StoredFloat
from hearthlm.formats.stored_zip import ZipEntry, read_zip_entries

MAX_PICKLE_BYTES = 16 << 20
MAX_OPCODES = 1_000_000  # some 33,000 tensors
MAX_CONTAINERS = 200_000
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f920")  # protocol 2 and the first bytes of torch's magic number

_STORAGE_ITEM_BYTES = {
    "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "DoubleStorage": 8, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_FLOATS: dict[str, StoredFloat] = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
}
_WRAPPING_KEYS = ("state_dict", "model")


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """Say how a tensor lies in its storage: offset and strides count elements of `storage_type`."""

    storage_type: str
    storage_key: str
    storage_length: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchZip:
    """An open checkpoint with its `tensors` by name."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self._file = file
        if bytes(file.read(0, min(file.size, len(LEGACY_MAGIC)), "magic number")) == LEGACY_MAGIC:
            raise UnsupportedModelError(
                f"{file.path}: torch wrote this file in its format before version 1.6, which is not readable without "
                "running its pickle; load it with torch and save it again, best with safetensors"
            )
        self._entries = read_zip_entries(file)
        self._folder = self._find_folder()
        pickle = self._entries[f"{self._folder}/data.pkl"]
        where = f"{file.path}: {pickle.name}"
        if pickle.num_bytes > MAX_PICKLE_BYTES:
            raise CorruptFileError(f"{where}: expected at most {MAX_PICKLE_BYTES} bytes, got {pickle.num_bytes}")
        document = _PickleReader(bytes(file.read(pickle.offset, pickle.num_bytes, "pickle")), where).read()
        self.tensors: Mapping[str, TorchTensor] = MappingProxyType(_named_tensors(document, where))
        for name, tensor in self.tensors.items():
            self._check_tensor(name, tensor)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TorchZip:
        """Open the file at `path`, reading its directory and its description of tensors.

        Raises UnsafeFileError, naming it, for anything in the pickle that describes no tensor, CorruptFileError and
        TruncatedFileError for bytes that contradict the format, UnsupportedModelError for torch's older format,
        TorchScript and big-endian files.
        """
        file = MappedFile(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Let go of the file; arrays that it gave out stay valid."""
        self._file.close()

    def release_pages(self) -> None:
        """Let the system take back the memory of what has been read."""
        self._file.release_pages()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the tensor `name`."""
        return self._tensor(name).shape

    def array(self, name: str) -> tuple[StoredFloat, NDArray[Any]]:
        """Return the type and the values of `name` (uint16 bits for bfloat16).

        They lie as in the file where they are contiguous there, and are a copy where they are not.
        """
        tensor = self._tensor(name)
        what = f"tensor {name[:120]!r}"
        if tensor.storage_type not in _FLOATS:
            raise UnsupportedModelError(
                f"{self.path}: {what}: expected a FloatStorage, HalfStorage or BFloat16Storage, "
                f"got {tensor.storage_type}"
            )
        dtype = _FLOATS[tensor.storage_type]
        item = np.dtype(STORED_FLOATS[dtype])
        begin = self._storage(tensor, what).offset + tensor.offset * item.itemsize
        if tensor.strides == _contiguous_strides(tensor.shape) or math.prod(tensor.shape) == 0:
            return dtype, self._file.array(begin, item, tensor.shape, what)
        span = self._file.array(begin, item, (_span(tensor),), what)
        strides = [stride * item.itemsize for stride in tensor.strides]
        return dtype, np.array(np.lib.stride_tricks.as_strided(span, tensor.shape, strides, writeable=False), order="C")

    def _tensor(self, name: str) -> TorchTensor:
        if name not in self.tensors:
            raise TensorMismatchError(f"{self.path}: there is no tensor {name[:120]!r} among its {len(self.tensors)}")
        return self.tensors[name]

    def _find_folder(self) -> str:
        folders = [name.removesuffix("/data.pkl") for name in self._entries if name.endswith("/data.pkl")]
        folders = [folder for folder in folders if "/" not in folder]
        if len(folders) != 1:
            raise CorruptFileError(f"{self.path}: expected one entry <folder>/data.pkl, got {len(folders)}")
        folder = folders[0]
        if f"{folder}/constants.pkl" in self._entries:
            raise UnsupportedModelError(f"{self.path}: this is a TorchScript program, not a checkpoint of weights")
        order = self._entries.get(f"{folder}/byteorder")
        if order is not None:
            found = bytes(self._file.read(order.offset, min(order.num_bytes, 16), "byteorder"))
            if found != b"little":
                raise UnsupportedModelError(f"{self.path}: byteorder: expected b'little', got {found!r}")
        return folder

    def _storage(self, tensor: TorchTensor, what: str) -> ZipEntry:
        entry = self._entries.get(f"{self._folder}/data/{tensor.storage_key}")
        if entry is None:
            raise CorruptFileError(f"{self.path}: {what}: its storage {tensor.storage_key[:80]!r} is missing")
        return entry

    def _check_tensor(self, name: str, tensor: TorchTensor) -> None:
        what = f"tensor {name[:120]!r}"
        entry = self._storage(tensor, what)
        if entry.num_bytes != tensor.storage_length * _STORAGE_ITEM_BYTES[tensor.storage_type]:
            raise CorruptFileError(
                f"{self.path}: {what}: {tensor.storage_length} elements of {tensor.storage_type} do not take the "
                f"{entry.num_bytes} bytes of its storage"
            )
        if math.prod(tensor.shape) > tensor.storage_length:
            raise CorruptFileError(
                f"{self.path}: {what}: {list(tensor.shape)} has more elements than the {tensor.storage_length} of its "
                "storage"
            )
        if tensor.offset + _span(tensor) > tensor.storage_length:
            raise CorruptFileError(
                f"{self.path}: {what}: {list(tensor.shape)} with strides {list(tensor.strides)} from {tensor.offset} "
                f"leaves its storage of {tensor.storage_length} elements"
            )


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _span(tensor: TorchTensor) -> int:
    """Return how many elements of the storage lie from a tensor's first to its last."""
    if math.prod(tensor.shape) == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))


# What the pickle's values become. Dictionaries are lists of pairs: keys are never hashed, equal keys are seen.


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    storage_type: str
    key: str
    length: int


@dataclass(slots=True)
class _Dict:
    items: list[tuple[object, object]] = field(default_factory=list)


class _Mark:
    pass


_MARK = _Mark()
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_ORDERED_DICT = "collections.OrderedDict"
_ALLOWED_GLOBALS = {_TENSOR, _PARAMETER, _ORDERED_DICT, *(f"torch.{name}" for name in _STORAGE_ITEM_BYTES)}


class _PickleReader:
    """Interpret the pickle `data`, up to a number of opcodes and containers that bounds time and memory."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._position = 0
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._num_containers = 0

    def read(self) -> object:
        """Return the pickled value: None, a bool, int, float, text, bytes, tuple, list, _Dict or TorchTensor."""
        num_opcodes = 0
        while (opcode := self._take(1)) != b".":
            num_opcodes += 1
            if num_opcodes > MAX_OPCODES or self._num_containers > MAX_CONTAINERS:
                raise self._corrupt("describes more than any checkpoint has")
            handler = _OPCODES.get(opcode)
            if handler is None:
                raise UnsafeFileError(
                    f"{self._where}: the pickle opcode {opcode!r} at {self._position - 1} is not one that describes "
                    "tensors"
                )
            handler(self)
        if len(self._stack) != 1:
            raise self._corrupt(f"leaves {len(self._stack)} values instead of 1")
        return self._stack[0]

    def _corrupt(self, problem: str) -> CorruptFileError:
        return CorruptFileError(f"{self._where}: the pickle {problem}, at byte {self._position}")

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._position:
            raise TruncatedFileError(
                f"{self._where}: expected {count} bytes at {self._position} of the pickle's {len(self._data)}"
            )
        taken = self._data[self._position : self._position + count]
        self._position += count
        return taken

    def _take_int(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _take_line(self) -> str:
        end = self._data.find(b"\n", self._position, self._position + 1024)
        if end < 0:
            raise self._corrupt("has a name without an end")
        return self._text(self._take(end + 1 - self._position)[:-1])

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._corrupt("has a text that is not UTF-8") from None

    def _pop(self) -> object:
        if not self._stack:
            raise self._corrupt("takes a value that is not there")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[object]:
        values = []
        while (value := self._pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def _pop_tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise self._corrupt(f"expects a {kind.__name__.strip('_').lower()}")
        return self._stack[-1]

    def _memoize(self, index: int) -> None:
        if not self._stack:
            raise self._corrupt("remembers a value that is not there")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise self._corrupt(f"recalls value {index}, which it never remembered")
        self._stack.append(self._memo[index])

    def _push_global(self, module: object, name: object) -> None:
        full_name = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"
        if full_name not in _ALLOWED_GLOBALS:
            raise UnsafeFileError(
                f"{self._where}: the pickle asks for {full_name[:200]!r}, which describes no tensor; such a file can "
                "run any code when torch loads it"
            )
        self._stack.append(_Global(full_name))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._push_global(module, name)

    def _push_container(self, container: object) -> None:
        self._num_containers += 1
        self._stack.append(container)

    def _set_items(self, values: list[object]) -> None:
        target = self._top(_Dict)
        if len(values) % 2:
            raise self._corrupt("sets a key without a value")
        target.items.extend(zip(values[0::2], values[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _append_all(self) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def _build(self) -> None:
        """Drop the state of an OrderedDict: attributes such as `_metadata`, which hold no tensors."""
        self._pop()
        self._top(_Dict)

    def _persistent_id(self) -> None:
        match self._pop():
            case ("storage", _Global(name), str(key), str(), int(length)) if name.startswith("torch."):
                if length < 0 or isinstance(length, bool):
                    raise self._corrupt(f"has a storage of length {length}")
                self._stack.append(_Storage(name.removeprefix("torch."), key, length))
            case _:
                raise UnsafeFileError(f"{self._where}: the pickle has a persistent id that is not a torch storage")

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise UnsafeFileError(f"{self._where}: the pickle calls something that is not a known function")
        match function.name, arguments:
            case (name, ()) if name == _ORDERED_DICT:
                self._push_container(_Dict())
            case (name, (TorchTensor() as tensor, *_)) if name == _PARAMETER:
                self._stack.append(tensor)
            case (name, (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_)) if name == _TENSOR:
                sizes = (offset, *shape, *strides)
                if len(shape) != len(strides) or len(shape) > 32 or not all(_is_size(value) for value in sizes):
                    raise self._corrupt("has a tensor with an impossible shape, offset or strides")
                self._stack.append(
                    TorchTensor(storage.storage_type, storage.key, storage.length, offset, shape, strides)
                )
            case _:
                raise UnsafeFileError(
                    f"{self._where}: the pickle calls {function.name!r} in a way that describes no tensor"
                )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _named_tensors(document: object, where: str) -> dict[str, TorchTensor]:
    for _ in range(2):
        if not isinstance(document, _Dict):
            break
        tensors: dict[str, TorchTensor] = {}
        for key, value in document.items:
            if isinstance(key, str) and isinstance(value, TorchTensor):
                if key in tensors:
                    raise CorruptFileError(f"{where}: tensor {key[:120]!r} appears twice")
                tensors[key] = value
        if tensors:
            return tensors
        wrapped = [value for key, value in document.items if isinstance(key, str) and key in _WRAPPING_KEYS]
        document = wrapped[0] if wrapped else None
    raise UnsupportedModelError(f"{where}: there is no dictionary of tensors, as state_dict() gives it")


_OPCODES: dict[bytes, Any] = {
    b"\x80": lambda r: r._take(1),  # PROTO
    b"\x95": lambda r: r._take(8),  # FRAME
    b"(": lambda r: r._stack.append(_MARK),
    b"N": lambda r: r._stack.append(None),
    b"\x88": lambda r: r._stack.append(True),
    b"\x89": lambda r: r._stack.append(False),
    b"J": lambda r: r._stack.append(r._take_int("<i")),
    b"K": lambda r: r._stack.append(r._take_int("<B")),
    b"M": lambda r: r._stack.append(r._take_int("<H")),
    b"\x8a": lambda r: r._stack.append(int.from_bytes(r._take(r._take_int("<B")), "little", signed=True)),  # LONG1
    b"G": lambda r: r._stack.append(struct.unpack(">d", r._take(8))[0]),
    b"X": lambda r: r._stack.append(r._text(r._take(r._take_int("<I")))),
    b"\x8c": lambda r: r._stack.append(r._text(r._take(r._take_int("<B")))),  # SHORT_BINUNICODE
    b"U": lambda r: r._stack.append(r._text(r._take(r._take_int("<B")))),  # SHORT_BINSTRING
    b"B": lambda r: r._stack.append(r._take(r._take_int("<I"))),
    b"C": lambda r: r._stack.append(r._take(r._take_int("<B"))),
    b")": lambda r: r._stack.append(()),
    b"\x85": lambda r: r._pop_tuple(1),
    b"\x86": lambda r: r._pop_tuple(2),
    b"\x87": lambda r: r._pop_tuple(3),
    b"t": lambda r: r._stack.append(tuple(r._pop_to_mark())),
    b"]": lambda r: r._push_container([]),
    b"a": lambda r: r._append(),
    b"e": lambda r: r._append_all(),
    b"}": lambda r: r._push_container(_Dict()),
    b"s": lambda r: r._set_item(),
    b"u": lambda r: r._set_items(r._pop_to_mark()),
    b"q": lambda r: r._memoize(r._take_int("<B")),
    b"r": lambda r: r._memoize(r._take_int("<I")),
    b"\x94": lambda r: r._memoize(len(r._memo)),
    b"h": lambda r: r._recall(r._take_int("<B")),
    b"j": lambda r: r._recall(r._take_int("<I")),
    b"c": lambda r: r._push_global(r._take_line(), r._take_line()),
    b"\x93": lambda r: r._stack_global(),
    b"Q": lambda r: r._persistent_id(),
    b"R": lambda r: r._reduce(),
    b"b": lambda r: r._build(),
}
