"""What the README shows is run, and what the command line offers is in it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", code_blocks("python"))
def test_python_of_the_readme_runs(code: str, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("line", [x for block in code_blocks("console") for x in block.splitlines() if x[:2] == "$ "])
def test_commands_of_the_readme_run(line: str, tmp_path: Path) -> None:
    from hearthlm.bundler import extract_bundle
    from hearthlm.demo import model_path

    # Models of the reader's own are played by the one inside the package.
    (tmp_path / "model.bin").symlink_to(model_path())
    (tmp_path / "gemma-3-1b-it").symlink_to(model_path())
    (tmp_path / "question.txt").write_text("Tell me a story about a cat.")
    (tmp_path / "letter.txt").write_text("Tell me a story about a dog.")
    parts = extract_bundle(ROOT / "tests" / "golden" / "litert" / "gemma3_q8_ekv128.task", tmp_path).files
    parts[0].rename(tmp_path / "gemma3.tflite")
    (tmp_path / "gemma3.task").symlink_to(ROOT / "tests" / "golden" / "litert" / "gemma3_q8_ekv128.task")
    command = line.removeprefix("$ ").replace("hearthlm", f"{shlex.quote(sys.executable)} -m hearthlm", 1)
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == ""


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"^\| `([^`]+)` \|", README, flags=re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_licence_and_the_changelog_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text() or "## 0." in (ROOT / "CHANGELOG.md").read_text()
