"""A checkpoint's folder is found, read whole, and never left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hearthlm.errors import CorruptFileError, HearthLMError, TensorMismatchError, UnsafeFileError, UnsupportedModelError
from hearthlm.formats import detect_format
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.quantization import dequantize

INPUTS = Path(__file__).parent / "golden" / "inputs"


def copied(source: str, folder: Path) -> Path:
    shutil.copytree(INPUTS / source, folder)
    return folder


def shard(folder: Path, weight_map: Any, index: str = "model.safetensors.index.json") -> Path:
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", ["gemma_2b", "gemma_2b_bf16", "falcon", "gemma_2b_lora_r4"])
def test_a_folder_and_its_file_are_the_same(name: str) -> None:
    with Checkpoint.open(INPUTS / name) as folder:
        file = next(path for path in (INPUTS / name).iterdir())
        with Checkpoint.open(file) as alone:
            assert folder.names == alone.names
            for tensor in folder.names:
                assert tensor in folder
                dtype, values = folder.array(tensor)
                assert dtype == alone.array(tensor)[0]
                assert folder.shape(tensor) == values.shape
                np.testing.assert_array_equal(values, alone.array(tensor)[1])
    assert detect_format(INPUTS / name) == "checkpoint"


def test_matrices_keep_their_type_and_vectors_are_float32() -> None:
    with Checkpoint.open(INPUTS / "gemma_2b") as single, Checkpoint.open(INPUTS / "gemma_2b_bf16") as half:
        matrix = half.matrix("model.embed_tokens.weight")
        assert (matrix.dtype, matrix.shape) == ("bfloat16", (64, 16))
        assert dequantize(matrix)[0, 0] == np.float32(0.00341796875)
        vector = half.vector("model.norm.weight")
        assert vector.dtype == np.float32 and vector.flags.writeable
        assert single.vector("model.norm.weight").dtype == np.float32
        with pytest.raises(TensorMismatchError, match=r"'model.norm.weight': expected a matrix .* got \[16\]"):
            half.matrix("model.norm.weight")
        with pytest.raises(TensorMismatchError, match=r"expected a vector \[n\], got \[64, 16\]"):
            half.vector("model.embed_tokens.weight")
        with pytest.raises(TensorMismatchError, match="there is no tensor 'missing' among the 20"):
            half.array("missing")


def test_settings_are_read_where_they_exist(tmp_path: Path) -> None:
    folder = copied("gemma_2b", tmp_path / "c")
    with Checkpoint.open(folder) as bare:
        assert bare.config is bare.generation_config is bare.adapter_config is None
        assert bare.tokenizer_files == {}
    (folder / "config.json").write_text('{"model_type": "gemma"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("")
    for path in (folder, folder / "model.safetensors"):
        with Checkpoint.open(path) as checkpoint:
            assert checkpoint.config == {"model_type": "gemma"}
            assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
            assert checkpoint.tokenizer_files == {
                "tokenizer.json": folder / "tokenizer.json",
                "chat_template.jinja": folder / "chat_template.jinja",
            }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "config.json: expected a JSON object, got list"),
        ("{", "config.json: not valid JSON"),
        ('{"a": 1, "a": 1}', "the key 'a' appears twice"),
        ('{"a": ' + "[" * 100_000, "nested more than 32 deep"),
        ('{"a": "' + "x" * (16 << 20) + '"}', "expected at most 16777216 bytes of JSON"),
    ],
)
def test_a_bad_config_is_refused(config: str, message: str, tmp_path: Path) -> None:
    folder = copied("gemma_2b", tmp_path / "c")
    (folder / "config.json").write_text(config)
    with pytest.raises(CorruptFileError, match=message):
        Checkpoint.open(folder)


def test_brackets_inside_texts_do_not_count(tmp_path: Path) -> None:
    folder = copied("gemma_2b", tmp_path / "c")
    config = {"text": '[{"\\' * 10_000, "end": "\\"}
    (folder / "config.json").write_text(json.dumps(config))
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.config == config


def test_shards_are_put_together(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    shutil.copy(INPUTS / "gemma_2b/model.safetensors", folder / "model-00001-of-00002.safetensors")
    shutil.copy(INPUTS / "gemma_2b_lora_r4/adapter_model.safetensors", folder / "model-00002-of-00002.safetensors")
    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    shard(
        folder,
        {lora: "model-00002-of-00002.safetensors", "model.norm.weight": "model-00001-of-00002.safetensors"},
    )
    with Checkpoint.open(folder) as checkpoint, Checkpoint.open(INPUTS / "gemma_2b") as whole:
        assert checkpoint.names == [lora, "model.norm.weight"]
        np.testing.assert_array_equal(checkpoint.vector("model.norm.weight"), whole.vector("model.norm.weight"))
        assert checkpoint.shape(lora) == (4, 16)


def test_torch_shards_are_put_together(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    shutil.copy(INPUTS / "falcon/pytorch_model.bin", folder / "pytorch_model-00001-of-00001.bin")
    shard(folder, {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}, "pytorch_model.bin.index.json")
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.names == ["lm_head.weight"]
        assert checkpoint.shape("lm_head.weight") == (64, 16)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "c:x", "a\0b", "a\nb", "x" * 300, "‮bin"],
)
def test_a_shard_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    shutil.copy(INPUTS / "gemma_2b/model.safetensors", tmp_path)
    with pytest.raises(UnsafeFileError, match="is not the name of a file in the same folder"):
        Checkpoint.open(shard(folder, {"model.norm.weight": name}))


@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        (None, CorruptFileError, "weight_map: expected an object"),
        ([], CorruptFileError, "weight_map: expected an object"),
        ({"a": 1}, CorruptFileError, "weight_map: expected an object"),
        ({"a": "s"}, TensorMismatchError, "weight_map: 's' has no tensor 'a'"),
        ({str(i): str(i) for i in range(1025)}, CorruptFileError, "expected at most 1024 files, got 1025"),
    ],
)
def test_a_bad_index_is_refused(weight_map: Any, error: type[HearthLMError], message: str, tmp_path: Path) -> None:
    shutil.copy(INPUTS / "gemma_2b/model.safetensors", tmp_path / "s")
    with pytest.raises(error, match=message):
        Checkpoint.open(shard(tmp_path, weight_map))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the file 's' is not in"):
        Checkpoint.open(shard(tmp_path, {"a": "s"}))


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"looked for model.safetensors, .*; found nothing"):
        Checkpoint.open(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"found tokenizer.model, tokenizer.vocab"):
        Checkpoint.open(INPUTS / "spm64")
    with pytest.raises(FileNotFoundError):
        Checkpoint.open(tmp_path / "missing")


@pytest.mark.parametrize(
    ("head", "advice"),
    [(b"GGUF\x03\0\0\0", "it is a GGUF file"), (b"hello", r"begins with b'hello'"), (b"\x08\0\0\0\0\0\0\0[", "begins")],
)
def test_an_unknown_file_is_refused_by_its_first_bytes(head: bytes, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(head)
    with pytest.raises(UnsupportedModelError, match=rf"expected a MediaPipe \.bin or \.task, .*{advice}"):
        detect_format(path)


@pytest.mark.parametrize(
    ("head", "expected"),
    [(b"LITERTLM" + bytes(8), "litertlm"), (b"\x08\0\0\0TFL3\x04\0\x04\0\x04\0\0\0", "tflite")],
)
def test_other_models_are_told_apart(head: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(head)
    assert detect_format(path) == expected


def test_a_bundle_is_told_from_a_torch_archive(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "m.task"
    with path.open("wb") as file:
        file.write(bytes(4))
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("METADATA", b"")
            archive.writestr("TOKENIZER_MODEL", b"")
    assert detect_format(path) == "task"
