"""MediaPipe's `.task`: a LiteRT model, its tokenizer and an `LlmParameters` message, stored in a zip archive.

Every entry is stored as it is, its data at a multiple of 4 bytes, and zero bytes lie between the entries: the first 4
bytes of a file are zero. Entries are read where they lie in the mapped file; nothing is extracted, and no name in an
archive is ever used for more than to look an entry up.

Some entries are this package's own, and others pass them over: the files of a Hugging Face tokenizer, verbatim, beside
the SentencePiece model that stands for them in TOKENIZER_MODEL; and, where a `.litertlm` was put into a `.task`, its
LlmMetadata, if METADATA has no words for something in it.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import TracebackType
from typing import BinaryIO, Self

from google.protobuf.message import DecodeError

from hearthlm.errors import CorruptFileError, UnsafeFileError, UnsupportedModelError
from hearthlm.formats.atomic_file import replace_file
from hearthlm.formats.content import Content, FileRange, content_pieces, content_size
from hearthlm.formats.litert_model import LiteRtModel, read_litert_model
from hearthlm.formats.llm_metadata import (
    LlmMetadata,
    is_llm_metadata,
    read_llm_metadata,
    read_task_metadata,
    to_llm_parameters,
)
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.mapped_file import MappedFile
from hearthlm.formats.stored_zip import ZipEntry, read_zip_entries, write_stored_zip

MODEL = "TF_LITE_PREFILL_DECODE"
TOKENIZER = "TOKENIZER_MODEL"
METADATA = "METADATA"
EMBEDDER = "TF_LITE_EMBEDDER"
PER_LAYER_EMBEDDER = "TF_LITE_PER_LAYER_EMBEDDER"
VISION_ENCODER = "TF_LITE_VISION_ENCODER"
VISION_ADAPTER = "TF_LITE_VISION_ADAPTER"
TOKENIZER_JSON = "HEARTHLM_TOKENIZER_JSON"
TOKENIZER_CONFIG = "HEARTHLM_TOKENIZER_CONFIG"
CHAT_TEMPLATE = "HEARTHLM_CHAT_TEMPLATE"
LLM_METADATA = "HEARTHLM_LLM_METADATA"
EXECUTOR_METADATA = "EXECUTOR_METADATA"  # LiteRT-LM's

# What an entry is called as a file of its own; names in an archive are its maker's.
FILE_NAMES: Mapping[str, str] = {
    MODEL: "model.tflite",
    TOKENIZER: "tokenizer.model",
    METADATA: "metadata.pb",
    EMBEDDER: "embedder.tflite",
    PER_LAYER_EMBEDDER: "per_layer_embedder.tflite",
    VISION_ENCODER: "vision_encoder.tflite",
    VISION_ADAPTER: "vision_adapter.tflite",
    TOKENIZER_JSON: "tokenizer.json",
    TOKENIZER_CONFIG: "tokenizer_config.json",
    CHAT_TEMPLATE: "chat_template.jinja",
    LLM_METADATA: "llm_metadata.pb",
    EXECUTOR_METADATA: "executor_metadata.pb",
}

# Models beside the one that answers, by what they are for.
_OTHER_MODELS: Mapping[str, str] = {
    EMBEDDER: "an embedder of its own",
    PER_LAYER_EMBEDDER: "an embedder of its own",
    VISION_ENCODER: "images",
    VISION_ADAPTER: "images",
}

MAX_ENTRIES = 256
MAX_METADATA_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 64 << 20
MAX_PADDING_BYTES = 1 << 16

_ALIGNMENT = 4
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class TaskBundle:
    """An open `.task`. What it hands out shares the file's pages, and keeps them alive after `close`."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self.path = file.path
        self.entries: Mapping[str, ZipEntry] = read_zip_entries(
            file, max_entries=MAX_ENTRIES, max_padding_bytes=MAX_PADDING_BYTES
        )
        for name in self.entries:
            if not _NAME.fullmatch(name) or name.endswith("."):
                raise UnsafeFileError(
                    f"{self.path}: the entry name {name[:120]!r} is not one of letters, digits, '_', '-' and '.'"
                )
        if any(name not in self.entries for name in (MODEL, TOKENIZER, METADATA)):
            raise UnsupportedModelError(
                f"{self.path}: expected the bundle of a language model, with entries {MODEL}, {TOKENIZER} and "
                f"{METADATA}; got {', '.join([*self.entries][:12]) or 'none'}"
            )
        head = bytes(self.entry(MODEL)[:8])
        if head[4:8] != b"TFL3":
            raise UnsupportedModelError(f"{self.path}: {MODEL}: expected a LiteRT model, it begins with {head!r}")
        self.parameters: LlmParameters = self._read_parameters()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the file at `path`, reading its directory and metadata only.

        Raises ModelFormatError for bytes that contradict the format or themselves, UnsafeFileError for names, links and
        hidden content that no bundle needs, UnsupportedModelError for compressed or encrypted entries and for a bundle
        of another kind.
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

    def entry(self, name: str) -> memoryview:
        """Return the bytes of an entry, where they lie in the file; raises KeyError if there is none of this name."""
        found = self.entries[name]
        return self._file.read(found.offset, found.num_bytes, name)

    def content(self, name: str) -> FileRange:
        """Return where an entry lies, for a writer to copy it from; raises KeyError if there is none of this name."""
        found = self.entries[name]
        return FileRange(self._file, found.offset, found.num_bytes, name)

    def copy_entry(self, name: str, file: BinaryIO) -> None:
        """Write the bytes of an entry to a file, in pieces that do not stay in memory."""
        for piece in content_pieces(self.content(name)):
            file.write(piece)

    @cached_property
    def model(self) -> LiteRtModel:
        """What the model offers; raises ModelFormatError or UnsupportedModelError where it is no LiteRT model."""
        return read_litert_model(self.entry(MODEL), f"{self.path}: {MODEL}")

    def check_text_only(self) -> None:
        """Raise UnsupportedModelError, naming the entry, for a model that does not read and write text by itself."""
        for name, what in _OTHER_MODELS.items():
            if name in self.entries:
                raise UnsupportedModelError(
                    f"{self.path}: entry {name}: expected a model that reads and writes text by itself; this one needs "
                    f"{what}, which is not read"
                )

    @cached_property
    def llm_metadata(self) -> LlmMetadata:
        """How the model is talked to; raises CorruptFileError for a message that is not sound.

        METADATA is MediaPipe's LlmParameters, or, in bundles made for LiteRT-LM alone, LlmMetadata.
        """
        template = self.chat_template
        try:
            text = None if template is None else template.decode()
        except UnicodeDecodeError:
            raise CorruptFileError(f"{self.path}: {CHAT_TEMPLATE}: the text is not UTF-8") from None
        told = read_task_metadata(self._small(METADATA, MAX_METADATA_BYTES), text, f"{self.path}: {METADATA}")
        if LLM_METADATA in self.entries:
            found = read_llm_metadata(self._small(LLM_METADATA, MAX_METADATA_BYTES), f"{self.path}: {LLM_METADATA}")
            return found.with_session_prefix(told.templates)
        return told

    @property
    def sentencepiece_model(self) -> bytes:
        """The serialised SentencePiece model that every reader uses."""
        return self._small(TOKENIZER, MAX_TOKENIZER_BYTES)

    @property
    def tokenizer_json(self) -> bytes | None:
        """The `tokenizer.json` that the SentencePiece model stands for, if it was made from one."""
        return self._small(TOKENIZER_JSON, MAX_TOKENIZER_BYTES) if TOKENIZER_JSON in self.entries else None

    @property
    def tokenizer_config(self) -> bytes | None:
        """The `tokenizer_config.json` beside it, if there was one."""
        return self._small(TOKENIZER_CONFIG, MAX_TOKENIZER_BYTES) if TOKENIZER_CONFIG in self.entries else None

    @property
    def chat_template(self) -> bytes | None:
        """The `chat_template.jinja` beside it, if there was one."""
        return self._small(CHAT_TEMPLATE, MAX_TOKENIZER_BYTES) if CHAT_TEMPLATE in self.entries else None

    @property
    def bytes_to_unicode(self) -> bool:
        """Whether the SentencePiece model is spelled in GPT-2's alphabet."""
        return LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE in self.parameters.input_output_normalizations

    def _read_parameters(self) -> LlmParameters:
        data = self._small(METADATA, MAX_METADATA_BYTES)
        if is_llm_metadata(data):
            return to_llm_parameters(read_llm_metadata(data, f"{self.path}: {METADATA}"), lambda ids: None)
        try:
            return LlmParameters.FromString(data)
        except DecodeError:
            raise CorruptFileError(f"{self.path}: {METADATA}: expected a message LlmParameters") from None

    def small_entry(self, name: str) -> bytes | None:
        """Return a copy of a small entry, None if there is none of this name; raises CorruptFileError as others do."""
        return self._small(name, MAX_TOKENIZER_BYTES) if name in self.entries else None

    def _small(self, name: str, max_bytes: int) -> bytes:
        """Return a copy of an entry that is read whole, its checksum compared."""
        entry = self.entries[name]
        if entry.num_bytes > max_bytes:
            raise CorruptFileError(f"{self.path}: {name}: expected at most {max_bytes} bytes, got {entry.num_bytes}")
        data = bytes(self.entry(name))
        if (crc := zlib.crc32(data)) != entry.crc32:
            raise CorruptFileError(f"{self.path}: {name}: expected the checksum {entry.crc32:08x}, got {crc:08x}")
        return data


def write_task_bundle(
    path: str | os.PathLike[str],
    entries: Mapping[str, Content],
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write the bundle of `entries`, each given by its bytes, as the file to copy or as a range of one, in their order.

    The same content gives the same bytes: those of MediaPipe's bundler but for the times of entries, which are
    1980-01-01 here. Files are copied in pieces of 1 MiB, and `path` appears whole or not at all. `progress` is called
    with the part that is done, 0 to 1.
    """
    sizes = {name: content_size(value) for name, value in entries.items()}
    total = max(1, sum(sizes.values()))
    done = 0

    def pieces(value: Content) -> Iterator[bytes | memoryview]:
        nonlocal done
        for piece in content_pieces(value):
            yield piece
            done += len(piece)
            if progress is not None:
                progress(done / total)

    with replace_file(path) as file:
        write_stored_zip(file, ((n, sizes[n], pieces(value)) for n, value in entries.items()), alignment=_ALIGNMENT)
