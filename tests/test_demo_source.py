"""The demo model's texts: training and held-out parts never meet, and the same seed writes the same texts."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parent.parent / "demo"


@pytest.fixture(scope="module", autouse=True)
def demo_on_path() -> Iterator[None]:
    if not DEMO.is_dir():
        pytest.skip("the demo's source is not in this tree")
    sys.path.insert(0, str(DEMO))
    yield
    sys.path.remove(str(DEMO))


def load(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.parametrize("kind", ["person_name", "place_name", "pet_name"])
def test_names_of_training_and_held_out_texts_are_disjoint(kind: str) -> None:
    draw, rng = getattr(load("words"), kind), random.Random(3)
    extra = (True,) if kind == "person_name" else ()
    train = {draw(rng, False, *extra) for _ in range(3000)}
    held_out = {draw(rng, True, *extra) for _ in range(1000)}
    assert len(train) > 20
    assert len(held_out) > 5
    assert train.isdisjoint(held_out)


def test_sentence_templates_and_questions_are_disjoint() -> None:
    facts, stories = load("facts"), load("stories")
    for relation in [*facts.RELATIONS, *facts.EVENT_RELATIONS]:
        train = {text for stage in relation.stages for text in stage}
        held_out = {text for stage in relation.held_stages for text in stage}
        assert train.isdisjoint(held_out)
        assert all(relation.stages)
        assert all(relation.held_stages), relation.name
        for ask in relation.asks:
            assert ask.held_questions, (relation.name, ask.unsaid)
            assert set(ask.questions).isdisjoint(ask.held_questions)
    for arc in [*stories.STORY_ARCS, *stories.PLACE_STORY_ARCS]:
        assert all(arc.stages)
        assert all(arc.held_stages)
        assert {t for s in arc.stages for t in s}.isdisjoint({t for s in arc.held_stages for t in s})


def test_prompt_wordings_are_disjoint() -> None:
    generator, stories = load("text_generator"), load("stories")
    assert set(generator._QUESTION_WRAPPERS).isdisjoint(generator._HELD_QUESTION_WRAPPERS)
    assert set(generator._SUMMARY_WRAPPERS).isdisjoint(generator._HELD_SUMMARY_WRAPPERS)
    assert set(generator._OTHER_REQUESTS).isdisjoint(generator._HELD_OTHER_REQUESTS)
    assert set(stories.PROMPTS).isdisjoint(stories.HELD_PROMPTS)
    assert set(stories.OPENINGS).isdisjoint(stories.HELD_OPENINGS)


def test_no_held_out_question_or_passage_is_written_for_training() -> None:
    write, rng = load("text_generator").write_conversation, random.Random(4)
    train = {turn.prompt for _ in range(1500) for turn in write(rng)}
    held_out = {turn.prompt for _ in range(500) for turn in write(rng, held_out=True)}
    assert train.isdisjoint(held_out)


def test_the_same_seed_writes_the_same_texts() -> None:
    write = load("text_generator").write_conversation
    assert [write(random.Random(i)) for i in range(50)] == [write(random.Random(i)) for i in range(50)]


@pytest.mark.parametrize("held_out", [False, True])
def test_answers_agree_with_their_passages(held_out: bool) -> None:
    write, rng = load("text_generator").write_conversation, random.Random(5)
    tasks = set()
    for _ in range(800):
        passage = ""
        for turn in write(rng, held_out=held_out):
            passage += turn.prompt.lower()
            tasks.add(turn.task)
            assert "{" not in turn.prompt + turn.answer
            assert ("does not say" in turn.answer) == (turn.task == "decline")
            if turn.task == "answer" and turn.keys[:1] != ("Yes",) and turn.keys[:1] != ("No",):
                assert all(key.lower() in passage for key in turn.keys)
                assert all(key.lower() in turn.answer.lower() for key in turn.keys)
    assert tasks == set(load("text_generator").TASKS)
