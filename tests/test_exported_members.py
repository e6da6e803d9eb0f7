"""The package shows what `__all__` says, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import hearthlm


def test_all_is_sorted_and_every_name_of_it_exists() -> None:
    assert list(hearthlm.__all__) == sorted(hearthlm.__all__)
    for name in hearthlm.__all__:
        assert getattr(hearthlm, name) is not None


def test_dir_is_all() -> None:
    assert sorted(dir(hearthlm)) == sorted(hearthlm.__all__)


def test_importing_the_package_loads_no_library() -> None:
    libraries = {"numpy", "click", "google", "sentencepiece", "tokenizers"}
    code = f"import sys, hearthlm; print(*sorted({libraries} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(hearthlm, "LlmInferenc")
