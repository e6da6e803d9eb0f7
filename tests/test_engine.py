"""The token loop, with an executor of a few lines in place of a network."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hearthlm.errors import ContextLengthError, EngineClosedError, SessionBusyError
from hearthlm.kernels import ThreadPool
from hearthlm.runtime.engine import LONE_PREFILL_CHUNK, MAX_ROWS_WITH_GUESSES, PREFILL_CHUNK, Engine
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.sampler import Sampler
from hearthlm.runtime.session import Session

VOCAB = 50
GREEDY = Sampler(top_k=1)


class CountingState:
    """Remember the ids seen."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> int:
        del self.ids[length:]
        return length

    def fork(self) -> CountingState:
        return CountingState(self.ids)

    def save(self) -> dict[str, NDArray[Any]]:
        return {"ids": np.array(self.ids)}

    def memory(self) -> dict[int, int]:
        return {}

    def close(self) -> None:
        self.ids.clear()


class CountingExecutor:
    """Prefer, after any text, the sum of all its ids plus one."""

    def __init__(self, delay_s: float = 0.0, *, has_cheap_rows: bool = False) -> None:
        self.pool = ThreadPool(1)
        self.has_cheap_rows = has_cheap_rows
        self.row_cost = None
        self.delay_s = delay_s
        self.steps: list[list[int]] = []  # rows of each request, step by step
        self.fail_at: int | None = None

    @property
    def vocab_size(self) -> int:
        return VOCAB

    fingerprint = "counting"

    def new_state(self, adapter: object = None) -> CountingState:
        return CountingState()

    def load_state(self, length: int, arrays: Mapping[str, NDArray[Any]], adapter: object = None) -> CountingState:
        return CountingState(arrays["ids"].tolist())

    def chunk_length(self, state: CountingState, num_ids: int, wanted: str, budget: int) -> int:
        return min(num_ids, budget)

    def forward(self, requests: Sequence[ForwardRequest]) -> list[NDArray[np.float32] | None]:
        time.sleep(self.delay_s)
        self.steps.append([len(request.ids) for request in requests])
        if self.fail_at is not None and len(self.steps) > self.fail_at:
            raise MemoryError("no memory for this step")
        results: list[NDArray[np.float32] | None] = []
        for request in requests:
            rows = []
            for i in request.ids:
                request.state.ids.append(i)
                row = np.zeros(VOCAB, np.float32)
                row[(sum(request.state.ids) + 1) % VOCAB] = 5.0
                rows.append(row)
            wanted = {"none": 0, "last": 1, "all": len(rows), "hidden": len(rows)}[request.wanted]
            results.append(np.stack(rows[-wanted:]) if wanted else None)
        return results

    def close(self) -> None:
        self.pool.close()


def expected(ids: Sequence[int], count: int) -> list[int]:
    text = list(ids)
    for _ in range(count):
        text.append((sum(text) + 1) % VOCAB)
    return text[len(ids) :]


def answer(engine: Engine, ids: Sequence[int], count: int, stop_ids: Sequence[int] = ()) -> list[int]:
    session = Session(engine, ids=ids)
    return list(session.generate(sampler=GREEDY, stop_ids=stop_ids, max_output_tokens=count))


@pytest.mark.parametrize("count", [1, 2, 3, 29, 200])
@pytest.mark.parametrize("prompt", [[7], [5, 6, 7] * 9, list(range(40))])
def test_guesses_save_steps_and_change_nothing(prompt: list[int], count: int) -> None:
    executor = CountingExecutor(has_cheap_rows=True)
    engine = Engine(executor, max_tokens=1000)
    session = Session(engine, ids=prompt)
    assert list(session.generate(sampler=GREEDY, max_output_tokens=count)) == expected(prompt, count)
    assert session.ids == prompt + expected(prompt, count)
    assert session._state.ids == session.ids[:-1]  # type: ignore[attr-defined]
    if count == 200:  # it goes round after 20
        assert len(executor.steps) < 60
        assert max(rows for step in executor.steps[1:] for rows in step) == MAX_ROWS_WITH_GUESSES


def test_an_answer_that_stops_among_guesses_leaves_nothing_of_them() -> None:
    whole = expected([7], 200)
    for stop_id in set(whole[30:60]):
        executor = CountingExecutor(has_cheap_rows=True)
        session = Session(Engine(executor, max_tokens=1000), ids=[7])
        first = list(session.generate(sampler=GREEDY, max_output_tokens=57))
        rest = list(session.generate(sampler=GREEDY, stop_ids=[stop_id]))
        assert first + rest == whole[: whole.index(stop_id, 57)]
        assert session._state.ids == session.ids  # type: ignore[attr-defined]


def test_several_answers_share_the_rows_for_guesses() -> None:
    executor = CountingExecutor(has_cheap_rows=True)
    session = Session(Engine(executor, max_tokens=1000), ids=[7])
    streams = session.prepare([Sampler(top_k=1, response_index=i) for i in range(5)], max_output_tokens=150)
    session.submit(streams)
    for stream in streams:
        assert [stream.take() for _ in range(150)] == expected([7], 150)
        stream.close()
    assert max(sum(step) for step in executor.steps) <= MAX_ROWS_WITH_GUESSES


def wait_until_idle() -> None:
    deadline = time.monotonic() + 5
    while any(thread.name == "hearthlm-scheduler" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_long_prompt_is_read_in_chunks_and_answered_greedily() -> None:
    executor = CountingExecutor()
    prompt = [i % VOCAB for i in range(PREFILL_CHUNK + LONE_PREFILL_CHUNK + 3)]
    assert answer(Engine(executor, max_tokens=1000), prompt, 5) == expected(prompt, 5)
    assert executor.steps[:4] == [[PREFILL_CHUNK], [LONE_PREFILL_CHUNK], [3], [1]]


def test_chunks_stay_short_where_they_take_long() -> None:
    executor = CountingExecutor(delay_s=1.1 * PREFILL_CHUNK / LONE_PREFILL_CHUNK)
    answer(Engine(executor, max_tokens=1000), [1] * (2 * PREFILL_CHUNK + 3), 1)
    assert executor.steps == [[PREFILL_CHUNK], [PREFILL_CHUNK], [3]]


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it() -> None:
    full = expected([3, 4], 6)
    session = Session(Engine(CountingExecutor(), max_tokens=100), ids=[3, 4])
    got = list(session.generate(sampler=GREEDY, stop_ids=[full[4]]))
    assert got == full[: full.index(full[4])]
    assert session.last_generation is not None
    assert session.last_generation.reason == "stop"


def test_prompt_and_answer_together_have_max_tokens() -> None:
    session = Session(Engine(CountingExecutor(), max_tokens=10), ids=[1] * 7)
    assert len(list(session.generate(sampler=GREEDY))) == 3
    assert session.last_generation is not None
    assert session.last_generation.reason == "length"


@pytest.mark.parametrize("length", [10, 11, 5000])
def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers_before_any_work(length: int) -> None:
    executor = CountingExecutor()
    with pytest.raises(ContextLengthError, match=f"{length} tokens, but max_tokens is 10") as caught:
        answer(Engine(executor, max_tokens=10), [1] * length, 1)
    assert (caught.value.num_tokens, caught.value.max_tokens) == (length, 10)
    assert executor.steps == []


def test_a_session_goes_on_where_it_was_and_feeds_nothing_twice() -> None:
    executor = CountingExecutor()
    session = Session(Engine(executor, max_tokens=100), ids=[5, 6])
    first = list(session.generate(sampler=GREEDY, max_output_tokens=3))
    session.append([7, 8])
    second = list(session.generate(sampler=GREEDY, max_output_tokens=2))
    assert second == expected([5, 6, *first, 7, 8], 2)
    assert sum(rows for step in executor.steps for rows in step) == 2 + 2 + 3 + 1  # the last id of each answer waits


def test_generating_again_without_a_new_id_continues() -> None:
    session = Session(Engine(CountingExecutor(), max_tokens=100), ids=[5])
    full = expected([5], 6)
    stop = full[3]
    assert list(session.generate(sampler=GREEDY, stop_ids=[stop])) == full[:3]
    assert list(session.generate(sampler=GREEDY, max_output_tokens=3)) == full[3:]


def test_a_fork_continues_on_its_own() -> None:
    session = Session(Engine(CountingExecutor(), max_tokens=100), ids=[5])
    head = list(session.generate(sampler=GREEDY, max_output_tokens=2))
    other = session.fork()
    other.append([9])
    assert list(other.generate(sampler=GREEDY, max_output_tokens=2)) == expected([5, *head, 9], 2)
    assert list(session.generate(sampler=GREEDY, max_output_tokens=2)) == expected([5, *head], 2)


def test_a_reader_who_leaves_cancels_and_the_session_goes_on_from_what_was_read() -> None:
    executor = CountingExecutor(delay_s=0.001)
    session = Session(Engine(executor, max_tokens=100_000), ids=[5])
    tokens = session.generate(sampler=GREEDY)
    read = [next(tokens) for _ in range(3)]
    time.sleep(0.02)  # the scheduler runs ahead
    tokens.close()
    assert session.last_generation is not None
    assert session.last_generation.reason == "cancelled"
    assert session.ids == [5, *read]
    assert list(session.generate(sampler=GREEDY, max_output_tokens=4)) == expected([5, *read], 4)
    wait_until_idle()


def test_a_second_call_while_one_runs_is_refused() -> None:
    session = Session(Engine(CountingExecutor(), max_tokens=1000), ids=[5])
    tokens = session.generate(sampler=GREEDY)
    next(tokens)
    for call in (lambda: session.append([1]), session.fork, lambda: next(session.generate(sampler=GREEDY))):
        with pytest.raises(SessionBusyError):
            call()
    tokens.close()
    session.append([1])


def test_many_threads_get_what_each_would_get_alone() -> None:
    engine = Engine(CountingExecutor(), max_tokens=1000)
    results: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        results[i] = answer(engine, [i, 2 * i % VOCAB] * (40 * i + 1), 30)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert results[i] == expected([i, 2 * i % VOCAB] * (40 * i + 1), 30)
    wait_until_idle()


def test_decoding_goes_on_while_another_prompt_is_read() -> None:
    executor = CountingExecutor(delay_s=0.002)
    engine = Engine(executor, max_tokens=10_000)
    session = Session(engine, ids=[1])
    tokens = session.generate(sampler=GREEDY)
    next(tokens)
    answer(engine, [2] * (PREFILL_CHUNK * 5), 1)
    tokens.close()
    assert sum(sorted(step) == [1, PREFILL_CHUNK] for step in executor.steps) >= 4


def test_a_failing_step_reaches_the_caller_and_the_engine_lives_on() -> None:
    executor = CountingExecutor()
    engine = Engine(executor, max_tokens=100)
    executor.fail_at = 2
    with pytest.raises(MemoryError, match="no memory for this step"):
        answer(engine, [1], 10)
    executor.fail_at = None
    assert answer(engine, [1], 3) == expected([1], 3)


def test_a_fault_in_the_scheduler_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(CountingExecutor(), max_tokens=100)
    monkeypatch.setattr(engine, "_step", lambda active: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(engine, [1], 3)
    monkeypatch.undo()
    assert answer(engine, [1], 3) == expected([1], 3)


def test_scores_are_the_log_probabilities_of_each_id_given_those_before() -> None:
    engine = Engine(CountingExecutor(), max_tokens=1000)
    ids = [1, 2, 3] * (PREFILL_CHUNK // 2)
    scores = engine.score(ids)
    assert scores.shape == (len(ids) - 1,)
    high, low = np.log(np.exp(5) / (np.exp(5) + VOCAB - 1)), np.log(1 / (np.exp(5) + VOCAB - 1))
    hits = np.array([(sum(ids[: i + 1]) + 1) % VOCAB == ids[i + 1] for i in range(len(ids) - 1)])
    assert np.allclose(scores, np.where(hits, high, low), atol=1e-5)
    assert engine.score([1]).shape == (0,)
    with pytest.raises(ContextLengthError):
        engine.score([1] * 1001)


def test_closing_cancels_what_runs_and_refuses_what_comes() -> None:
    engine = Engine(CountingExecutor(delay_s=0.001), max_tokens=1_000_000)
    session = Session(engine, ids=[1])
    tokens = session.generate(sampler=GREEDY)
    next(tokens)
    engine.close()
    for _ in tokens:
        pass
    assert session.last_generation is not None
    assert session.last_generation.reason == "cancelled"
    with pytest.raises(EngineClosedError):
        answer(engine, [1], 1)
    engine.close()
    wait_until_idle()


def test_an_idle_engine_has_no_thread() -> None:
    engine = Engine(CountingExecutor(), max_tokens=100)
    for _ in range(20):
        answer(engine, [1, 2], 3)
    wait_until_idle()
    assert engine is not None


def test_several_answers_read_the_prompt_once_and_each_is_what_it_would_be_alone() -> None:
    executor = CountingExecutor()
    session = Session(Engine(executor, max_tokens=1000), ids=[i % VOCAB for i in range(PREFILL_CHUNK + 9)])
    prompt = list(session.ids)
    samplers = [Sampler(top_k=1, logit_bias={7: 3.0 * i}) for i in range(3)]
    streams = session.prepare(samplers, max_output_tokens=4)
    session.submit(streams)
    for i, stream in enumerate(streams):
        got = []
        while (token := stream.take()) is not None:
            got.append(token)
        stream.close()
        assert got == ([7] * 4 if i == 2 else expected(prompt, 4))
    assert [sum(step) for step in executor.steps[:2]] == [PREFILL_CHUNK, 8]
    assert executor.steps[2:] == [[1, 1, 1]] * 4
    assert session.ids == prompt + expected(prompt, 4)
    assert list(session.generate(sampler=GREEDY, max_output_tokens=2)) == expected(session.ids[:-2], 2)


def test_a_long_prompt_is_cancelled_within_one_chunk() -> None:
    executor = CountingExecutor(delay_s=0.005)
    session = Session(Engine(executor, max_tokens=100_000), ids=[1] * (PREFILL_CHUNK * 100))
    for number_of_answers in (1, 3):
        streams = session.prepare([GREEDY] * number_of_answers)
        session.submit(streams)
        time.sleep(0.02)
        before = len(executor.steps)
        session.cancel()
        for stream in streams:
            assert stream.take() is None
            stream.close()
            assert stream.generation.finished is not None
            assert stream.generation.finished.reason == "cancelled"
        assert len(executor.steps) <= before + 1
        assert not session.is_busy
    session.ids = [1, 2]
    session._state.truncate(0)
    assert list(session.generate(sampler=GREEDY, max_output_tokens=3)) == expected([1, 2], 3)


def test_a_closed_session_ends_what_is_under_way_and_its_reader_is_not_left_waiting() -> None:
    session = Session(Engine(CountingExecutor(delay_s=0.001), max_tokens=1_000_000), ids=[1])
    read: list[int] = []
    reader = threading.Thread(target=lambda: read.extend(session.generate(sampler=GREEDY)))
    reader.start()
    while not read and not session.is_busy:
        time.sleep(0.001)
    time.sleep(0.01)
    session.close()
    reader.join(5)
    assert not reader.is_alive()
    with pytest.raises(SessionBusyError):
        session.append([1])


def test_logprobs_are_those_of_the_models_own_distribution() -> None:
    session = Session(Engine(CountingExecutor(), max_tokens=100), ids=[1])
    (stream,) = session.prepare([Sampler(top_k=1, logit_bias={9: 50.0})], max_output_tokens=2, num_logprobs=3)
    session.submit([stream])
    assert stream.take() == 9
    high, low = np.log(np.exp(5) / (np.exp(5) + VOCAB - 1)), np.log(1 / (np.exp(5) + VOCAB - 1))
    (entry, *_) = stream.logprobs
    assert entry.token_id == 9
    assert abs(entry.logprob - low) < 1e-5
    assert entry.top[0][0] == 2
    assert np.allclose([value for _, value in entry.top], [high, low, low], atol=1e-5)
    stream.close()


def interrupt_often(times: int) -> threading.Thread:
    """Press Ctrl-C several times, 20 ms apart."""

    def press() -> None:
        for _ in range(times):
            time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_an_impatient_ctrl_c_never_takes_a_state_from_a_step_that_still_computes() -> None:
    executor = CountingExecutor(delay_s=0.3)
    engine = Engine(executor, max_tokens=100_000)
    session = Session(engine, ids=[1] * (PREFILL_CHUNK * 100))
    thread = interrupt_often(3)
    with pytest.raises(KeyboardInterrupt):
        list(session.generate(sampler=GREEDY))
    thread.join()
    assert executor.steps == [[PREFILL_CHUNK]]  # and that one is over
    assert session._state.length == PREFILL_CHUNK
    assert not session.is_busy
    thread = interrupt_often(3)
    with pytest.raises(KeyboardInterrupt):
        engine.score([1] * (PREFILL_CHUNK * 100))
    thread.join()
    wait_until_idle()
    assert len(executor.steps) == 2


def test_two_threads_may_take_from_one_answer_and_both_see_its_end() -> None:
    engine = Engine(CountingExecutor(), max_tokens=100)
    session = Session(engine, ids=[1])
    (stream,) = session.prepare([GREEDY], max_output_tokens=3)
    session.submit([stream])
    wait_until_idle()
    events = stream.generation._events
    ids = [events.get() for _ in range(3)]
    assert ids == expected([1], 3)
    end = events.get()  # as another thread does, before it puts it back
    assert stream.take(block=False) is None
    assert stream.generation.finished is end
    stream.close()
