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
HEADERS = (
    "activation.h",
    "simd.h",
    "matrix_rows.h",
    "int8_avx2.h",
    "int8_avx512.h",
    "int8_neon.h",
    "int8_panel.h",
    "int8_portable.h",
)
OPTIONS = {
    "portable": ["-DHEARTHLM_PORTABLE"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avxvnni": ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"],
    "avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"],
    "neon": [],
    "neon_dotprod": ["-march=armv8.2-a+dotprod"],
    "neon_i8mm": ["-march=armv8.2-a+dotprod+i8mm"],
}
# A compiler of this machine's own, or one that cross-compiles.
COMPILERS = {"avx": ("x86_64", "x86_64-linux-gnu-g++"), "neon": ("aarch64", "aarch64-linux-gnu-g++")}


def test_sources_compiled_for_newer_cpus_take_nothing_from_the_standard_library() -> None:
    # Its inline functions are merged across sources, and the copy that survives may need the newer CPU.
    for name in (*PER_INSTRUCTION_SET, *HEADERS, "kernels.h", "thread_pool.h"):
        text = (NATIVE / name).read_text()
        assert "std::" not in text, name
        headers = set(re.findall(r"#include <(.+)>", text))
        assert set(re.findall(r'#include "(.+)"', text)) <= {*HEADERS, "kernels.h", "thread_pool.h"}, name
        assert headers <= {"stdint.h", "string.h", "immintrin.h", "arm_neon.h"}, name


def test_only_the_bindings_know_python() -> None:
    for path in NATIVE.glob("*.*"):
        if path.name != "bindings.cc" and path.suffix in (".cc", ".h"):
            assert not re.search(r"nanobind|Python\.h|PyObject", path.read_text()), path.name


def test_intrinsics_stand_behind_a_guard_for_their_cpu() -> None:
    x86, arm = re.compile(r"\b_mm\d*_"), re.compile(r"\bv[a-z0-9]+_(?:(?:n|lane|laneq|high|low)_)?[suf]\d+")
    for name in (*PER_INSTRUCTION_SET, "simd.h", "matrix_rows.h", "int8_panel.h", "int8_portable.h"):
        guards: list[str] = []
        for line in (NATIVE / name).read_text().splitlines():
            if re.match(r"#(if|el)", line):
                guards[-1:] = [*(guards[-1:] if line.startswith("#if") else []), line]
            elif line.startswith("#endif"):
                guards.pop()
            for intrinsic, guard in ((x86, "__AVX|__F16C__|__FMA__"), (arm, "HEARTHLM_NEON")):
                guarded = any(re.match(f"#(if|elif).*({guard})", g) for g in guards)
                assert guarded or not intrinsic.search(line), f"{name}: {line}"


def compiler_for(target: str) -> str:
    """Return a compiler for the CPUs of a target, or skip the test."""
    machine = subprocess.run(["g++", "-dumpmachine"], capture_output=True, text=True).stdout
    for prefix, (cpu, cross) in COMPILERS.items():
        if target.startswith(prefix) and cpu not in machine:
            if not shutil.which(cross):
                pytest.skip(f"needs {cross}")
            return cross
    return "g++"


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("nm")), reason="needs g++ and nm")
@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.parametrize("name", PER_INSTRUCTION_SET)
def test_a_kernel_source_defines_one_global_symbol(tmp_path: Path, name: str, target: str) -> None:
    compiled = tmp_path / "kernel.o"
    # Without optimisation no inline function is inlined away, so each would show.
    command = [compiler_for(target), "-std=c++20", "-O0", "-w", f"-DHEARTHLM_TARGET={target}", *OPTIONS[target]]
    subprocess.run([*command, "-c", NATIVE / name, "-o", compiled], check=True)
    symbols = subprocess.run(["nm", "--extern-only", "--defined-only", "-C", compiled], capture_output=True, text=True)
    found = [line.split(maxsplit=2)[2] for line in symbols.stdout.splitlines()]
    assert found == [f"hearthlm::{target}::add_{Path(name).stem}(hearthlm::Kernels&)"]


@pytest.mark.parametrize("target", OPTIONS)
def test_every_instruction_set_is_built_found_and_documented(target: str) -> None:
    root = NATIVE.parent
    options = re.search(rf"hearthlm_add_kernels\({target}\b([^)]*)", (root / "CMakeLists.txt").read_text())
    assert options
    assert set(OPTIONS[target]) <= set(options[1].split())
    assert f'{{"{target}",' in (NATIVE / "dispatch.cc").read_text()
    assert f"| `{target}` |" in (root / "docs" / "supported-cpus.md").read_text()


def test_what_is_kept_out_of_packages_is_named_from_the_root() -> None:
    """A bare `demo/` also means `src/hearthlm/demo/`, and the wheel comes without its model."""
    settings = tomllib.loads((NATIVE.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["scikit-build"]["sdist"]["exclude"]
    assert patterns
    assert all(pattern.startswith("/") for pattern in patterns)
