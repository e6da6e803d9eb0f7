"""Every example is short, typed as a user would type it, and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
ON_RAY = [path for path in EXAMPLES if path.stem.startswith("ray")]  # run by tests/test_ray.py, on its cluster


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_is(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    assert len(code.splitlines()) < 40
    assert code.startswith('"""')


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path not in ON_RAY], ids=lambda path: path.stem)
def test_an_example_runs_and_says_something(path: Path, tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == ""


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 10
