"""The command line: data on stdout, everything else on stderr; a module for each command."""

from hearthlm.cli import batch as batch
from hearthlm.cli import bench as bench
from hearthlm.cli import bundle as bundle
from hearthlm.cli import chat as chat
from hearthlm.cli import completion as completion
from hearthlm.cli import convert as convert
from hearthlm.cli import doctor as doctor
from hearthlm.cli import estimate as estimate
from hearthlm.cli import export as export
from hearthlm.cli import inspect as inspect
from hearthlm.cli import repack as repack
from hearthlm.cli import run as run
from hearthlm.cli import score as score
from hearthlm.cli import serve as serve
from hearthlm.cli.exit_code import ExitCode as ExitCode
from hearthlm.cli.group import cli as cli
from hearthlm.cli.group import main as main
