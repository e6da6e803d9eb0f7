"""`hearthlm bench`: how fast a model is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import bench_options, complete_file, litert_options, whole_numbers
from hearthlm.cli.terminal import aligned, columns, print_json, progress, short_number

if TYPE_CHECKING:
    from hearthlm import SpeedReport


@cli.command()
@click.argument("model", required=False, shell_complete=complete_file)
@click.option(
    "--prompt-tokens",
    type=whole_numbers,
    metavar="N,...",
    default="128,512",
    show_default=True,
    help="Lengths of prompts, in tokens.",
)
@click.option("--output-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens of every answer.")
@click.option(
    "--sequences", type=whole_numbers, metavar="N,...", default="1", show_default=True, help="Answers at a time."
)
@click.option(
    "--threads", type=whole_numbers, metavar="N,...", help="Numbers of threads.  [default: one per physical core]"
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Each figure is their median.")
@click.option("--limits/--no-limits", default=True, help="Also measure what the machine allows, for two seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@bench_options
@litert_options
def bench(
    model: str | None,
    prompt_tokens: tuple[int, ...],
    output_tokens: int,
    sequences: tuple[int, ...],
    threads: tuple[int, ...] | None,
    rounds: int,
    limits: bool,
    as_json: bool,
    engine: dict[str, Any],
) -> None:
    """Measure how fast a model reads prompts and makes answers.

    Every combination of the lengths, answers and threads is measured, on random ids. "of limit" is the part of what
    the machine allows: of int8 operations for prompts, of the memory's speed for answers.

    \b
    hearthlm bench gemma-2b-it-cpu-int4.bin
    hearthlm bench gemma3.task --prompt-tokens 128,1024 --sequences 1,4,16 --threads 1,2 --json
    """
    from hearthlm.demo import model_path

    options = hearthlm.LlmInferenceOptions(model_path=model or model_path(), prefix_cache_mb=0, **engine)
    with progress("measuring") as show:
        report = hearthlm.measure_speed(
            options,
            prompt_lengths=prompt_tokens,
            num_output_tokens=output_tokens,
            num_sequences=sequences,
            num_threads=threads or (),
            rounds=rounds,
            with_limits=limits,
            progress=show,
        )
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(_table(report))


def _table(report: SpeedReport) -> str:
    lines = [("model", report.model), ("kernels", report.kernels), ("loaded in", f"{report.load_s:.2f} s")]
    if report.peak_rss_bytes is not None:
        lines.append(("peak memory", f"{short_number(report.peak_rss_bytes)}B"))
    for limit in report.limits:
        reached = f"{limit.read_gb_per_s:.1f} GB/s of reads, {limit.int8_tops:.2f} int8 TOPS"
        lines.append(("limits", f"{reached}, with --threads {limit.num_threads}"))
    titles = ("threads", "answers", "prompt", "first token", "prefill tok/s", "of limit", "decode tok/s", "of limit")
    rows: list[tuple[str, ...]] = [titles]
    rows += [
        (
            str(m.num_threads),
            str(m.num_sequences),
            f"{m.num_prompt_tokens:,}",
            f"{m.first_token_s:.3f} s",
            f"{m.prefill_tokens_per_s:,.1f}",
            _percent(m.prefill_of_limit),
            f"{m.decode_tokens_per_s:,.1f}",
            _percent(m.decode_of_limit),
        )
        for m in report.measurements
    ]
    return "\n".join([columns(lines), "", *aligned(rows)])


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.0f} %"
