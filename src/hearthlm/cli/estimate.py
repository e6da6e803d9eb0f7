"""`hearthlm estimate`: what a model will take in memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

import hearthlm
from hearthlm.cli.exit_code import ExitCode
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, engine_options, litert_options, max_tokens_option
from hearthlm.cli.terminal import columns, print_json, short_number

if TYPE_CHECKING:
    from hearthlm import MemoryEstimate


@cli.command()
@click.argument("model", required=False, shell_complete=complete_file)
@click.option(
    "--sequences", type=click.IntRange(1), default=1, show_default=True, help="Contexts of --max-tokens at a time."
)
@click.option(
    "--prefix-cache-mb",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Keys and values kept for later calls; 256 in chat, serve and Python.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@max_tokens_option("512, or what a LiteRT model was built for")
@engine_options
@litert_options
def estimate(
    model: str | None,
    sequences: int,
    prefix_cache_mb: int,
    as_json: bool,
    max_tokens: int | None,
    engine: dict[str, Any],
) -> None:
    """Say what a model will take in memory, without reading its weights.

    Mapped pages are shared between processes, and given back first when memory is short; the rest is the process's
    own. Ends with 75 where more is needed than the machine, or the container, has left.

    \b
    hearthlm estimate gemma-2b-it-cpu-int4.bin --max-tokens 8192
    hearthlm estimate ./gemma-3-1b-it --sequences 16 --json
    hearthlm estimate gemma3-1b-it-int4.task --cache-dir ~/.cache/hearthlm
    """
    from hearthlm.demo import model_path

    options = hearthlm.LlmInferenceOptions(
        model_path=model or model_path(),
        max_tokens=max_tokens,
        prefix_cache_mb=prefix_cache_mb,
        **engine,
    )
    memory = hearthlm.estimate_memory(options, num_sequences=sequences)
    if as_json:
        print_json(memory.to_json())
    else:
        click.echo(_table(memory))
    needed = memory.model_bytes + memory.process_bytes
    if needed > memory.free_bytes:
        click.echo(
            f"hearthlm: {_bytes(needed)} are more than the {_bytes(memory.free_bytes)} that are free: fewer tokens "
            "(--max-tokens), fewer bits (hearthlm convert --bits 4), or a larger machine",
            err=True,
        )
        sys.exit(ExitCode.TRY_LATER)


def _table(memory: MemoryEstimate) -> str:
    sequences = memory.num_sequences
    contexts = f"{memory.max_tokens:,} tokens" if sequences == 1 else f"{sequences} x {memory.max_tokens:,} tokens"
    lines = [
        ("mapped", _bytes(memory.mapped_bytes), "of the file's pages, shared"),
        ("loaded", _bytes(memory.loaded_bytes), "of weights in memory of their own"),
        ("cache", _bytes(memory.cache_bytes), f"for {contexts}"),
        ("tokenizer", _bytes(memory.tokenizer_bytes), ""),
        ("working", _bytes(memory.working_bytes), "of rows, logits and tables"),
        ("process", _bytes(memory.process_bytes), "of Python and libraries"),
        ("peak", _bytes(memory.peak_bytes), f"of {_bytes(memory.free_bytes).strip()} free now"),
    ]
    if memory.prefix_cache_bytes:
        lines.insert(3, ("kept", _bytes(memory.prefix_cache_bytes), "for later calls, at most"))
    return columns([(name, f"{size:>10}  {note}".rstrip()) for name, size, note in lines])


def _bytes(number: int) -> str:
    return f"{short_number(number)}B"
