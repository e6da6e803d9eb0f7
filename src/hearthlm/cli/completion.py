"""`hearthlm completion`: the shell learns the commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hearthlm.cli.group import COMPLETE_VARIABLE, cli


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that teaches a SHELL to complete hearthlm's commands, options and files.

    \b
    eval "$(hearthlm completion bash)"                                   # in ~/.bashrc
    hearthlm completion fish > ~/.config/fish/completions/hearthlm.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None  # a choice that click knows
    click.echo(complete(cli, {}, "hearthlm", COMPLETE_VARIABLE).source())
