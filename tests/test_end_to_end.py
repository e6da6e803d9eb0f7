"""The model inside the package: what it says, and what quantised arithmetic costs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions
from hearthlm.demo import model_path
from hearthlm.runtime.executor import ForwardRequest

GREEDY = LlmInferenceSessionOptions(top_k=1)

PASSAGE = (
    "Mira lives in a small house near the harbour. On Monday she found an old key under the stairs. "
    "Her brother Tom works as a baker. He bakes bread for the whole street."
)


@pytest.fixture(scope="module")
def llm() -> LlmInference:
    return LlmInference.create_from_options(LlmInferenceOptions(model_path(), max_tokens=512))


def log_probabilities(llm: LlmInference, ids: list[int]) -> NDArray[np.float64]:
    executor = llm._engine.executor
    logits = executor.forward([ForwardRequest(executor.new_state(), ids, "all")])[0]
    assert logits is not None
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    normalised: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return normalised


def test_the_package_carries_a_model_of_a_few_megabytes() -> None:
    assert 1_000_000 < model_path().stat().st_size < 12_000_000


def test_a_story_stays_on_its_subject(llm: LlmInference) -> None:
    story = llm.generate("Tell me a story about a brave little boat.", GREEDY)
    assert "boat" in story.texts[0]
    assert story.finish_reason == "stop"
    assert story.num_output_tokens > 30


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is Tom's job?", "Tom is a baker."),
        ("What did Mira find?", "Mira found an old key."),
        ("How old is Tom?", "The passage does not say how old Tom is."),
    ],
)
def test_a_question_is_answered_from_the_passage_or_not_at_all(question: str, answer: str, llm: LlmInference) -> None:
    assert llm.generate(f"{PASSAGE}\n\nQuestion: {question}", GREEDY).texts[0] == answer


def test_a_passage_is_summed_up(llm: LlmInference) -> None:
    passage = "Ben found a red kite in the park. He asked everyone who had lost it. It belonged to Lena."
    summary = llm.generate(f"Summarise this in one sentence: {passage}", GREEDY).texts[0]
    assert all(word in summary for word in ("Ben", "red kite", "Lena"))


def test_what_it_cannot_do_it_says_politely(llm: LlmInference) -> None:
    answer = llm.generate("What is the capital of France?", GREEDY).texts[0]
    assert "demo model" in answer


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 5e-3),  # nats per token
        ({"kv_cache_dtype": "int8"}, 5e-3),
        ({"kv_cache_dtype": "int8", "activation_data_type": "float32"}, 5e-4),
    ],
)
def test_int8_activations_keys_and_values_cost_little(llm: LlmInference, changes: dict[str, Any], most: float) -> None:
    prompts = [
        "Tell me a story about a brave little boat.",
        f"{PASSAGE}\n\nQuestion: What is Tom's job?",
        f"Summarise this in one sentence: {PASSAGE}",
    ]
    exact = LlmInferenceOptions(model_path(), activation_data_type="float32", kv_cache_dtype="float32")
    rounded = LlmInferenceOptions(model_path(), **changes)
    divergences = []
    with LlmInference.create_from_options(exact) as reference, LlmInference.create_from_options(rounded) as changed:
        for prompt in prompts:
            answer = llm.generate(prompt, GREEDY)
            ids = [*llm._ids_of(prompt, GREEDY), *answer.token_ids[0]]
            p, q = log_probabilities(reference, ids), log_probabilities(changed, ids)
            divergences.append((np.exp(p) * (p - q)).sum(axis=1))
    assert float(np.concatenate(divergences).mean()) <= most


def test_incremental_text_is_the_decoded_ids(llm: LlmInference) -> None:
    result = llm.generate("Tell me a story about a cat named Zoë.", LlmInferenceSessionOptions(random_seed=5))
    assert result.texts[0] == llm.tokenizer.decode(result.token_ids[0], at_start=False)
