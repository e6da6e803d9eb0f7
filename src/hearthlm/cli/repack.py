"""`hearthlm repack`: a .task as a .litertlm, and back."""

from __future__ import annotations

import click

import hearthlm
from hearthlm.cli.group import cli
from hearthlm.cli.options import complete_file
from hearthlm.cli.terminal import plain_text, progress


@cli.command()
@click.argument("file", type=click.Path(), shell_complete=complete_file)
@click.argument("output", type=click.Path())
def repack(file: str, output: str) -> None:
    """Write a .task FILE as a .litertlm, or a .litertlm as a .task: OUTPUT.

    The model, the tokenizer, the start and stop tokens and the turns stay the same. What the other format has no words
    for travels along all the same, for hearthlm alone, and is named on stderr. Prints the path.

    \b
    hearthlm repack gemma3.task gemma3.litertlm
    """
    with progress("writing") as show:
        repacked = hearthlm.repacker.repack(file, output, show)
    click.echo(repacked.path)
    for note in repacked.notes:
        click.echo(f"hearthlm: {plain_text(note)}", err=True)
