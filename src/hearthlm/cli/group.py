"""The command `hearthlm`, to which every other module here adds its own when that is asked for."""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

import hearthlm
from hearthlm.cli.exit_code import ExitCode, exit_code_of, message_of

COMPLETE_VARIABLE = "_HEARTHLM_COMPLETE"


# The module of each command: those of all take longer to import than a short answer of a small model.
_MODULES = {
    "batch": "batch",
    "bench": "bench",
    "bundle": "bundle",
    "chat": "chat",
    "completion": "completion",
    "convert": "convert",
    "doctor": "doctor",
    "estimate": "estimate",
    "export": "export",
    "inspect": "inspect",
    "quantize": "convert",
    "repack": "repack",
    "run": "run",
    "score": "score",
    "serve": "serve",
    "unbundle": "bundle",
}


class _Commands(click.Group):
    """Import a command when it is asked for.

    After Ctrl-C the process ends with the shell's exit code, where click would write a line first.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES:
            import_module(f"hearthlm.cli.{_MODULES[cmd_name]}")
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(ExitCode.INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(hearthlm.__version__, prog_name="hearthlm")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def cli(debug: bool) -> None:
    """Run large language models on your own device.

    \b
    hearthlm run "Tell me a story about a brave little boat."
    hearthlm run model.bin "Hello" --temperature 0
    hearthlm chat model.bin
    hearthlm inspect model.bin
    """


def main() -> None:
    """Run the command line; the process ends with one of ExitCode."""
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `hearthlm run ... | head` ends quietly
    if sys.stdin is None:  # `hearthlm ... <&-`
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 -- until the process ends
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        if sys.stdout is None:  # `hearthlm ... >&-`
            raise OSError(errno.EBADF, "it is closed, and nowhere else can the answer go", "stdout")
        cli.main(prog_name="hearthlm", complete_var=COMPLETE_VARIABLE, standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit:
        raise
    except BaseException as error:
        if "--debug" in sys.argv[1:]:
            raise
        if isinstance(error, click.ClickException):
            error.show()
            sys.exit(ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.OTHER)
        code = exit_code_of(error)
        message = message_of(error)
        if code is ExitCode.INTERNAL:
            message = f"internal error: {type(error).__name__}: {message} (run again with `hearthlm --debug ...`)"
        click.echo(f"hearthlm: {message}", err=True)
        sys.exit(code)


def _terminate(*_: object) -> None:
    sys.exit(ExitCode.TERMINATED)
