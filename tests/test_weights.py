"""Weights are in memory once, wherever they lie."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from random_models import write_checkpoint

from hearthlm.converter import ConversionConfig, convert_checkpoint

CONFIG = {
    "model_type": "gemma",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "torch_dtype": "float32",
}
SIZES = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 4096}
FAMILIES: dict[bool, dict[str, object]] = {True: {}, False: {"model_type": "llama", "tie_word_embeddings": False}}
LARGEST_MATRIX_BYTES = 32000 * 1024


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def model_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big")
    write_checkpoint(folder / "checkpoint", CONFIG)
    pieces = Path(__file__).parent / "golden" / "inputs" / "spm64" / "tokenizer.model"
    shutil.copyfile(pieces, folder / "checkpoint" / "tokenizer.model")
    backend, output = request.param, folder / "m.bin"
    convert_checkpoint(
        ConversionConfig(str(folder / "checkpoint"), None, None, backend, str(folder), output_tflite_file=str(output))
    )
    return output


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("placement", ["mmap", "ram"])
def test_weights_are_in_memory_once_while_they_are_loaded_and_after(model_file: Path, placement: str) -> None:
    code = f"""
import sentencepiece
from hearthlm.runtime.model import Model

def kb(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def read(value):
    return sum(map(read, value)) if isinstance(value, (list, tuple)) else int(value.weight.data.max())

before = kb("VmRSS")
with Model.open({str(model_file)!r}) as model:
    weights = model.load_weights(placement={placement!r})
for layer in weights.layers:
    read([layer.query, layer.key, layer.value, layer.output, layer.gate, layer.up, layer.down])
read(weights.logits)
print(weights.num_bytes, (kb("VmHWM") - before) << 10, (kb("VmRSS") - before) << 10)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    num_bytes, peak, rest = map(int, result.stdout.split())
    assert num_bytes > 60e6
    assert 0.9 * num_bytes < rest < num_bytes + 16e6
    assert peak < num_bytes + LARGEST_MATRIX_BYTES + 16e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_every_token_reads_is_asked_for_in_huge_pages(tmp_path: Path) -> None:
    flags = {}
    for tied in (True, False):
        folder = write_checkpoint(tmp_path / str(tied), CONFIG | SIZES | FAMILIES[tied])
        code = f"""
from hearthlm.runtime.model import Model
with Model.open({str(folder)!r}) as model:
    weights = model.load_weights()
    path = None
    for line in open("/proc/self/smaps"):
        if "-" in line.split(maxsplit=1)[0]:
            path = line.split()[-1]
        elif line.startswith("VmFlags") and path.endswith(".safetensors"):
            print(" ".join(flag for flag in line.split() if flag in ("hg", "nh")) or "none")
"""
        flags[tied] = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    if "none" in flags[True]:
        pytest.skip("this kernel has no huge pages")
    assert set(flags[True].split()) == {"hg"}
    assert set(flags[False].split()) == {"hg", "nh"}
