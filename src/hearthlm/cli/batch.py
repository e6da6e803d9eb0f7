"""`hearthlm batch`: many prompts from a file, many answers into another."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import hearthlm
from hearthlm.cli.exit_code import ExitCode
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, engine_options, max_tokens_option, sampling_options
from hearthlm.cli.terminal import is_watched, max_tokens_in_memory

if TYPE_CHECKING:
    from hearthlm.batch import BatchProgress

_MAX_AT_ONCE = 16


class _Shard(click.ParamType[tuple[int, int]]):
    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        index, slash, count = str(value).partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            self.fail(f"expected i/n with i from 1 to n, got {value!r}", param, ctx)
        return int(index), int(count)


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[MODEL] INPUT OUTPUT", shell_complete=complete_file)
@click.option("--resume", is_flag=True, help="Go on where OUTPUT ends; begin it if it is not there.")
@click.option("--force", is_flag=True, help="Replace OUTPUT if it is there.")
@click.option(
    "--shard", type=_Shard(), default="1/1", metavar="I/N", help="Answer every Nth row only, from the Ith on."
)
@click.option(
    "--input-format", type=click.Choice(["jsonl", "csv", "txt"]), help="What INPUT is.  [default: as its name says]"
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=_MAX_AT_ONCE,
    show_default=True,
    help="Rows that are decoded together.",
)
@max_tokens_option("the model's context, as far as memory allows")
@sampling_options
@engine_options
def batch(
    arguments: tuple[str, ...],
    resume: bool,
    force: bool,
    shard: tuple[int, int],
    input_format: Any,
    at_once: int,
    max_tokens: int | None,
    engine: dict[str, Any],
    **sampling: Any,
) -> None:
    """Answer every row of INPUT, and write a line of JSON for each to OUTPUT, in the order of the rows.

    INPUT is JSONL, an object with "prompt" or "messages" in each line and, for that row alone, "key", "metadata" and
    options such as "temperature"; or CSV with such columns; or text, a prompt in each line; "-" is stdin. A line of
    OUTPUT has key, text, finish_reason, usage, seed and error; one bad row costs no other. --resume goes on after
    whatever ended it, and --shard parts the work among machines: a row's answer is the same either way. Ends with 65
    where rows have an error.

    \b
    hearthlm batch prompts.jsonl answers.jsonl
    hearthlm batch gemma-2b-it-cpu-int4.bin questions.csv answers.jsonl --resume --max-output-tokens 200
    hearthlm batch ./gemma-3-1b-it prompts.txt part2.jsonl --shard 2/8
    """
    model, input_file, output_file = _model_and_files(arguments)
    options = hearthlm.LlmInferenceOptions(
        model_path=model,
        max_tokens=max_tokens or max_tokens_in_memory(model, num_sequences=at_once),
        **engine,
    )
    config = hearthlm.batch.BatchConfig(
        input_file=input_file,
        output_file=output_file,
        model=options,
        options=hearthlm.LlmInferenceSessionOptions(**sampling),
        input_format=input_format,
        shard=shard,
        resume=resume,
        overwrite=force,
        max_at_once=at_once,
    )
    with _progress() as show:
        summary = hearthlm.batch.run_batch(config, show)
    num_rows = summary.num_rows + summary.num_rows_before
    if is_watched():
        before = f", {summary.num_rows_before:,} of them before" if summary.num_rows_before else ""
        click.echo(f"{num_rows:,} rows{before}, {summary.num_output_tokens:,} tokens", err=True)
    if summary.num_errors:
        click.echo(f"hearthlm: {summary.num_errors} of {num_rows} rows have an error in {output_file}", err=True)
        sys.exit(ExitCode.BAD_DATA)


def _model_and_files(arguments: tuple[str, ...]) -> tuple[str | Path, str, str]:
    from hearthlm.demo import model_path

    if len(arguments) not in (2, 3):
        raise click.UsageError(f"expected [MODEL] INPUT OUTPUT, got {len(arguments)} arguments")
    *model, input_file, output_file = arguments
    return model[0] if model else model_path(), input_file, output_file


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[BatchProgress], None] | None]:
    """Yield what keeps a line on the terminal up to date, None where nobody is watching."""
    if not is_watched():
        yield None
        return
    last = 0.0

    def show(progress: BatchProgress) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= 0.1:
            last = now
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[2K{_line(progress)[:width]}")
            sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


def _line(progress: BatchProgress) -> str:
    parts = [] if progress.part is None else [f"{progress.part:4.0%}"]
    parts += [f"{progress.num_rows:,} rows", f"{progress.tokens_per_s:,.1f} tokens/s"]
    if progress.num_errors:
        parts.append(f"{progress.num_errors:,} errors")
    if progress.remaining_s is not None:
        minutes, seconds = divmod(int(progress.remaining_s), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return "  ".join(parts)
