"""What is said of this machine is what the system and the kernels say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

import hearthlm
from hearthlm import kernels
from hearthlm.runtime.cpu_count import usable_cpus


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hearthlm", "doctor", *arguments]
    return subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)


def test_the_machine_is_described() -> None:
    machine = hearthlm.inspect_machine()
    assert machine.kernels == kernels.instruction_set
    assert machine.available_kernels[-1] == "reference"
    assert set(machine.usable_cpus) == usable_cpus()
    assert 1 <= machine.num_threads <= machine.num_cpus
    assert 0 < machine.free_memory_bytes <= (machine.total_memory_bytes or machine.free_memory_bytes)
    assert {"litert", "server", "grammar", "ray"} <= machine.extras.keys()
    assert not machine.extras.keys() & {"test", "oracles", "docs"}
    assert machine.extras["server"].keys() == {"starlette", "uvicorn", "msgspec"}
    if "avx512vnni" in machine.available_kernels:
        assert "avx512_vnni" in machine.cpu_features


def test_why_these_kernels_are_used_is_said() -> None:
    assert "HEARTHLM_KERNELS is reference" in doctor(HEARTHLM_KERNELS="reference").stdout
    document = json.loads(doctor("--json", HEARTHLM_KERNELS="").stdout)
    assert document["kernels"] == document["available_kernels"][0]
    assert document["kernels_reason"] == "the best that this CPU runs"
    assert document["limits"] is None


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda _: ["click>=8", "no-such-thing>=2.1; extra == 'ray'", "x; extra == 'test'"],
    )
    assert hearthlm.inspect_machine().extras == {"ray": {"no-such-thing": None}}
    result = doctor()
    assert result.stderr == ""
    assert "free of" in result.stdout


def test_what_the_kernels_reach_is_measured() -> None:
    limits = hearthlm.measure_machine(1, seconds=0.01)
    assert limits.num_threads == 1
    assert limits.read_gb_per_s > 0
    assert limits.int8_tops > 0
