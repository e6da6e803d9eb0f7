"""Torch's checkpoints are read as data: no name in them is looked up, no byte outside them is touched."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from hearthlm.errors import (
    CorruptFileError,
    HearthLMError,
    TensorMismatchError,
    TruncatedFileError,
    UnsafeFileError,
    UnsupportedModelError,
)
from hearthlm.formats import detect_format
from hearthlm.formats.torch_zip import TorchZip

FALCON = Path(__file__).parent / "golden/inputs/falcon/pytorch_model.bin"

# Pickles, opcode by opcode, as torch.save writes them


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return (
        b"J" + struct.pack("<i", value)
        if abs(value) < 2**31
        else b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
    )


def sequence(items: Sequence[bytes]) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + sequence(arguments) + b"R"


def storage(kind: str = "FloatStorage", key: str = "0", length: int = 6) -> bytes:
    return sequence([text("storage"), name("torch", kind), text(key), text("cpu"), number(length)]) + b"Q"


HOOKS = name("collections", "OrderedDict") + b")R"
REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def tensor(
    shape: Sequence[int] = (2, 3), strides: Sequence[int] = (3, 1), offset: int = 0, of: bytes | None = None
) -> bytes:
    sizes = sequence([number(size) for size in shape])
    steps = sequence([number(stride) for stride in strides])
    return call(REBUILD, storage() if of is None else of, number(offset), sizes, steps, b"\x89", HOOKS)


def dictionary(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


STORAGE = np.arange(6, dtype=np.float32).tobytes()


def save(path: Path, document: bytes, storages: dict[str, bytes] | None = None, **others: bytes) -> Path:
    entries = {"m/data.pkl": document}
    entries |= {f"m/data/{key}": data for key, data in ({"0": STORAGE} if storages is None else storages).items()}
    entries |= {f"m/{key}": data for key, data in others.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, data in entries.items():
            archive.writestr(zipfile.ZipInfo(key), data)
    return path


def test_tensors_come_back_as_they_lie(tmp_path: Path) -> None:
    document = pickled(
        dictionary(
            {
                "a": tensor(),
                "transposed": tensor((3, 2), (1, 3)),
                "columns": tensor((2, 2), (3, 1), offset=1),
                "scalar": tensor((), (), offset=5),
                "parameter": call(name("torch._utils", "_rebuild_parameter"), tensor(), b"\x88", HOOKS),
                "empty": tensor((0, 7), (7, 1), offset=6),
                "step": b"K\x07",
            }
        )
    )
    path = save(tmp_path / "m.bin", document, version=b"3\n", byteorder=b"little")
    file = TorchZip.open(path)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert list(file.tensors) == ["a", "transposed", "columns", "scalar", "parameter", "empty"]
    for key, expected in {
        "a": values,
        "transposed": values.T,
        "columns": values[:, 1:],
        "scalar": values[1, 2],
        "parameter": values,
        "empty": np.empty((0, 7)),
    }.items():
        dtype, got = file.array(key)
        assert dtype == "float32"
        assert got.shape == file.shape(key) == expected.shape
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, expected)
    assert detect_format(path) == "torch_zip"


def test_contiguous_tensors_share_the_file() -> None:
    file = TorchZip.open(FALCON)
    _, values = file.array("lm_head.weight")
    assert not values.flags.owndata and not values.flags.writeable
    file.close()
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("kind", "dtype", "bits"), [("HalfStorage", "float16", b"\0\x3c"), ("BFloat16Storage", "bfloat16", b"\x80\x3f")]
)
def test_half_types_are_read(kind: str, dtype: str, bits: bytes, tmp_path: Path) -> None:
    document = pickled(dictionary({"a": tensor((2,), (1,), of=storage(kind, "k", 2))}))
    got, values = TorchZip.open(save(tmp_path / "m.bin", document, {"k": bits * 2})).array("a")
    assert got == dtype
    assert values.view(np.uint16).tolist() == [int.from_bytes(bits, "little")] * 2


def test_other_types_are_listed_and_refused_when_they_are_used(tmp_path: Path) -> None:
    document = pickled(dictionary({"ids": tensor((2,), (1,), of=storage("LongStorage", "0", 3))}))
    file = TorchZip.open(save(tmp_path / "m.bin", document))
    with pytest.raises(UnsupportedModelError, match="tensor 'ids': expected a FloatStorage, .* got LongStorage"):
        file.array("ids")
    with pytest.raises(TensorMismatchError, match="there is no tensor 'a' among its 1"):
        file.array("a")


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_wrapped_state_dict_is_found(key: str, tmp_path: Path) -> None:
    document = pickled(dictionary({"epoch": b"K\x01", key: dictionary({"a": tensor()})}))
    assert list(TorchZip.open(save(tmp_path / "m.bin", document)).tensors) == ["a"]


def test_an_ordered_dict_with_attributes_is_read(tmp_path: Path) -> None:
    document = HOOKS + b"(" + text("a") + tensor() + b"u" + dictionary({"_metadata": HOOKS}) + b"b"
    assert list(TorchZip.open(save(tmp_path / "m.bin", pickled(document))).tensors) == ["a"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_writes_what_is_read(protocol: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    values = torch.arange(24.0).reshape(4, 6)
    document = {"a": values, "b": values.T, "c": values.half(), "d": torch.nn.Parameter(values[:, 1:3]), "n": {"x": 1}}
    torch.save(document, tmp_path / "m.bin", pickle_protocol=protocol)
    file = TorchZip.open(tmp_path / "m.bin")
    assert list(file.tensors) == ["a", "b", "c", "d"]
    for key in file.tensors:
        np.testing.assert_array_equal(file.array(key)[1], document[key].detach().numpy())


# Pickles that would run code, or that lie


class Gadget:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "gadget",
    [
        Gadget(os.system, "touch canary"),
        Gadget(eval, "open('canary', 'w')"),
        Gadget(exec, "open('canary', 'w')"),
        Gadget(getattr, "x", "upper"),
        Gadget(open, "canary", "w"),
        Gadget(__import__, "antigravity"),
        Gadget(pickle.loads, b"."),
        Gadget(np.frombuffer, b"1234"),
        Gadget(print, "x"),
    ],
    ids=lambda gadget: gadget.function.__name__,
)
def test_code_is_refused_and_not_run(
    gadget: Gadget, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "m.bin", pickle.dumps({"a": gadget}, protocol=protocol))
    with pytest.raises(UnsafeFileError):
        TorchZip.open(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.bin"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (name("os", "system") + b".", "asks for 'os.system', which describes no tensor"),
        (name("builtins", "getattr") + b".", "'builtins.getattr'"),
        (name("torch", "nn.Module") + b".", "'torch.nn.Module'"),
        (name("torch", "FloatStorage\0") + b".", "torch.FloatStorage"),
        (text("os") + text("system") + b"\x93.", "'os.system'"),
        (b"NN\x93.", r"'\?'"),
        (b"ios\nsystem\n.", r"opcode b'i'"),
        (b"o.", r"opcode b'o'"),
        (b"\x81.", r"opcode b'\\x81'"),
        (b"\x82\x01.", r"opcode b'\\x82'"),
        (b"P0\n.", "opcode b'P'"),
        (b"\xff.", r"opcode b'\\xff'"),
        (name("collections", "OrderedDict") + sequence([b"]"]) + b"R.", "calls 'collections.OrderedDict' in a way"),
        (call(REBUILD, b"K\x01") + b".", "calls 'torch._utils._rebuild_tensor_v2' in a way"),
        (call(name("torch", "FloatStorage")) + b".", "calls 'torch.FloatStorage' in a way"),
        (b"NNR.", "calls something that is not a known function"),
        (text("storage") + b"Q.", "a persistent id that is not a torch storage"),
        (sequence([text("storage"), HOOKS, text("0"), text("cpu"), number(1)]) + b"Q.", "not a torch storage"),
        (sequence([text("module"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(1)]) + b"Q.", "not a"),
        (
            sequence([text("storage"), name("collections", "OrderedDict"), text("0"), text("cpu"), number(1)]) + b"Q.",
            "a",
        ),
    ],
)
def test_what_describes_no_tensor_is_refused(document: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match=message):
        TorchZip.open(save(tmp_path / "m.bin", document))


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (b"", TruncatedFileError, "expected 1 bytes at 0"),
        (b".", CorruptFileError, "leaves 0 values instead of 1"),
        (b"NN.", CorruptFileError, "leaves 2 values instead of 1"),
        (b"X\xff\xff\xff\xff", TruncatedFileError, "expected 4294967295 bytes at 5 of the pickle's 5"),
        (b"J\0", TruncatedFileError, "expected 4 bytes"),
        (b"X\x01\0\0\0\xff.", CorruptFileError, "a text that is not UTF-8"),
        (b"cos", CorruptFileError, "a name without an end"),
        (b"a.", CorruptFileError, "takes a value that is not there"),
        (b"t.", CorruptFileError, "takes a value that is not there"),
        (b"Na.", CorruptFileError, "expects a list"),
        (b"Ns.", CorruptFileError, "takes a value that is not there"),
        (b"NNNs.", CorruptFileError, "expects a dict"),
        (b"}(Nu.", CorruptFileError, "sets a key without a value"),
        (b"NNb.", CorruptFileError, "expects a dict"),
        (b"q\0.", CorruptFileError, "remembers a value that is not there"),
        (b"h\0.", CorruptFileError, "recalls value 0, which it never remembered"),
        (b"N.", UnsupportedModelError, "no dictionary of tensors"),
        (b"}.", UnsupportedModelError, "no dictionary of tensors"),
        (
            dictionary({"state_dict": dictionary({"model": dictionary({"model": b"}"})})}) + b".",
            UnsupportedModelError,
            "no dictionary of tensors",
        ),
        (b"}q\0(" + text("model") + b"h\0u.", UnsupportedModelError, "no dictionary of tensors"),
        (dictionary({"a": tensor()}) + b"(" + text("a") + tensor() + b"u.", CorruptFileError, "'a' appears twice"),
        (b"(" * 1_000_001, CorruptFileError, "describes more than any checkpoint has"),
        (b"}0" * 3, UnsafeFileError, "opcode b'0'"),
        (b"}" * 200_010, CorruptFileError, "describes more than any checkpoint has"),
        (b"N" + b"\x85" * 100_000 + b".", UnsupportedModelError, "no dictionary of tensors"),
    ],
)
def test_a_broken_pickle_is_refused(document: bytes, error: type[HearthLMError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        TorchZip.open(save(tmp_path / "m.bin", document))


BIG = 2**62


@pytest.mark.parametrize(
    ("value", "storages", "message"),
    [
        (tensor(), {}, "its storage '0' is missing"),
        (tensor(of=storage(key="../0")), {"0": STORAGE}, "its storage '../0' is missing"),
        (tensor(), {"0": STORAGE[:-1]}, "6 elements of FloatStorage do not take the 23 bytes of its storage"),
        (tensor(of=storage(length=BIG)), {"0": STORAGE}, "elements of FloatStorage do not take the 24 bytes"),
        (tensor(of=storage(length=-6)), {"0": STORAGE}, "a storage of length -6"),
        (tensor((7,), (0,)), {"0": STORAGE}, r"\[7\] has more elements than the 6 of its storage"),
        (tensor((BIG, BIG), (0, 0)), {"0": STORAGE}, "has more elements than the 6"),
        (tensor((2, 3), (4, 1)), {"0": STORAGE}, r"\[2, 3\] with strides \[4, 1\] from 0 leaves its storage of 6"),
        (tensor((2, 3), (BIG, 1)), {"0": STORAGE}, "leaves its storage"),
        (tensor((2, 3), (3, 1), offset=1), {"0": STORAGE}, "leaves its storage"),
        (tensor((2,), (1,), offset=BIG), {"0": STORAGE}, "leaves its storage"),
        (tensor((0,), (1,), offset=7), {"0": STORAGE}, "leaves its storage"),
        (tensor((2,), (-1,), offset=1), {"0": STORAGE}, "an impossible shape, offset or strides"),
        (tensor((-2,), (1,)), {"0": STORAGE}, "an impossible shape, offset or strides"),
        (tensor((2,), (1,), offset=-1), {"0": STORAGE}, "an impossible shape, offset or strides"),
        (tensor((2, 3), (1,)), {"0": STORAGE}, "an impossible shape, offset or strides"),
        (tensor([1] * 33, [1] * 33), {"0": STORAGE}, "an impossible shape, offset or strides"),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(
    value: bytes, storages: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=message):
        TorchZip.open(save(tmp_path / "m.bin", pickled(dictionary({"a": value})), storages))


# The archive


GOOD = pickled(dictionary({"a": tensor()}))


def test_the_old_format_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2))
    with pytest.raises(UnsupportedModelError, match="save it again, best with safetensors"):
        TorchZip.open(path)
    with pytest.raises(UnsupportedModelError, match="save it again"):
        detect_format(path)


def test_a_program_and_a_big_endian_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="TorchScript"):
        TorchZip.open(save(tmp_path / "1", GOOD, None, **{"constants.pkl": b"."}))
    with pytest.raises(UnsupportedModelError, match="byteorder: expected b'little', got b'big'"):
        TorchZip.open(save(tmp_path / "2", GOOD, byteorder=b"big"))


def archive(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for key, data in entries:
            file.writestr(zipfile.ZipInfo(key), data, compress_type=compression)
    return buffer.getvalue()


def patched(data: bytes, signature: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    position = -1
    for _ in range(which + 1):
        position = data.index(signature, position + 1)
    return data[: position + offset] + value + data[position + offset + len(value) :]


PLAIN = archive([("m/data.pkl", GOOD), ("m/data/0", STORAGE)])
LONG = archive([("m/data.pkl", GOOD), ("m/data/" + "0" * 99, STORAGE)])
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"PK\x03\x04", TruncatedFileError, "expected at least 22 bytes of zip archive, got 4"),
        (PLAIN[:-1], TruncatedFileError, "has no end record"),
        (PLAIN + b"x", CorruptFileError, "is not at its end"),
        (b"x" + PLAIN, CorruptFileError, "central directory: expected it to end at"),
        (archive([("m/data/0", STORAGE)]), CorruptFileError, "expected one entry <folder>/data.pkl, got 0"),
        (archive([("a/data.pkl", b"."), ("b/data.pkl", b".")]), CorruptFileError, "<folder>/data.pkl, got 2"),
        (archive([("a/b/data.pkl", b".")]), CorruptFileError, "<folder>/data.pkl, got 0"),
        (archive([("m/data.pkl", GOOD)], zipfile.ZIP_DEFLATED), UnsupportedModelError, "got compression method 8"),
        (patched(PLAIN, CENTRAL, 8, b"\x01"), UnsupportedModelError, "the entry is encrypted"),
        (patched(PLAIN, LOCAL, 6, b"\x01"), CorruptFileError, "its local header contradicts the central directory"),
        (patched(PLAIN, LOCAL, 8, b"\x08"), CorruptFileError, "its local header contradicts the central directory"),
        (patched(PLAIN, LOCAL, 22, b"\x01"), CorruptFileError, "its local header contradicts the central directory"),
        (patched(PLAIN, LOCAL, 30, b"M"), CorruptFileError, "its local header contradicts the central directory"),
        (patched(PLAIN, LOCAL, 0, b"PK\x03\x05"), CorruptFileError, "there is no local header at offset 0"),
        (patched(PLAIN, CENTRAL, 0, b"PK\x01\x03"), CorruptFileError, "its record is not one"),
        (patched(PLAIN, CENTRAL, 20, b"\x01"), CorruptFileError, r"stored in \d+ bytes, but has"),
        (patched(PLAIN, CENTRAL, 28, b"\xff\xff"), CorruptFileError, "its record is not one"),
        (patched(PLAIN, CENTRAL, 42, b"\x01"), CorruptFileError, "there is no local header at offset 1"),
        (patched(PLAIN, CENTRAL, 42, b"\xfe\xff\xff\xff"), TruncatedFileError, "local header"),
        (patched(PLAIN, CENTRAL, 42, b"\xff\xff\xff\xff"), CorruptFileError, "announces 64-bit values"),
        (patched(PLAIN, CENTRAL, 24, b"\xff\xff\xff\xff"), CorruptFileError, "announces 64-bit values"),
        (patched(PLAIN, END, 4, b"\x01"), CorruptFileError, "in several parts"),
        (patched(PLAIN, END, 8, b"\x03\0\x03\0"), CorruptFileError, "3 entries do not fit into 110 bytes"),
        (patched(LONG, END, 8, b"\x03\0\x03\0"), TruncatedFileError, "entry 2: expected it at"),
        (patched(PLAIN, END, 8, b"\x01\0\x01\0"), CorruptFileError, "bytes belong to no entry"),
        (patched(PLAIN, END, 8, b"\xfe\xff\xfe\xff"), CorruptFileError, "65534 entries do not fit into"),
        (patched(PLAIN, END, 8, b"\xff\xff\xff\xff"), CorruptFileError, "65535 entries do not fit into"),
        (patched(PLAIN, END, 16, b"\xff\xff\xff\xff"), CorruptFileError, "central directory: expected it to end at"),
        (patched(PLAIN, END, 12, b"\0"), CorruptFileError, "central directory: expected it to end at"),
        (archive([("m/data.pkl", GOOD), ("../x", b"")]), UnsafeFileError, "'../x' could lead out of a folder"),
        (archive([("m/data.pkl", GOOD), ("/x", b"")]), UnsafeFileError, "could lead out of a folder"),
        (archive([("m/data.pkl", GOOD), ("m/../../x", b"")]), UnsafeFileError, "could lead out of a folder"),
        (archive([("m/data.pkl", GOOD), ("c:x", b"")]), UnsafeFileError, "could lead out of a folder"),
        (archive([("m/data.pkl", GOOD), ("a?b", b"")]).replace(b"a?b", b"a\\b"), UnsafeFileError, "could lead out"),
        (archive([("m/data.pkl", GOOD), ("a?b", b"")]).replace(b"a?b", b"a\0b"), UnsafeFileError, "could lead out"),
        (archive([("m/data.pkl", GOOD), ("a?b", b"")]).replace(b"a?b", b"a\xffb"), CorruptFileError, "not UTF-8"),
(
            archive([("m/data.pkl", GOOD), ("n/data.pk1", b"")]).replace(b"n/data.pk1", b"m/data.pkl"),
            CorruptFileError,
            "'m/data.pkl'.*: appears twice",
        ),
    ],
)  # fmt: skip
def test_a_bad_archive_is_refused(data: bytes, error: type[HearthLMError], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    with pytest.raises(error, match=message):
        TorchZip.open(path)


def test_sizes_of_64_bits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as file:
        for key, content in (("m/data.pkl", GOOD), ("m/data/0", STORAGE)):
            with file.open(zipfile.ZipInfo(key), "w", force_zip64=True) as entry:
                entry.write(content)
    assert list(TorchZip.open(path).tensors) == ["a"]
    data = bytearray(path.read_bytes())
    sizes = data.index(struct.pack("<2HQ", 1, 16, len(GOOD)))
    struct.pack_into("<2I", data, 18, 2**32 - 1, 2**32 - 1)  # older versions of zipfile forget to point to the 64 bits
    struct.pack_into("<Q", data, sizes + 4, 2**64 - 1)
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError, match="its local header contradicts the central directory"):
        TorchZip.open(path)
    struct.pack_into("<H", data, sizes, 2)
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError, match="announces 64-bit values that its extra field does not have"):
        TorchZip.open(path)


def test_an_entry_inside_the_directory_is_refused(tmp_path: Path) -> None:
    header = PLAIN[: 30 + len("m/data.pkl")]
    data = bytearray(PLAIN)
    directory = data.index(CENTRAL)
    comment = bytearray(header + GOOD)  # the first entry's local header and data, as the comment of its own record
    at = directory + 46 + len("m/data.pkl")
    data[at:at] = comment
    struct.pack_into("<H", data, directory + 32, len(comment))
    struct.pack_into("<I", data, directory + 42, at)
    end = data.index(END)
    struct.pack_into("<I", data, end + 12, end - directory)
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError, match="the last entry overlaps the central directory"):
        TorchZip.open(path)


def test_absurd_names_and_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(archive([("x" * 4097, b"")]))
    with pytest.raises(CorruptFileError, match="an entry has a name of 4097 bytes"):
        TorchZip.open(path)
    with pytest.raises(CorruptFileError, match="data.pkl: expected at most 16777216 bytes"):
        TorchZip.open(save(path, bytes((16 << 20) + 1)))


def test_lists_of_other_things_are_passed_over(tmp_path: Path) -> None:
    other = b"](K\x01" + text("x") + b"eNa" + b"G" + bytes(8) + b"\x88\x8a\x01\xff\x87"
    document = pickled(dictionary({"a": tensor(), "other": b"(" + other + b"t"}))
    assert list(TorchZip.open(save(tmp_path / "m.bin", document)).tensors) == ["a"]


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    inner = archive([("b", b"")])[: 30 + 1]  # the local header of an entry that lies inside another's data
    data = archive([("a", inner), ("b", b"")])
    outer_b = data.index(LOCAL, 40)
    data = patched(data, CENTRAL, 42, struct.pack("<I", 31), which=1)
    assert outer_b > 31
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="'b': overlaps the entry before it"):
        TorchZip.open(path)


def test_a_zip64_record_that_differs_is_refused(tmp_path: Path) -> None:
    data = FALCON.read_bytes()
    path = tmp_path / "m.bin"
    for offset, size in ((0, 1), (4, 8), (16, 4), (24, 8), (32, 8), (40, 8), (48, 8)):
        path.write_bytes(patched(data, b"PK\x06\x06", offset, b"\xff" * size))
        with pytest.raises(CorruptFileError, match="zip64 record"):
            TorchZip.open(path)
    path.write_bytes(patched(data, b"PK\x06\x07", 8, b"\xff" * 8))
    with pytest.raises(TruncatedFileError, match="zip64 record: expected 56 bytes"):
        TorchZip.open(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    for size in range(1, len(PLAIN)):
        path.write_bytes(PLAIN[:size])
        with pytest.raises(HearthLMError):
            TorchZip.open(path)
