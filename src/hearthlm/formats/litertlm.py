"""LiteRT-LM's `.litertlm`: a header that lists sections, and the sections, each at a multiple of 16 KiB.

Bytes 0 to 31: `LITERTLM`, the version (u32 major, minor, patch), 4 zero bytes, the u64 end of the header. From byte 32
to there a flatbuffer, LiteRTLMMetaData of google-ai-edge/LiteRT-LM's schema/core/litertlm_header_schema.fbs.

A section has a kind and labels; the label `model_type` says which of the models a section of LiteRT is, or belongs to.
Sections of the kind `binary` whose label `hearthlm` names an entry of a `.task` are this package's own: what a `.task`
says and no other section can. Other readers pass them over.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats.atomic_file import replace_file
from hearthlm.formats.content import Content, FileRange, content_pieces, content_size
from hearthlm.formats.flatbuffer import FlatbufferReader, Table
from hearthlm.formats.litert_model import LiteRtModel, read_litert_model
from hearthlm.formats.litertlm_header import SectionEntry, build_litertlm_header
from hearthlm.formats.llm_metadata import LlmMetadata, read_executor_metadata, read_llm_metadata
from hearthlm.formats.llm_metadata_pb2 import ExecutorMetadata
from hearthlm.formats.llm_parameters import prompt_templates
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.mapped_file import MappedFile

MAGIC = b"LITERTLM"
VERSION = (1, 7, 0)  # what is written: the header of litert-lm-builder 0.18.1
MAX_HEADER_BYTES = 1 << 20
MAX_SECTIONS = 1024
MAX_TOKENIZER_BYTES = 64 << 20
SECTION_ALIGNMENT = 16384

MODEL_TYPE = "model_type"
LANGUAGE_MODEL = "tf_lite_prefill_decode"
OWN_LABEL = "hearthlm"
METADATA = "METADATA"  # as in a `.task`

_HEADER_START = 32
_UINT8, _UINT32, _UINT64 = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<Q")
_STRING_VALUE = 9  # of the union VData
_KINDS = {
    1: "binary",
    2: "deprecated",
    3: "tflite",
    4: "sentencepiece",
    5: "LlmMetadata",
    6: "tokenizer.json",
    7: "tflite weights",
    8: "EmbeddingMetadata",
    9: "ExecutorMetadata",
    10: "TtsMetadata",
    11: "AsrMetadata",
}
_NUMBERS = {name: number for number, name in _KINDS.items()}
_ONLY_TEXT = "only models that read and write text are understood: prompts are text, and images and audio are not read"


@dataclass(frozen=True)
class Section:
    """Say what a section is and where it lies; `labels` are its texts in the header, such as `model_type`."""

    kind: str
    labels: dict[str, str]
    offset: int
    num_bytes: int

    @property
    def name(self) -> str:
        """What errors call it: its kind, and which model it belongs to."""
        return f"{self.kind} {self.labels[MODEL_TYPE]!r:.80}" if MODEL_TYPE in self.labels else self.kind


@dataclass(frozen=True)
class NewSection:
    """Say what `write_litertlm` is to write as a section: one of the kinds of `Section`, and where its bytes are."""

    kind: str
    content: Content
    labels: Mapping[str, str] = field(default_factory=dict)


class LiteRtLmFile:
    """An open `.litertlm`: its `version`, its own `labels` and its `sections`, in the order of the file."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self._file = file
        head = bytes(file.read(0, _HEADER_START, "header"))
        if head[:8] != MAGIC:
            raise CorruptFileError(f"{file.path}: expected {MAGIC!r} at offset 0, got {head[:8]!r}")
        self.version: tuple[int, int, int] = struct.unpack_from("<3I", head, 8)
        if self.version[0] != 1:
            raise UnsupportedModelError(f"{file.path}: expected version 1 of the format, got {self.version[0]}")
        (end,) = _UINT64.unpack_from(head, 24)
        if not _HEADER_START < end <= MAX_HEADER_BYTES:
            raise CorruptFileError(
                f"{file.path}: end of the header: expected {_HEADER_START + 1} to {MAX_HEADER_BYTES}, got {end}"
            )
        where = f"{file.path}: header"
        with file.read(_HEADER_START, end - _HEADER_START, "header") as data:
            reader = FlatbufferReader(data, where)
            root = Table(reader, reader.unpack(_UINT32, 0, "root table"), "root table")
            system = root.table(0, "system metadata")
            self.labels = {} if system is None else dict(_texts(system))
            listed = root.table(1, "list of sections")
            if listed is None:
                raise CorruptFileError(f"{where}: there is no list of sections")
            if listed.count(0) > MAX_SECTIONS:
                raise CorruptFileError(f"{where}: expected at most {MAX_SECTIONS} sections, got {listed.count(0)}")
            self.sections = tuple(_section(table) for table in listed.tables(0, "section"))
        previous_end, previous = end, "the header"
        for number, section in sorted(enumerate(self.sections), key=lambda item: item[1].offset):
            what = f"section {number} ({section.kind})"
            if section.num_bytes < 0:
                raise CorruptFileError(f"{file.path}: {what}: ends before it begins")
            file.check_range(section.offset, section.num_bytes, what)
            if section.offset < previous_end:
                raise CorruptFileError(f"{file.path}: {what}: overlaps {previous}, which ends at {previous_end}")
            previous_end, previous = section.offset + section.num_bytes, what

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the file at `path`, reading its header only.

        Raises TruncatedFileError and CorruptFileError for bytes that contradict the format, UnsupportedModelError for
        another version of it.
        """
        file = MappedFile(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def release_pages(self) -> None:
        """Let the system take back the memory of what has been read; what is read again comes from the file again."""
        self._file.release_pages()

    def data(self, section: Section) -> memoryview:
        """Return the bytes of a section as they lie in the file."""
        return self._file.read(section.offset, section.num_bytes, section.kind)

    def content(self, section: Section) -> FileRange:
        """Return where a section lies, for a writer to copy it from."""
        return FileRange(self._file, section.offset, section.num_bytes, section.kind)

    @cached_property
    def language_model(self) -> Section:
        """The section of the model that answers.

        Raises UnsupportedModelError, naming the section, where there is none, more than one, or one that the model
        needs beside it: an encoder of images or audio, an embedder of its own. A drafter only makes a model faster,
        and may lie beside it.
        """
        models = [s for s in self.sections if s.kind == "tflite"]
        found = [s for s in models if s.labels.get(MODEL_TYPE, LANGUAGE_MODEL) == LANGUAGE_MODEL]
        for section in models:
            model_type = section.labels.get(MODEL_TYPE, LANGUAGE_MODEL)
            if section not in found and not model_type.startswith("tf_lite_mtp_"):
                raise UnsupportedModelError(f"{self.path}: section {section.name}: {_ONLY_TEXT}")
        if len(found) != 1:
            listed = ", ".join(s.name for s in self.sections[:12]) or "none"
            raise UnsupportedModelError(
                f"{self.path}: expected one section tflite {LANGUAGE_MODEL!r}, got {len(found)}; "
                f"the sections are {listed}"
            )
        return found[0]

    @cached_property
    def model(self) -> LiteRtModel:
        """What the language model offers; raises as `language_model` does, and where it is no LiteRT model."""
        section = self.language_model
        with self.data(section) as data:
            return read_litert_model(data, f"{self.path}: {section.name}")

    @cached_property
    def weights(self) -> Section | None:
        """The section with weights that the language model has outside of its own, None where there is none."""
        return self._of_language_model("tflite weights")

    @cached_property
    def metadata(self) -> LlmMetadata:
        """How the model is talked to.

        Raises UnsupportedModelError where the file does not say, CorruptFileError for a message that is not sound.
        """
        section = next((s for s in self.sections if s.kind == "LlmMetadata"), None)
        if section is None:
            raise UnsupportedModelError(f"{self.path}: expected a language model with a section LlmMetadata")
        with self.data(section) as data:
            found = read_llm_metadata(data, f"{self.path}: {section.kind}")
        if (parameters := self.task_parameters) is not None:
            return found.with_session_prefix(prompt_templates(parameters))
        return found

    @cached_property
    def executor_metadata(self) -> ExecutorMetadata | None:
        """What the file says of the buffers that go into the model and come out again, None where it says nothing."""
        section = next((s for s in self.sections if s.kind == "ExecutorMetadata"), None)
        if section is None:
            return None
        with self.data(section) as data:
            return read_executor_metadata(data, f"{self.path}: {section.kind}")

    @cached_property
    def task_parameters(self) -> LlmParameters | None:
        """The METADATA of the `.task` that the file was made from, None where LlmMetadata says the same."""
        if (data := self.own_entry(METADATA)) is None:
            return None
        try:
            return LlmParameters.FromString(data)
        except DecodeError:
            raise CorruptFileError(f"{self.path}: {OWN_LABEL} {METADATA}: expected a message LlmParameters") from None

    @property
    def bytes_to_unicode(self) -> bool:
        """Whether the SentencePiece model is spelled in GPT-2's alphabet."""
        number = LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE
        return self.task_parameters is not None and number in self.task_parameters.input_output_normalizations

    def own_entry(self, name: str) -> bytes | None:
        """Return what this package put into the file under the name of an entry of a `.task`, None if nothing."""
        for section in self.sections:
            if section.kind == "binary" and section.labels.get(OWN_LABEL) == name:
                return self._small(section)
        return None

    @property
    def sentencepiece_model(self) -> bytes | None:
        """The SentencePiece model, None where there is none."""
        section = self._of_language_model("sentencepiece")
        return None if section is None else self._small(section)

    @property
    def tokenizer_json(self) -> bytes | None:
        """The tokenizer.json, None where there is none; CorruptFileError for one that does not unpack.

        It is stored as its u64 size and a zlib stream; MAX_TOKENIZER_BYTES at most are unpacked.
        """
        section = self._of_language_model("tokenizer.json")
        if section is None:
            return None
        where = f"{self.path}: {section.kind}"
        data = self.data(section)
        if len(data) < 8:
            raise CorruptFileError(f"{where}: expected a size of 8 bytes, got {len(data)}")
        (size,) = _UINT64.unpack_from(data)
        if size > MAX_TOKENIZER_BYTES:
            raise CorruptFileError(f"{where}: expected at most {MAX_TOKENIZER_BYTES} bytes, got {size}")
        try:
            unpacked = zlib.decompressobj().decompress(data[8:], size + 1)
        except zlib.error as error:
            raise CorruptFileError(f"{where}: cannot be unpacked: {error}") from None
        if len(unpacked) != size:
            raise CorruptFileError(f"{where}: expected {size} bytes unpacked, got {len(unpacked)} or more")
        return unpacked

    def _of_language_model(self, kind: str) -> Section | None:
        """Return the first section of a kind that is the language model's: labelled so, or not labelled."""
        for section in self.sections:
            if section.kind == kind and section.labels.get(MODEL_TYPE, LANGUAGE_MODEL) == LANGUAGE_MODEL:
                return section
        return None

    def _small(self, section: Section) -> bytes:
        if section.num_bytes > MAX_TOKENIZER_BYTES:
            raise CorruptFileError(
                f"{self.path}: {section.name}: expected at most {MAX_TOKENIZER_BYTES} bytes, got {section.num_bytes}"
            )
        return bytes(self.data(section))


def write_litertlm(
    path: str | os.PathLike[str],
    sections: Sequence[NewSection],
    labels: Mapping[str, str] | None = None,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write a `.litertlm` of `sections` in their order; `labels` are the file's own, such as {"Authors": ...}.

    Sections begin at multiples of 16 KiB, with zeros between them, and the header is byte for byte that of
    litert-lm-builder 0.18.1 for the same labels, which here are only those that are given: no time and no random
    number, so that the same content gives the same bytes. Content is copied in pieces of 1 MiB, and `path` appears
    whole or not at all. `progress` is called with the part that is done, 0 to 1.

    Raises ValueError for a kind of section that there is not.
    """
    for section in sections:
        if section.kind not in _NUMBERS:
            raise ValueError(f"section {section.kind!r}: expected one of {', '.join(_NUMBERS)}")
    sizes = [content_size(section.content) for section in sections]
    total, done = max(1, sum(sizes)), 0

    def header(begins: Sequence[int]) -> bytes:
        places = zip(sections, begins, sizes, strict=True)
        entries = [SectionEntry(_NUMBERS[s.kind], s.labels, begin, begin + size) for s, begin, size in places]
        return build_litertlm_header(labels or {}, entries)

    header_end = _HEADER_START + len(header([1] * len(sections)))
    begins, end = [], header_end
    for size in sizes:
        begins.append(_aligned(end))
        end = begins[-1] + size
    with replace_file(path) as file:
        file.write(MAGIC + struct.pack("<4IQ", *VERSION, 0, header_end) + header(begins))
        for section, begin, size in zip(sections, begins, sizes, strict=True):
            file.write(bytes(begin - file.tell()))
            for piece in content_pieces(section.content):
                file.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done / total)
            if file.tell() != begin + size:
                raise ValueError(
                    f"section {section.kind}: expected {size} bytes, got {file.tell() - begin}; "
                    "did a file change meanwhile?"
                )


def packed_tokenizer(tokenizer_json: bytes) -> bytes:
    """Return the section of a tokenizer.json: its u64 size and a zlib stream."""
    return _UINT64.pack(len(tokenizer_json)) + zlib.compress(tokenizer_json)


def _aligned(offset: int) -> int:
    return offset + -offset % SECTION_ALIGNMENT


def _section(table: Table) -> Section:
    begin, end = table.scalar(1, _UINT64), table.scalar(2, _UINT64)
    number = table.scalar(3, _UINT8)
    return Section(_KINDS.get(number, f"type {number}"), dict(_texts(table)), begin, end - begin)


def _texts(table: Table) -> Iterator[tuple[str, str]]:
    """Yield the pairs of key and value whose value is a text; numbers say nothing that is needed here."""
    for pair in table.tables(0, "entry"):
        value = pair.table(2, "value")
        if value is not None and pair.scalar(1, _UINT8) == _STRING_VALUE:
            yield pair.text(0), value.text(0)
