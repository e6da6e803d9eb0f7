"""Pages of the site that are made when it is built: from `--help`, docstrings, real output, and files beside docs/."""

from __future__ import annotations

import html
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import hearthlm
from hearthlm.demo import model_path

ROOT = Path(__file__).parent.parent
COPIED = {"security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md", "benchmarks.md": "benchmarks/README.md"}

# Beside the names of the package itself: what its toolchain and its integrations offer.
MODULES = ("batch", "converter", "bundler", "exporter", "repacker", "server", "integrations.ray")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; called by MkDocs."""
    pages = {name: (ROOT / source).read_text(encoding="utf-8") for name, source in COPIED.items()}
    pages = {name: text.replace("](../docs/", "](") for name, text in pages.items()}
    pages |= {"command-line.md": command_line(), "python-api.md": python_api()}
    pages |= {"terminal.svg": terminal_picture()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


SHOWN = (
    ("run", "Tell me a story about a brave little boat.", "--max-output-tokens", "70"),
    ("batch", "prompts.jsonl", "-", "--temperature", "0", "--max-output-tokens", "16"),
    ("inspect", "model.bin"),
)
COLUMNS, LINE_HEIGHT, COLUMN_WIDTH = 92, 20, 8.4  # the last two in pixels


def terminal_picture() -> str:
    """Return a picture of a terminal in which the commands of `SHOWN` have just been run, as SVG."""
    lines: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.bin").symlink_to(model_path())
        (Path(folder) / "prompts.jsonl").write_text('{"prompt": "Tell me a story about a fox.", "key": "fox"}\n')
        for arguments in SHOWN:
            command = [sys.executable, "-m", "hearthlm", *arguments]
            result = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            lines.append(("command", f"$ {shlex.join(('hearthlm', *arguments))}"))
            for line in result.stdout.splitlines():
                lines += [("output", part) for part in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]]
    width, height = int(COLUMNS * COLUMN_WIDTH) + 40, len(lines) * LINE_HEIGHT + 40
    texts = "".join(
        f'<text class="{kind}" x="20" y="{34 + i * LINE_HEIGHT}">{html.escape(line)}</text>'
        for i, (kind, line) in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        "<style>text{font:14px monospace;white-space:pre;fill:#d8d8d8}.command{fill:#ffb385}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#1e1e1e"/>{texts}</svg>\n'
    )


def command_line() -> str:
    """Return what every command says of itself."""
    from hearthlm.cli import cli

    parts = [
        "# Command line\n",
        "What `--help` says. Data goes to stdout, everything else to stderr; a failure is one line and an exit code.\n",
        _help_of(),
    ]
    for name in cli.list_commands(click.Context(cli)):
        parts += [f"## {name}\n", _help_of(name)]
    return "\n".join(parts)


def _help_of(*command: str) -> str:
    from hearthlm.cli import cli

    result = CliRunner().invoke(cli, [*command, "--help"], prog_name="hearthlm", terminal_width=100)
    assert result.exit_code == 0, result.output
    return f"```text\n{result.output}```\n"


def python_api() -> str:
    """Return the docstrings of every public name."""
    names = [name for name in hearthlm.__all__ if not name.startswith("_")]
    objects = {name: getattr(hearthlm, name) for name in names}
    errors = [name for name, value in objects.items() if inspect.isclass(value) and issubclass(value, Exception)]
    parts = ["# Python\n", "Every public name, and what its docstring says.\n"]
    for name, value in objects.items():
        if not inspect.ismodule(value) and name not in errors:
            parts += _entry(name, value, 2)
    parts += ["## Errors\n", "```text", inspect.getdoc(importlib.import_module("hearthlm.errors")) or "", "```\n"]
    # Its users have Ray; who builds this site need not.
    sys.modules.setdefault("ray", types.ModuleType("ray"))
    for name in MODULES:
        module = importlib.import_module(f"hearthlm.{name}")
        parts += [f"## hearthlm.{name}\n", f"{inspect.getdoc(module)}\n"]
        for member, value in _members_of(module):
            parts += _entry(member, value, 3)
    return "\n".join(parts)


def _members_of(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the classes and functions that a module defines for others, or lists in `__all__`, in their order."""
    listed = getattr(module, "__all__", None)
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        if callable(value) and (name in listed if listed is not None else is_own):
            yield name, value


def _entry(name: str, value: Any, level: int) -> list[str]:
    """Return the heading, the signature and the docstring of a class or function, and of a class's public parts."""
    if not callable(value):
        return []
    parts = [f"{'#' * level} {name}\n", f"```python\n{_signature(name, value)}\n```\n", f"{inspect.getdoc(value)}\n"]
    if inspect.isclass(value):
        for member, part in vars(value).items():
            function = part.__func__ if isinstance(part, (classmethod, staticmethod)) else part
            if member.startswith("_") or not (doc := inspect.getdoc(function)):
                continue
            if isinstance(part, property):
                parts.append(f"`{name}.{member}`: {doc[:1].lower()}{doc[1:]}\n")
            elif inspect.isfunction(function):
                parts.append(f"```python\n{name}.{_signature(member, function)}\n```\n\n{doc}\n")
    return parts


def _signature(name: str, value: Any) -> str:
    """Return a signature without `self`, broken into lines where it is long, types without their modules."""
    signature = inspect.signature(value)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    text = str(signature.replace(parameters=parameters)).replace("'", "").replace(" -> None", "")
    text = re.sub(r"\b(?:collections\.abc|typing|hearthlm(?:\.\w+)*)\.(\w)", r"\1", text)
    if len(name) + len(text) <= 100 or not parameters:
        return f"{name}{text}"
    lines = [re.sub(r"\b(?:collections\.abc|typing)\.", "", str(p).replace("'", "")) for p in parameters]
    return f"{name}(\n    " + ",\n    ".join(lines) + f"\n){text.rpartition(')')[2]}"
