"""A .task as a .litertlm and back: the same contents, and what has no words in the other is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hearthlm import UnsupportedModelError
from hearthlm.cli import cli
from hearthlm.formats import llm_metadata_pb2 as messages
from hearthlm.formats.content import Content
from hearthlm.formats.litertlm import LiteRtLmFile, NewSection, write_litertlm
from hearthlm.formats.llm_metadata import read_llm_metadata, write_llm_metadata
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.task_bundle import (
    CHAT_TEMPLATE,
    EXECUTOR_METADATA,
    LLM_METADATA,
    METADATA,
    MODEL,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VISION_ENCODER,
    TaskBundle,
    write_task_bundle,
)
from hearthlm.models.family import PromptTemplate
from hearthlm.repacker import Repacked, repack
from hearthlm.tokenizers.hugging_face_to_sentencepiece import to_sentencepiece

GOLDEN = Path(__file__).parent / "golden"
DEFAULT = GOLDEN / "litert" / "gemma3_q8_ekv128.task"
TRANSPOSED = GOLDEN / "litert" / "gemma3_mask_transposed_q8_ekv128.task"
BUILT = GOLDEN / "litert" / "gemma3_mask_transposed_q8_ekv128.litertlm"
EXPORTED = GOLDEN / "litert" / "hf_llama_wi8.litertlm"
BYTE_LEVEL = GOLDEN / "inputs" / "hf_bpe"


def contents(path: Path) -> dict[str, bytes]:
    """Return the entries of a .task, or the sections of a .litertlm, whose labels may not be kept."""
    if path.suffix == ".task":
        with TaskBundle.open(path) as bundle:
            return {name: bytes(bundle.entry(name)) for name in bundle.entries}
    with LiteRtLmFile.open(path) as file:
        return {s.labels.get("hearthlm", s.kind): bytes(file.data(s)) for s in file.sections}


def there_and_back(path: Path, folder: Path) -> tuple[Repacked, Repacked]:
    """Repack twice, and compare."""
    endings = (".litertlm", ".task") if path.suffix == ".task" else (".task", ".litertlm")
    there = repack(path, folder / f"there{endings[0]}")
    back = repack(there.path, folder / f"back{endings[1]}")
    before, after = contents(path), contents(back.path)
    if "ExecutorMetadata" not in before:
        after.pop("ExecutorMetadata", None)  # follows from the model, and is added
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == set()
    return there, back


def changed(path: Path, entries: dict[str, Any], source: Path = TRANSPOSED) -> Path:
    """Write a copy of a .task with other entries; None takes one away."""
    with TaskBundle.open(source) as bundle:
        found: dict[str, Content] = {name: bytes(bundle.entry(name)) for name in bundle.entries}
        write_task_bundle(path, {n: v for n, v in (found | entries).items() if v is not None})
    return path


@pytest.mark.parametrize("path", [DEFAULT, TRANSPOSED], ids=["default", "transposed"])
def test_a_task_becomes_a_litertlm_and_is_the_same_again(path: Path, tmp_path: Path) -> None:
    done: list[float] = []
    there, back = there_and_back(path, tmp_path)
    assert there.notes == () and back.notes == ()
    assert repack(path, tmp_path / "b.litertlm", done.append).path.read_bytes() == there.path.read_bytes()
    assert done[-1] == 1.0
    assert back.path.read_bytes() == changed(tmp_path / "again.task", {}, path).read_bytes()
    with TaskBundle.open(path) as bundle, LiteRtLmFile.open(there.path) as file:
        assert [s.kind for s in file.sections] == ["LlmMetadata", "ExecutorMetadata", "sentencepiece", "tflite"]
        told = bundle.llm_metadata
        assert file.metadata == replace(told, max_num_tokens=128, model_type="generic_model")
        assert told.start_token == "<s>" and told.stop_tokens == ("</s>", "<end_of_turn>")
        assert file.executor_metadata is not None
        axes = {b.sequence_axis for b in file.executor_metadata.llm_executor_metadata.state_buffers}
        assert axes == ({1} if path == DEFAULT else {2, 3})


def test_a_litertlm_becomes_a_task_and_is_the_same_again(tmp_path: Path) -> None:
    there, back = there_and_back(BUILT, tmp_path)
    assert [note.split(" = ")[0] for note in there.notes] == [
        "the label Authors", "the label uuid", "the label creation_timestamp"
    ]  # fmt: skip
    assert back.notes == ()
    with TaskBundle.open(there.path) as bundle, TaskBundle.open(TRANSPOSED) as original:
        assert bundle.parameters.start_token == "<s>"
        assert list(bundle.parameters.stop_tokens) == ["</s>", "<end_of_turn>"]
        assert bundle.parameters.prompt_templates == original.parameters.prompt_templates
        assert bundle.parameters.prompt_template == original.parameters.prompt_template
        assert bundle.llm_metadata.start_token == (2,)  # as it is in the .litertlm


def test_what_only_a_litertlm_says_travels_along(tmp_path: Path) -> None:
    there, _ = there_and_back(EXPORTED, tmp_path)
    assert "pad_token: only hearthlm will find it; METADATA has no field for it" in there.notes
    with TaskBundle.open(there.path) as bundle, LiteRtLmFile.open(EXPORTED) as file:
        assert bundle.llm_metadata == file.metadata
        assert bundle.parameters.start_token == "<s>"
        assert ".<end_of_turn>\n" in bundle.parameters.stop_tokens
        assert bundle.chat_template is not None and bundle.chat_template.decode() == file.metadata.chat_template

    with LiteRtLmFile.open(BUILT) as file:
        message = messages.LlmMetadata.FromString(write_llm_metadata(file.metadata))
        message.sampler_params.k = 40
        message.llm_model_type.gemma3.SetInParent()
        message.kv_cache_init_value = 1
        message.stop_tokens.add().token_ids.ids.extend([3, 3])
        message.max_num_tokens = 100
        sections = [
            NewSection(s.kind, message.SerializeToString() if s.kind == "LlmMetadata" else file.content(s), s.labels)
            for s in file.sections
        ]
        sections[-1] = replace(sections[-1], labels={**sections[-1].labels, "backend_constraint": "cpu"})
        write_litertlm(tmp_path / "more.litertlm", sections)
    there, _ = there_and_back(tmp_path / "more.litertlm", tmp_path)
    assert [note.split(":")[0] for note in there.notes] == [
        "the label backend_constraint = 'cpu' of section tflite 'tf_lite_prefill_decode' is not kept",
        "sampler_params", "llm_model_type", "max_num_tokens", "kv_cache_init_value", "the stop sequence [3, 3]",
    ]  # fmt: skip
    with TaskBundle.open(there.path) as bundle:
        assert bundle.llm_metadata.sampler is not None and bundle.llm_metadata.sampler.top_k == 40


def test_what_only_a_task_says_travels_along(tmp_path: Path) -> None:
    message = LlmParameters(start_token="<bos>", stop_tokens=["<eos>"], user_role_token="<u>")
    message.prompt_template.session_prefix = "Be kind."
    message.prompt_template.prompt_prefix = "<start_of_turn>user\n"
    path = changed(tmp_path / "a.task", {METADATA: message.SerializeToString()})
    there, back = there_and_back(path, tmp_path)
    assert [note.split(":")[0] for note in there.notes] == ["the system prompt", "user_role_token"]
    assert back.notes == ()
    with LiteRtLmFile.open(there.path) as file:
        assert file.metadata.templates is not None
        assert file.metadata.templates.session_prefix == "Be kind."
        assert file.metadata.templates.user == PromptTemplate("<start_of_turn>user\n")
        section = next(s for s in file.sections if s.kind == "LlmMetadata")
        seen_by_others = read_llm_metadata(file.data(section), "m").templates
        assert seen_by_others is not None and seen_by_others.session_prefix == ""


def test_a_hugging_face_tokenizer_travels_exactly(tmp_path: Path) -> None:
    data, config = (BYTE_LEVEL / "tokenizer.json").read_bytes(), b'{"eos_token": "<|endoftext|>"}'
    message = LlmParameters(start_token="<|endoftext|>", stop_tokens=["<|endoftext|>"])
    message.input_output_normalizations.append(LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE)
    entries: dict[str, Any] = {
        TOKENIZER: to_sentencepiece(data, config), METADATA: message.SerializeToString(), TOKENIZER_JSON: data,
        TOKENIZER_CONFIG: config, CHAT_TEMPLATE: b"{{ messages }}",
    }  # fmt: skip
    there, back = there_and_back(changed(tmp_path / "a.task", entries), tmp_path)
    assert there.notes == () and back.notes == ()
    with LiteRtLmFile.open(there.path) as file:
        kinds = ["LlmMetadata", "ExecutorMetadata", "tokenizer.json", "tflite", "binary"]
        assert [s.kind for s in file.sections] == kinds
        assert file.tokenizer_json == data
        assert file.metadata.chat_template == "{{ messages }}"
        assert file.own_entry(TOKENIZER_CONFIG) == config
    entries[TOKENIZER] = entries[TOKENIZER] + b"\xf8\x07\x01"  # another SentencePiece model beside it
    there_and_back(changed(tmp_path / "b.task", entries), tmp_path)
    entries |= {TOKENIZER_JSON: None, TOKENIZER_CONFIG: None, CHAT_TEMPLATE: None}
    there, _ = there_and_back(changed(tmp_path / "c.task", entries), tmp_path)
    assert there.notes == ("bytes_to_unicode: only hearthlm will read the SentencePiece model in GPT-2's alphabet",)
    with LiteRtLmFile.open(there.path) as file:
        assert file.bytes_to_unicode


def test_a_task_with_the_messages_of_litert_lm_is_understood(tmp_path: Path) -> None:
    with LiteRtLmFile.open(BUILT) as file:
        message = bytes(file.data(file.sections[0]))
    with LiteRtLmFile.open(EXPORTED) as file:
        buffers = bytes(file.data(file.sections[1]))
    path = changed(tmp_path / "a.task", {METADATA: message, EXECUTOR_METADATA: buffers})
    with TaskBundle.open(path) as bundle:
        assert bundle.llm_metadata.start_token == (2,)
    there, back = there_and_back(path, tmp_path)
    assert there.notes == () and back.notes == ()


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    for name, says in (
        (
            VISION_ENCODER,
            "entry TF_LITE_VISION_ENCODER: expected a model that reads and writes text by itself; .* images",
        ),
        ("PIXELS", "entry PIXELS: a .litertlm has no section for it"),
    ):
        with pytest.raises(UnsupportedModelError, match=says):
            repack(changed(tmp_path / "a.task", {name: b"abcdTFL3"}), tmp_path / "a.litertlm")
    with LiteRtLmFile.open(BUILT) as file:
        sections = [NewSection(s.kind, file.content(s), s.labels) for s in file.sections]
        for section, says in (
            (NewSection("tflite", b"", {"model_type": "tf_lite_mtp_drafter"}), "tflite 'tf_lite_mtp_drafter': a .task"),
            (NewSection("tflite", b"", {"model_type": "tf_lite_audio_encoder_hw"}), "only models that read and write"),
            (
                NewSection("tflite weights", b"", sections[-1].labels),
                "tflite weights 'tf_lite_prefill_decode': a .task",
            ),
            (NewSection("binary", b""), "section binary: a .task has no entry for it"),
        ):
            write_litertlm(tmp_path / "b.litertlm", [*sections, section])
            with pytest.raises(UnsupportedModelError, match=says):
                repack(tmp_path / "b.litertlm", tmp_path / "b.task")
        write_litertlm(tmp_path / "b.litertlm", [s for s in sections if s.kind != "sentencepiece"])
        with pytest.raises(UnsupportedModelError, match="expected a section with a tokenizer"):
            repack(tmp_path / "b.litertlm", tmp_path / "b.task")
    with pytest.raises(ValueError, match="expected a name that ends with .task, as .* is a .litertlm"):
        repack(BUILT, tmp_path / "b.litertlm")
    with pytest.raises(UnsupportedModelError, match=r"expected a .task or .litertlm, got format weights_bin"):
        repack(GOLDEN / "outputs/0.10.35/gemma2_2b_cpu_int4.bin", tmp_path / "b.task")
    assert not (tmp_path / "b.task").exists()


def test_the_command_prints_the_path_and_tells_the_rest(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["repack", str(EXPORTED), str(tmp_path / "a.task")])
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'a.task'}\n"
    assert "hearthlm: pad_token: only hearthlm will find it; METADATA has no field for it\n" in result.stderr
    with TaskBundle.open(tmp_path / "a.task") as bundle:
        assert LLM_METADATA in bundle.entries and MODEL in bundle.entries
