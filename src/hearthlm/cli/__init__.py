"""The command line: data on stdout, everything else on stderr; a module for each command."""

from hearthlm.cli.exit_code import ExitCode as ExitCode
from hearthlm.cli.group import cli as cli
from hearthlm.cli.group import main as main
