"""LiteRT-LM answers from repacked files as from the originals, and from what it could not run before.

Run by `make test-peers`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_exported_in_litert_lm import GOLDEN, PROMPT, lively_checkpoint, our_answer, own_answer, peer_answer

from hearthlm.bundler import BundleConfig, create_bundle
from hearthlm.exporter import export_tflite
from hearthlm.formats.task_bundle import TaskBundle
from hearthlm.litert_network import KvLayout
from hearthlm.repacker import repack

pytestmark = pytest.mark.peer

EXPORTED = GOLDEN.parent / "hf_llama_wi8.litertlm"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with TaskBundle.open(GOLDEN) as bundle:
        return lively_checkpoint(tmp_path_factory.mktemp("lively"), "gemma3_gqa_scaled", bundle.sentencepiece_model)


@pytest.mark.parametrize("layout", ["transposed", "default"])
def test_a_task_of_either_layout_runs_as_a_litertlm(layout: KvLayout, checkpoint: Path, tmp_path: Path) -> None:
    model, path = tmp_path / "model.tflite", tmp_path / "model.task"
    export_tflite(checkpoint, model, (8, 32), 128, "none", kv_layout=layout)
    create_bundle(BundleConfig(model, checkpoint / "tokenizer.model", "<s>", ["</s>"], path))
    repacked = repack(path, tmp_path / "model.litertlm").path
    _, text = our_answer(checkpoint, PROMPT)
    assert peer_answer(repacked, PROMPT) == own_answer(repacked, PROMPT) == text
    assert peer_answer(path, PROMPT) == text


def test_the_default_layout_of_the_pytorch_exporter_runs(tmp_path: Path) -> None:
    transposed = GOLDEN.parent / "gemma3_mask_transposed_q8_ekv128.task"
    repacked = repack(GOLDEN, tmp_path / "model.litertlm").path
    assert peer_answer(repacked, PROMPT) == peer_answer(transposed, PROMPT)  # two exports of the same weights
    with pytest.raises(RuntimeError):
        peer_answer(GOLDEN, PROMPT)


def test_a_litertlm_runs_as_a_task(tmp_path: Path) -> None:
    repacked = repack(EXPORTED, tmp_path / "model.task").path
    answer = peer_answer(EXPORTED, PROMPT)
    assert len(set(answer)) > 2
    assert peer_answer(repacked, PROMPT) == answer
