"""`.task` files: MediaPipe's are read, ours written as they are, and a hostile archive is refused, nothing written."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from litert_models import litert_model

from hearthlm.bundler import extract_bundle
from hearthlm.errors import (
    CorruptFileError,
    HearthLMError,
    TruncatedFileError,
    UnsafeFileError,
    UnsupportedModelError,
)
from hearthlm.formats import llm_metadata_pb2 as messages
from hearthlm.formats import stored_zip
from hearthlm.formats.llm_metadata import LlmMetadata, write_llm_metadata
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.sampler_defaults import SamplerDefaults
from hearthlm.formats.task_bundle import (
    CHAT_TEMPLATE,
    LLM_METADATA,
    METADATA,
    MODEL,
    TOKENIZER,
    TOKENIZER_JSON,
    TaskBundle,
    write_task_bundle,
)
from hearthlm.model_info import inspect_file
from hearthlm.models.family import PromptTemplates

GOLDEN = Path(__file__).parent / "golden"
BUNDLES = sorted([*GOLDEN.glob("outputs/*/bundle_*.task"), *GOLDEN.glob("litert/*.task")])

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
SPM = (GOLDEN / "inputs/spm64/tokenizer.model").read_bytes()
PARTS = {MODEL: b"\0\0\0\0TFL3", TOKENIZER: b"t", METADATA: LlmParameters(start_token="<bos>").SerializeToString()}


def written(parts: dict[str, bytes] = PARTS) -> bytes:
    """Return the archive that the writer makes of these entries."""
    file = io.BytesIO()
    stored_zip.write_stored_zip(file, ((n, len(d), [d]) for n, d in parts.items()), alignment=4)
    return file.getvalue()


def zipped(*extra: zipfile.ZipInfo, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive by the standard library with the parts and more entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in PARTS.items():
            file.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
        for info in extra:
            file.writestr(info, b"/etc/passwd", compress_type=compression)
    return buffer.getvalue()


def named(name: bytes) -> bytes:
    """Return an archive with one more entry, of any name."""
    data = bytearray(written({**PARTS, "#" * len(name): b""}))
    for position in (data.rindex(LOCAL) + 30, data.rindex(CENTRAL) + 46):
        data[position : position + len(name)] = name
    return bytes(data)


def patched(data: bytes, signature: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    position = -1
    for _ in range(which + 1):
        position = data.index(signature, position + 1)
    return data[: position + offset] + value + data[position + offset + len(value) :]


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_bundle_of_mediapipe(path: Path) -> None:
    with TaskBundle.open(path) as bundle, zipfile.ZipFile(path) as archive:
        assert list(bundle.entries) == archive.namelist()
        for name, entry in bundle.entries.items():
            assert entry.offset % 4 == 0
            assert bundle.entry(name) == archive.read(name)
        assert bundle.sentencepiece_model == archive.read(TOKENIZER)
        assert bundle.parameters.start_token in ("<bos>", "<s>")
        assert bundle.bytes_to_unicode == path.stem.endswith("b2u")
        assert bundle.tokenizer_json is None
        assert bundle.tokenizer_config is None
        assert bundle.chat_template is None


def test_entries_are_views_of_the_mapped_file() -> None:
    bundle = TaskBundle.open(BUNDLES[0])
    view = bundle.entry(MODEL)
    bundle.close()
    assert bytes(view[4:8]) == b"TFL3"
    with pytest.raises(ValueError, match="the file is closed"):
        bundle.entry(MODEL)
    with pytest.raises(KeyError):
        bundle.entry("x")


def test_what_is_written_is_read_by_the_standard_library_and_here(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(litert_model())
    seen: list[float] = []
    parts: dict[str, bytes | Path] = {**PARTS, MODEL: tmp_path / "model", "EMPTY": b"", "MORE": b"x" * 5}
    write_task_bundle(tmp_path / "a.task", parts, seen.append)
    write_task_bundle(tmp_path / "b.task", parts)
    assert (tmp_path / "a.task").read_bytes() == (tmp_path / "b.task").read_bytes()
    assert seen == sorted(seen)
    assert seen[-1] == 1
    with zipfile.ZipFile(tmp_path / "a.task") as archive, TaskBundle.open(tmp_path / "a.task") as bundle:
        assert archive.testzip() is None
        assert archive.namelist() == list(parts) == list(bundle.entries)
        assert archive.read(MODEL) == bundle.entry(MODEL) == litert_model()
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert list(bundle.model.signatures) == ["prefill_8", "decode"]
    assert (tmp_path / "a.task").read_bytes()[:6] == b"\0\0\0\0PK"


@pytest.mark.parametrize("limit", [0, 9, 100, 1 << 20])
def test_what_needs_64_bits_is_written_as_zip64(limit: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = {**PARTS, MODEL: litert_model()}
    monkeypatch.setattr(stored_zip, "_LARGE", limit)
    data = written(parts)
    path = tmp_path / "m.task"
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive, TaskBundle.open(path) as bundle:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == parts
        assert {name: bytes(bundle.entry(name)) for name in bundle.entries} == parts
        assert all(entry.offset % 4 == 0 for entry in bundle.entries.values())


def test_a_large_model_is_copied_in_pieces(tmp_path: Path) -> None:
    with (tmp_path / "model").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        write_task_bundle(tmp_path / "m.task", {MODEL: tmp_path / "model", TOKENIZER: b"t", METADATA: b""})
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    with zipfile.ZipFile(tmp_path / "m.task") as archive:
        assert archive.testzip() is None


def test_nothing_is_left_of_a_bundle_that_could_not_be_written(tmp_path: Path) -> None:
    target = tmp_path / "m.task"
    target.write_bytes(b"old")
    (tmp_path / "model").write_bytes(bytes(3 << 20))

    def cut(part: float) -> None:
        (tmp_path / "model").write_bytes(b"")

    with pytest.raises(ValueError, match=f"entry '{MODEL}': expected 3145728 bytes, got"):
        write_task_bundle(target, {MODEL: tmp_path / "model"}, cut)
    with pytest.raises(FileNotFoundError):
        write_task_bundle(target, {MODEL: tmp_path / "none"})
    with pytest.raises(IsADirectoryError):
        write_task_bundle(target, {MODEL: tmp_path})
    assert target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"m.task", "model"}


# Names that lead out of a folder, or mean something else than a file in it, on one system or another.
SLIP_NAMES = [
    b"../x", b"..", b".", b"a/../../x", b"a/..", b"./x", b"/x", b"//x", b"/etc/passwd", b"///x",
    b"..\\x", b"a\\..\\x", b"\\x", b"\\\\host\\share\\x", b"\\\\?\\C:\\x", b"C:x", b"C:\\x", b"c:/x", b"x:y",
    b"x::$DATA",     b"a/b", b"a/", b"a//b", b"~/x", b"~", b"$HOME", b"%TEMP%", b"a\0b", b"x\0", b"x\n",
    b"x ", b" x", b"x.", b"...", b".hidden", b"-o", b"\xe2\x80\xaex", b"\xc3\xa9", b"\xff", b"\xef\xbc\x8fx",
    b"%2e%2e%2fx", b"a|b", b"x" * 129,
]  # fmt: skip
LINK = zipfile.ZipInfo("link")
LINK.create_system, LINK.external_attr = 3, 0o120777 << 16
PIPE = zipfile.ZipInfo("pipe")
PIPE.create_system, PIPE.external_attr = 3, 0o010644 << 16
SECOND_NAME = zipfile.ZipInfo("name")
SECOND_NAME.extra = struct.pack("<2HBI", 0x7075, 6, 1, 0) + b"x"
OTHER = zipped()
SMALL = written()
DIRECTORY = SMALL.index(CENTRAL)


def with_gap(filler: bytes) -> bytes:
    """Return the archive with bytes between the last entry and the directory."""
    return patched(SMALL[:DIRECTORY] + filler + SMALL[DIRECTORY:], END, 16, struct.pack("<I", DIRECTORY + len(filler)))


def polyglot() -> bytes:
    """Return an archive whose end record has, as its comment, all of another one that is shifted to fit."""
    inner = bytearray(SMALL)
    shift = len(OTHER)
    directory = DIRECTORY
    for which in range(len(PARTS)):
        position = inner.index(CENTRAL, directory)
        offset = struct.unpack_from("<I", inner, position + 42)[0]
        struct.pack_into("<I", inner, position + 42, offset + shift)
        directory = position + 1
        assert which < len(PARTS)
    struct.pack_into("<I", inner, inner.index(END) + 16, DIRECTORY + shift)
    return OTHER[:-2] + struct.pack("<H", len(inner)) + bytes(inner)


def bomb() -> bytes:
    """Return a few kilobytes that would become 32 MiB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in (MODEL, TOKENIZER, METADATA, "MORE"):
            file.writestr(zipfile.ZipInfo(name), bytes(8 << 20), compress_type=zipfile.ZIP_DEFLATED)
    assert len(buffer.getvalue()) < 42_000
    return buffer.getvalue()


HOSTILE: dict[str, tuple[bytes, type[HearthLMError] | tuple[type[HearthLMError], ...], str]] = {
    "deflated": (zipped(compression=zipfile.ZIP_DEFLATED), UnsupportedModelError, "got compression method 8"),
    "a bomb": (bomb(), UnsupportedModelError, "got compression method 8"),
    "stored, of 4 GiB": (
        patched(patched(SMALL, CENTRAL, 20, b"\xfe\xff\xff\xff" * 2), LOCAL, 18, b"\xfe\xff\xff\xff" * 2),
        TruncatedFileError,
        "expected 4294967294 bytes at offset 56",
    ),
    "encrypted": (patched(SMALL, CENTRAL, 8, b"\x01"), UnsupportedModelError, "the entry is encrypted"),
    "strongly encrypted": (patched(SMALL, CENTRAL, 8, b"\x40"), UnsupportedModelError, "the entry is encrypted"),
    "a masked header": (patched(SMALL, CENTRAL, 9, b"\x20"), UnsupportedModelError, "the entry is encrypted"),
    "a link": (zipped(LINK), UnsafeFileError, "'link' is a link or a device"),
    "a pipe": (zipped(PIPE), UnsafeFileError, "'pipe' is a link or a device"),
    "a second name": (zipped(SECOND_NAME), UnsafeFileError, "has a second name"),
    "a comment": (SMALL[:-2] + b"\x01\0x", UnsafeFileError, "a comment, in which another archive could hide"),
    "another archive as the comment": (polyglot(), UnsafeFileError, "bytes 0 to"),
    "a program before it": (b"#!/bin/sh\n" + SMALL, CorruptFileError, "central directory: expected it to end at"),
    "bytes between entries": (patched(SMALL, LOCAL, -1, b"x", 1), UnsafeFileError, "belong to no entry"),
    "bytes before the first entry": (b"x" + SMALL[1:], UnsafeFileError, "bytes 0 to 4 belong to no entry"),
    "bytes before the directory": (with_gap(b"x"), UnsafeFileError, "belong to no entry"),
    "much padding": (with_gap(bytes(65_537)), UnsafeFileError, "expected at most 65536 zero bytes"),
    "a size of 64 bits that is not there": (
        patched(SMALL, CENTRAL, 20, b"\xff\xff\xff\xff" * 2), CorruptFileError, "announces 64-bit values"),
    "an offset of 64 bits that is not there": (
        patched(SMALL, CENTRAL, 42, b"\xff\xff\xff\xff"), CorruptFileError, "announces 64-bit values"),
    "a directory of 64 bits that is not there": (
        patched(SMALL, END, 16, b"\xff\xff\xff\xff"), CorruptFileError, "central directory: expected it to end at"),
    "65535 entries": (patched(SMALL, END, 8, b"\xff\xff\xff\xff"), CorruptFileError, "at most 256 entries, got 65535"),
    "an entry twice": (
        written({**PARTS, "METADATB": b""}).replace(b"METADATB", b"METADATA"), CorruptFileError, "appears twice"),
    "an entry over another": (
        patched(SMALL, CENTRAL, 42, struct.pack("<I", 4), 1), CorruptFileError, "its local header contradicts"),
    "two names": (patched(SMALL, LOCAL, 30, b"X"), CorruptFileError, "its local header contradicts"),
    "two sizes": (patched(SMALL, LOCAL, 22, b"\x01"), CorruptFileError, "its local header contradicts"),
    "two methods": (patched(SMALL, LOCAL, 8, b"\x08"), CorruptFileError, "its local header contradicts"),
    "two flags": (patched(SMALL, LOCAL, 6, b"\x08"), CorruptFileError, "its local header contradicts"),
    "another checksum of the metadata": (
        patched(SMALL, CENTRAL, 16, b"\0\0\0\0", 2), CorruptFileError, "METADATA: expected the checksum 00000000"),
    "metadata that is no message": (written({**PARTS, METADATA: b"\xff"}), CorruptFileError, "a message LlmParameters"),
    "metadata of more than 1 MiB": (
        written({**PARTS, METADATA: bytes((1 << 20) + 1)}), CorruptFileError, "METADATA: expected at most 1048576"),
    "a model that is none": (written({**PARTS, MODEL: b"GGUF"}), UnsupportedModelError, "expected a LiteRT model"),
    "another bundle": (written({"a.tflite": b"x"}), UnsupportedModelError, "of a language model, .* a.tflite"),
    "nothing": (written({}), UnsupportedModelError, "got none"),
    **{f"the name {name!r}": (named(name), (UnsafeFileError, CorruptFileError), "name") for name in SLIP_NAMES},
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_archive_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    data, error, reason = HOSTILE[name]
    path = tmp_path / "m.task"
    path.write_bytes(data)
    with pytest.raises(error, match=reason):
        TaskBundle.open(path)
    for action in (inspect_file, lambda path: extract_bundle(path, tmp_path / "out")):
        with pytest.raises(HearthLMError):
            action(path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.task"]


def test_the_same_archive_with_good_names_is_read(tmp_path: Path) -> None:
    assert len(SLIP_NAMES) >= 40
    for data in (named(b"good_name-1.0"), zipped(), SMALL, with_gap(b""), with_gap(bytes(65_536))):
        path = tmp_path / "m.task"
        path.write_bytes(data)
        with TaskBundle.open(path) as bundle:
            assert bundle.parameters.start_token == "<bos>"


def test_seventy_thousand_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.task"
    path.write_bytes(written({str(i): b"" for i in range(257)}))
    with pytest.raises(CorruptFileError, match="expected at most 256 entries, got 257"):
        TaskBundle.open(path)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(70_000):
            archive.writestr(zipfile.ZipInfo(str(i)), b"")
    with pytest.raises(CorruptFileError, match="expected at most 256 entries, got 70000"):
        TaskBundle.open(path)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    inner = written({METADATA: PARTS[METADATA]})
    local = inner[
        inner.index(LOCAL) : inner.index(CENTRAL)
    ]  # the header and the data of an entry, inside the data of another
    data = written({**PARTS, MODEL: PARTS[MODEL] + local})
    data = patched(data, CENTRAL, 42, struct.pack("<I", 4 + 30 + len(MODEL) + len(PARTS[MODEL])), 2)
    path = tmp_path / "m.task"
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="'METADATA': overlaps the entry before it"):
        TaskBundle.open(path)


def test_a_bundle_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.task"
    for size in range(len(SMALL)):
        path.write_bytes(SMALL[:size])
        with pytest.raises((CorruptFileError, TruncatedFileError)):
            TaskBundle.open(path)


@pytest.mark.parametrize("name", [TOKENIZER, TOKENIZER_JSON])
def test_a_tokenizer_with_a_flipped_bit_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.task"
    data = written({**PARTS, name: b"tokenizer"})
    path.write_bytes(data.replace(b"tokenizer", b"tokenizes"))
    read: dict[str, Callable[[TaskBundle], object]] = {
        TOKENIZER: lambda bundle: bundle.sentencepiece_model,
        TOKENIZER_JSON: lambda bundle: bundle.tokenizer_json,
    }
    with TaskBundle.open(path) as bundle, pytest.raises(CorruptFileError, match=f"{name}: expected the checksum"):
        read[name](bundle)
    assert zlib.crc32(b"tokenizer") != zlib.crc32(b"tokenizes")


def test_how_a_model_is_talked_to(tmp_path: Path) -> None:
    path = tmp_path / "a.task"
    path.write_bytes(written({**PARTS, CHAT_TEMPLATE: "{{ messages }} é".encode()}))
    with TaskBundle.open(path) as bundle:
        assert bundle.llm_metadata == LlmMetadata(start_token="<bos>", chat_template="{{ messages }} é")
    told = LlmMetadata(start_token=(2,), sampler=SamplerDefaults(top_k=40), model_type="gemma3")
    said = {METADATA: b"2\x05<bos>B\x08\x0a\x06kindly", LLM_METADATA: write_llm_metadata(told)}
    path.write_bytes(written({**PARTS, **said}))
    with TaskBundle.open(path) as bundle:
        assert bundle.llm_metadata == replace(told, templates=PromptTemplates(session_prefix="kindly"))
    # Its turns of images are no text in LlmParameters; the start token tells that it is the other message.
    model_type = messages.LlmModelType(gemma3=messages.OtherModel.FromString(b"\x0a\x02\x0a\x00\x18\x80\x07"))
    message = messages.LlmMetadata(
        start_token=messages.TokenUnion(token_str="<s>"),
        stop_tokens=[messages.TokenUnion(token_ids=messages.TokenIds(ids=[1]))],
        llm_model_type=model_type,
        jinja_prompt_template="é",
    )
    path.write_bytes(written({**PARTS, METADATA: message.SerializeToString()}))
    with TaskBundle.open(path) as bundle:
        assert (bundle.llm_metadata.start_token, bundle.llm_metadata.model_type) == ("<s>", "gemma3")
        assert bundle.llm_metadata.chat_template == "é"
        assert bundle.parameters.start_token == "<s>"
        assert list(bundle.parameters.stop_token_ids) == [1]


def test_a_message_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.task"
    for entries, says in (
        ({LLM_METADATA: b"\xff"}, "HEARTHLM_LLM_METADATA: expected a message LlmMetadata"),
        ({CHAT_TEMPLATE: b"\xff"}, "HEARTHLM_CHAT_TEMPLATE: the text is not UTF-8"),
        ({METADATA: b"\x0a\x03\x12\x01a(" + b"\xff" * 9 + b"\x01"}, "METADATA: max_num_tokens: expected"),
        ({METADATA: b"\xff"}, "METADATA: expected a message LlmParameters"),
    ):
        path.write_bytes(written({**PARTS, **entries}))
        with pytest.raises(CorruptFileError, match=says), TaskBundle.open(path) as bundle:
            bundle.llm_metadata  # noqa: B018
