"""What is foretold of memory is what a process of its own then takes."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from demo_checkpoint import write_demo_checkpoint
from random_models import CONFIGS, write_checkpoint

import hearthlm
from hearthlm import LlmInferenceOptions, memory_estimate
from hearthlm.cli import ExitCode, cli
from hearthlm.demo import model_path
from hearthlm.exporter import export_bundle, export_tflite
from hearthlm.formats.task_bundle import TaskBundle
from hearthlm.runtime.kv_cache import cache_layouts
from hearthlm.runtime.process_memory import free_memory, give_back_freed_memory, process_memory
from hearthlm.runtime.sampler import Sampler
from hearthlm.runtime.session import Session

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
GOLDEN = Path(__file__).parent / "golden" / "outputs" / "0.10.14"
LITERT = Path(__file__).parent / "golden" / "litert"

BEGIN = """
import json, sys
from pathlib import Path
import hearthlm
path, sequences, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
options = hearthlm.LlmInferenceOptions(path, prefix_cache_mb=0, num_threads=1, **settings)
"""
FORETELL = f"{BEGIN}print(json.dumps(hearthlm.estimate_memory(options, num_sequences=sequences).to_json()))"
# Rows all over the embedding are used, and all contexts are full at the end.
MEASURE = f"""{BEGIN}
with hearthlm.LlmInference.create_from_options(options) as llm:
    vocab_size = llm.vocab_size
    ids = [7919 * i % vocab_size for i in range(2, llm.max_tokens - 40)]
    greedy = hearthlm.LlmInferenceSessionOptions(top_k=1, logit_bias=dict.fromkeys(llm.stop_ids, -1e9))
    llm.generate_batch([ids] * sequences, greedy)
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = ("VmHWM", "RssAnon", "RssFile", "RssShmem")
    print(json.dumps(dict((name, int(fields[name].split()[0]) << 10) for name in names)))
"""


def in_a_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, *map(str, arguments)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


@pytest.fixture(scope="module")
def mid_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random int4 model of 68 MB with a vocabulary of 32,768 words and windows of 512 positions."""
    path = tmp_path_factory.mktemp("models") / "mid.bin"
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import random_model as r;"
        'r.GEOMETRIES["mid"] = (27, r.GEOMETRIES["gemma3-1b"][1] | dict(vocab_size=32768, hidden_size=768, '
        "intermediate_size=3072, num_hidden_layers=12)); r.write_random_model(pathlib.Path(sys.argv[2]), 'mid', 4)"
    )
    subprocess.run([sys.executable, "-c", code, BENCHMARKS, path], check=True)
    return path


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="nothing says what a process holds")
@pytest.mark.parametrize(
    ("model", "max_tokens", "sequences", "placement"),
    [("demo", 512, 1, "mmap"), ("demo", 512, 4, "ram"), ("mid", 1024, 1, "mmap"), ("mid", 256, 2, "ram")],
)
def test_a_process_takes_what_was_foretold(
    model: str, max_tokens: int, sequences: int, placement: str, mid_size: Path
) -> None:
    path = model_path() if model == "demo" else mid_size
    compare(path, sequences, max_tokens=max_tokens, weights=placement)


def compare(path: Path, sequences: int, **settings: Any) -> None:
    """Fail unless a process takes what another one foretold."""
    foretold, measured = (
        in_a_process("-c", code, path, sequences, json.dumps(settings)) for code in (FORETELL, MEASURE)
    )
    assert foretold["peak_bytes"] == pytest.approx(measured["VmHWM"], rel=0.05)
    own = ("loaded_bytes", "cache_bytes", "tokenizer_bytes", "working_bytes")
    assert foretold["mapped_bytes"] <= measured["RssFile"]
    assert sum(foretold[name] for name in own) <= measured["RssAnon"] + measured["RssShmem"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the demo model as a bundle, and a random one of 136 MB and four signatures alone and as a bundle."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {name: folder / name for name in ("demo.litertlm", "mid.tflite", "mid.task")}
    export_bundle(write_demo_checkpoint(folder / "demo"), paths["demo.litertlm"], (32, 128), 512)
    code = (
        "import sys, dataclasses, pathlib; sys.path.insert(0, sys.argv[1]); import random_checkpoint as r;"
        'of = r.MODEL_TYPES["GEMMA3_1B"]; config = of.config | dict(vocab_size=32768, hidden_size=768,'
        "intermediate_size=3072, num_hidden_layers=12, bos_token_id=2, eos_token_id=1);"
        'r.MODEL_TYPES["GEMMA3_1B"] = dataclasses.replace(of, config=config);'
        'r.write_random_checkpoint(pathlib.Path(sys.argv[2]), "GEMMA3_1B")'
    )
    subprocess.run([sys.executable, "-c", code, BENCHMARKS, folder / "mid"], check=True)
    export_tflite(folder / "mid", paths["mid.tflite"])
    export_bundle(folder / "mid", paths["mid.task"], (128,), 640, "int4_block32")
    (folder / "mid" / "model.safetensors").unlink()
    paths["tokenizer"] = folder / "mid" / "tokenizer.model"
    return paths


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="nothing says what a process holds")
@pytest.mark.parametrize(("model", "sequences"), [("demo.litertlm", 4), ("mid.tflite", 1), ("mid.task", 2)])
def test_a_process_takes_what_was_foretold_of_a_litert_model(
    model: str, sequences: int, exported: dict[str, Path]
) -> None:
    settings = {"tokenizer_path": str(exported["tokenizer"])} if model.endswith(".tflite") else {}
    compare(exported[model], sequences, **settings)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="nothing says what a process holds")
def test_packed_weights_in_a_file_are_foretold_before_it_is_there_and_after(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    for _ in range(2):
        compare(exported["mid.tflite"], 1, tokenizer_path=str(exported["tokenizer"]), cache_dir=str(tmp_path))


def test_the_parts_add_up() -> None:
    options = LlmInferenceOptions(GOLDEN / "gemma_2b_cpu_int8.bin", max_tokens=100, prefix_cache_mb=3)
    memory = hearthlm.estimate_memory(options, num_sequences=2)
    document = memory.to_json()
    parts = ("mapped", "loaded", "cache", "prefix_cache", "tokenizer", "working")
    assert document["model_bytes"] == sum(document[f"{name}_bytes"] for name in parts)
    assert document["peak_bytes"] == document["model_bytes"] + document["process_bytes"]
    assert document["prefix_cache_bytes"] == 3_000_000
    assert (document["max_tokens"], document["sequences"]) == (100, 2)


def test_an_int8_cache_takes_half_of_a_float16_one() -> None:
    half, one = (
        hearthlm.estimate_memory(LlmInferenceOptions(model_path(), kv_cache_dtype=dtype)).cache_bytes
        for dtype in ("float16", "int8")
    )
    assert one == half // 2 * (64 + 4) // 64  # a byte for each of 64 channels, and 4 for their scale


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
@pytest.mark.parametrize("name", ["gemma3_mqa", "gpt2", "llama_untied", "falcon_alibi", "mistral_window"])
def test_the_cache_of_a_full_context_is_what_was_foretold_or_a_window_less(
    name: str, cache_dtype: Any, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path, CONFIGS[name])
    options = LlmInferenceOptions(path, max_tokens=500, kv_cache_dtype=cache_dtype)
    foretold = hearthlm.estimate_memory(options).cache_bytes
    with hearthlm.LlmInference.create_from_options(options) as llm:
        highest = 0
        forward = llm._engine.executor.forward

        def watched(requests: Any) -> Any:
            nonlocal highest
            result = forward(requests)
            highest = max(highest, *(sum(request.state.memory().values()) for request in requests))
            return result

        llm._engine.executor.forward = watched  # type: ignore[method-assign]
        session = Session(llm._engine, ids=[5] * 420)
        assert len(list(session.generate(sampler=Sampler(top_k=1)))) == 80
    # Windows are full of blocks only at some lengths.
    assert isinstance(llm.info, hearthlm.ModelInfo)
    windows = sum(layout.window is not None for layout in cache_layouts(llm.info.architecture, "float32"))
    assert foretold >= highest
    assert foretold == highest or windows


def test_transposed_and_gpu_matrices_count_as_loaded(tmp_path: Path) -> None:
    gpt2 = hearthlm.estimate_memory(LlmInferenceOptions(write_checkpoint(tmp_path, CONFIGS["gpt2"])))
    assert gpt2.loaded_bytes > gpt2.mapped_bytes / 2
    gpu = hearthlm.estimate_memory(LlmInferenceOptions(GOLDEN / "gemma_2b_gpu_int8.bin"))
    assert gpu.loaded_bytes > gpu.mapped_bytes > 0  # norms and scales are as much as matrices of 32 columns
    cpu = LlmInferenceOptions(GOLDEN / "gemma_2b_cpu_int8.bin")
    assert hearthlm.estimate_memory(cpu).loaded_bytes < hearthlm.estimate_memory(cpu).mapped_bytes / 10


def test_what_fits_is_the_longest_context_within_the_budget() -> None:
    memory = hearthlm.estimate_memory(LlmInferenceOptions(model_path()), num_sequences=3)
    assert memory.max_tokens_within(1 << 40) == memory.context_length
    assert memory.max_tokens_within(0) == 1
    fits = memory.max_tokens_within(memory.cache_bytes)
    assert fits >= memory.max_tokens
    options = LlmInferenceOptions(model_path(), max_tokens=fits)
    assert hearthlm.estimate_memory(options, num_sequences=3).cache_bytes <= memory.cache_bytes


def test_a_litert_model_holds_its_whole_context_for_every_text() -> None:
    path = LITERT / "gemma3_q8_ekv128.task"
    short, default = (hearthlm.estimate_memory(LlmInferenceOptions(path, max_tokens=n)) for n in (7, None))
    assert (short.max_tokens, default.max_tokens) == (7, 128)
    assert short.cache_bytes == default.cache_bytes > 0
    assert short.max_tokens_within(0) == 128


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="num_sequences"):
        hearthlm.estimate_memory(LlmInferenceOptions(model_path()), num_sequences=0)
    with pytest.raises(ValueError, match="max_tokens"):
        hearthlm.estimate_memory(LlmInferenceOptions(model_path(), max_tokens=10**6))
    with pytest.raises(FileNotFoundError):
        hearthlm.estimate_memory(LlmInferenceOptions("no-such.bin"))
    with pytest.raises(ValueError, match="max_tokens: expected at most 128"):
        hearthlm.estimate_memory(LlmInferenceOptions(LITERT / "gemma3_q8_ekv128.task", max_tokens=129))
    with pytest.raises(ValueError, match="tokenizer_path, start_token and stop_tokens are for a bare .tflite"):
        hearthlm.estimate_memory(LlmInferenceOptions(model_path(), start_token=2))


def test_the_pages_of_a_file_can_be_left_out(tmp_path: Path) -> None:
    import mmap

    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    whole = process_memory()
    if whole is None:
        pytest.skip("nothing says what a process holds")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        with_file, without = process_memory(), process_memory([path])
    assert with_file is not None
    assert without is not None
    assert with_file.file_bytes - without.file_bytes > 7 << 20
    assert 0 < free_memory() < 1 << 50


def test_the_table_and_the_document_say_the_same() -> None:
    arguments = [sys.executable, "-m", "hearthlm", "estimate", "--max-tokens", "300", "--prefix-cache-mb", "2"]
    table = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert table.stderr == ""
    names = [line.split()[0] for line in table.stdout.splitlines()]
    assert names == ["mapped", "loaded", "cache", "kept", "tokenizer", "working", "process", "peak"]
    assert "for 300 tokens" in table.stdout


def test_the_options_of_a_bare_tflite_are_taken(tmp_path: Path) -> None:
    path = LITERT / "gemma3_q4_block32_ekv128.tflite"
    tokenizer = tmp_path / "tokenizer.model"
    with TaskBundle.open(LITERT / "gemma3_q8_ekv128.task") as bundle:
        tokenizer.write_bytes(bundle.sentencepiece_model)
    options = ["--tokenizer", str(tokenizer), "--start-token", "<s>", "--stop-token", "</s>", "--json"]
    result = CliRunner().invoke(cli, ["estimate", str(path), *options])
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["max_tokens"] == 128
    assert document["mapped_bytes"] == path.stat().st_size
    wrong = CliRunner().invoke(cli, ["estimate", str(path), *options, "--start-token", "<nothing>"])
    assert isinstance(wrong.exception, ValueError)


def test_more_than_there_is_ends_with_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "free_memory", lambda: 10 << 20)
    result = CliRunner().invoke(cli, ["estimate"])
    assert result.exit_code == ExitCode.TRY_LATER
    assert "are more than the 10.5 MB that are free" in result.stderr
    assert "peak" in result.stdout


@pytest.mark.skipif(process_memory() is None or platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
def test_what_was_freed_is_given_back() -> None:
    kept = [np.ones(8000) for _ in range(1000)]  # 64 MB in pieces that the C library does not map one by one
    del kept[:-1]  # the last one lies above them
    before = process_memory()
    give_back_freed_memory()
    after = process_memory()
    assert before is not None
    assert after is not None
    assert before.anonymous_bytes - after.anonymous_bytes > 50_000_000
