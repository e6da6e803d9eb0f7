"""What is foretold of a LiteRT model's memory, part by part; test_memory_estimate.py measures the sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from demo_checkpoint import write_demo_checkpoint
from random_models import CONFIGS, write_checkpoint

pytest.importorskip("ai_edge_litert")

from litert_graphs import toy_model

from hearthlm.exporter import export_bundle, export_tflite
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.language_model import ExecutorMemory, ExecutorSettings, TextSettings
from hearthlm.runtime.litert_language_model import LiteRtLanguageModel

IDS = [3, 1, 2, 5, 4, 1]


def memory_of(path: Path, cache_dir: Path | None = None, num_tokens: int = 8) -> ExecutorMemory:
    with LiteRtLanguageModel.open(path, TextSettings()) as model:
        settings = ExecutorSettings(1, cache_dir=cache_dir)
        return model.memory(settings, max_tokens=num_tokens, num_sequences=1, looks_up=False)


@pytest.mark.parametrize(
    "kind", [{}, {"in_place": False}, {"cache": "float16", "transposed": True}, {"num_decoded": 3}], ids=str
)
def test_the_cache_of_a_sequence_is_what_was_foretold(kind: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(toy_model(**kind))
    with LiteRtLanguageModel.open(path, TextSettings()) as model:
        executor = model.new_executor(ExecutorSettings(1))
        state = executor.new_state()
        executor.forward([ForwardRequest(state, IDS[:-1], "none")])
        held = sum(state.memory().values())
        executor.forward([ForwardRequest(state, IDS[-1:], "last")])
        if kind.get("num_decoded"):  # it went into a slot, out of a cache of its own
            held += sum(state.memory().values())
        executor.close()
    assert memory_of(path).cache_bytes(1) == memory_of(path).cache_bytes(1000) == held


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_each_signature_packs_its_weights_unless_they_are_kept_in_a_file(quantization: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", CONFIGS["llama_tied"])
    paths = [tmp_path / "one.tflite", tmp_path / "two.tflite"]
    for path, lengths in zip(paths, ((8,), (8, 16)), strict=True):
        export_tflite(folder, path, lengths, 32, quantization)
    one, two = map(memory_of, paths)
    more = two.loaded_bytes - one.loaded_bytes
    matrices = one.loaded_bytes - more  # of decode, which has the last layer and the logits besides
    assert matrices / 2 < more < matrices
    one, two = (memory_of(path, tmp_path / "cache") for path in paths)
    assert one.loaded_bytes == two.loaded_bytes < more  # the largest matrix, while it is packed
    kept = [memory.mapped_bytes - path.stat().st_size for memory, path in zip((one, two), paths, strict=True)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "int4_block32"])
def test_the_file_of_packed_weights_is_as_long_as_foretold(quantization: Any, tmp_path: Path) -> None:
    path, cache = tmp_path / "model.litertlm", tmp_path / "cache"
    export_bundle(write_demo_checkpoint(tmp_path / "checkpoint"), path, (8,), 32, quantization)
    before = memory_of(path, cache)
    with LiteRtLanguageModel.open(path, TextSettings()) as model:
        model.new_executor(ExecutorSettings(1, cache_dir=cache)).close()
    after = memory_of(path, cache)
    [file] = cache.iterdir()
    assert before.mapped_bytes == after.mapped_bytes == pytest.approx(file.stat().st_size, rel=0.002)
    assert before.loaded_bytes > after.loaded_bytes > path.stat().st_size / 2  # the graph is copied out of the bundle


def test_rows_are_looked_up_where_the_table_is_no_matrix(tmp_path: Path) -> None:
    config = CONFIGS["llama_untied"] | {"vocab_size": 20_000}
    path = tmp_path / "model.tflite"
    export_tflite(write_checkpoint(tmp_path / "checkpoint", config), path, (8,), 32, "none")
    table = 4 * 20_000 * config["hidden_size"]
    few, many = memory_of(path, num_tokens=2).mapped_bytes, memory_of(path, num_tokens=1000).mapped_bytes
    assert many == path.stat().st_size
    assert many - table < few < many - table / 2
