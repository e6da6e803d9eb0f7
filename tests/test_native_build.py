"""What keeps one wheel running on every CPU, and C++ free of Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "native"
PER_INSTRUCTION_SET = ("linear.cc", "attention.cc", "norm.cc", "rope.cc", "activation.cc", "sampling.cc", "rounding.cc")
OPTIONS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"],
}


def test_sources_compiled_for_newer_cpus_take_nothing_from_the_standard_library() -> None:
    # Its inline functions are merged across sources, and the copy that survives may need the newer CPU.
    for name in (*PER_INSTRUCTION_SET, "simd.h", "kernels.h", "thread_pool.h"):
        text = (NATIVE / name).read_text()
        assert "std::" not in text, name
        headers = set(re.findall(r"#include <(.+)>", text))
        assert headers <= {"stdint.h", "string.h", "immintrin.h", "arm_neon.h"}, name


def test_only_the_bindings_know_python() -> None:
    for path in NATIVE.glob("*.*"):
        if path.name != "bindings.cc" and path.suffix in (".cc", ".h"):
            assert not re.search(r"nanobind|Python\.h|PyObject", path.read_text()), path.name


def test_intrinsics_stand_behind_a_guard_for_their_cpu() -> None:
    for name in (*PER_INSTRUCTION_SET, "simd.h"):
        depth_of_guard: list[bool] = []
        for line in (NATIVE / name).read_text().splitlines():
            if re.match(r"#if", line):
                depth_of_guard.append(bool(re.search(r"__AVX|__F16C__|__FMA__|__x86_64__|HEARTHLM_VNNI", line)))
            elif re.match(r"#el", line) and "AVX2" not in line and "F16C" not in line and "FMA" not in line:
                depth_of_guard[-1] = False
            elif re.match(r"#el", line):
                depth_of_guard[-1] = True
            elif re.match(r"#endif", line):
                depth_of_guard.pop()
            assert any(depth_of_guard) or not re.search(r"\b_mm\d*_", line), f"{name}: {line}"


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("nm")), reason="needs g++ and nm")
@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.parametrize("name", PER_INSTRUCTION_SET)
def test_a_kernel_source_defines_one_global_symbol(tmp_path: Path, name: str, target: str) -> None:
    machine = subprocess.run(["g++", "-dumpmachine"], capture_output=True, text=True).stdout
    if target != "portable" and "x86_64" not in machine:
        pytest.skip("not an x86-64 compiler")
    compiled = tmp_path / "kernel.o"
    # Without optimisation no inline function is inlined away, so each would show.
    command = ["g++", "-std=c++20", "-O0", "-w", f"-DHEARTHLM_TARGET={target}", *OPTIONS[target]]
    subprocess.run([*command, "-c", NATIVE / name, "-o", compiled], check=True)
    symbols = subprocess.run(["nm", "--extern-only", "--defined-only", "-C", compiled], capture_output=True, text=True)
    found = [line.split(maxsplit=2)[2] for line in symbols.stdout.splitlines()]
    assert found == [f"hearthlm::{target}::add_{Path(name).stem}(hearthlm::Kernels&)"]


def test_what_is_kept_out_of_packages_is_named_from_the_root() -> None:
    """A bare `demo/` also means `src/hearthlm/demo/`, and the wheel comes without its model."""
    settings = tomllib.loads((NATIVE.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["scikit-build"]["sdist"]["exclude"]
    assert patterns
    assert all(pattern.startswith("/") for pattern in patterns)
