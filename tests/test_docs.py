"""What the README shows is run, and what the command line offers is in it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import random_models

from hearthlm.bundler import extract_bundle
from hearthlm.demo import model_path
from hearthlm.formats.weights_bin import WeightsBin

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


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


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"^\| `([^`]+)` \|", README, flags=re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_licence_and_the_changelog_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text() or "## 0." in (ROOT / "CHANGELOG.md").read_text()
