"""Layers import downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hearthlm

PACKAGE = Path(hearthlm.__file__).parent

LAYERS = {
    "errors": 0,
    "quantization": 0,
    "models": 1,
    "tokenizers": 1,
    "kernels": 1,
    "formats": 2,
    "runtime": 3,
    "answer": 4,
    "batch": 4,
    "blueprint": 4,
    "bundler": 4,
    "carried_tokenizer": 4,
    "chat": 4,
    "chat_template": 4,
    "converter": 4,
    "exporter": 4,
    "litert_bundle": 4,
    "litert_network": 4,
    "llm_inference": 4,
    "llm_inference_session": 4,
    "machine_info": 4,
    "memory_estimate": 4,
    "model_info": 4,
    "quantization_comparison": 4,
    "speed_report": 4,
    "tool_calls": 4,
    "template_turns": 4,
    "torch_exporter": 4,
    "repacker": 4,
    "demo": 4,
    "cli": 5,
    "server": 5,
    "integrations": 6,
    "__main__": 6,
}

# The same number, and yet apart: neither knows of the other.
STRANGERS = {"models", "tokenizers", "kernels"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_names(path: Path) -> set[str]:
    """Return the top-level parts of hearthlm that a module imports, types included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom), f"{path}: relative import"
            continue
        names |= {target.split(".")[1] for target in targets if target.startswith("hearthlm.")}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_layers_or_its_own_folder(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported_names(path) - {own}:
        if name not in LAYERS:  # a public name of the package itself
            assert own in ("cli", "server", "integrations"), f"{path.name} imports hearthlm.{name}"
            assert name in hearthlm.__all__
            continue
        assert LAYERS[name] <= LAYERS[own], f"{own} (layer {LAYERS[own]}) imports {name} (layer {LAYERS[name]})"
        assert not {own, name} <= STRANGERS, f"{own} imports {name}"


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} == set(LAYERS)


def test_only_one_package_imports_the_native_module() -> None:
    for path in modules():
        if path.parent.name != "kernels":
            assert "_native" not in path.read_text(encoding="utf-8"), path
