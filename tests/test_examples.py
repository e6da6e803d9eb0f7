"""Every example is short, typed as a user would type it, and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def marked(path: Path) -> Any:
    return pytest.param(path, marks=pytest.mark.ray if path.stem.startswith("ray") else (), id=path.stem)


@pytest.mark.parametrize("path", map(marked, EXAMPLES))
def test_an_example_runs_and_says_something(path: Path, tmp_path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    assert len(code.splitlines()) < 40
    assert code.startswith('"""')
    result = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == ""


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 10
