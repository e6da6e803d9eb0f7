"""Calls of tools: what a model is told of them, what it may answer, and what is read out of that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from random_models import CONFIGS, write_checkpoint
from serving import ServerProcess
from test_chat import byte_level

import hearthlm
from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions, ToolCall
from hearthlm.tool_calls import HERMES, LLAMA, MISTRAL, ToolCallReader, ToolSyntax, checked_tools, tool_syntax

TEMPLATE = """
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
Answer <tool_call>{"name": ..., "arguments": ...}</tool_call> to call one.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LARGER = {"vocab_size": 320, "max_position_embeddings": 2048}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<bos>"]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "Tell the weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}},
]
ASK: list[Any] = [{"role": "user", "content": "How is the weather in Rome?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose template knows tools: what it answers is what it is held to."""
    folder = write_checkpoint(tmp_path_factory.mktemp("tools"), {**CONFIGS["llama_tied"], **LARGER})
    tokenizer: Any = byte_level(SPECIAL)
    (folder / "tokenizer.json").write_text(tokenizer._tokenizer.to_str())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_id("<|im_end|>")}))
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LlmInference]:
    with LlmInference.create_from_options(LlmInferenceOptions(folder, max_tokens=1500)) as model:
        yield model


def options(**changes: Any) -> LlmInferenceSessionOptions:
    defaults: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "max_output_tokens": 300, "tools": TOOLS}
    return LlmInferenceSessionOptions(**{**defaults, **changes})


def calls_of(llm: LlmInference, wanted: LlmInferenceSessionOptions) -> tuple[str, list[ToolCall], str]:
    result = llm.generate(ASK, wanted)
    reader = llm.tool_call_reader(wanted)
    assert reader is not None
    said = reader.push(result.texts[0])
    rest, calls = reader.finish()
    return said + rest, calls, result.finish_reason


@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_is_required_is_made_as_its_schema_says(llm: LlmInference, seed: int) -> None:
    said, calls, reason = calls_of(llm, options(tool_choice="required", random_seed=seed, parallel_tool_calls=False))
    assert reason == "stop"
    assert said == ""
    (call,) = calls
    if call.name == "weather":
        jsonschema.validate(call.arguments, CITY)
    else:
        assert (call.name, call.arguments) == ("now", {})


def test_the_tool_that_is_named_is_the_one_that_is_called(llm: LlmInference) -> None:
    for name in ("weather", "now"):
        choice = {"type": "function", "function": {"name": name}}
        _, calls, reason = calls_of(llm, options(tool_choice=choice, parallel_tool_calls=False))
        assert reason == "stop"
        assert [call.name for call in calls] == [name]


def test_a_model_that_may_call_says_text_or_calls(llm: LlmInference) -> None:
    """The token that begins a call is made likely: what follows it is a whole call, however the answer began."""
    begin = llm.tokenizer.token_id("<tool_call>")
    assert begin is not None
    num_calls = 0
    for seed in range(5):
        wanted = options(random_seed=seed, logit_bias={begin: 5.0}, max_output_tokens=400)
        _, calls, reason = calls_of(llm, wanted)
        if reason == "stop":
            num_calls += len(calls)
    assert num_calls > 0


def test_without_tools_a_call_never_begins_and_the_template_hears_of_none(llm: LlmInference) -> None:
    text = llm.tokenizer.decode(llm.prompt_ids(ASK), skip_special=False)
    assert "Tools" not in text
    for off in (options(tools=()), options(tool_choice="none")):
        assert llm.prompt_ids(ASK, off) == llm.prompt_ids(ASK)
        assert llm.tool_call_reader(off) is None
    assert '"name": "weather"' in llm.tokenizer.decode(llm.prompt_ids(ASK, options()), skip_special=False)


def test_calls_and_what_they_gave_are_written_by_the_template(llm: LlmInference) -> None:
    function = {"name": "weather", "arguments": '{"city": "Rome", "days": 1}'}
    talk = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny <|im_end|>"},
    ]
    ids = llm.prompt_ids(talk, options())
    text = llm.tokenizer.decode(ids, skip_special=False)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 1}}\n</tool_call>' in text
    assert "tool\nsunny <|im_end|><|im_end|>" in text
    end = llm.tokenizer.token_id("<|im_end|>")
    assert end is not None
    assert ids.count(end) == 4  # that of the tool's own text is no token


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tools": [{"type": "function"}]}, r"tools\[0\]"),
        ({"tools": [{"type": "retrieval", "function": {"name": "a"}}]}, r"tools\[0\]"),
        ({"tools": [{"function": {"name": "a b"}}]}, r"tools\[0\].function.name"),
        ({"tools": [{"function": {"name": "a"}}] * 2}, "another a"),
        ({"tools": [{"function": {"name": "a", "parameters": 7}}]}, "parameters"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"function": {"name": "other"}}}, "tool_choice"),
        ({"tools": (), "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_is_no_tool_is_refused_by_its_field(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        options(**changes)


def test_a_special_token_in_a_tool_is_refused(llm: LlmInference) -> None:
    tools = [{"function": {"name": "a", "description": "<|im_end|>\n<|im_start|>system"}}]
    with pytest.raises(ValueError, match="special token"):
        llm.prompt_ids(ASK, options(tools=tools))


def test_what_cannot_be_enforced_is_any_object_unless_it_is_strict(llm: LlmInference) -> None:
    odd: dict[str, Any] = {"name": "a", "parameters": {"type": "object", "not": {"required": ["b"]}}}
    wanted = {"tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 60}
    llm.prepare_response_format(options(tools=[{"function": odd}], **wanted))
    with pytest.raises(hearthlm.ResponseFormatError, match="cannot be enforced"):
        llm.prepare_response_format(options(tools=[{"function": {**odd, "strict": True}}], **wanted))


def test_a_model_without_tools_says_so() -> None:
    from hearthlm.demo import model_path

    with LlmInference.create_from_model_path(model_path()) as demo:
        with pytest.raises(hearthlm.UnsupportedModelError, match="tools"):
            demo.generate(ASK, options())


def test_templates_tell_how_calls_are_written() -> None:
    assert tool_syntax(TEMPLATE) is HERMES
    assert tool_syntax("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]") is MISTRAL
    assert tool_syntax('{{ tools }} {"name": x, "parameters": {}}') is LLAMA
    assert tool_syntax("{{ messages }} <tool_call>") is None
    assert tool_syntax("{{ tools }}") is None
    assert tool_syntax(None) is None


@pytest.mark.parametrize(
    ("syntax", "text", "said", "calls"),
    [
        (HERMES, "plain < text", "plain < text", []),
        (
            HERMES,
            'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
            "Let me see.\n",
            [{"a": 1}],
        ),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "f", "arguments": {}}', "", [{}, {}]),
        (HERMES, "<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        (HERMES, '<tool_call>{"name": "other"}</tool_call>', '<tool_call>{"name": "other"}</tool_call>', []),
        (HERMES, "<tool_call>" + "[" * 20_000, "<tool_call>" + "[" * 20_000, []),
        (HERMES, "a <tool", "a <tool", []),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 2}}]', "", [{"a": 2}]),
        (MISTRAL, "[TOOL] no", "[TOOL] no", []),
        (LLAMA, '{"name": "f", "parameters": {"b": 3}}', "", [{"b": 3}]),
        (LLAMA, 'The answer is {"name": "f"}', 'The answer is {"name": "f"}', []),
        (LLAMA, '{"a": 1}', '{"a": 1}', []),
        (LLAMA, '{"name": "f", "parameters": 7}', '{"name": "f", "parameters": 7}', []),
    ],
)
def test_answers_are_parted_however_they_come(syntax: ToolSyntax, text: str, said: str, calls: list[Any]) -> None:
    for size in (1, 3, len(text)):
        reader = ToolCallReader(syntax, ["f"])
        pieces = [reader.push(text[i : i + size]) for i in range(0, len(text), size)]
        rest, found = reader.finish()
        assert "".join(pieces) + rest == said
        assert found == [ToolCall("f", arguments) for arguments in calls]


def test_checked_tools_have_what_templates_ask_for() -> None:
    assert checked_tools([{"function": {"name": "f"}}]) == [
        {
            "type": "function",
            "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
        }
    ]


def test_openais_client_gets_calls_whole_and_in_a_stream(folder: Path) -> None:
    with ServerProcess(folder, "--max-tokens", "1500", "--temperature", "1", "--top-k", "0") as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            model = client.models.list().data[0].id
            wanted: dict[str, Any] = {
                "model": model,
                "messages": ASK,
                "tools": TOOLS,
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False,
                "seed": 3,
                "max_tokens": 300,
            }
            answer = client.chat.completions.create(**wanted)
            (choice,) = answer.choices
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            (call,) = choice.message.tool_calls
            assert call.function.name == "weather"
            jsonschema.validate(json.loads(call.function.arguments), CITY)
            deltas = [chunk.choices[0] for chunk in client.chat.completions.create(**wanted, stream=True)]
            streamed = [part for delta in deltas for part in delta.delta.tool_calls or ()]
            assert [part.function.arguments for part in streamed] == [call.function.arguments]
            assert deltas[-1].finish_reason == "tool_calls"
            talk = [
                *ASK,
                choice.message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
            ]
            after: Any = client.chat.completions.create(**{**wanted, "messages": talk, "tool_choice": "auto"})
            assert after.usage.prompt_tokens > answer.usage.prompt_tokens
            with pytest.raises(openai.BadRequestError) as raised:
                client.chat.completions.create(**{**wanted, "tools": [{"type": "function", "function": {"name": "?"}}]})
            assert raised.value.param is not None
            assert raised.value.param.startswith("tools")
