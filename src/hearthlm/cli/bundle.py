"""`hearthlm bundle` and `hearthlm unbundle`: a .task from its parts, and back."""

from __future__ import annotations

import re
from typing import Any

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file, option_group
from hearthlm.cli.terminal import progress


@cli.command()
@click.option("--tflite-model", required=True, type=click.Path(), help="A LiteRT model, prefill and decode.")
@click.option(
    "--tokenizer-model",
    required=True,
    type=click.Path(),
    help="A SentencePiece model, or a Hugging Face tokenizer.json or the folder with it.",
)
@click.option("--start-token", required=True, metavar="TOKEN", help="What begins every prompt.")
@click.option("--stop-token", "stop_tokens", required=True, multiple=True, metavar="TOKEN", help="May be repeated.")
@click.option("-o", "--output", "output_filename", required=True, type=click.Path(), help="The .task to write.")
@click.option(
    "--bytes-to-unicode",
    "enable_bytes_to_unicode_mapping",
    is_flag=True,
    help="The SentencePiece model is spelled in GPT-2's alphabet.",
)
@click.option("--system-prompt", metavar="TEXT", help="What comes before the conversation.")
@option_group(
    *(
        click.option(f"--prompt-{part}-{role}", metavar="TEXT", help=f"What {verb} a turn of the {role}.")
        for role in ("user", "model", "system")
        for part, verb in (("prefix", "begins"), ("suffix", "ends"))
    )
)
@click.option("--prompt-prefix", metavar="TEXT", help="Instead of turns: what comes before what the user says.")
@click.option("--prompt-suffix", metavar="TEXT", help="Instead of turns: what comes between it and the answer.")
@option_group(*(click.option(f"--{role}-role-token", metavar="TOKEN") for role in ("user", "system", "model", "end")))
@option_group(
    *(
        click.option(f"--tflite-{part}", type=click.Path(), help="A further LiteRT model.")
        for part in ("embedder", "per-layer-embedder", "vision-encoder", "vision-adapter")
    )
)
@click.option("--check-model/--no-check-model", default=True, show_default=True, help="Look at the models' signatures.")
def bundle(stop_tokens: tuple[str, ...], **fields: Any) -> None:
    """Put a LiteRT model, its tokenizer and the turns of a prompt into a .task file.

    In a TEXT or TOKEN, \\n stands for a line break, \\t for a tab and \\\\ for a backslash. Prints the bundle's path.

    \b
    hearthlm bundle --tflite-model gemma3.tflite --tokenizer-model tokenizer.model -o gemma3.task \\
        --start-token "<bos>" --stop-token "<eos>" --stop-token "<end_of_turn>" \\
        --prompt-prefix-user "<start_of_turn>user\\n" --prompt-suffix-user "<end_of_turn>\\n" \\
        --prompt-prefix-model "<start_of_turn>model\\n" --prompt-suffix-model "<end_of_turn>\\n"
    """
    for name, value in fields.items():
        if value is not None and name.startswith(("prompt_", "system_prompt", *_TOKENS)):
            fields[name] = _unescaped(value)
    config = hearthlm.bundler.BundleConfig(stop_tokens=[_unescaped(token) for token in stop_tokens], **fields)
    with progress("writing") as show:
        path = hearthlm.bundler.create_bundle(config, show)
    click.echo(path)


@cli.command()
@click.argument("file", type=click.Path(), shell_complete=complete_file)
@click.option("-o", "--output-dir", required=True, type=click.Path(), help="The folder to write to; it is created.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def unbundle(file: str, output_dir: str, force: bool) -> None:
    """Take a .task FILE apart: its model, its tokenizer and its metadata become files with fixed names.

    Prints the path of each file. What the FILE holds beyond the known entries is left in it, and named on stderr.

    \b
    hearthlm unbundle gemma3.task -o parts
    """
    extracted = hearthlm.bundler.extract_bundle(file, output_dir, overwrite=force)
    for path in extracted.files:
        click.echo(path)
    for name in extracted.unknown_entries:
        click.echo(f"hearthlm: the entry {name} is not known, and left in the bundle", err=True)


_TOKENS = ("start_token", "user_role", "system_role", "model_role", "end_role")

_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def _unescaped(text: str) -> str:
    """Return `text` with the line breaks, tabs and backslashes that a shell makes hard to type."""
    return re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], text)
