"""Answers without a waiting reader: listeners, futures and asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hearthlm
from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSession, LlmInferenceSessionOptions

GEMMA = Path(__file__).parent / "golden" / "outputs" / "0.10.14" / "gemma_2b_cpu_int8.bin"
ENDLESS = LlmInferenceSessionOptions(temperature=2.0, logit_bias=dict.fromkeys((1, 5), float("-inf")))


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmInference]:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=100, temperature=1.5)) as model:
        yield model


def wait_until_no_thread_is_left() -> None:
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("hearthlm") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_listener_gets_every_increment_in_order_and_then_the_end_when_the_future_is_set(llm: LlmInference) -> None:
    heard: list[tuple[str, bool, bool, str]] = []

    def listen(increment: str, done: bool) -> None:
        began.wait(5)
        heard.append((increment, done, future.done(), threading.current_thread().name))

    began = threading.Event()
    future = llm.generate_response_async("abc", listen)
    began.set()
    text = future.result(timeout=10)
    wait_until_no_thread_is_left()
    assert text == llm.generate_response("abc") == "".join(increment for increment, _, _, _ in heard)
    assert [done for _, done, _, _ in heard] == [False] * (len(heard) - 1) + [True]
    assert heard[-1][:3] == ("", True, True)
    assert not any(is_set for _, done, is_set, _ in heard if not done)
    assert {name for _, _, _, name in heard} == {"hearthlm-callbacks"}


def test_listeners_of_the_options_serve_calls_that_bring_none() -> None:
    heard: list[tuple[str, bool]] = []
    options = LlmInferenceOptions(GEMMA, max_tokens=40, result_listener=lambda *event: heard.append(event))
    with LlmInference.create_from_options(options) as llm:
        text = llm.generate_response_async("abc").result(timeout=10)
        own: list[str] = []
        assert llm.generate_response_async("abc", lambda part, _: own.append(part)).result(timeout=10) == text
    assert "".join(part for part, _ in heard) == "".join(own) == text
    assert heard[-1] == ("", True)


def test_many_at_once_get_what_each_gets_alone(llm: LlmInference) -> None:
    prompts = ["abc" * (i + 1) for i in range(12)]
    futures = [llm.generate_response_async(prompt) for prompt in prompts]
    assert [future.result(timeout=30) for future in futures] == [llm.generate_response(prompt) for prompt in prompts]
    wait_until_no_thread_is_left()


def test_a_listener_that_raises_ends_its_answer_and_the_error_reaches_future_and_error_listener() -> None:
    errors: list[Exception] = []
    options = LlmInferenceOptions(GEMMA, max_tokens=8000, temperature=1.5, error_listener=errors.append)
    with LlmInference.create_from_options(options) as llm:

        def listen(increment: str, done: bool) -> None:
            raise KeyError("the listener's own")

        started = time.monotonic()
        future = llm.generate_response_async("abc", listen)
        with pytest.raises(KeyError, match="the listener's own"):
            future.result(timeout=10)
        assert time.monotonic() - started < 5
        wait_until_no_thread_is_left()
        assert [type(error) for error in errors] == [KeyError]


def test_an_error_while_generating_reaches_future_and_error_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, error_listener=errors.append)) as llm:

        def fail(requests: Any) -> Any:
            raise MemoryError("no memory for this step")

        monkeypatch.setattr(llm._engine.executor, "forward", fail)
        with pytest.raises(MemoryError, match="no memory"):
            llm.generate_response_async("abc").result(timeout=10)
        wait_until_no_thread_is_left()
        assert [type(error) for error in errors] == [MemoryError]


def test_what_can_be_refused_before_any_work_is_raised_by_the_call(llm: LlmInference) -> None:
    with pytest.raises(hearthlm.ContextLengthError):
        llm.generate_response_async("abc" * 200)
    with pytest.raises(TypeError, match="expected a str"):
        llm.generate_response_async(3)  # type: ignore[arg-type]
    with pytest.raises(hearthlm.ContextLengthError):
        llm.astream("abc" * 200)
    wait_until_no_thread_is_left()


def test_a_cancelled_future_ends_the_work() -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=8000)) as llm:
        heard: list[bool] = []
        session = LlmInferenceSession(llm, ENDLESS)
        session.add_query_chunk("abc")
        future = session.generate_response_async(lambda _, done: heard.append(done))
        while not heard:
            time.sleep(0.001)
        assert future.cancel()
        wait_until_no_thread_is_left()
        assert heard[-1]
        session.close()


def test_a_failing_last_call_is_logged_and_nobody_else_suffers(
    llm: LlmInference, caplog: pytest.LogCaptureFixture
) -> None:
    def listen(increment: str, done: bool) -> None:
        if done:
            raise KeyError("too late")

    with caplog.at_level(logging.ERROR, "hearthlm"):
        text = llm.generate_response_async("abc", listen).result(timeout=10)
        wait_until_no_thread_is_left()
    assert text == llm.generate_response("abc")
    assert "too late" in caplog.text


def test_a_listener_may_call_the_model_and_close_it() -> None:
    llm = LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=40))
    texts: list[str] = []

    def listen(increment: str, done: bool) -> None:
        if done:
            texts.append(llm.generate_response("abc"))
            llm.close()

    text = llm.generate_response_async("abc", listen).result(timeout=10)
    wait_until_no_thread_is_left()
    assert texts == [text]


def test_asyncio_streams_side_by_side_and_equals_the_response(llm: LlmInference) -> None:
    async def ask(prompt: str) -> str:
        return "".join([part async for part in llm.astream(prompt)])

    async def ask_all() -> list[str]:
        return list(await asyncio.gather(*(ask("abc" * (i + 1)) for i in range(6))))

    assert asyncio.run(ask_all()) == [llm.generate_response("abc" * (i + 1)) for i in range(6)]
    wait_until_no_thread_is_left()


def test_a_cancelled_task_or_a_closed_generator_ends_the_work_and_frees_the_session() -> None:
    async def leave(llm: LlmInference) -> None:
        with LlmInferenceSession(llm, ENDLESS) as session:
            session.add_query_chunk("abc")
            stream = session.astream()
            await anext(stream)
            await stream.aclose()
            session.update_session_options(max_output_tokens=3)
            assert len([part async for part in session.astream()]) <= 3

        async def read() -> None:
            async for _ in llm.astream("abc", ENDLESS):
                began.set()

        began = asyncio.Event()
        task = asyncio.create_task(read())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=8000)) as llm:
        asyncio.run(leave(llm))
        wait_until_no_thread_is_left()


def rss_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@needs_proc
def test_ten_thousand_sessions_leave_memory_flat() -> None:
    call = LlmInferenceSessionOptions(max_output_tokens=2)

    def cycle(llm: LlmInference, i: int) -> None:
        with LlmInferenceSession(llm, call) as session:
            session.add_query_chunk("ab" + "abc" * (i % 5))
            session.generate_response()

    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, prefix_cache_mb=1)) as llm:
        for i in range(2000):
            cycle(llm, i)
        before = rss_kb()
        for i in range(10_000):
            cycle(llm, i)
        assert rss_kb() - before < 4096
    wait_until_no_thread_is_left()


@needs_proc
def test_models_loaded_and_closed_leave_no_memory_and_no_file_open() -> None:
    def cycle() -> None:
        with LlmInference.create_from_model_path(GEMMA) as llm:
            llm.generate("abc", LlmInferenceSessionOptions(max_output_tokens=2))

    for _ in range(50):
        cycle()
    before, files = rss_kb(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(300):
        cycle()
    assert rss_kb() - before < 8192
    assert len(list(Path("/proc/self/fd").iterdir())) <= files
    wait_until_no_thread_is_left()
