"""`hearthlm export`: a checkpoint becomes a LiteRT model, alone or bundled with its tokenizer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, threads_option
from hearthlm.cli.terminal import aligned, print_json, progress

if TYPE_CHECKING:
    from hearthlm.exporter import ExportPlan


@cli.command()
@click.argument("checkpoint", shell_complete=complete_file)
@click.option("-o", "--output", required=True, type=click.Path(), help="A .task, a .litertlm, or a bare .tflite.")
@click.option(
    "--quantization",
    type=click.Choice(["int8", "int4", "int4_block32", "none"]),
    default="int8",
    show_default=True,
    help="int4_block32 has a scale for every 32 weights.",
)
@click.option(
    "--quantization-method",
    type=click.Choice(["minmax", "mse"]),
    default="minmax",
    show_default=True,
    help="mse is nearer to float, and slower.",
)
@click.option(
    "--prefill-length",
    "prefill_lengths",
    type=click.IntRange(2),
    multiple=True,
    default=(32, 128, 512),
    show_default=True,
    help="How many tokens a step of the prompt takes; may be repeated.",
)
@click.option(
    "--cache-length", type=click.IntRange(2), default=1280, show_default=True, help="Tokens of prompt and answer."
)
@click.option(
    "--kv-layout",
    type=click.Choice(["transposed", "default"]),
    default="transposed",
    show_default=True,
    help="Of a .task LiteRT-LM reads transposed only.",
)
@threads_option
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be written, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def export(
    checkpoint: str, output: str, num_threads: int | None, dry_run: bool, as_json: bool, kv_layout: Any, **settings: Any
) -> None:
    """Write a Hugging Face CHECKPOINT as a LiteRT model, for LiteRT-LM on phones, desktops and the Web.

    The ending of the output says what it becomes: a .task or .litertlm with tokenizer, tokens and turns, or a .tflite.
    CHECKPOINT is a folder, a file of weights or a pattern. The path of what was written is printed to stdout.

    \b
    hearthlm export ./gemma-3-1b-it -o gemma-3-1b-it.litertlm
    hearthlm export ./gemma-3-1b-it -o gemma-3-1b-it.task --quantization int4_block32
    hearthlm export ./my-model -o my-model.tflite --cache-length 4096 --dry-run
    """
    exporter = hearthlm.exporter
    if dry_run:
        plan = exporter.plan_export(checkpoint, output, kv_layout=kv_layout, **settings)
        if as_json:
            print_json(plan.to_json())
        else:
            click.echo(_described(plan))
        return
    started = time.perf_counter()
    write = exporter.export_bundle if output.endswith((".task", ".litertlm")) else exporter.export_tflite
    with progress("exporting") as show:
        plan = write(checkpoint, output, kv_layout=kv_layout, progress=show, num_threads=num_threads, **settings)
    if as_json:
        print_json({**plan.to_json(), "seconds": round(time.perf_counter() - started, 3)})
    else:
        click.echo(plan.output_file)


def _described(plan: ExportPlan) -> str:
    rows: list[tuple[str, ...]] = [("weight", "shape", "type", "bytes")]
    rows += [(w.name, "x".join(map(str, w.shape)), w.dtype, f"{w.num_bytes:,}") for w in plan.weights]
    lines = aligned(rows)
    lines += [f"signature {name}: {count} operators" for name, count in plan.num_operators.items()]
    lines.append(
        f"family {plan.family}, {plan.quantization}: {plan.num_bytes / 1e6:,.1f} MB to {plan.output_file}, "
        f"{plan.cache_length} tokens, within {plan.peak_rss_mb} MB of memory"
    )
    return "\n".join(lines)
