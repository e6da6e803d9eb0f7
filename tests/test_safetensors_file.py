"""A safetensors file is read as its own library writes it, and refused where a byte is not accounted for."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hearthlm.errors import (
    CorruptFileError,
    HearthLMError,
    TensorMismatchError,
    TruncatedFileError,
    UnsupportedModelError,
)
from hearthlm.formats import detect_format
from hearthlm.formats.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile

GOLDEN = Path(__file__).parent / "golden" / "inputs"


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def save(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_floats_come_back_as_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = (
        b'{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}}'
    )
    save(path, header.ljust(120), b"\0\0\x80\x3f\0\0\0\xc0" + b"\x80\x3f\x00\xc0")
    file = SafetensorsFile.open(path)
    dtype, values = file.array("a")
    assert (dtype, values.tolist()) == ("float32", [[1.0, -2.0]])
    assert not values.flags.owndata and not values.flags.writeable
    dtype, values = file.array("b")
    assert (dtype, str(values.dtype), values.tolist()) == ("bfloat16", "uint16", [0x3F80, 0xC000])
    assert file.shape("a") == (1, 2)
    file.close()
    assert values.tolist() == [0x3F80, 0xC000]
    assert detect_format(path) == "safetensors"


def test_the_library_writes_what_is_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    tensors: dict[str, NDArray[Any]] = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "single": np.linspace(0, 1, 5, dtype=np.float32),
        "scalar": np.full((), 3, np.float32),
        "empty": np.empty((0, 4), np.float32),
    }
    numpy.save_file(tensors, tmp_path / "m", metadata={"format": "pt"})
    file = SafetensorsFile.open(tmp_path / "m")
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(file.array(name)[1], values)
        assert file.array(name)[1].shape == values.shape


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.safetensors")), ids=lambda path: path.parent.name)
def test_golden_checkpoints_are_what_the_library_reads(path: Path) -> None:
    library = pytest.importorskip("safetensors")
    file = SafetensorsFile.open(path)
    with library.safe_open(path, framework="numpy") as other:
        assert sorted(other.keys()) == sorted(file.tensors)
        for name in file.tensors:
            dtype, values = file.array(name)
            if dtype != "bfloat16":
                np.testing.assert_array_equal(values, other.get_tensor(name))


A = {"a": entry("F32", [2], 0, 8)}


@pytest.mark.parametrize(
    ("header", "data", "error", "message"),
    [
        (b"", b"", CorruptFileError, "expected a JSON object of 0 bytes"),
        (b"[]", b"", CorruptFileError, "expected a JSON object of 2 bytes"),
        (b" {}", b"", CorruptFileError, "expected a JSON object of 3 bytes"),
        (b"{]", b"", CorruptFileError, "not valid JSON"),
        (b"{\xff}", b"", CorruptFileError, "not valid JSON"),
        (b'{"a":1,"a":2}', b"", CorruptFileError, "the key 'a' appears twice"),
        ({"__metadata__": 1}, b"", CorruptFileError, "__metadata__: expected an object of texts"),
        ({"__metadata__": {"a": 1}}, b"", CorruptFileError, "__metadata__: expected an object of texts"),
        ({"a": 1}, b"", CorruptFileError, "tensor 'a': expected an object with dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32"}}, b"", CorruptFileError, "expected an object with dtype"),
        ({"a": entry("F128", [], 0, 16)}, bytes(16), UnsupportedModelError, "dtype: 'F128' is not known"),
        ({"a": {**A["a"], "dtype": []}}, bytes(8), UnsupportedModelError, r"dtype: '\[\]' is not known"),
        ({"a": {**A["a"], "shape": 2}}, bytes(8), CorruptFileError, "shape: expected at most 64 sizes, got 2"),
        ({"a": {**A["a"], "shape": [-2]}}, bytes(8), CorruptFileError, r"shape: expected at most 64 sizes, got \[-2\]"),
        ({"a": {**A["a"], "shape": [2.0]}}, bytes(8), CorruptFileError, "shape: expected"),
        ({"a": {**A["a"], "shape": [True]}}, bytes(8), CorruptFileError, "shape: expected"),
        ({"a": {**A["a"], "shape": [1] * 65}}, bytes(8), CorruptFileError, "shape: expected"),
        ({"a": {**A["a"], "data_offsets": [0]}}, bytes(8), CorruptFileError, "data_offsets: expected begin and end"),
        ({"a": {**A["a"], "data_offsets": [8, 0]}}, bytes(8), CorruptFileError, "data_offsets: expected begin and end"),
        (
            {"a": entry("F32", [3], 0, 8)},
            bytes(8),
            CorruptFileError,
            r"F32 \[3\] takes 12 bytes, but data_offsets span 8",
        ),
        (
            {"a": entry("F32", [2**31, 2**31, 2**31], 0, 8)},
            bytes(8),
            CorruptFileError,
            "takes 39614081257132168796771975168 bytes",
        ),
        ({"a": entry("F4", [3], 0, 1)}, bytes(1), CorruptFileError, r"F4 \[3\] takes 1 bytes"),
        (A, bytes(7), TruncatedFileError, r"expected \d+ bytes, got \d+"),
        (A, bytes(9), CorruptFileError, "1 bytes after the last tensor belong to none"),
        ({"a": entry("F32", [1], 4, 8)}, bytes(8), CorruptFileError, "leaves a hole before it"),
        ({**A, "b": entry("F32", [1], 4, 8)}, bytes(8), CorruptFileError, "tensor 'b': overlaps the tensor before it"),
        ({**A, "b": entry("F32", [2], 0, 8)}, bytes(8), CorruptFileError, "overlaps the tensor before it"),
        ({"a": entry("F32", [2**61], 0, 2**63)}, bytes(8), CorruptFileError, "data_offsets: expected"),
        ({"a": entry("F32", [2**60], 0, 2**62)}, bytes(8), TruncatedFileError, "expected 46116860"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b"", CorruptFileError, "nested more than 32 deep"),
        (b'{"a":[' + b"0," * 400_000 + b"0]}", b"", CorruptFileError, "more than 300000 values"),
        (b'{"a":' + b"9" * 5000 + b"}", b"", CorruptFileError, "not valid JSON"),
    ],
)
def test_a_bad_header_is_refused(
    header: Any, data: bytes, error: type[HearthLMError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        SafetensorsFile.open(save(tmp_path / "m", header, data))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", TruncatedFileError, "the file is empty"),
        (b"\x02\0\0\0", TruncatedFileError, "size of the header: expected 8 bytes at offset 0, but the file has 4"),
        (struct.pack("<Q", 3) + b"{}", TruncatedFileError, "header: expected 3 bytes at offset 8, but the file has 10"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", CorruptFileError, f"expected at most {MAX_HEADER_BYTES} bytes"),
    ],
)
def test_a_bad_header_size_is_refused(data: bytes, error: type[HearthLMError], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(data)
    with pytest.raises(error, match=message):
        SafetensorsFile.open(path)


def test_every_truncation_is_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole", A, bytes(8)).read_bytes()
    path = tmp_path / "m"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TruncatedFileError):
            SafetensorsFile.open(path)


def test_other_types_are_listed_and_refused_when_they_are_used(tmp_path: Path) -> None:
    file = SafetensorsFile.open(save(tmp_path / "m", {"ids": entry("I64", [1], 0, 8)}, bytes(8)))
    assert file.tensors["ids"].dtype == "I64"
    with pytest.raises(UnsupportedModelError, match="tensor 'ids': expected F32, F16 or BF16, got I64"):
        file.array("ids")
    with pytest.raises(TensorMismatchError, match="there is no tensor 'b' among its 1"):
        file.array("b")


def test_an_unaligned_tensor_is_copied(tmp_path: Path) -> None:
    header = json.dumps(A).encode()
    odd = header.ljust(len(header) + (1 - len(header)) % 4)
    path = save(tmp_path / "m", odd, np.array([1, 2], np.float32).tobytes())
    _, values = SafetensorsFile.open(path).array("a")
    assert values.flags.aligned and values.tolist() == [1, 2]
