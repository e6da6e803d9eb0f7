"""What a person or a program sees: data on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

import hearthlm

if TYPE_CHECKING:
    from hearthlm import LlmInference


def load_model(options: hearthlm.LlmInferenceOptions) -> LlmInference:
    """Load a model, with a progress bar where a person is watching."""
    with progress("loading") as show:
        return hearthlm.LlmInference.create_from_options(options, show)


def is_watched() -> bool:
    """Say whether a person sees what is done meanwhile: stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def max_tokens_in_memory(model: str | Path, *, num_sequences: int = 1) -> int | None:
    """Return the model's context, or as much of it as half of the free memory can hold for each of `num_sequences`.

    None where nothing can be told before loading: the model's own default then counts, or loading says what is wrong.
    """
    try:
        memory = hearthlm.estimate_memory(hearthlm.LlmInferenceOptions(model), num_sequences=num_sequences)
    except hearthlm.UnsupportedModelError:
        return None
    return memory.max_tokens_within(memory.free_bytes // 2)


class _Show(Protocol):
    def __call__(self, part: float, name: str | None = None) -> None: ...


@contextlib.contextmanager
def progress(label: str) -> Iterator[_Show | None]:
    """Yield what draws a progress bar, from 0 to 1 and with the name of what is done, None where nobody is watching."""
    if not is_watched():
        yield None
        return
    with click.progressbar(length=1000, label=label, file=sys.stderr, item_show_func=lambda name: name) as bar:

        def show(part: float, name: str | None = None) -> None:
            bar.update(int(part * 1000) - bar.pos, name)

        yield show
    sys.stderr.write("\x1b[1A\x1b[2K")  # the bar has done its work


def print_stream(increments: Iterator[str]) -> None:
    """Print an answer as it comes, and a line break after it."""
    last = ""
    try:
        for last in increments:
            sys.stdout.write(last)
            sys.stdout.flush()
    finally:
        increments.close()  # type: ignore[attr-defined]
        if not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def read_text(path: str) -> str:
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = "stdin" if path == "-" else path
        raise UnicodeError(f"{where}: expected UTF-8, got {error.reason} at byte {error.start}") from None


def print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def plain_text(text: str) -> str:
    """Return a text of a file as it is, or quoted where a terminal would obey it."""
    return text if text.isprintable() else repr(text)


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return a line for each row, its cells but the last one as wide as the widest of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


def columns(lines: list[tuple[str, str]]) -> str:
    width = max(12, *(len(name) for name, _ in lines))
    return "\n".join(f"{name:{width}} {value}" for name, value in lines)


def short_number(number: int) -> str:
    """Write a count in thousands, millions or billions, with one decimal."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:,.1f}{name}"
    return f"{number} "
