"""Measure the demo model on held-out text: `python evaluate.py MODEL.bin [COUNT [SHOWN]]`."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import stories
import text_generator
from text_generator import Turn
from train_tokenizer import TURN_END, TURN_START

Generate = Callable[[Sequence[str]], list[str]]
LogProbs = Callable[[str], Sequence[float]]
SEED = 20_000
# What prompts for stories say beside what the story is to be about.
_PROMPT_WORDS = set(re.findall(r"\w+", " ".join([*stories.PROMPTS, *stories.HELD_PROMPTS, "the and who"]).lower()))


def format_prompt(prompt: str) -> str:
    """Put a prompt into the turns of the model's template."""
    return f"{TURN_START}user\n{prompt}{TURN_END}\n{TURN_START}model\n"


def draw_turns(count: int, *, held_out: bool = True) -> dict[str, list[Turn]]:
    """Draw `count` first turns of each task."""
    rng = random.Random(SEED)
    turns: dict[str, list[Turn]] = {task: [] for task in text_generator.TASKS}
    while any(len(drawn) < count for drawn in turns.values()):
        turn = text_generator.write_conversation(rng, held_out=held_out)[0]
        if len(turns[turn.task]) < count:
            turns[turn.task].append(turn)
    return turns


def is_right(turn: Turn, answer: str) -> bool:
    """Say whether an answer is right: the needed words are there, and it declines exactly when it should."""
    declines = "does not say" in answer
    if turn.task == "decline":
        return declines
    if turn.task == "story":
        about = set(re.findall(r"\w{3,}", turn.prompt.lower())) - _PROMPT_WORDS
        recurs = sum(word in about for word in re.findall(r"\w+", answer.lower())) >= 3
        sentences = [part for part in re.split(r"(?<=[.!?])\"? ", answer) if part]
        ends_well = answer.endswith((".", "!", "?", '"'))
        return recurs and ends_well and len(sentences) >= 5 and all(key in answer for key in turn.keys)
    return not declines and all(key.lower() in answer.lower() for key in turn.keys)


def evaluate(generate: Generate, turns: dict[str, list[Turn]], *, show: int = 0) -> dict[str, float]:
    """Measure the share of right answers of each task, and of exact ones."""
    report = {}
    for task, drawn in turns.items():
        if not drawn:
            continue
        answers = generate([turn.prompt for turn in drawn])
        marks = [is_right(turn, answer) for turn, answer in zip(drawn, answers, strict=True)]
        report[task] = sum(marks) / len(marks)
        if task not in ("story", "cannot"):
            report[f"{task}_exact"] = sum(t.answer == a for t, a in zip(drawn, answers, strict=True)) / len(marks)
        wrong_first = sorted(zip(marks, drawn, answers, strict=True), key=lambda row: row[0])
        for mark, turn, answer in wrong_first[:show]:
            print(f"--- {task} {'right' if mark else 'WRONG'}\n{turn.prompt}\n=> {answer}\nexpected: {turn.answer}")
    # The generator asks about three answerable questions for one that is not.
    report["questions"] = (3 * report.get("answer", 0) + report.get("decline", 0)) / 4
    return report


def perplexity(log_probs: LogProbs, turns: dict[str, list[Turn]]) -> float:
    """Measure the perplexity of the answers' tokens, given the prompts."""
    total, count = 0.0, 0
    for turn in (turn for drawn in turns.values() for turn in drawn):
        whole = log_probs(format_prompt(turn.prompt) + turn.answer + TURN_END)
        prompt = log_probs(format_prompt(turn.prompt))
        total += sum(whole[len(prompt) :])
        count += len(whole) - len(prompt)
    return math.exp(-total / count)


def engine_functions(model_path: Path) -> tuple[Generate, LogProbs]:
    """Wrap the engine, which applies the template in the model file."""
    from hearthlm import LlmInference, LlmInferenceOptions

    llm = LlmInference.create_from_options(LlmInferenceOptions(model_path=str(model_path), max_tokens=1024, top_k=1))

    def generate(prompts: Sequence[str]) -> list[str]:
        return [result.texts[0] for result in llm.generate_batch(prompts)]

    def log_probs(text: str) -> list[float]:
        return [float(value) for value in llm.token_logprobs([2, *llm.tokenizer.encode(text)])]

    return generate, log_probs


def main() -> None:
    """Print accuracies and perplexity on held-out text, and accuracies on fresh text of the training part."""
    model_path = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    show = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    generate, log_probs = engine_functions(model_path)
    held_out = draw_turns(count)
    for part, turns in (("held-out", held_out), ("training part, fresh", draw_turns(count, held_out=False))):
        report = evaluate(generate, turns, show=show if part == "held-out" else 0)
        print(part, json.dumps({name: round(value, 3) for name, value in report.items()}), flush=True)
    by_task = {task: round(perplexity(log_probs, {task: drawn}), 3) for task, drawn in held_out.items()}
    print("held-out perplexity of the answers", round(perplexity(log_probs, held_out), 3), json.dumps(by_task))


if __name__ == "__main__":
    main()
