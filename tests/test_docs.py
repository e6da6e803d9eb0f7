"""What the README shows is run, and what the command line offers is in it."""

from __future__ import annotations

import html
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import random_models

import hearthlm
from hearthlm.bundler import extract_bundle
from hearthlm.demo import model_path
from hearthlm.formats.weights_bin import WeightsBin

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


# Pages whose commands and Python are run; those of the others need torch, a cluster or a phone.
PAGES = ("index", "models", "conversion", "batch", "performance")


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def readers_folder(tmp_path: Path) -> Path:
    """Return a folder where models of the reader's own are played by the one inside the package and a random one."""
    config = random_models.CONFIGS["gemma3_mqa"] | {"vocab_size": 2048}
    random_models.write_checkpoint(tmp_path / "gemma-3-1b-it", config)
    with WeightsBin.open(model_path()) as file:
        assert file.tokenizer is not None
        (tmp_path / "gemma-3-1b-it" / "tokenizer.model").write_bytes(file.tokenizer)
    (tmp_path / "model.bin").symlink_to(model_path())
    (tmp_path / "question.txt").write_text("Tell me a story about a cat.")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Tell me a story about a fox."}\n{"prompt": "Hello"}\n')
    (tmp_path / "letter.txt").write_text("Tell me a story about a dog.")
    bundle = ROOT / "tests" / "golden" / "litert" / "gemma3_q8_ekv128.task"
    extract_bundle(bundle, tmp_path).files[0].rename(tmp_path / "gemma3.tflite")
    (tmp_path / "gemma3.task").symlink_to(bundle)
    return tmp_path


@pytest.mark.parametrize("code", code_blocks("python"))
def test_python_of_the_readme_runs(code: str, readers_folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=readers_folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("line", [x for block in code_blocks("console") for x in block.splitlines() if x[:2] == "$ "])
def test_commands_of_the_readme_run(line: str, readers_folder: Path) -> None:
    command = line.removeprefix("$ ").replace("hearthlm", f"{shlex.quote(sys.executable)} -m hearthlm", 1)
    result = subprocess.run(["bash", "-c", command], cwd=readers_folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == ""


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs_from_top_to_bottom(page: str, readers_folder: Path) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    commands = [line.removeprefix("$ ") for block in code_blocks("console", text) for line in block.splitlines()]
    commands = [re.sub(r"\bhearthlm\b", f"{shlex.quote(sys.executable)} -m hearthlm", c, count=1) for c in commands]
    commands += [f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}" for code in code_blocks("python", text)]
    for command in commands:
        result = subprocess.run(
            ["bash", "-c", command], cwd=readers_folder, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert result.stderr == ""
        assert result.stdout.strip() or ">" in command, command


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"^\| `([^`]+)` \|", README, flags=re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_licence_and_the_changelog_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text() or "## 0." in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a page that is missing, or a link that leads nowhere, fails here."""
    pytest.importorskip("mkdocs", reason="make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder


def page_text(site: Path, name: str) -> str:
    """Return a page as a reader sees it, without markup."""
    return html.unescape(re.sub(r"<[^>]*>", "", (site / name).read_text(encoding="utf-8")))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        content = page.read_text(encoding="utf-8")
        loaded = re.findall(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?([^"'\s>]+)""", content)
        loaded += re.findall(
            r"""<link\b(?![^>]*rel=["']?(?:next|prev|canonical))[^>]*\bhref=["']?([^"'\s>]+)""", content
        )
        assert [address for address in loaded if "//" in address] == [], page
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(encoding="utf-8")
        assert "@import" not in style.read_text(encoding="utf-8")


def test_every_command_and_option_is_in_the_site(site: Path) -> None:
    import click

    from hearthlm.cli import cli

    text = page_text(site, "command-line.html")
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert f"Usage: hearthlm {name} " in text
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("-") or option in text, f"{name} {option}"
    assert "-h, --help" in text


def test_every_public_name_is_in_the_site(site: Path) -> None:
    text = page_text(site, "python-api.html")
    for name in hearthlm.__all__:
        assert name.startswith("_") or name in text
    for name in ("generate_batch", "run_batch", "convert_checkpoint", "create_bundle", "create_app", "BatchPredictor"):
        assert name in text
    assert "hearthlm.runtime" not in text


def test_the_limits_of_security_are_in_the_site(site: Path) -> None:
    assert "No pickle is executed" in page_text(site, "security.html")
    assert "Unreleased" in page_text(site, "changelog.html")
