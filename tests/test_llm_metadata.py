"""LiteRT-LM's metadata: real messages, what is refused, and both ways between bytes and the plain form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats import llm_metadata_pb2 as messages
from hearthlm.formats.litert_model import KvCache
from hearthlm.formats.litertlm import LiteRtLmFile
from hearthlm.formats.llm_metadata import (
    Channel,
    LlmMetadata,
    from_llm_parameters,
    read_executor_metadata,
    read_llm_metadata,
    write_executor_metadata,
    write_llm_metadata,
)
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.sampler_defaults import SamplerDefaults
from hearthlm.models.family import PromptTemplate, PromptTemplates

GOLDEN = Path(__file__).parent / "golden" / "litert"
TURNS = PromptTemplates(
    user=PromptTemplate("<start_of_turn>user\n", "<end_of_turn>\n"),
    model=PromptTemplate("<start_of_turn>model\n", "<end_of_turn>\n"),
)


def test_what_the_builder_wrote_is_read() -> None:
    with LiteRtLmFile.open(GOLDEN / "gemma3_mask_transposed_q8_ekv128.litertlm") as file:
        assert file.metadata == LlmMetadata(
            start_token=(2,), stop_tokens=((1,), (5,)), templates=TURNS, max_num_tokens=128, model_type="generic_model"
        )
        assert file.executor_metadata is None
        section = next(s for s in file.sections if s.kind == "LlmMetadata")
        assert write_llm_metadata(file.metadata) == file.data(section)


def test_what_the_exporter_wrote_is_read() -> None:
    with LiteRtLmFile.open(GOLDEN / "hf_llama_wi8.litertlm") as file:
        found = file.metadata
        assert found.start_token == "<s>"
        assert found.stop_tokens[:2] == ((1,), " <end_of_turn>\n")
        assert ".<end_of_turn>\n" in found.stop_tokens
        assert len(found.stop_tokens) == 16
        assert found.pad_token == "<pad>"
        assert found.chat_template is not None and found.chat_template.startswith(
            "{{ bos_token }}{% for m in messages %}"
        )
        assert found.templates is None
        section = next(s for s in file.sections if s.kind == "LlmMetadata")
        assert write_llm_metadata(found) == file.data(section)
        assert file.executor_metadata is not None
        llm = file.executor_metadata.llm_executor_metadata
        assert [(b.decode_input_name, b.sequence_axis, b.maximum_sequence_length) for b in llm.state_buffers] == [
            ("kv_cache_k_0", 2, 128), ("kv_cache_v_0", 3, 128), ("kv_cache_k_1", 2, 128), ("kv_cache_v_1", 3, 128)
        ]  # fmt: skip


def test_the_buffers_are_named_as_the_exporter_names_them() -> None:
    cache = KvCache("kv_cache_k_{layer}", 2, "FLOAT32", (1, 1, 128, 32), (1, 1, 32, 128), 2, 3)
    with LiteRtLmFile.open(GOLDEN / "hf_llama_wi8.litertlm") as file:
        section = next(s for s in file.sections if s.kind == "ExecutorMetadata")
        assert write_executor_metadata(cache) == file.data(section)
    named = read_executor_metadata(write_executor_metadata(replace(cache, name="k_cache_{layer}")), "m")
    assert named.llm_executor_metadata.state_buffers[1].decode_output_name == "v_cache_0"
    with pytest.raises(UnsupportedModelError, match="do not tell which axis"):
        write_executor_metadata(replace(cache, key_axis=None))


def test_the_plain_form_is_written_and_read() -> None:
    plain = LlmMetadata(
        start_token="<bos>",
        stop_tokens=("<eos>", (1,), (5, 6, 7)),
        templates=replace(TURNS, system=PromptTemplate("s", "")),
        chat_template="{{ messages }}",
        sampler=SamplerDefaults("top_p", 40, 0.5, 0.75, 7),
        max_num_tokens=1280,
        model_type="gemma3",
        channels=(Channel("thought", "<a>", "<b>"),),
        suppressed_tokens=(3, 4),
        pad_token=(0,),
        supports_thinking=True,
        supports_function_calling=False,
        min_runtime_version="0.11.0",
    )
    assert read_llm_metadata(write_llm_metadata(plain), "m") == plain
    assert read_llm_metadata(b"", "m") == LlmMetadata()
    image = LlmMetadata(model_type="generic_model", modalities=("image",))
    assert read_llm_metadata(write_llm_metadata(image), "m") == image


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff", "expected a message LlmMetadata"),
        (bytes(1 << 20 | 1), "expected at most 1048576 bytes"),
        (b"\x0a\x00", "start_token: expected a text or ids, got none"),
        (b"\x12\x00", r"stop_tokens\[0\]: expected a text or ids, got none"),
        (b"\x12\x02\x12\x00", r"stop_tokens\[0\]: expected a text or ids, got none"),
        (b"\x12\x04\x0a\x02\x0a\x00", r"stop_tokens\[0\]: expected a text or ids, got none"),
        (b"\x12\x00" * 1025, "stop_tokens: expected at most 1024, got 1025"),
        (messages.TokenUnion(token_ids=messages.TokenIds(ids=[-1])), r"expected at most 256 ids from 0, got \[-1\]"),
        (messages.TokenUnion(token_ids=messages.TokenIds(ids=[1] * 257)), "expected at most 256 ids from 0"),
        (messages.LlmMetadata(max_num_tokens=-1), "max_num_tokens: expected a number of tokens, got -1"),
        (messages.LlmMetadata(suppress_tokens=messages.TokenIds(ids=[3, -2])), "suppress_tokens: .* got -2"),
        (messages.SamplerParameters(k=-1), "sampler_params.k: expected 0 or more, got -1"),
        (messages.SamplerParameters(p=1.5), "sampler_params.p: expected 0 to 1, got 1.5"),
        (messages.SamplerParameters(temperature=float("nan")), "temperature: expected 0 or more, got nan"),
    ],
)
def test_what_no_model_can_have_is_refused(data: object, says: str) -> None:
    if isinstance(data, messages.TokenUnion):
        data = messages.LlmMetadata(start_token=data)
    elif isinstance(data, messages.SamplerParameters):
        data = messages.LlmMetadata(sampler_params=data)
    if isinstance(data, messages.LlmMetadata):
        data = data.SerializeToString()
    assert isinstance(data, bytes)
    with pytest.raises(CorruptFileError, match=f"^m: .*{says}"):
        read_llm_metadata(data, "m")


def test_buffers_that_cannot_be_are_refused() -> None:
    with pytest.raises(CorruptFileError, match="^m: expected a message ExecutorMetadata"):
        read_executor_metadata(b"\xff", "m")
    message = messages.ExecutorMetadata()
    message.llm_executor_metadata.state_buffers.add(sequence_axis=-1)
    with pytest.raises(CorruptFileError, match=r"state_buffers\[0\].sequence_axis: expected 0 or more, got -1"):
        read_executor_metadata(message.SerializeToString(), "m")


def test_what_has_no_word_is_named() -> None:
    message = messages.LlmMetadata(kv_cache_init_value=3)
    message.channels.add(channel_name="c", is_reasoning_channel=True)
    message.llm_model_type.generic_model.model_role = "assistant"
    data = message.SerializeToString() + b"\xf8\x07\x01"
    found = read_llm_metadata(data, "m").other_fields
    assert found == (
        "kv_cache_init_value", "channels.is_reasoning_channel", "llm_model_type.generic_model.model_role", "field 127"
    )  # fmt: skip
    assert read_llm_metadata(b"\x32\x03\xc2\x01\x00", "m").model_type == "number 24"
    for metadata, says in (
        (LlmMetadata(other_fields=("a", "b")), "a, b: cannot be written"),
        (LlmMetadata(templates=PromptTemplates(session_prefix="s")), "session_prefix: LlmMetadata has no field"),
        (LlmMetadata(model_type="gpt"), "model_type: expected one of generic_model, .*; got 'gpt'"),
        (LlmMetadata(model_type="gemma3", modalities=("image",)), "modalities: image: only a generic_model"),
    ):
        with pytest.raises(UnsupportedModelError, match=says):
            write_llm_metadata(metadata)


def test_what_a_task_says_is_put_in_the_same_words() -> None:
    message = LlmParameters(start_token="<bos>", stop_tokens=["<eos>"], stop_token_ids=[7], suppressed_tokens=[9])
    message.prompt_template.session_prefix = "Be kind."
    message.prompt_template.prompt_prefix = "<start_of_turn>user\n"
    message.prompt_template.prompt_suffix = "<end_of_turn>\n<start_of_turn>model\n"
    assert from_llm_parameters(message, "{{ x }}") == LlmMetadata(
        start_token="<bos>",
        stop_tokens=("<eos>", (7,)),
        templates=replace(TURNS, session_prefix="Be kind."),
        chat_template="{{ x }}",
        suppressed_tokens=(9,),
    )
    assert from_llm_parameters(LlmParameters(start_token_id=2)) == LlmMetadata(start_token=(2,))
