"""The verifier of LiteRT models: real ones pass, and what LiteRT would trust is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hearthlm.formats.litert_verifier import verify_litert_model
from hearthlm.formats.litertlm import LiteRtLmFile
from hearthlm.formats.task_bundle import MODEL, TaskBundle

GOLDEN = Path(__file__).parent / "golden" / "litert"


def real(name: str) -> bytes:
    path = GOLDEN / name
    if path.suffix == ".task":
        with TaskBundle.open(path) as bundle:
            return bytes(bundle.entry(MODEL))
    if path.suffix == ".litertlm":
        with LiteRtLmFile.open(path) as file:
            return bytes(file.data(file.language_model))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "num_operators"),
    [
        ("gemma3_q8_ekv128.task", 576),
        ("gemma3_mask_transposed_q8_ekv128.task", 524),
        ("gemma3_mask_transposed_q8_ekv128.litertlm", 524),
        ("gemma3_q4_block32_ekv128.tflite", 576),
        ("hf_llama_wi8.litertlm", 317),
    ],
)
def test_models_of_the_exporter_pass(name: str, num_operators: int) -> None:
    sizes = verify_litert_model(real(name), name)
    assert sizes.num_operators == num_operators
    assert 150_000 < sizes.num_constant_bytes < len(real(name)) + 70_000
    assert max(sizes.num_tensor_bytes) == max(sizes.num_tensor_bytes[:3])
