"""What is guessed, and when it is not."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

import hearthlm
from hearthlm.demo import model_path
from hearthlm.runtime.prompt_lookup import MAX_PAUSE, PromptLookup

PASSAGE = (
    "Sum this up in one sentence: Mira lives in Westworth. She has a small shop there. One morning Mira lost her "
    "key. She looked for it all day, and in the evening her friend Tom found it under the bridge."
)


def test_what_followed_the_same_ids_is_guessed_the_longest_run_and_the_latest_place_first() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 2, 3, 5, 9, 1, 2, 3])
    assert lookup.guess(2) == [4, 9]  # three alike
    assert PromptLookup([1, 2, 3, 4, 0, 2, 3, 5, 9, 7, 2, 3]).guess(2) == [5, 9]  # two alike, the latest
    assert PromptLookup([1, 2, 3, 4, 5]).guess(4) == []


def test_a_guess_ends_with_the_text_and_with_its_limit() -> None:
    lookup = PromptLookup([6, 6, 6])
    assert lookup.guess(5) == [6]
    assert lookup.guess(0) == []
    assert PromptLookup([]).guess(5) == PromptLookup([1]).guess(5) == []


def test_guesses_grow_while_they_are_right_and_pause_while_they_are_wrong() -> None:
    lookup = PromptLookup(list(range(100)) * 2)
    lengths = []
    for _ in range(4):
        guessed = lookup.guess(16)
        lengths.append(len(guessed))
        lookup.learn(len(guessed), len(guessed))
    assert lengths == [4, 8, 16, 16]
    lookup.learn(16, 2)
    assert len(lookup.guess(16)) == 3
    num_guesses = 0
    for _ in range(1000):
        if guessed := lookup.guess(16):
            num_guesses += 1
            lookup.learn(len(guessed), 0)
        lookup.append(5)
    assert num_guesses < 1000 / MAX_PAUSE + 10


def test_a_text_without_repetitions_is_never_guessed_at() -> None:
    ids = random.Random(0).sample(range(10_000), 2000)
    lookup = PromptLookup(())
    for token in ids:
        assert lookup.guess(16) == []
        lookup.append(token)


@pytest.fixture(scope="module")
def models() -> Any:
    options = hearthlm.LlmInferenceOptions(model_path(), max_tokens=1024)
    with (
        hearthlm.LlmInference.create_from_options(options) as guessing,
        hearthlm.LlmInference.create_from_options(replace(options, prompt_lookup=False)) as plain,
    ):
        yield guessing, plain


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 1, "logprobs": 3},
        {"temperature": 0.8, "random_seed": 5},
        {"temperature": 1.5, "top_k": 0, "top_p": 0.9},
        {"top_k": 1, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
        {"top_k": 1, "stop": ("Westworth",)},
        {"top_k": 1, "max_output_tokens": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("repeats", [1, 4])
def test_a_model_says_the_same_with_guesses_and_without(models: Any, options: dict[str, Any], repeats: int) -> None:
    settings = hearthlm.LlmInferenceSessionOptions(**options)
    guessing, plain = (llm.generate(PASSAGE + " Again:" + PASSAGE * (repeats - 1), settings) for llm in models)
    assert guessing.token_ids == plain.token_ids
    assert guessing.texts == plain.texts
    assert guessing.logprobs == plain.logprobs
    assert guessing.finish_reason == plain.finish_reason


def test_several_answers_at_once_say_the_same_with_guesses_and_without(models: Any) -> None:
    prompts = [PASSAGE, "Tell me a story about a lazy cat.", PASSAGE * 3, "Why is the sky blue?"] * 2
    guessing, plain = (llm.generate_batch(prompts) for llm in models)
    assert [result.token_ids for result in guessing] == [result.token_ids for result in plain]


def test_what_was_made_after_a_stop_string_is_in_nobodys_context(models: Any) -> None:
    def told(llm: hearthlm.LlmInference) -> tuple[str, int]:
        options = hearthlm.LlmInferenceSessionOptions(top_k=1, stop=("a",))
        with hearthlm.LlmInferenceSession.create_from_options(llm, options) as session:
            session.add_query_chunk(PASSAGE)
            for _ in range(5):
                session.generate_response()
                session.add_query_chunk(" And then?")
            return session.generate_response(), session.num_tokens

    assert len({told(llm) for llm in (*models, *models, *models)}) == 1
