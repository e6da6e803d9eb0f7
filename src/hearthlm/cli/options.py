"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])


def option_group(*options: Callable[[F], F]) -> Callable[[F], F]:
    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def gathered(name: str, *options: Callable[[F], F]) -> Callable[[F], F]:
    """Add options to a command that gets their values as one mapping, with those of other groups of this name."""

    def apply(command: F) -> F:
        @functools.wraps(command)
        def gather(**values: Any) -> Any:
            group = {option: values.pop(option) for option in names}
            return command(**{**values, name: values.get(name, {}) | group})

        num_before = len(getattr(gather, "__click_params__", ()))
        decorated = option_group(*options)(cast(F, gather))
        names = [option.name for option in decorated.__click_params__[num_before:]]  # type: ignore[attr-defined]
        return decorated

    return apply


sampling_options = option_group(
    click.option("--top-k", type=click.IntRange(0), help="1: greedy, 0: all tokens.  [default: the file's, or 40]"),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="[default: the file's, or 1.0]"),
    click.option("--temperature", type=click.FloatRange(0), help="0: greedy.  [default: the file's, or 0.8]"),
    click.option("--min-p", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True),
    click.option("--random-seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True),
    click.option("--presence-penalty", type=click.FloatRange(-2, 2), default=0.0, show_default=True),
    click.option("--frequency-penalty", type=click.FloatRange(-2, 2), default=0.0, show_default=True),
    click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True),
    click.option("--max-output-tokens", type=click.IntRange(1), help="Tokens of the answer alone."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
)


def max_tokens_option(default: str) -> Callable[[F], F]:
    return click.option(
        "--max-tokens", type=click.IntRange(1), help=f"Tokens of prompt and answer together.  [default: {default}]"
    )


threads_option = click.option(
    "--threads", "num_threads", type=click.IntRange(1), help="[default: one per physical core]"
)

# The mapping `engine` holds fields of LlmInferenceOptions.
_placement_options: tuple[Callable[[Any], Any], ...] = (
    click.option("--weights", type=click.Choice(["auto", "mmap", "ram"]), default="auto", show_default=True),
    click.option(
        "--activation-data-type",
        type=click.Choice(["int8", "float32"]),
        help="How activations meet quantised weights.  [default: int8]",
    ),
    click.option(
        "--kv-cache-dtype",
        type=click.Choice(["float32", "float16", "int8"]),
        help="How keys and values are kept.  [default: float16 beside quantised weights, else float32]",
    ),
)
_adapter_option: Callable[[Any], Any] = click.option(
    "--lora-path", type=click.Path(), help="A LoRA adapter: MediaPipe's _lora.bin or a PEFT folder."
)
compute_options = gathered("engine", threads_option, *_placement_options)
engine_options = gathered("engine", threads_option, *_placement_options, _adapter_option)
bench_options = gathered("engine", *_placement_options, _adapter_option)  # with threads of its own


def token(text: str) -> str | int:
    """Return a token's id, where the text is a number, or else its spelling."""
    return int(text) if text.isascii() and text.isdecimal() else text


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list like "1,4,16", each at least 1 and once."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise click.BadParameter(f"expected whole numbers from 1 on, each once, like 1,4,16; got {text!r:.80}")
    return numbers


litert_options = gathered(
    "engine",
    click.option("--tokenizer", "tokenizer_path", type=click.Path(), help="Of a bare .tflite: a file or a folder."),
    click.option("--start-token", type=token, help="Of a bare .tflite: what prompts begin with, text or id."),
    click.option("--stop-token", "stop_tokens", type=token, multiple=True, help="What ends an answer; repeatable."),
    click.option("--cache-dir", type=click.Path(), help="Where LiteRT may keep weights for faster loading."),
)


def complete_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]
