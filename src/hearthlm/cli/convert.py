"""`hearthlm convert` and `hearthlm quantize`: a checkpoint becomes a .bin."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, option_group, threads_option
from hearthlm.cli.terminal import aligned, print_json, progress, read_text

if TYPE_CHECKING:
    from hearthlm.converter import ConversionConfig, ConversionPlan


_BITS = click.IntRange(4, 32)

_METHODS = click.Choice(["minmax", "mediapipe_mse", "mse", "gptq"])

_conversion_options = option_group(
    click.option("-o", "--output", type=click.Path(), help="[default: NAME-BACKEND-intBITS.bin in this folder]"),
    click.option("--model-type", help="MediaPipe's name (GEMMA_2B, ...); needed only without config.json."),
    click.option(
        "--backend", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True, help="gpu: phones, Web."
    ),
    click.option("--attention-quant-bits", type=_BITS, help="[default: --bits]"),
    click.option("--feedforward-quant-bits", type=_BITS, help="[default: --bits]"),
    click.option("--embedding-quant-bits", type=_BITS, help="[default: --bits]"),
    click.option("--vocab-model-file", type=click.Path(), default="", help="[default: the tokenizer by the weights]"),
    click.option("--num-heads", type=click.IntRange(1), help="For a checkpoint without config.json."),
    click.option("--head-dim", type=click.IntRange(1), help="For a checkpoint without config.json."),
    threads_option,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
)


@cli.command()
@click.argument("checkpoint", shell_complete=complete_file)
@click.option("--bits", type=_BITS, default=8, show_default=True, help="8, 4, or 32 (on gpu also 16) to keep floats.")
@click.option(
    "--quantization-method", type=_METHODS, help="minmax is MediaPipe's, gptq nearest to float.  [default: minmax]"
)
@click.option("--asymmetric", is_flag=True, help="With zero points; gpu only.")
@click.option("--lora-ckpt", type=click.Path(), help="A PEFT adapter to convert along.")
@click.option("--lora-rank", type=click.IntRange(1), help="[default: the adapter's]")
@click.option("--lora-alpha", type=float, help="For an adapter without adapter_config.json.")
@click.option("--lora-output", type=click.Path(), help="[default: the output with _lora before its ending]")
@click.option(
    "--mediapipe-compatible", is_flag=True, help="Repeat what MediaPipe's converter does wrong, byte for byte."
)
@click.option("--use-fake-weights", is_flag=True, help="Write zeros, for tests of size and speed.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be written, and write nothing.")
@_conversion_options
def convert(
    checkpoint: str, asymmetric: bool, lora_output: str | None, dry_run: bool, as_json: bool, **settings: Any
) -> None:
    """Convert a Hugging Face CHECKPOINT to MediaPipe's .bin, for this machine (cpu) or for phones and the Web (gpu).

    CHECKPOINT is a folder, a file of weights or a pattern. The path of what was written is printed to stdout.

    \b
    hearthlm convert ./gemma-3-1b-it --bits 4
    hearthlm convert ./gemma-2b-it --backend gpu -o gemma-2b-it-gpu-int8.bin
    hearthlm convert ./gemma-2b-it --lora-ckpt ./adapter --dry-run
    """
    from hearthlm.converter import plan_conversion

    num_threads = settings.pop("num_threads")
    config = _conversion_config(
        checkpoint, is_symmetric=not asymmetric, lora_output_tflite_file=lora_output, **settings
    )
    if not dry_run:
        _convert(config, num_threads, as_json=as_json)
    elif as_json:
        print_json(plan_conversion(config).to_json())
    else:
        click.echo(_described_plan(plan_conversion(config)))


@cli.command()
@click.argument("checkpoint", shell_complete=complete_file)
@click.option("--bits", type=_BITS, default=4, show_default=True, help="8 or 4.")
@click.option("--quantization-method", type=_METHODS, default="gptq", show_default=True)
@click.option("--compare", is_flag=True, help="Write nothing; try every method and say what each costs.")
@click.option("--text", type=click.Path(dir_okay=False), help="Compare on this text.  [default: one that ships]")
@_conversion_options
def quantize(checkpoint: str, compare: bool, text: str | None, as_json: bool, **settings: Any) -> None:
    """Convert a Hugging Face CHECKPOINT to 4 bits, as near to the float model as the format allows.

    It is `convert` with other defaults: the values of a layer are rounded so that their errors cancel on a text that
    ships with the package. --compare measures on another text how far the model's predictions move, in nats per token,
    by each method and at each size.

    \b
    hearthlm quantize ./gemma-3-1b-it
    hearthlm quantize ./gemma-3-1b-it --compare --text letters.txt
    """
    num_threads = settings.pop("num_threads")
    config = _conversion_config(checkpoint, **settings)
    if not compare:
        _convert(config, num_threads, as_json=as_json)
        return
    from hearthlm.quantization_comparison import compare_quantization

    rows = []
    if not as_json:
        click.echo(f"{'method':20} {'file MB':>10} {'seconds':>8} {'KL nats/token':>14} {'perplexity':>11}")
    for row in compare_quantization(config, None if text is None else read_text(text), num_threads=num_threads):
        rows.append(dataclasses.asdict(row))
        if not as_json:
            cost = f"{row.file_mb:10,.1f} {row.seconds:8.1f} {row.kl_divergence:14.5f} {row.perplexity:11.3f}"
            click.echo(f"{row.name:20} {cost}")
    if as_json:
        print_json({"variants": rows})


def _conversion_config(
    checkpoint: str,
    *,
    output: str | None,
    model_type: str | None,
    backend: Any,
    bits: int,
    attention_quant_bits: int | None,
    feedforward_quant_bits: int | None,
    embedding_quant_bits: int | None,
    **settings: Any,
) -> ConversionConfig:
    from hearthlm.converter import ConversionConfig

    name = Path(checkpoint).resolve().name.partition(".")[0].partition("*")[0]
    return ConversionConfig(
        checkpoint,
        None,
        model_type,
        backend,
        str(Path(output or ".").parent),
        attention_quant_bits=attention_quant_bits or bits,
        feedforward_quant_bits=feedforward_quant_bits or bits,
        embedding_quant_bits=embedding_quant_bits or bits,
        output_tflite_file=output or f"{name}-{backend}-{'int' if bits < 16 else 'float'}{bits}.bin",
        **settings,
    )


def _convert(config: ConversionConfig, num_threads: int | None, *, as_json: bool) -> None:
    """Convert with a progress bar, where a person is watching, and print what was written."""
    from hearthlm.converter import convert_checkpoint

    started = time.perf_counter()
    with progress("converting") as show:
        plan = convert_checkpoint(config, show, num_threads=num_threads)
    if as_json:
        print_json({**plan.to_json(), "seconds": round(time.perf_counter() - started, 3)})
    else:
        click.echo("\n".join(path for path in (plan.output_file, plan.lora_output_file) if path is not None))


def _described_plan(plan: ConversionPlan) -> str:
    rows: list[tuple[str, ...]] = [("tensor", "from", "shape", "type", "bytes")]
    rows += [(t.name, t.source, "x".join(map(str, t.shape)), t.dtype, f"{t.num_bytes:,}") for t in plan.tensors]
    lines = aligned(rows)
    lines += [f"left over: {name}" for name in plan.left_over]
    outputs = " and ".join(path for path in (plan.output_file, plan.lora_output_file) if path is not None)
    lines.append(
        f"{plan.model_type if plan.model_type != 'none' else 'family ' + plan.family}: {len(plan.tensors)} tensors, "
        f"{plan.num_bytes / 1e6:,.1f} MB to {outputs}, within {plan.peak_rss_mb} MB of memory"
    )
    return "\n".join(lines)
