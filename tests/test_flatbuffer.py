"""Flatbuffers are read within their bytes, and what is built is read back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearthlm.errors import CorruptFileError, ModelFormatError, TruncatedFileError
from hearthlm.formats.flatbuffer import (
    MAX_STRING_BYTES,
    MAX_VECTOR_LENGTH,
    Fields,
    FlatbufferReader,
    Packed,
    Scalar,
    Shared,
    Table,
    build_flatbuffer,
)

UINT32 = struct.Struct("<I")
UINT64 = struct.Struct("<Q")

# root: {0: uint32 7, 2: "ab", 3: [1, -2], 4: [{0: uint64 9}, {}]}
FIELDS: Fields = {0: Scalar("I", 7), 2: "ab", 3: (1, -2), 4: [{0: Scalar("Q", 9)}, {}]}


def root(data: bytes) -> Table:
    return FlatbufferReader(data, "file").root(b"TEST")


def test_what_is_built_is_read_back() -> None:
    table = root(build_flatbuffer(FIELDS, b"TEST"))
    assert table.scalar(0, UINT32) == 7
    assert table.scalar(1, UINT32, default=3) == 3
    assert table.scalar(99, UINT32) == 0
    assert table.text(2) == "ab"
    assert table.text(1) == ""
    assert table.integers(3) == (1, -2)
    assert table.count(4) == 2
    assert [child.scalar(0, UINT64) for child in table.tables(4, "child")] == [9, 0]
    assert list(table.tables(1, "child")) == []


def test_the_bytes_are_these() -> None:
    data = build_flatbuffer({0: Scalar("I", 7), 1: "ab"}, b"TEST")
    assert data == (
        b"\x10\0\0\0TEST"  # the root is 16 bytes on
        b"\x08\0\x0c\0\x04\0\x08\0"  # vtable: 8 bytes, table of 12 bytes, fields at 4 and 8
        b"\x08\0\0\0\x07\0\0\0\x04\0\0\0"  # 8 bytes back to the vtable, 7, the text is 4 bytes on
        b"\x02\0\0\0ab\0"
    )


def test_values_are_aligned_and_their_size_does_not_depend_on_numbers() -> None:
    small = build_flatbuffer({0: "x", 1: Scalar("Q", 0), 2: Scalar("B", 1)}, b"TEST")
    large = build_flatbuffer({0: "x", 1: Scalar("Q", 2**64 - 1), 2: Scalar("B", 1)}, b"TEST")
    assert len(small) == len(large)
    assert large.index(b"\xff" * 8) % 8 == 0
    assert root(large).scalar(1, UINT64) == 2**64 - 1


def test_equal_tables_share_a_vtable() -> None:
    one = len(build_flatbuffer({0: [{0: Scalar("I", 1)}]}, b"TEST"))
    two = len(build_flatbuffer({0: [{0: Scalar("I", 1)}, {0: Scalar("I", 2)}]}, b"TEST"))
    assert two - one == 4 + 8


@given(st.binary(max_size=64))
def test_random_bytes_are_refused_or_read(data: bytes) -> None:
    try:
        table = root(b"\x08\0\0\0TEST" + data)
        table.scalar(0, UINT64)
        table.text(1)
        table.integers(2)
        list(table.tables(3, "child"))
    except ModelFormatError:
        pass


@pytest.mark.parametrize("size", range(len(build_flatbuffer(FIELDS, b"TEST")) - 4))
def test_every_truncation_is_named(size: int) -> None:
    data = build_flatbuffer(FIELDS, b"TEST")
    with pytest.raises(TruncatedFileError, match=f"there are {size}"):
        table = root(data[:size])
        table.text(2), table.integers(3)
        for child in table.tables(4, "child"):
            child.scalar(0, UINT64)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", TruncatedFileError, "identifier: expected 8 bytes at offset 0, but there are 0"),
        (b"\0\0\0\0GGUF", CorruptFileError, "expected b'TEST' at offset 4, got b'GGUF'"),
        (b"\xff\xff\xff\xffTEST", TruncatedFileError, "root table: expected 4 bytes at offset 4294967295"),
        (b"\x08\0\0\0TEST\x09\0\0\0", CorruptFileError, "vtable of root table: lies 1 bytes before the beginning"),
        (
            b"\x08\0\0\0TEST\0\0\0\x80",
            TruncatedFileError,
            "vtable of root table: expected 2 bytes at offset 2147483656",
        ),
        (
            b"\x0c\0\0\0TEST\x02\0\x04\0\x04\0\0\0",
            CorruptFileError,
            "a vtable of 2 and a table of 4 bytes are impossible",
        ),
        (
            b"\x0c\0\0\0TEST\x05\0\x04\0\x04\0\0\0",
            CorruptFileError,
            "a vtable of 5 and a table of 4 bytes are impossible",
        ),
        (
            b"\x0c\0\0\0TEST\x04\0\x03\0\x04\0\0\0",
            CorruptFileError,
            "a vtable of 4 and a table of 3 bytes are impossible",
        ),
        (b"\x0c\0\0\0TEST\x04\0\x05\0\x04\0\0\0", TruncatedFileError, "root table: expected 5 bytes at offset 12"),
        (b"\x0c\0\0\0TEST\xfe\0\x04\0\x04\0\0\0", TruncatedFileError, "vtable of root table: expected 254 bytes"),
    ],
)
def test_a_broken_root_is_refused(data: bytes, error: type[ModelFormatError], message: str) -> None:
    with pytest.raises(error, match=f"file: .*{message}" if message[0] != "e" else message):
        root(data)


def one_field(offset: int, value: bytes) -> Table:
    vtable = struct.pack("<3H", 6, 8, offset)
    return root(b"\x10\0\0\0TEST" + vtable + b"\0\0" + struct.pack("<i", 8) + value)


@pytest.mark.parametrize("offset", [1, 3, 5, 8, 0xFFFF])
def test_a_field_outside_its_table_is_refused(offset: int) -> None:
    with pytest.raises(CorruptFileError, match=f"field 0 of root table: offset {offset} lies outside the table's 8"):
        one_field(offset, b"\0\0\0\0").scalar(0, UINT32)


def test_a_vector_longer_than_the_file_is_refused_before_it_is_read() -> None:
    table = one_field(4, b"\x04\0\0\0\xff\xff\xff\xff")
    with pytest.raises(TruncatedFileError, match="expected 17179869180 bytes at offset 28, but there are 28"):
        table.integers(0)
    with pytest.raises(TruncatedFileError, match="expected 4294967295 bytes at offset 28"):
        table.text(0)
    with pytest.raises(TruncatedFileError, match="child vector: expected 17179869180 bytes"):
        list(table.tables(0, "child"))


def test_a_text_that_is_not_utf8_or_too_long_is_refused() -> None:
    with pytest.raises(CorruptFileError, match="the text is not UTF-8"):
        one_field(4, b"\x04\0\0\0\x01\0\0\0\xff").text(0)
    length = MAX_STRING_BYTES + 1
    with pytest.raises(CorruptFileError, match=f"at most {MAX_STRING_BYTES} bytes of text, got {length}"):
        one_field(4, b"\x04\0\0\0" + struct.pack("<I", length) + b"x" * length).text(0)


def test_an_absurd_count_is_refused() -> None:
    count = MAX_VECTOR_LENGTH + 1
    table = one_field(4, b"\x04\0\0\0" + struct.pack("<I", count) + bytes(4 * count))
    with pytest.raises(CorruptFileError, match=f"expected at most {MAX_VECTOR_LENGTH} entries, got {count}"):
        list(table.tables(0, "child"))


def test_a_table_that_is_its_own_child_ends() -> None:
    data = bytearray(build_flatbuffer({0: [{}]}, b"TEST"))
    position = data.index(struct.pack("<I", 1), 16) + 4
    struct.pack_into("<I", data, position, (struct.unpack_from("<I", data)[0] - position) % 2**32)
    with pytest.raises(ModelFormatError):
        list(root(bytes(data)).tables(0, "child"))


def test_packed_numbers_are_aligned_and_shared_tables_written_once() -> None:
    shared = Shared({0: Packed(b"\x01\x02\x03", 3, 16), 1: Packed(struct.pack("<2q", 5, 6), 2, 8)})
    data = build_flatbuffer({0: [{0: shared}, {0: "x", 1: shared}], 1: Scalar("f", 0.5)}, b"TEST")
    assert data.count(b"\x01\x02\x03") == 1
    assert data.index(b"\x01\x02\x03") % 16 == 0
    assert data.index(struct.pack("<2q", 5, 6)) % 8 == 0
    first, second = (
        table.table(field, "shared") for table, field in zip(root(data).tables(0, "t"), (0, 1), strict=True)
    )
    assert first is not None and second is not None
    assert first.byte_range(0) == second.byte_range(0) == (data.index(b"\x01\x02\x03"), 3)
