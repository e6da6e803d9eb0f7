"""Conversations: what is added and answered stays, is computed once, and survives cloning, saving and loading."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import hearthlm
from hearthlm import (
    LlmInference,
    LlmInferenceOptions,
    LlmInferenceSession,
    LlmInferenceSessionOptions,
    PromptTemplate,
    PromptTemplates,
)
from hearthlm.runtime.engine import LONE_PREFILL_CHUNK
from hearthlm.runtime.executor import ForwardRequest

GOLDEN = Path(__file__).parent / "golden" / "outputs" / "0.10.14"
GEMMA = GOLDEN / "gemma_2b_cpu_int8.bin"
ENDLESS = LlmInferenceSessionOptions(temperature=2.0, logit_bias=dict.fromkeys((1, 5), float("-inf")))
SHORT = LlmInferenceSessionOptions(max_output_tokens=12, temperature=1.3)


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmInference]:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=2000, num_responses=3)) as model:
        yield model


def test_chunks_of_one_turn_are_one_prompt(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        for chunk in ("ab", "cab", "c"):
            session.add_query_chunk(chunk)
        assert session.generate_response() == llm.generate("abcabc", SHORT).texts[0]


def test_a_second_turn_goes_on_where_the_first_ended_and_computes_only_what_is_new(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        session.add_query_chunk("abcabc")
        first = session.generate()
        context = llm.tokenizer.encode("abcabc")
        session.add_query_chunk("ba")
        second = session.generate()
        whole = [2, *context, *first.token_ids[0], *llm.tokenizer.encode("ba")]
        assert second.num_prompt_tokens == len(whole)
        assert second.num_cached_tokens >= len(whole) - 1 - len(llm.tokenizer.encode("ba")) - 1
        assert second.token_ids[0] == llm.generate(whole, SHORT).token_ids[0]
        assert session.num_tokens == len(whole) + len(second.token_ids[0])


def test_generating_again_without_a_new_chunk_goes_on(llm: LlmInference) -> None:
    greedy = LlmInferenceSessionOptions(max_output_tokens=6, temperature=0)
    with LlmInferenceSession(llm, greedy) as session:
        session.add_query_chunk("abc")
        parts = session.generate().token_ids[0] + session.generate().token_ids[0]
    assert parts == llm.generate("abc", LlmInferenceSessionOptions(max_output_tokens=12, temperature=0)).token_ids[0]


def test_templates_open_and_close_turns_where_the_role_changes(llm: LlmInference) -> None:
    turns = PromptTemplates(
        user=PromptTemplate("a:", ";"), model=PromptTemplate("b:", "."), session_prefix="cc", system=PromptTemplate()
    )
    options = LlmInferenceSessionOptions(max_output_tokens=3, prompt_templates=turns)
    with LlmInferenceSession(llm, options) as session:
        session.add_query_chunk("ab")
        first = session.generate()
        session.add_query_chunk("ba")
        session.generate()
        ids = session._session.ids
    encode = llm.tokenizer.encode
    opening, second = [2, *encode("cca:ab;b:")], encode(".a:ba;b:")
    assert ids[: len(opening)] == opening
    assert first.num_prompt_tokens == len(opening)
    begin = len(opening) + len(first.token_ids[0])
    assert ids[begin : begin + len(second)] == second


def test_a_clone_continues_alike_and_on_its_own(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        session.add_query_chunk("abcab")
        session.generate_response()
        session.add_query_chunk("cc")
        with session.clone_session() as clone:
            assert clone.session_options == session.session_options
            mine, clones = session.generate(), clone.generate()
            assert clones.token_ids == mine.token_ids
            assert clones.num_cached_tokens == mine.num_cached_tokens > 0
            clone.add_query_chunk("a")
            session.add_query_chunk("b")
            assert clone.generate().token_ids != session.generate().token_ids


def test_several_responses_share_the_prompt_and_the_context_goes_on_with_the_first(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, SHORT) as session, LlmInferenceSession(llm, SHORT) as other:
        session.add_query_chunk("abcabca")
        other.add_query_chunk("abcabca")
        texts = session.generate_responses()
        assert len(texts) == 3
        assert len(set(texts)) > 1
        assert texts[0] == other.generate_response()
        for each in (session, other):
            each.add_query_chunk("b")
        assert session.generate_response() == other.generate_response()


def test_options_change_between_answers_and_only_known_ones(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        session.update_session_options(temperature=0.0, max_output_tokens=2)
        assert session.session_options.temperature == 0
        session.add_query_chunk("abc")
        assert session.generate().num_output_tokens <= 2 * 3
        with pytest.raises(TypeError, match="warmth"):
            session.update_session_options(warmth=1)
        with pytest.raises(ValueError, match="temperature"):
            session.update_session_options(temperature=-1)
        assert session.session_options.temperature == 0


def test_a_saved_session_goes_on_in_another_model_object_without_computing_anything_again(tmp_path: Path) -> None:
    path = tmp_path / "talk.session"
    options = LlmInferenceOptions(GEMMA, max_tokens=2000, prefix_cache_mb=0)
    with LlmInference.create_from_options(options) as llm, LlmInferenceSession(llm, SHORT) as session:
        session.add_query_chunk("abc" * 40)
        session.generate_response()
        session.add_query_chunk("ba")
        session.save(path)
        wanted = session.generate()
    with LlmInference.create_from_options(options) as llm, LlmInferenceSession(llm, SHORT) as session:
        session.load(path)
        got = session.generate()
    assert got.token_ids == wanted.token_ids
    assert got.num_cached_tokens == wanted.num_cached_tokens > 100


def test_a_session_of_another_model_or_longer_than_the_context_is_refused_and_nothing_changes(
    llm: LlmInference, tmp_path: Path
) -> None:
    path = tmp_path / "talk.session"
    with LlmInferenceSession(llm, SHORT) as session:
        session.add_query_chunk("abc" * 40)
        session.generate_response()
        session.save(path)
    other = LlmInferenceOptions(GOLDEN / "gemma_2b_cpu_int4.bin")
    small = LlmInferenceOptions(GEMMA, max_tokens=50)
    for options, error in ((other, hearthlm.SessionFileError), (small, hearthlm.ContextLengthError)):
        with LlmInference.create_from_options(options) as model, LlmInferenceSession(model, SHORT) as session:
            session.add_query_chunk("ab")
            with pytest.raises(error):
                session.load(path)
            assert session.generate_response() == model.generate("ab", SHORT).texts[0]


def test_what_does_not_fit_is_refused_when_it_is_added(llm: LlmInference) -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=20)) as small:
        with LlmInferenceSession(small, SHORT) as session:
            session.add_query_chunk("ab")
            with pytest.raises(hearthlm.ContextLengthError, match="max_tokens is 20"):
                session.add_query_chunk("abc" * 30)
            assert session.generate_response() == small.generate("ab", SHORT).texts[0]


def test_an_empty_context_and_wrong_types_are_named(llm: LlmInference) -> None:
    with LlmInferenceSession(llm) as session:
        with pytest.raises(ValueError, match="context is empty"):
            session.generate_response()
        with pytest.raises(TypeError, match="expected a str"):
            session.add_query_chunk(3)  # type: ignore[arg-type]


def test_a_second_call_while_one_runs_is_refused(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, ENDLESS) as session:
        session.add_query_chunk("abc")
        stream = session.generate_response_stream()
        next(stream)
        for call in (session.generate_response, session.clone_session, lambda: session.add_query_chunk("a")):
            with pytest.raises(hearthlm.SessionBusyError):
                call()
        stream.close()  # type: ignore[attr-defined]
        session.add_query_chunk("a")


def test_messages_and_text_do_not_mix(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        session.add_message("user", "ab")
        with pytest.raises(ValueError, match="grows by messages"):
            session.add_query_chunk("a")
        session.generate_response()
        assert [message["role"] for message in session.messages] == ["user", "assistant"]
        with pytest.raises(ValueError, match="last message"):
            session.generate_response()
    with LlmInferenceSession(llm, SHORT) as session:
        session.add_query_chunk("a")
        with pytest.raises(ValueError, match="grows by text"):
            session.add_message("user", "ab")


def test_a_conversation_by_messages_equals_each_turn_from_scratch_and_reuses_what_was_said(llm: LlmInference) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        said = []
        for text in ("abcab", "cc", "ba"):
            session.add_message("user", text)
            said.append({"role": "user", "content": text})
            result = session.generate()
            assert result.texts[0] == llm.generate(said, SHORT).texts[0]
            said.append({"role": "assistant", "content": result.texts[0]})
        assert list(session.messages) == said
        assert result.num_cached_tokens > 5


def test_a_session_saved_with_messages_goes_on_with_them(llm: LlmInference, tmp_path: Path) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        session.add_message("user", "abcab")
        session.generate_response()
        session.save(tmp_path / "talk")
        session.add_message("user", "c")
        wanted = session.generate_response()
    with LlmInferenceSession(llm, SHORT) as session:
        session.load(tmp_path / "talk")
        assert len(session.messages) == 2
        session.add_message("user", "c")
        assert session.generate_response() == wanted


def rss_kb() -> int:
    """Return the memory of this process, 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def test_a_thousand_cancels_at_random_moments_leave_the_session_right_and_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(7)
    prompt = "abcabcab" * 60
    greedy = LlmInferenceSessionOptions(max_output_tokens=20, temperature=0, logit_bias=ENDLESS.logit_bias)
    options = LlmInferenceOptions(GEMMA, max_tokens=2000, prefix_cache_mb=0)
    rows: list[int] = []  # of each step
    num_cut = {"prefill": 0, "decode": 0}
    with LlmInference.create_from_options(options) as model:
        executor = model._engine.executor
        forward = executor.forward

        def counted(requests: Sequence[ForwardRequest]) -> Any:
            rows.append(sum(len(request.ids) for request in requests))
            return forward(requests)

        wanted = model.generate(prompt, greedy).token_ids[0]
        monkeypatch.setattr(executor, "forward", counted)
        before = 0
        for i in range(1000):
            if i == 200:
                before = rss_kb()
            with LlmInferenceSession(model, greedy) as session:
                session.add_query_chunk(prompt)
                num_prompt_tokens = len(session._context())
                future = session.generate_response_async()
                time.sleep(rng.random() * 0.006)
                num_steps = len(rows)
                session.cancel_generate_response_async()
                future.result(timeout=10)
                assert len(rows) <= num_steps + 1  # the one that had begun
                assert max(rows, default=0) <= LONE_PREFILL_CHUNK
                num_done = session.num_tokens - num_prompt_tokens
                num_cut["decode" if num_done else "prefill"] += 1
                if num_done < len(wanted):
                    session.update_session_options(max_output_tokens=len(wanted) - num_done)
                    session.generate_response()
                assert tuple(session._session.ids[num_prompt_tokens:]) == wanted
        assert rss_kb() - before < 4096
    assert all(num_cut.values()), num_cut
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("hearthlm")]


def test_closing_a_session_under_way_ends_it(llm: LlmInference) -> None:
    session = LlmInferenceSession(llm, ENDLESS)
    session.add_query_chunk("abc")
    future = session.generate_response_async()
    session.close()
    assert isinstance(future.result(timeout=10), str)
    with pytest.raises(hearthlm.SessionBusyError):
        session.generate_response()


def test_sessions_closed_under_way_resolve_their_futures_and_disturb_no_other_answer(llm: LlmInference) -> None:
    rng = random.Random(5)
    wanted = llm.generate_response("abc")
    for _ in range(300):
        session = LlmInferenceSession(llm, ENDLESS)
        session.add_query_chunk("abc")
        future = session.generate_response_async()
        other = llm.generate_response_async("abc")
        time.sleep(rng.random() * 0.003)
        session.close()
        assert isinstance(future.result(timeout=10), str)
        assert other.result(timeout=10) == wanted


def test_closing_again_does_nothing_and_a_closed_session_says_so(llm: LlmInference, tmp_path: Path) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        session.add_query_chunk("abc")
        session.generate_response()
        session.close()
        session.close()
        for call in (session.generate_response, session.clone_session, lambda: session.save(tmp_path / "talk")):
            with pytest.raises(hearthlm.SessionBusyError, match="the session is closed"):
                call()


def test_a_file_that_cannot_be_written_is_named(llm: LlmInference, tmp_path: Path) -> None:
    with LlmInferenceSession(llm, SHORT) as session:
        with pytest.raises(FileNotFoundError) as refused:
            session.save(tmp_path / "nowhere" / "talk")
        assert refused.value.filename == str(tmp_path / "nowhere" / "talk")
