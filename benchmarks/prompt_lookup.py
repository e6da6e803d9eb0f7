"""Tokens per second with and without guesses from the text itself, greedy, and whether the tokens are the same.

The demo model on held-out prompts of every kind (demo/evaluate.py): a summary and the answer to a question repeat the
passage in part, a story does not. Of another model (random_model.py) the answers of 256 tokens to a text that repeats
itself. Both ways answer each prompt in turns, the better of two; the figures are tokens over seconds of decoding.

    python benchmarks/prompt_lookup.py [--threads 2] [--prompts 40] [MODEL.bin ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import hearthlm
from hearthlm.demo import model_path

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))
from evaluate import draw_turns

REPEATED = "The lamp is red. The lamp is on the table. The table is by the door. " * 6


def compare(model: str | Path, threads: int, prompts: Mapping[str, Sequence[str]], num_tokens: int | None) -> None:
    """Print a row for each kind of prompt."""
    greedy = hearthlm.LlmInferenceSessionOptions(top_k=1, max_output_tokens=num_tokens)
    engines = [
        hearthlm.LlmInference.create_from_options(
            hearthlm.LlmInferenceOptions(
                model, max_tokens=1024, num_threads=threads, prefix_cache_mb=0, prompt_lookup=guesses
            )
        )
        for guesses in (False, True)
    ]
    for kind, texts in prompts.items():
        seconds, num_decoded, same = [0.0, 0.0], 0, True
        for text in texts:
            results = [min((llm.generate(text, greedy) for _ in range(2)), key=lambda r: r.decode_s) for llm in engines]
            same &= results[0].token_ids == results[1].token_ids
            num_decoded += results[0].num_output_tokens - 1
            for i, result in enumerate(results):
                seconds[i] += result.decode_s
        plain, guessed = (num_decoded / s for s in seconds)
        print(
            f"| {Path(model).name} | {kind} | {num_decoded} | {plain:,.1f} | {guessed:,.1f} | {guessed / plain:.2f} "
            f"| {'yes' if same else 'NO'} |",
            flush=True,
        )
    for llm in engines:
        llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("models", nargs="*", type=Path)
    arguments = parser.parse_args()
    print("| model | prompts | tokens | tokens/s without | with guesses | ratio | same tokens |")
    print("|---|---|---|---|---|---|---|")
    kinds = draw_turns(arguments.prompts)
    prompts = {kind: [turn.prompt for turn in turns] for kind, turns in kinds.items()}
    compare(model_path(), arguments.threads, prompts, None)
    for model in arguments.models:
        compare(model, arguments.threads, {"a text that repeats itself": [REPEATED]}, 256)


if __name__ == "__main__":
    main()
