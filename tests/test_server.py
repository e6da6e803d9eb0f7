"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from serving import JSON, ServerProcess

import hearthlm
from hearthlm.demo import model_path

GOLDEN = Path(__file__).parent / "golden"
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--max-tokens", "1024", "--parallel", "4") as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def llm() -> Iterator[hearthlm.LlmInference]:
    options = hearthlm.LlmInferenceOptions(model_path(), max_tokens=1024)
    with hearthlm.LlmInference.create_from_options(options) as model:
        yield model


def test_chat_is_what_the_api_answers(client: openai.OpenAI, llm: hearthlm.LlmInference) -> None:
    answer = client.chat.completions.create(model="demo", messages=STORY, max_tokens=30, seed=7, temperature=0.9)
    wanted = llm.generate(
        STORY, hearthlm.LlmInferenceSessionOptions(temperature=0.9, random_seed=7, max_output_tokens=30)
    )
    assert answer.object == "chat.completion"
    assert answer.model == "demo"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == wanted.texts[0]
    assert choice.finish_reason == wanted.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == wanted.num_prompt_tokens
    assert answer.usage.completion_tokens == 30
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 30


def test_a_stream_is_the_same_answer_in_parts_with_its_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=STORY, max_tokens=40, seed=3)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=STORY, max_tokens=40, seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    extra: Any = chunks[-1].model_extra
    assert extra["timings"].keys() == {"queue_s", "prefill_s", "decode_s", "cached_tokens"}
    assert extra["seed"] == 3


def test_the_last_chunk_says_what_it_took_without_usage_too(server: ServerProcess) -> None:
    answer = server.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["timings"]["decode_s"] > 0
    assert "usage" not in last


def test_a_seed_is_drawn_reported_and_repeats(server: ServerProcess) -> None:
    first = server.chat(max_tokens=20).json()
    other = server.chat(max_tokens=20).json()
    again = server.chat(max_tokens=20, seed=first["seed"]).json()
    assert first["seed"] != other["seed"]
    assert again["choices"] == first["choices"]


def test_three_responses_are_those_of_the_api(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=STORY, max_tokens=12, n=3, seed=5)
    options = hearthlm.LlmInferenceOptions(model_path(), num_responses=3)
    with hearthlm.LlmInference.create_from_options(options) as llm:
        wanted = llm.generate(STORY, hearthlm.LlmInferenceSessionOptions(random_seed=5, max_output_tokens=12))
    assert [choice.message.content for choice in answer.choices] == list(wanted.texts)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(wanted.texts)) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 36
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model="demo", messages=STORY, max_tokens=12, n=3, seed=5, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == list(wanted.texts)


def test_stop_strings_end_an_answer_and_are_not_in_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=STORY, max_tokens=60, seed=1)
    text = whole.choices[0].message.content
    assert text is not None
    stop = text[20:26]
    answer = client.chat.completions.create(model="demo", messages=STORY, max_tokens=60, seed=1, stop=[stop, "@@"])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(
        model="demo", messages=STORY, max_tokens=60, seed=1, stop=stop, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in streamed]
    assert "".join(parts) == text[: text.index(stop)]
    again = client.chat.completions.create(model="demo", messages=STORY, max_tokens=60, seed=1, stop=[stop, "@@"])
    assert again.usage == answer.usage  # what the scheduler made meanwhile is not counted


def test_logprobs_are_the_models_own(client: openai.OpenAI, llm: hearthlm.LlmInference) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=STORY, max_tokens=8, seed=2, logprobs=True, top_logprobs=3
    )
    wanted = llm.generate(STORY, hearthlm.LlmInferenceSessionOptions(random_seed=2, max_output_tokens=8, logprobs=3))
    assert wanted.logprobs is not None
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.logprob for entry in logprobs.content] == [entry.logprob for entry in wanted.logprobs[0]]
    assert [[top.logprob for top in entry.top_logprobs] for entry in logprobs.content] == [
        [value for _, value in entry.top] for entry in wanted.logprobs[0]
    ]
    data = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
    assert data.decode() == answer.choices[0].message.content
    streamed = client.chat.completions.create(
        model="demo", messages=STORY, max_tokens=8, seed=2, logprobs=True, top_logprobs=3, stream=True
    )
    parts = [c.choices[0].logprobs.content or [] for c in streamed if c.choices[0].logprobs is not None]
    assert [entry for part in parts for entry in part] == logprobs.content


def test_biases_penalties_and_the_other_numbers_reach_the_sampler(
    client: openai.OpenAI, llm: hearthlm.LlmInference
) -> None:
    wanted = llm.generate(
        STORY,
        hearthlm.LlmInferenceSessionOptions(
            temperature=1.3,
            top_p=0.9,
            top_k=7,
            min_p=0.02,
            presence_penalty=0.5,
            frequency_penalty=0.25,
            repetition_penalty=1.1,
            logit_bias={300: -100.0, 42: 1.5},
            random_seed=11,
            max_output_tokens=25,
        ),
    )
    answer = client.chat.completions.create(
        model="demo",
        messages=STORY,
        max_completion_tokens=25,
        temperature=1.3,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={"300": -100, "42": 1.5},  # type: ignore[dict-item]
        seed=11,
        extra_body={"top_k": 7, "min_p": 0.02, "repetition_penalty": 1.1},
    )
    assert answer.choices[0].message.content == wanted.texts[0]


def test_completions_continue_texts_and_ids_as_they_are(client: openai.OpenAI, llm: hearthlm.LlmInference) -> None:
    raw = hearthlm.LlmInferenceSessionOptions(
        prompt_templates=hearthlm.PromptTemplates(), random_seed=4, max_output_tokens=10
    )
    ids = llm.tokenizer.encode("Once upon a time")
    wanted = [llm.generate(prompt, raw).texts[0] for prompt in ("Once upon a time", "The fox")]
    answer = client.completions.create(model="demo", prompt=["Once upon a time", "The fox"], max_tokens=10, seed=4)
    assert [choice.text for choice in answer.choices] == wanted
    assert [choice.index for choice in answer.choices] == [0, 1]
    by_ids = client.completions.create(model="demo", prompt=ids, max_tokens=10, seed=4)
    assert by_ids.choices[0].text == llm.generate(ids, raw).texts[0]
    echoed = client.completions.create(model="demo", prompt="The fox", max_tokens=10, seed=4, echo=True)
    assert echoed.choices[0].text == "The fox" + wanted[1]
    streamed = client.completions.create(
        model="demo", prompt=["Once upon a time", "The fox"], max_tokens=10, seed=4, stream=True, logprobs=2
    )
    texts = ["", ""]
    num_logprobs = 0
    for chunk in streamed:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs is not None:
                num_logprobs += len(choice.logprobs.tokens or ())
                assert choice.logprobs.text_offset is not None
    assert texts == wanted
    assert num_logprobs == 20


def test_an_answer_has_the_json_schema_that_was_asked_for(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["merry", "grave"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["mood", "stars"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "review", "schema": schema, "strict": True}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="demo", messages=STORY, seed=seed, temperature=1, max_tokens=200, response_format=form
        )
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


def test_a_form_that_cannot_be_enforced_is_refused_before_the_first_token(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="demo", messages=STORY, response_format=form, stream=stream)
        assert raised.value.param == "response_format"
        assert raised.value.code == "response_format_unsupported"


def test_embeddings_are_those_of_the_api(client: openai.OpenAI, llm: hearthlm.LlmInference) -> None:
    texts = ["a fox", "a boat on the sea"]
    wanted = llm.embed(texts)
    answer = client.embeddings.create(model="demo", input=texts)  # base64, as the client asks for by itself
    rows = [item.embedding for item in answer.data]
    assert [struct.pack(f"<{len(row)}f", *row) for row in rows] == [row.tobytes() for row in wanted]
    as_numbers = client.embeddings.create(model="demo", input=llm.tokenizer.encode("a fox"), encoding_format="float")
    assert len(as_numbers.data[0].embedding) == wanted.shape[1]
    assert sum(value * value for value in as_numbers.data[0].embedding) == pytest.approx(1, abs=1e-5)
    raw = httpx.post(
        str(client.base_url) + "embeddings", json={"input": "a fox", "encoding_format": "base64"}, timeout=60
    ).json()
    assert base64.b64decode(raw["data"][0]["embedding"]) == wanted[0].tobytes()


def test_models_are_listed_and_described(client: openai.OpenAI, server: ServerProcess) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "hearthlm"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-5")
    assert raised.value.code == "model_not_found"
    (info,) = server.client.get("/v1/model_info").json()["data"]
    assert info["id"] == "demo"
    assert info["max_tokens"] == 1024
    assert info["num_parameters"] > 4_000_000
    assert info["quantization"].keys() == {"attention", "feed_forward", "embedding"}
    assert info["sampling"]["temperature"] == {"default": 0.8, "min": 0, "max": 2}
    assert str(model_path()) not in json.dumps(info)


def test_adapters_are_models_of_their_own_and_several_models_are_told_apart() -> None:
    golden = Path(__file__).parent / "golden" / "outputs" / "0.10.14"
    model, adapter = golden / "gemma_2b_gpu_lora.bin", golden / "gemma_2b_gpu_lora_lora.bin"
    base, adapted = "gemma_2b_gpu_lora", "gemma_2b_gpu_lora:tiny"
    with ServerProcess(model, model_path(), "--lora-path", f"{base}:tiny={adapter}", "--max-tokens", "60") as server:
        listed = {entry["id"]: entry["parent"] for entry in server.client.get("/v1/models").json()["data"]}
        assert listed == {base: None, adapted: base, "demo": None}
        infos = {info["id"]: info for info in server.client.get("/v1/model_info").json()["data"]}
        assert [a["id"] for a in infos[base]["adapters"]] == [adapted]
        prompt = {"prompt": "abc", "max_tokens": 20, "temperature": 0}
        texts = {
            name: server.post("/v1/completions", {"model": name, **prompt}).json()["choices"][0]["text"]
            for name in listed
        }
        rows = {
            name: server.post("/v1/embeddings", {"model": name, "input": "abc"}).json()["data"][0]["embedding"]
            for name in listed
        }
        unnamed = server.post("/v1/completions", prompt)
        assert unnamed.status_code == 400
        assert unnamed.json()["error"]["param"] == "model"
    raw = hearthlm.LlmInferenceSessionOptions(
        prompt_templates=hearthlm.PromptTemplates(), temperature=0, max_output_tokens=20
    )
    with hearthlm.LlmInference.create_from_options(hearthlm.LlmInferenceOptions(model, max_tokens=60)) as llm:
        lora = llm.load_lora(adapter)
        assert texts[base] == llm.generate("abc", raw).texts[0]
        assert texts[adapted] == llm.generate("abc", dataclasses.replace(raw, lora=lora)).texts[0]
        assert rows[adapted] == llm.embed("abc", lora=lora)[0].tolist() != rows[base]


def test_text_becomes_ids_and_ids_text(server: ServerProcess, llm: hearthlm.LlmInference) -> None:
    text = "A fox, a boat."
    made = server.post("/tokenize", {"text": text, "with_pieces": True}).json()
    assert made["tokens"] == llm.tokenizer.encode(text)
    assert made["count"] == len(made["pieces"]) == len(made["tokens"])
    assert server.post("/detokenize", {"tokens": made["tokens"]}).json() == {"text": text}
    refused = server.post("/detokenize", {"tokens": [5, llm.vocab_size]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tokens"
    chat = server.post("/tokenize", {"messages": STORY}).json()
    assert chat["tokens"] == llm.chat_format.encode(STORY)
    assert chat["max_tokens"] == 1024


def test_what_a_conversation_has_computed_is_not_computed_again(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Tell me a story about a snail and a very long garden wall."}]
    first = client.chat.completions.create(model="demo", messages=messages, max_tokens=20, seed=1)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And then?"},
    ]
    second = client.chat.completions.create(model="demo", messages=messages, max_tokens=5, seed=1)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached > first.usage.prompt_tokens


def test_a_prompt_too_long_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "fox " * 3000}])
    assert raised.value.code == "context_length_exceeded"
    assert raised.value.param == "messages"
    assert "1024" in raised.value.message


def test_a_client_that_leaves_frees_its_slot() -> None:
    """While its answer is made, while its prompt is read, and while it waits in line; nothing is made to its end."""
    with ServerProcess("--parallel", "1", "--max-tokens", "32000") as server:
        prompt = [{"role": "user", "content": "fox " * 20_000}]
        for messages in (STORY, prompt):
            for stream in (True, False):
                body = {"messages": messages, "stream": stream, "logit_bias": _never_stop()}
                with httpx.Client(base_url=server.url, timeout=httpx.Timeout(60, read=0.5)) as leaving:
                    with pytest.raises(httpx.ReadTimeout):
                        with leaving.stream(
                            "POST", "/v1/chat/completions", content=json.dumps(body), headers=JSON
                        ) as answer:
                            for _ in answer.iter_bytes():
                                with pytest.raises(httpx.ReadTimeout):
                                    leaving.post("/v1/chat/completions", json=body)
                                raise httpx.ReadTimeout("enough")
                server.wait_until_idle()
        body = {"input": ["fox " * 25_000] * 8}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=httpx.Timeout(60, read=0.5))
        server.wait_until_idle()
        assert server.metric("responses_total") == 0
        assert server.chat().status_code == 200


def _never_stop() -> dict[str, float]:
    with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
        return {str(i): -100.0 for i in llm.stop_ids}


def test_langchain_gets_an_answer_through_a_chain(server: ServerProcess) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    prompts = pytest.importorskip("langchain_core.prompts")
    model = langchain_openai.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model="demo", max_tokens=20, seed=1, max_retries=0
    )
    chain = prompts.ChatPromptTemplate.from_messages([("user", "Tell me a story about a {who}.")]) | model
    answer = chain.invoke({"who": "fox"})
    assert answer.content == server.chat(max_tokens=20, seed=1).json()["choices"][0]["message"]["content"]
    assert answer.usage_metadata["output_tokens"] == 20
    assert "".join(part.content for part in chain.stream({"who": "fox"})) == answer.content


def test_beyond_the_line_a_client_is_told_to_come_back() -> None:
    with ServerProcess("--parallel", "1", "--queue", "1", "--max-tokens", "4096") as server:
        statuses: list[int] = []
        retry: list[str | None] = []

        def ask() -> None:
            body = {"messages": STORY, "max_tokens": 400, "logit_bias": biases}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
            statuses.append(answer.status_code)
            retry.append(answer.headers.get("retry-after"))

        biases = _never_stop()
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 2
        assert all(
            (after is not None and int(after) >= 1) == (s == 429) for s, after in zip(statuses, retry, strict=True)
        )
        server.wait_until_idle()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_lets_answers_finish(number: int) -> None:
    with ServerProcess("--grace", "30") as server:
        with httpx.stream(
            "POST",
            f"{server.url}/v1/chat/completions",
            json={"messages": STORY, "max_tokens": 60, "seed": 1, "stream": True},
            timeout=60,
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(number)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert server.process.wait(timeout=60) == 128 + number


def test_who_comes_while_it_stops_is_told_so() -> None:
    with ServerProcess("--grace", "60", "--max-tokens", "30000") as server:
        body = {"messages": STORY, "max_tokens": 29000, "stream": True, "logit_bias": _never_stop()}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()  # forgotten, it would close the connection
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            while (health := httpx.get(f"{server.url}/health")).status_code == 200:
                assert time.monotonic() < deadline
            assert (health.status_code, health.json()) == (503, {"status": "stopping"})
            refused = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": STORY})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
            assert int(refused.headers["retry-after"]) > 0
        assert server.process.wait(timeout=20) == 143  # the only answer's client has left


@pytest.mark.parametrize(("grace_s", "num_signals"), [("0.3", 1), ("60", 2)])
def test_an_answer_that_cannot_finish_ends_with_an_error_event(grace_s: str, num_signals: int) -> None:
    """It takes longer than there is time, or the server is told twice."""
    with ServerProcess("--grace", grace_s, "--max-tokens", "30000") as server:
        body = {"messages": STORY, "max_tokens": 29000, "stream": True, "logit_bias": _never_stop()}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            for _ in range(num_signals):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.1)  # signals that are pending are one
            last = [line for line in lines if not line.startswith(":")][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"
        assert server.process.wait(timeout=20) == 143


def test_an_api_key_is_asked_for_where_one_is_set() -> None:
    with ServerProcess(environment={"HEARTHLM_API_KEY": "sesame"}) as server:
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/v1/models").status_code == 401
        assert server.chat(stream=True).json()["error"]["code"] == "invalid_api_key"
        for wrong in ("Bearer sesam", "Bearer sesame!", "Basic sesame", "Bearer", "sesame"):
            assert server.client.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame") as client:
            assert [model.id for model in client.models.list()] == ["demo"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--host", "0.0.0.0"), 2, "there is no API key"),
        (("no-such.bin",), 66, "no-such.bin"),
        (("--lora-path", "a=b", "--lora-path", "a=c"), 2, "adapter a"),
        (("--lora-path", "x:a=b"), 2, "expected a model of demo"),
        (("--max-tokens", "99999999"), 2, "max_tokens"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(arguments: tuple[str, ...], code: int, says: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hearthlm", "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_said_in_a_line(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "hearthlm", "serve", "--port", str(server.port)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 74
    assert f"127.0.0.1:{server.port}" in result.stderr


def test_health_says_whether_models_are_loaded() -> None:
    """In a process: a server that is started by hand has its models before anyone can ask."""
    from starlette.testclient import TestClient

    from hearthlm.server import create_app

    may_load = threading.Event()

    def load() -> hearthlm.LlmInference:
        may_load.wait()
        return hearthlm.LlmInference.create_from_model_path(model_path())

    with TestClient(create_app(load), base_url="http://localhost") as client:
        assert client.get("/health").json() == {"status": "loading"}
        assert client.get("/v1/models").json()["error"]["code"] == "model_loading"
        assert client.get("/v1/models").status_code == 503
        may_load.set()
        while client.get("/health").status_code != 200:
            time.sleep(0.01)
        assert client.get("/v1/models").json()["data"][0]["id"] == "demo"


def test_a_model_that_cannot_be_loaded_is_told_as_such() -> None:
    from starlette.testclient import TestClient

    from hearthlm.server import create_app

    def load() -> hearthlm.LlmInference:
        return hearthlm.LlmInference.create_from_model_path("no-such.bin")

    with TestClient(create_app(load), base_url="http://localhost") as client:
        while client.get("/health").json() == {"status": "loading"}:
            time.sleep(0.01)
        assert client.get("/health").json() == {"status": "failed"}
        assert client.get("/v1/models").json()["error"]["code"] == "model_not_loaded"


def test_a_litert_model_is_served_as_others_are(tmp_path: Path) -> None:
    model = tmp_path / "gemma.litertlm"
    shutil.copyfile(GOLDEN / "litert" / "gemma3_mask_transposed_q8_ekv128.litertlm", model)
    with ServerProcess(model) as server:
        (info,) = server.client.get("/v1/model_info").json()["data"]
        assert info["format"] == "litertlm" and info["context_length"] == 128
        assert info["embedding_dim"] is None and info["quantization"] == {}
        assert server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 3}).status_code == 200
        assert server.post("/v1/embeddings", {"input": "Hi"}).status_code == 400
