"""A model's speed is measured as it is used, and beside limits that nothing can exceed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import hearthlm
from hearthlm import LlmInferenceOptions, MachineLimits, speed_report
from hearthlm.cli import cli
from hearthlm.demo import model_path
from hearthlm.runtime.executor import RowCost
from hearthlm.runtime.kv_cache import cache_layouts
from hearthlm.runtime.language_model import ExecutorSettings, open_language_model

GOLDEN = Path(__file__).parent / "golden" / "litert"
OPTIONS = LlmInferenceOptions(model_path())


def test_every_combination_is_measured() -> None:
    parts: list[float] = []
    report = hearthlm.measure_speed(
        OPTIONS,
        prompt_lengths=(5, 40),
        num_output_tokens=4,
        num_sequences=(1, 3),
        num_threads=(1, 2),
        rounds=1,
        with_limits=False,
        progress=parts.append,
    )
    combinations = [(m.num_threads, m.num_sequences, m.num_prompt_tokens) for m in report.measurements]
    assert combinations == [(t, s, p) for t in (1, 2) for s in (1, 3) for p in (5, 40)]
    assert parts == [i / 8 for i in range(1, 9)]
    for m in report.measurements:
        assert m.prefill_tokens_per_s == pytest.approx(m.num_prompt_tokens / m.first_token_s)
        assert m.decode_tokens_per_s > 0
        assert m.prefill_of_limit is None
        assert m.decode_of_limit is None
    assert report.limits == ()
    assert report.peak_rss_bytes is None or report.peak_rss_bytes > 10 << 20


def test_parts_of_the_limits_are_what_was_read_and_multiplied() -> None:
    cost = RowCost(weight_bytes=700, num_layer_weights=500, is_int8=True, cache_bytes=lambda position: 10 * position)
    limit = MachineLimits(num_threads=1, read_gb_per_s=1e-5, int8_tops=1e-6)
    combination = speed_report._Combination(1, 2, 20)
    rounds = [speed_report._Round(prefill_s, decode_s) for prefill_s, decode_s in ((0.5, 9.0), (0.1, 3.0), (0.4, 2.0))]
    m = speed_report._measurement(combination, 10, rounds, cost, limit)
    assert m.first_token_s == 0.4
    assert m.prefill_tokens_per_s == pytest.approx(50)
    assert m.prefill_of_limit == pytest.approx(50 * 2 * 500 / 1e6)
    assert m.decode_tokens_per_s == pytest.approx(2 * 9 / 3)
    assert m.decode_of_limit == pytest.approx(3 * (700 + 2 * 10 * 25) / 1e4)
    assert speed_report._measurement(combination, 10, rounds, None, limit).decode_of_limit is None
    floats = RowCost(weight_bytes=700, num_layer_weights=500, is_int8=False, cache_bytes=lambda position: 0)
    m = speed_report._measurement(combination, 10, rounds, floats, limit)
    assert m.prefill_of_limit is None
    assert m.decode_of_limit == pytest.approx(3 * 700 / 1e4)


def test_what_a_row_costs_is_what_the_file_and_the_caches_hold() -> None:
    with open_language_model(model_path()) as model:
        executor = model.new_executor(ExecutorSettings(num_threads=1))
        assert model.info is not None
        shapes = {tensor.name: tensor.shape for tensor in model.info.tensors if len(tensor.shape) == 2}
        architecture = model.info.architecture
    cost = executor.row_cost
    executor.close()
    assert cost is not None
    assert cost.is_int8
    embedding = architecture.vocab_size * architecture.embedding_dim
    assert cost.num_layer_weights == sum(rows * columns for rows, columns in shapes.values()) - embedding
    assert cost.weight_bytes >= cost.num_layer_weights + embedding  # int8, and a scale for each row
    assert cost.weight_bytes < 1.1 * (cost.num_layer_weights + embedding)
    layouts = cache_layouts(architecture, "float16")
    assert cost.cache_bytes(64) == sum(layout.max_bytes(64, 1) for layout in layouts)
    full = sum(layout.num_layers for layout in layouts if layout.window is None)
    longest = max(layout.window or 0 for layout in layouts)
    a_token = 2 * 2 * architecture.num_kv_heads * architecture.head_dim
    assert cost.cache_bytes(longest + 1001) - cost.cache_bytes(longest + 1) == 1000 * full * a_token


def test_what_cannot_be_measured_is_refused() -> None:
    for name, value in (
        ("prompt_lengths", ()),
        ("prompt_lengths", (5, 0)),
        ("num_sequences", (0,)),
        ("num_threads", (-1,)),
        ("num_output_tokens", 1),
        ("rounds", 0),
    ):
        with pytest.raises(ValueError, match=f"^{name}: expected at least"):
            hearthlm.measure_speed(OPTIONS, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tokens: expected at most"):
        hearthlm.measure_speed(OPTIONS, prompt_lengths=(10**6,))
    with pytest.raises(FileNotFoundError):
        hearthlm.measure_speed(LlmInferenceOptions("no-such.bin"))


def test_the_command_prints_a_table_or_a_document() -> None:
    arguments = ["bench", "--prompt-tokens", "8,24", "--output-tokens", "3", "--rounds", "1", "--threads", "1"]
    command = [sys.executable, "-m", "hearthlm", *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stderr == ""
    head, table = result.stdout.split("\n\n")
    assert "int8 TOPS, with --threads 1" in head
    assert str(model_path()) in head
    titles, *rows = table.splitlines()
    assert titles.split()[:3] == ["threads", "answers", "prompt"]
    assert [row.split()[:3] for row in rows] == [["1", "1", "8"], ["1", "1", "24"]]
    assert all(row.endswith(" %") for row in rows)
    in_json = CliRunner().invoke(cli, [*arguments, "--sequences", "1,2", "--no-limits", "--json"])
    document = json.loads(in_json.stdout)
    assert document["limits"] == []
    assert [m["num_sequences"] for m in document["measurements"]] == [1, 1, 2, 2]


@pytest.mark.parametrize("numbers", ["", "1,,2", "0", "4,4", "1.5", "x"])
def test_a_list_that_is_none_is_refused(numbers: str) -> None:
    result = CliRunner().invoke(cli, ["bench", "--prompt-tokens", numbers])
    assert result.exit_code == 2
    assert "expected whole numbers from 1 on" in result.stderr


def test_litert_models_are_measured_without_parts_of_limits() -> None:
    pytest.importorskip("ai_edge_litert")
    options = LlmInferenceOptions(GOLDEN / "gemma3_mask_transposed_q8_ekv128.task")
    report = hearthlm.measure_speed(options, prompt_lengths=(3,), num_output_tokens=2, rounds=1)
    assert report.measurements[0].decode_tokens_per_s > 0
    assert report.measurements[0].decode_of_limit is None
    assert len(report.limits) == 1
