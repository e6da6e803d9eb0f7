"""Every kind of file that is recognised is described, and a damaged one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from litert_models import litert_model
from random_models import CONFIGS, write_checkpoint
from safetensors.numpy import save_file

import hearthlm
from hearthlm import FileInfo, ModelInfo, inspect_file
from hearthlm.demo import model_path
from hearthlm.formats.session_file import write_session_file

GOLDEN = Path(__file__).parent / "golden" / "outputs"
KEYS = {"format", "model_type", "family", "parameters", "tensors", "tokenizer", "templates", "metadata"}


def described(path: Path) -> FileInfo:
    info = inspect_file(path)
    assert isinstance(info, FileInfo)
    document = json.loads(json.dumps(info.to_json()))
    assert document.keys() == KEYS
    assert document["model_type"] is None
    return info


def test_a_model_is_described_as_before() -> None:
    info = inspect_file(model_path())
    assert isinstance(info, ModelInfo)
    assert info == hearthlm.inspect_model(model_path())
    assert info.to_json().keys() == KEYS


def test_a_lora_adapter_of_mediapipe() -> None:
    info = described(GOLDEN / "0.10.14" / "gemma_2b_gpu_lora_lora.bin")
    assert (info.format, info.metadata) == ("lora_bin", {"rank": 4, "backend": "gpu"})
    assert info.tensors[0].dtype == "FLOAT32"


def test_a_bundle() -> None:
    info = described(GOLDEN / "0.10.35" / "bundle_templates.task")
    assert [entry["name"] for entry in info.metadata["entries"]] == [
        "TF_LITE_PREFILL_DECODE",
        "TOKENIZER_MODEL",
        "METADATA",
    ]
    assert [entry["kind"] for entry in info.metadata["entries"]] == ["tflite", "sentencepiece", "LlmParameters"]
    assert info.tokenizer == {"kind": "sentencepiece", "vocab_size": 64}
    assert info.templates is not None
    assert info.templates.user.prefix
    assert info.metadata["stop_tokens"] == ["<eos>", "<end_of_turn>"]
    assert "without operators" in info.metadata["problem"]
    least = described(GOLDEN / "0.10.35" / "bundle_min.task")
    assert least.templates is not None
    assert least.templates.user.prefix == ""
    roles = described(GOLDEN / "0.10.35" / "bundle_roles.task").metadata["role_tokens"]
    assert roles == {"user": "<u>", "system": "<s>", "model": "<m>", "end": "<e>"}
    assert described(GOLDEN / "0.10.14" / "bundle_b2u.task").metadata["bytes_to_unicode"]


def test_how_the_model_in_a_bundle_is_called() -> None:
    metadata = described(GOLDEN.parent / "litert" / "gemma3_mask_transposed_q8_ekv128.task").metadata
    assert "problem" not in metadata
    assert [signature["name"] for signature in metadata["signatures"]] == ["prefill_8", "prefill_32", "decode"]
    assert metadata["signatures"][2]["outputs"]["logits"] == {"dtype": "FLOAT32", "shape": [1, 1, 512]}
    assert metadata["prefill_lengths"] == {"prefill_32": 32, "prefill_8": 8}
    assert metadata["kv_cache"] == {
        "name": "kv_cache_k_{layer}",
        "num_layers": 2,
        "dtype": "FLOAT32",
        "key_shape": (1, 1, 128, 32),
        "value_shape": (1, 1, 32, 128),
        "key_axis": 2,
        "value_axis": 3,
        "num_tokens": 128,
    }


def test_a_litert_model_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(litert_model())
    info = described(path)
    assert info.format == "tflite"
    assert info.metadata["prefill_lengths"] == {"prefill_8": 8}
    path.write_bytes(litert_model({"serving_default": ({}, {"x": (0, [1])})}))
    assert "expected signatures prefill* and decode" in described(path).metadata["problem"]


def test_a_peft_adapter(tmp_path: Path) -> None:
    save_file({"base_model.q.lora_A.weight": np.zeros((4, 8), np.float32)}, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    info = described(tmp_path)
    assert info.format == "adapter"
    assert (info.metadata["r"], info.metadata["target_modules"]) == (4, ["q_proj"])
    assert [(t.shape, t.num_bytes) for t in info.tensors] == [((4, 8), 128)]


def test_bare_weights_are_listed_and_a_checkpoint_folder_is_a_model(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float16), "b": np.zeros(5, np.int64)}, tmp_path / "bare.safetensors")
    info = described(tmp_path / "bare.safetensors")
    assert info.format == "safetensors"
    assert {(t.name, t.dtype, t.shape) for t in info.tensors} == {("a", "float16", (2, 3)), ("b", "other", (5,))}
    folder = write_checkpoint(tmp_path / "m", CONFIGS["gemma_mqa"])
    assert isinstance(inspect_file(folder), ModelInfo)
    assert isinstance(inspect_file(folder / "model.safetensors"), ModelInfo)


def test_a_saved_session(tmp_path: Path) -> None:
    path = tmp_path / "talk"
    write_session_file(path, fingerprint="ab" * 32, ids=[2, 5, 7], arrays={"full": np.zeros(4, np.float16)}, extra={})
    info = described(path)
    assert (info.format, info.metadata) == (
        "session",
        {"num_tokens": 3, "version": "1", "fingerprint": "ab" * 32},
    )


def test_tokenizers(tmp_path: Path) -> None:
    from hearthlm.formats.weights_bin import WeightsBin

    with WeightsBin.open(model_path()) as file:
        assert file.tokenizer is not None
        (tmp_path / "x").write_bytes(file.tokenizer)
    assert described(tmp_path / "x").tokenizer == {"kind": "sentencepiece", "vocab_size": 2048}
    (tmp_path / "y").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}))
    assert described(tmp_path / "y").tokenizer == {"kind": "hugging_face", "vocab_size": 2}


def test_a_damaged_litert_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(4) + b"TFL3" + bytes(24))
    with pytest.raises(hearthlm.CorruptFileError, match="root table"):
        inspect_file(tmp_path / "x")


@pytest.mark.parametrize("data", [b"# a text", b"{}", b"{", b"\n\x03abc", b"GGUF1234"])
def test_anything_else_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(hearthlm.UnsupportedModelError, match="the file begins with"):
        inspect_file(tmp_path / "x")
