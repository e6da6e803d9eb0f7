"""LiteRT-LM's files: sections are found where they lie, and a header that lies is refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from hearthlm import CorruptFileError, HearthLMError, TruncatedFileError, UnsupportedModelError, inspect_file
from hearthlm.formats.flatbuffer import Fields, Scalar, build_flatbuffer
from hearthlm.formats.litertlm import LiteRtLmFile, NewSection, packed_tokenizer, write_litertlm
from hearthlm.formats.llm_parameters_pb2 import LlmParameters

GOLDEN = Path(__file__).parent / "golden" / "litert"
LLAMA = GOLDEN / "hf_llama_wi8.litertlm"
GEMMA = GOLDEN / "gemma3_mask_transposed_q8_ekv128.litertlm"
LANGUAGE_MODEL = {"model_type": "tf_lite_prefill_decode"}


def section(kind: int, begin: int, end: int) -> Fields:
    text: Fields = {0: "tf_lite_prefill_decode"}
    label: Fields = {0: "model_type", 1: Scalar("B", 9), 2: text}
    return {0: [label], 1: Scalar("Q", begin), 2: Scalar("Q", end), 3: Scalar("B", kind)}


def write(path: Path, *sections: Fields, data: bytes = b"", root: Fields | None = None, version: int = 1) -> Path:
    """Write a file whose data begins at byte 1024."""
    header = build_flatbuffer({1: {0: list(sections)}} if root is None else root, b"\0\0\0\0")
    head = b"LITERTLM" + struct.pack("<4IQ", version, 0, 0, 0, 32 + len(header))
    path.write_bytes((head + header).ljust(1024, b"\0") + data)
    return path


def test_sections_of_a_real_file_are_found() -> None:
    with LiteRtLmFile.open(LLAMA) as file:
        assert file.version == (1, 7, 0)
        kinds = [s.kind for s in file.sections]
        assert kinds == ["LlmMetadata", "ExecutorMetadata", "sentencepiece", "tflite"]
        model = file.sections[-1]
        assert bytes(file.data(model)[4:8]) == b"TFL3"
        assert model.labels["model_type"] == "tf_lite_prefill_decode"
        assert all(s.offset % 16384 == 0 for s in file.sections)
        assert file.sentencepiece_model is not None
        assert file.tokenizer_json is None


def test_a_real_file_is_described() -> None:
    document = inspect_file(LLAMA).to_json()
    assert document["format"] == "litertlm"
    assert document["tokenizer"] == {"kind": "sentencepiece", "vocab_size": 512}
    assert document["metadata"]["prefill_lengths"] == {"prefill_32": 32, "prefill_8": 8}
    assert document["metadata"]["kv_cache"]["num_tokens"] == 128
    assert [entry["kind"] for entry in document["metadata"]["entries"]][-1] == "tflite"
    metadata = document["metadata"]
    assert (metadata["start_token"], metadata["pad_token"], metadata["max_num_tokens"]) == ("<s>", "<pad>", 128)
    assert metadata["stop_tokens"][:2] == [(1,), " <end_of_turn>\n"]
    assert (metadata["llm_model_type"], metadata["has_chat_template"]) == ("generic_model", True)
    assert metadata["state_buffers"]["kv_cache_v_1"] == 3
    assert "problem" not in metadata


def test_models_beside_the_one_that_answers_are_a_problem_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.litertlm"
    with LiteRtLmFile.open(LLAMA) as file:
        found = [NewSection(s.kind, file.content(s), s.labels) for s in file.sections]
        encoder = NewSection("tflite", bytes(file.data(file.language_model)), {"model_type": "tf_lite_vision_encoder"})
        write_litertlm(path, [encoder, *found])
    metadata = inspect_file(path).to_json()["metadata"]
    assert "section tflite 'tf_lite_vision_encoder': only models that read and write text" in metadata["problem"]
    assert [signature["name"] for signature in metadata["signatures"]] == ["prefill_8", "prefill_32", "decode"]


def test_a_packed_tokenizer_is_unpacked_as_far_as_it_says(tmp_path: Path) -> None:
    packed = zlib.compress(b'{"a": 1}')
    for size, says in ((8, None), (7, "expected 7 bytes unpacked"), (9, "expected 9 bytes"), (1 << 40, "at most")):
        data = struct.pack("<Q", size) + packed
        path = write(tmp_path / "a.litertlm", section(6, 1024, 1024 + len(data)), data=data)
        with LiteRtLmFile.open(path) as file:
            if says is None:
                assert file.tokenizer_json == b'{"a": 1}'
                continue
            with pytest.raises(CorruptFileError, match=says):
                file.tokenizer_json  # noqa: B018
    for data, says in ((b"1234", "a size of 8 bytes, got 4"), (struct.pack("<Q", 8) + b"junk", "cannot be unpacked")):
        path = write(tmp_path / "a.litertlm", section(6, 1024, 1024 + len(data)), data=data)
        with LiteRtLmFile.open(path) as file, pytest.raises(CorruptFileError, match=says):
            file.tokenizer_json  # noqa: B018


@pytest.mark.parametrize(
    ("sections", "error", "says"),
    [
        ([section(3, 1024, 2000)], TruncatedFileError, r"section 0 \(tflite\): expected 976 bytes at offset 1024"),
        ([section(3, 2**63, 2**63 + 8)], TruncatedFileError, "section 0"),
        ([section(3, 1030, 1026)], CorruptFileError, "ends before it begins"),
        ([section(3, 16, 1030)], CorruptFileError, "overlaps the header"),
        ([section(3, 1024, 1030), section(4, 1028, 1032)], CorruptFileError, r"section 1 .* overlaps section 0"),
        ([section(1, 1024, 1024)] * 1025, CorruptFileError, "at most 1024 sections, got 1025"),
    ],
)
def test_a_section_that_lies_is_refused(
    sections: list[Fields], error: type[HearthLMError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        LiteRtLmFile.open(write(tmp_path / "a.litertlm", *sections, data=bytes(16)))


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.litertlm"
    with pytest.raises(UnsupportedModelError, match="expected version 1 of the format, got 2"):
        LiteRtLmFile.open(write(path, version=2))
    with pytest.raises(CorruptFileError, match="there is no list of sections"):
        LiteRtLmFile.open(write(path, root={0: {}}))
    whole = write(path, section(3, 1024, 1032), data=bytes(8)).read_bytes()
    for end, says in ((32, "end of the header"), (0, "end of the header"), (2**40, "end of the header")):
        path.write_bytes(whole[:24] + struct.pack("<Q", end) + whole[32:])
        with pytest.raises(CorruptFileError, match=says):
            LiteRtLmFile.open(path)
    path.write_bytes(b"LITERTLN" + whole[8:])
    with pytest.raises(CorruptFileError, match="expected b'LITERTLM' at offset 0"):
        LiteRtLmFile.open(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = LLAMA.read_bytes()
    path = tmp_path / "a.litertlm"
    for size in (*range(1, 600, 7), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(HearthLMError):
            LiteRtLmFile.open(path)


@pytest.mark.parametrize("path", [LLAMA, GEMMA], ids=["llama", "gemma"])
def test_a_file_is_written_as_the_builder_writes_it(path: Path, tmp_path: Path) -> None:
    done: list[float] = []
    with LiteRtLmFile.open(path) as file:
        sections = [NewSection(s.kind, file.content(s), s.labels) for s in file.sections]
        write_litertlm(tmp_path / "a.litertlm", sections, file.labels, done.append)
    assert (tmp_path / "a.litertlm").read_bytes() == path.read_bytes()
    assert done[-1] == 1.0 and done == sorted(done)


def test_a_file_is_written_from_bytes_and_files(tmp_path: Path) -> None:
    model = tmp_path / "m.tflite"
    model.write_bytes(b"abcdTFL3")
    sections = [
        NewSection("tokenizer.json", packed_tokenizer(b"{}")),
        NewSection("binary", b""),
        NewSection("tflite", model, LANGUAGE_MODEL | {"backend_constraint": "cpu"}),
    ]
    for _ in range(2):
        write_litertlm(tmp_path / "a.litertlm", sections)
        assert (tmp_path / "a.litertlm").stat().st_size == 2 * 16384 + 8
        with LiteRtLmFile.open(tmp_path / "a.litertlm") as file:
            assert file.version == (1, 7, 0)
            assert file.labels == {}
            assert [s.offset for s in file.sections] == [16384, 2 * 16384, 2 * 16384]
            assert file.tokenizer_json == b"{}"
            assert file.language_model == file.sections[2]
            assert file.language_model.labels["backend_constraint"] == "cpu"
            assert bytes(file.data(file.language_model)) == b"abcdTFL3"
            assert file.weights is None
    with pytest.raises(ValueError, match="section 'zip': expected one of binary, "):
        write_litertlm(tmp_path / "b.litertlm", [NewSection("zip", b"")])
    assert not (tmp_path / "b.litertlm").exists()


def test_other_models_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.litertlm"
    text = NewSection("tflite", b"text", LANGUAGE_MODEL)
    for kind in ("vision_encoder", "audio_adapter", "embedder", "per_layer_embedder", "artisan_text_decoder"):
        write_litertlm(path, [text, NewSection("tflite", b"x", {"model_type": f"tf_lite_{kind}"})])
        with (
            LiteRtLmFile.open(path) as file,
            pytest.raises(
                UnsupportedModelError, match=f"section tflite 'tf_lite_{kind}': only models that read and write text"
            ),
        ):
            file.language_model  # noqa: B018
    drafter = NewSection("tflite", b"x", {"model_type": "tf_lite_mtp_drafter"})
    weights = NewSection("tflite weights", b"w", LANGUAGE_MODEL)
    others = NewSection("tflite weights", b"w", {"model_type": "tf_lite_mtp_drafter"})
    write_litertlm(path, [others, drafter, text, weights])
    with LiteRtLmFile.open(path) as file:
        assert file.language_model.offset == file.sections[2].offset
        assert file.weights == file.sections[3]
    for sections, says in (([], "got 0; the sections are none"), ([text, text], "got 2; the sections are tflite 'tf_")):
        write_litertlm(path, sections)
        with LiteRtLmFile.open(path) as file, pytest.raises(UnsupportedModelError, match=says):
            file.language_model  # noqa: B018


def test_metadata_is_read_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.litertlm"
    write_litertlm(path, [])
    with LiteRtLmFile.open(path) as file:
        assert file.executor_metadata is None
        assert not file.bytes_to_unicode
        with pytest.raises(UnsupportedModelError, match="expected a language model with a section LlmMetadata"):
            file.metadata  # noqa: B018
    parameters = LlmParameters(input_output_normalizations=[LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE])
    parameters.prompt_template.session_prefix = "Be kind."
    own = NewSection("binary", parameters.SerializeToString(), {"hearthlm": "METADATA"})
    write_litertlm(path, [NewSection("binary", b"\xff"), own, NewSection("LlmMetadata", b"\x0a\x03\x12\x01a")])
    with LiteRtLmFile.open(path) as file:
        assert file.bytes_to_unicode
        assert file.metadata.start_token == "a"
        assert file.metadata.templates is not None
        assert file.metadata.templates.session_prefix == "Be kind."
    write_litertlm(path, [NewSection("binary", b"\xff", {"hearthlm": "METADATA"})])
    with (
        LiteRtLmFile.open(path) as file,
        pytest.raises(CorruptFileError, match="hearthlm METADATA: expected a message"),
    ):
        file.task_parameters  # noqa: B018
