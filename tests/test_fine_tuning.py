"""The tutorial in docs/fine-tuning.md is run as it stands, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"^```(python|console)\n(.*?)^```", (ROOT / "docs" / "fine-tuning.md").read_text("utf-8"), flags=re.M | re.S
)


@pytest.mark.oracle
def test_the_tutorial_leads_where_it_says(tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "gemma3.task").symlink_to(ROOT / "tests" / "golden" / "litert" / "gemma3_q8_ekv128.task")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    printed = []
    for language, code in BLOCKS:
        commands = [line[2:] for line in code.splitlines()] if language == "console" else [code]
        for command in commands:
            program = ["bash", "-c", command] if language == "console" else [sys.executable, "-c", command]
            result = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            printed.append(result.stdout)
    assert printed[2].split() == ["sailor.bin", "sailor_lora.bin"]
    assert "rank" in printed[3]
    plain, adapted = printed[4].splitlines()
    assert "Ahoy" not in plain
    assert adapted == "Ahoy, Mira! Welcome aboard."
    assert "Captain: " in printed[-1]
