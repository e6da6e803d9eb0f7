"""A saved session comes back as it was, or is refused by name: no changed bit, no other model, no newer version."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids
from test_format_fuzz import CASES, INTERESTING, MAX_MORE_BYTES, MAX_SECONDS, mutated
from test_transformer import executor

from hearthlm.errors import (
    CorruptFileError,
    HearthLMError,
    ModelFormatError,
    SessionFileError,
    TruncatedFileError,
    UnsupportedModelError,
)
from hearthlm.formats.session_file import FORMAT, SessionFile, read_session_file, write_session_file
from hearthlm.runtime.executor import ForwardRequest

IDS = [2, 7, 1 << 20]
ARRAYS: dict[str, NDArray[Any]] = {
    "full": np.arange(24, dtype=np.float16).reshape(1, 2, 1, 3, 4),
    "window_24": np.linspace(0, 1, 6, dtype=np.float32).reshape(1, 2, 1, 3, 1),
}
EXTRA = {"turns": ["Where is the café?", "\ud800"], "temperature": 0.5, "nested": {"a": None}}
NONE = "0" * 64


def write(path: Path, **changes: Any) -> Path:
    write_session_file(path, **({"fingerprint": "f1", "ids": IDS, "arrays": ARRAYS, "extra": EXTRA} | changes))
    return path


def read(path: Path) -> SessionFile:
    return read_session_file(path, expected_fingerprint="f1")


def signed(data: bytes) -> bytes:
    """Return a file's bytes with the checksum that they ought to have."""
    found = re.search(rb'"checksum":\s*"([0-9a-f]{64})"', data)
    if found is None:
        return data
    blank = data[: found.start(1)] + NONE.encode() + data[found.end(1) :]
    checksum = hashlib.blake2b(blank, digest_size=32).hexdigest()
    return blank[: found.start(1)] + checksum.encode() + blank[found.end(1) :]


def forged(path: Path, tensors: Any = None, data: bytes = b"", **metadata: Any) -> Path:
    """Write a file with a right checksum around whatever is asked for; None leaves a metadata entry out."""
    entries = {"checksum": NONE, "format": FORMAT, "version": "1", "fingerprint": "f1", "extra": "{}"} | metadata
    header = {"__metadata__": {key: value for key, value in entries.items() if value is not None}}
    header |= {"ids": {"dtype": "I32", "shape": [0], "data_offsets": [0, 0]}} if tensors is None else tensors
    text = json.dumps(header).encode()
    path.write_bytes(signed(struct.pack("<Q", len(text)) + text + data))
    return path


def test_a_session_comes_back(tmp_path: Path) -> None:
    file = read(write(tmp_path / "s"))
    assert file.ids.dtype == np.int32
    assert (file.ids.tolist(), file.extra) == (IDS, EXTRA)
    assert file.arrays.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        assert file.arrays[name].dtype == values.dtype
        assert np.array_equal(file.arrays[name], values)
        assert not file.arrays[name].flags.owndata and not file.arrays[name].flags.writeable


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    arrays=st.dictionaries(
        st.text(max_size=8),
        st.tuples(st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"]),
                  st.lists(st.integers(0, 4), max_size=5)),
        max_size=5,
    ),
    extra=st.dictionaries(st.text(), st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)),
)  # fmt: skip
def test_any_session_comes_back(tmp_path_factory: pytest.TempPathFactory, ids: Any, arrays: Any, extra: Any) -> None:
    dice = np.random.default_rng(0)
    made = {
        name: np.frombuffer(dice.bytes(8 * 4**5), dtype)[: int(np.prod(shape))].reshape(shape)
        for name, (dtype, shape) in arrays.items()
    }
    path = tmp_path_factory.getbasetemp() / "any"
    file = read(write(path, ids=ids, arrays=made, extra=extra))
    assert (file.ids.tolist(), file.extra) == (ids, extra)
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in file.arrays.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in made.items()
    }


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_mqa"])
@pytest.mark.parametrize("bits", [None, 8])
def test_a_state_goes_on_from_a_file_in_another_executor(name: str, bits: int | None, tmp_path: Path) -> None:
    first, second = executor(name, bits=bits), executor(name, bits=bits, num_threads=2)
    ids = random_ids(CONFIGS[name], 450)
    state = first.new_state()
    first.forward([ForwardRequest(state, ids[:400], "none")])
    write_session_file(tmp_path / "s", fingerprint=first.fingerprint, ids=ids, arrays=state.save(), extra={})
    file = read_session_file(tmp_path / "s", expected_fingerprint=second.fingerprint)
    loaded = second.load_state(400, file.arrays)
    (wanted,) = first.forward([ForwardRequest(state, ids[400:], "all")])
    (got,) = second.forward([ForwardRequest(loaded, file.ids[400:].tolist(), "all")])
    assert wanted is not None and got is not None and np.array_equal(got, wanted)
    with pytest.raises(SessionFileError, match="another model"):
        read_session_file(tmp_path / "s", expected_fingerprint=executor(name, bits=4).fingerprint)


def test_an_array_in_any_order_of_memory_is_written_row_after_row(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    assert np.array_equal(read(write(tmp_path / "s", arrays={"a": values})).arrays["a"], values)


def test_the_same_session_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a").read_bytes()
    reversed_arrays = dict(reversed(ARRAYS.items()))
    assert write(tmp_path / "b", arrays=reversed_arrays, extra=dict(reversed(EXTRA.items()))).read_bytes() == first


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors")
    with library.safe_open(write(tmp_path / "s"), framework="numpy") as other:
        assert sorted(other.keys()) == ["ids", "state.full", "state.window_24"]
        assert other.metadata()["format"] == FORMAT
        assert other.get_tensor("ids").tolist() == IDS
        assert np.array_equal(other.get_tensor("state.full"), ARRAYS["full"])


def test_another_models_session_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s", fingerprint="0123456789abcdef")
    with pytest.raises(SessionFileError, match=r"another model.*'0123456789ab'.*'f1'.*load the model that it was"):
        read(path)


EMPTY_IDS = {"ids": {"dtype": "I32", "shape": [0], "data_offsets": [0, 0]}}


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"format": None}, SessionFileError, "expected a saved session, got a safetensors file of 1 tensors"),
        ({"format": "pt"}, SessionFileError, "expected a saved session"),
        ({"version": "2"}, SessionFileError, "newer hearthlm .version 2 of the format, this one reads 1.; update"),
        ({"version": "9" * 5000}, SessionFileError, r"newer hearthlm \(version 9{20} of"),
        ({"version": "2", "more": "x", "extra": None}, SessionFileError, "newer hearthlm"),
        ({"version": None}, CorruptFileError, "version: expected a number, got ''"),
        ({"version": "0"}, CorruptFileError, "version: expected a number, got '0'"),
        ({"version": "-1"}, CorruptFileError, "version: expected a number, got '-1'"),
        ({"version": "٢"}, CorruptFileError, "version: expected a number"),
        (
            {"extra": None},
            CorruptFileError,
            "expected checksum, extra, .*, got 'checksum, fingerprint, format, version'",
        ),
        ({"fingerprint": None}, CorruptFileError, "__metadata__: expected checksum"),
        ({"checksum": None}, CorruptFileError, "__metadata__: expected checksum"),
        ({"more": "x"}, CorruptFileError, "__metadata__: expected checksum"),
        ({"checksum": ""}, CorruptFileError, "checksum: expected 64 digits, once in the header"),
        ({"checksum": "a" * 63}, CorruptFileError, "checksum: expected 64 digits"),
        ({"checksum": "\ud800" * 64}, CorruptFileError, "checksum: expected 64 digits"),
        ({"checksum": "g" * 64}, CorruptFileError, "the file declares 'gggggggggggg'.*changed after it was written"),
        ({"extra": "[]"}, CorruptFileError, "extra: expected a JSON object, got list"),
        ({"extra": "{"}, CorruptFileError, "extra: not valid JSON"),
        ({"extra": '{"a":NaN}'}, CorruptFileError, "extra: not valid JSON"),
        ({"extra": '{"a":' + "[" * 40 + "]" * 40 + "}"}, CorruptFileError, "extra: the JSON is nested more than 32"),
        ({"extra": "\ud800"}, CorruptFileError, "extra: expected text in UTF-8"),
        ({"tensors": {}}, CorruptFileError, "tensor 'ids': expected I32"),
        (
            {"tensors": {"ids": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}},
            CorruptFileError,
            "expected I32",
        ),
        ({"tensors": {"ids": {"dtype": "I32", "shape": [0, 1], "data_offsets": [0, 0]}}}, CorruptFileError, "'ids'"),
        (
            {"tensors": {"ids": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}, "data": b"\0\0\0\x80"},
            CorruptFileError,
            "'ids': expected I32 .tokens., none below 0",
        ),
        (
            {"tensors": EMPTY_IDS | {"full": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}},
            CorruptFileError,
            "tensor 'full': expected 'ids' or 'state.<name>'",
        ),
        (
            {"tensors": EMPTY_IDS | {"state.a": {"dtype": "BOOL", "shape": [0], "data_offsets": [0, 0]}}},
            CorruptFileError,
            "tensor 'state.a': expected F64, .*, got BOOL",
        ),
        (
            {"tensors": EMPTY_IDS | {"state.a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}},
            TruncatedFileError,
            "expected 4398046",
        ),
        (
            {"tensors": EMPTY_IDS | {"state.a": {"dtype": "F999", "shape": [0], "data_offsets": [0, 0]}}},
            UnsupportedModelError,
            "'F999' is not known",
        ),
    ],
)
def test_every_refusal_has_a_name(
    metadata: dict[str, Any], error: type[HearthLMError], message: str, tmp_path: Path
) -> None:
    assert read(forged(tmp_path / "whole")).ids.size == 0
    with pytest.raises(error, match=message) as caught:
        read(forged(tmp_path / "s", **metadata))
    assert str(tmp_path) in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "whole").read_bytes()
    path = tmp_path / "s"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(TruncatedFileError):
            read(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptFileError, match="1 bytes after the last tensor"):
        read(path)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "whole", extra={"a": 1}).read_bytes())
    path = tmp_path / "s"
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises((ModelFormatError, UnsupportedModelError)):
            read(path)
        data[bit // 8] ^= 1 << bit % 8


def test_mutated_sessions(tmp_path: Path) -> None:
    """Half of the mutations get a right checksum, so that what comes after it is reached."""
    data = write(tmp_path / "whole").read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "s"
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for case in range(max(5000, CASES)):
            dice = random.Random(case)
            changed = mutated_header(data, head, dice) if case % 4 < 2 else mutated(data, head, dice)
            if case % 2:
                changed = signed(changed)
            path.write_bytes(changed)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            start = time.perf_counter()
            try:
                file = read(path)
                for values in file.arrays.values():
                    values.tobytes()
                outcomes["read"] += 1
            except (ModelFormatError, UnsupportedModelError) as error:
                assert str(error), f"case {case}: an error without a message"
                outcomes["refused"] += 1
            except Exception as error:
                error.add_note(f"case {case}")
                raise
            assert time.perf_counter() - start < MAX_SECONDS, f"case {case}"
            assert tracemalloc.get_traced_memory()[1] - before < len(changed) + MAX_MORE_BYTES, f"case {case}"
    finally:
        tracemalloc.stop()
    assert outcomes["read"] > 50 and outcomes["refused"] > 50, outcomes


def mutated_header(data: bytes, head: int, dice: random.Random) -> bytes:
    """Change one value of the header's JSON."""
    header = json.loads(data[8:head])
    values: list[Any] = [*INTERESTING, -1, 1.5, None, True, "", "1", "2", "F16", "I64", "BOOL", "\ud800", [], {}, NONE]
    entry = header[dice.choice(list(header))]
    key = dice.choice(list(entry))
    if isinstance(entry[key], list) and dice.random() < 0.7:
        entry[key][dice.randrange(len(entry[key]))] = dice.choice(values)
    elif dice.random() < 0.8:
        entry[key] = dice.choice(values)
    else:
        header[dice.choice(["", "ids", "state.", "state.ids", "__metadata__"])] = dice.choice([entry, *values])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[head:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": [-1]}, "ids: expected a sequence of 0 to"),
        ({"ids": [1 << 31]}, "ids: expected a sequence of 0 to"),
        ({"ids": [[1]]}, "ids: expected a sequence of 0 to"),
        ({"arrays": {"a": np.zeros(1, bool)}}, r"arrays\['a'\]: expected float64, .*, got bool"),
        ({"arrays": {"a": np.zeros(1, ">f4")}}, "got >f4"),
        ({"arrays": {"a": np.zeros(1, object)}}, "got object"),
        ({"extra": {"a": float("nan")}}, "extra: expected what JSON can hold"),
        ({"extra": {"a": object()}}, "extra: expected what JSON can hold"),
        ({"extra": {1: 1, "1": 2}}, "extra: expected what JSON can hold"),
        ({"extra": {"a": [0] * 300_000}}, "extra: expected what JSON can hold"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "s", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s")
    before = path.read_bytes()
    opened = read(path)

    class Full:
        def update(self, data: object) -> None:
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(hashlib, "blake2b", lambda *args, **kwargs: Full())
    with pytest.raises(OSError, match="no space left"):
        write(path, ids=[1])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
    write(path, arrays={})
    assert np.array_equal(opened.arrays["full"], ARRAYS["full"])  # of the replaced file


def test_a_link_is_replaced_and_what_it_names_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(target)
    read(write(link))
    assert not link.is_symlink()
    assert target.read_text() == "precious"


def test_a_link_is_followed_when_read_and_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write(tmp_path / "s"))
    assert read(tmp_path / "link").ids.tolist() == IDS
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileExistsError):
        write(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere")


def test_memory_is_not_multiplied(tmp_path: Path) -> None:
    arrays = {"full": np.zeros(32 << 20, np.uint8)}
    tracemalloc.start()
    try:
        path = write(tmp_path / "s", arrays=arrays)
        file = read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert file.arrays["full"].size == 32 << 20
