"""Conversions give MediaPipe's bytes, run as their checkpoint does, and end in a named error or a whole file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hearthlm import (
    CorruptFileError,
    HearthLMError,
    LlmInference,
    LlmInferenceOptions,
    TensorMismatchError,
    UnsupportedModelError,
    inspect_model,
)
from hearthlm.converter import ConversionConfig, convert_checkpoint, plan_conversion
from hearthlm.formats import tensor_plan, weights_bin
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.models.model_types import MODEL_TYPES
from hearthlm.quantization import dequantize

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{version}/{name}": (version, case)
    for version, cases in json.loads((GOLDEN / "cases.json").read_text()).items()
    for name, case in cases["conversions"].items()
}


def golden_config(case: dict[str, Any], folder: Path, **changes: Any) -> ConversionConfig:
    """Return the settings of a golden conversion, its outputs in `folder`."""
    settings = dict(case["cfg"])
    for name in ("input_ckpt", "vocab_model_file", "lora_ckpt"):
        if name in settings:
            settings[name] = GOLDEN / settings[name]
    for name in ("output_tflite_file", "lora_output_tflite_file"):
        if name in settings:
            settings[name] = folder / Path(settings[name]).name
    settings |= {"output_dir": folder, "model_type": case["model_type"], "head_dim": case["dims"]["H"], **changes}
    return ConversionConfig(**settings)


def tensor_bytes(path: Path, name: str) -> NDArray[np.uint8]:
    with WeightsBin.open(path) as file:
        tensor = file.tensors[name]
    return np.frombuffer(path.read_bytes(), np.uint8, tensor.num_bytes, tensor.offset)


# What MediaPipe's converter wrote


@pytest.mark.parametrize("name", CASES)
def test_golden_conversions_are_repeated_byte_for_byte(name: str, tmp_path: Path) -> None:
    version, case = CASES[name]
    is_newest = version == "0.10.35"  # its scales were multiplied by the reciprocal of 127: one ulp
    convert_checkpoint(golden_config(case, tmp_path, mediapipe_compatible=True))
    for output in case["outputs"]:
        ours, theirs = tmp_path / output, GOLDEN / "outputs" / version / output
        with WeightsBin.open(ours) as mine, WeightsBin.open(theirs) as golden:
            sums = {tensor for tensor in mine.tensors if tensor.endswith(".sum_i")}
            assert set(mine.tensors) - set(golden.tensors) == (sums if version == "0.10.14" else set())
            assert set(golden.tensors) <= set(mine.tensors)
            for tensor, entry in golden.tensors.items():
                assert (entry.type, entry.shape) == (mine.tensors[tensor].type, mine.tensors[tensor].shape), tensor
                written, wanted = tensor_bytes(ours, tensor), tensor_bytes(theirs, tensor)
                if is_newest and tensor.endswith("_quantized_scale"):
                    ulps = np.abs(written.view(np.int32).astype(np.int64) - wanted.view(np.int32))
                    assert ulps.max() <= 1, tensor
                else:
                    np.testing.assert_array_equal(written, wanted, err_msg=tensor)
            message = golden.parameters
            if version == "0.10.14" and mine.backend == "gpu":  # later versions declare these two
                message.transformer_parameters.load_per_layer_embedding_dynamically = True
                message.transformer_parameters.load_ngrammer_embedding_dynamically = True
            assert mine.parameters == message
            assert mine.tokenizer == golden.tokenizer
            assert (mine.model_type, mine.backend, mine.extra) == (golden.model_type, golden.backend, None)
            # 0.10.14 marked the base model of an adapter with its rank, too
            assert mine.lora_rank == (golden.lora_rank if output.endswith("lora_lora.bin") or is_lora(output) else None)


def is_lora(output: str) -> bool:
    return output.endswith("renamed_lora.bin")


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_published_models_are_declared_as_mediapipe_declares_them(name: str) -> None:
    from hearthlm.formats.llm_parameters import llm_parameters
    from hearthlm.models import read_config

    # vocabulary, embedding, hidden, head, heads, layers and declared heads for keys of MediaPipe's own table
    table = {
        "GEMMA_2B": (256000, 2048, 16384, 256, 8, 18, 1),
        "GEMMA_7B": (256000, 3072, 24576, 256, 16, 28, 0),
        "GEMMA2_2B": (256000, 2304, 9216, 256, 8, 26, 4),
        "FALCON_RW_1B": (50304, 2048, 8192, 64, 32, 24, 32),
        "STABLELM_4E1T_3B": (50304, 2560, 6912, 80, 32, 32, 0),
        "PHI_2": (51200, 2560, 10240, 80, 32, 32, 0),
        "GEMMA3_300M": (262144, 640, 2048, 256, 4, 18, 1),
        "FUNCTIONGEMMA3_300M": (262144, 640, 2048, 256, 4, 18, 1),
        "GEMMA3_1B": (262144, 1152, 6912, 256, 4, 26, 1),
        "GEMMA3_4B": (262208, 2560, 10240, 256, 8, 34, 4),
        "GEMMA3_12B": (262208, 3840, 15360, 256, 16, 48, 8),
        "GEMMA3_27B": (262208, 5376, 21504, 128, 32, 62, 16),
    }
    model_type = MODEL_TYPES[name]
    family, architecture = read_config(model_type.config)
    assert family.name == model_type.family
    message = llm_parameters(architecture, family, model_type.number)
    t = message.transformer_parameters
    assert (
        message.vocab_size,
        t.embedding_dim,
        t.hidden_dimension,
        t.head_dimension,
        t.num_heads,
        t.num_stacks,
        t.num_kv_heads,
    ) == table[name]
    assert t.self_attention_parameters.qk_norm == ("GEMMA3" in name)
    assert t.global_rope_wavelength == (1e6 if "GEMMA3" in name else 0)


# What a converted model answers


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write a random model with a tokenizer of as many pieces."""
    random_models.write_checkpoint(folder, random_models.CONFIGS[name])
    shutil.copyfile(GOLDEN / "inputs" / "spm64" / "tokenizer.model", folder / "tokenizer.model")
    return folder


def logprobs(path: Path, **options: Any) -> NDArray[np.float32]:
    ids = [int(i) for i in np.random.default_rng(7).integers(3, 64, 40)]
    with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1, **options)) as llm:
        return llm.token_logprobs(ids)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", random_models.CONFIGS)
def test_a_float_conversion_answers_as_its_checkpoint(name: str, backend: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(name, tmp_path / "checkpoint")
    bits = dict.fromkeys(("attention_quant_bits", "feedforward_quant_bits", "embedding_quant_bits"), 32)
    plan = convert_checkpoint(ConversionConfig(checkpoint, None, None, backend, tmp_path, **bits))  # type: ignore[arg-type]
    model = Path(plan.output_file)
    assert model == tmp_path / "model.tflite"
    np.testing.assert_array_equal(
        logprobs(model, kv_cache_dtype="float32"), logprobs(checkpoint, kv_cache_dtype="float32")
    )
    info, source = inspect_model(model), inspect_model(checkpoint)
    assert (info.family, info.start_id, info.stop_ids) == (source.family, source.start_id, source.stop_ids)
    assert info.architecture.context_length == source.architecture.context_length


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_mqa", "phi_parallel", "falcon_32_heads", "gpt2", "phi3_window"])
def test_layout_and_threads_do_not_change_the_answers(name: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(name, tmp_path / "checkpoint")
    files: list[Path] = []
    for backend, num_threads in (("cpu", 1), ("cpu", 3), ("gpu", 2)):
        config = ConversionConfig(
            checkpoint,
            "safetensors",
            None,
            backend,  # type: ignore[arg-type]
            tmp_path,
            feedforward_quant_bits=4,
            output_tflite_file=tmp_path / f"{len(files)}.bin",
        )
        files.append(Path(convert_checkpoint(config, num_threads=num_threads).output_file))
    assert files[0].read_bytes() == files[1].read_bytes()
    np.testing.assert_array_equal(logprobs(files[0]), logprobs(files[2]))


@pytest.mark.parametrize("name", ["gemma3_mqa", "falcon_32_heads", "phi3_window", "gpt2"])
def test_error_compensation_serves_every_kind_of_family_on_any_threads(name: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(name, tmp_path / "checkpoint")
    config = ConversionConfig(checkpoint, None, None, "cpu", tmp_path, quantization_method="gptq")
    plan = convert_checkpoint(config, num_threads=2)
    again = convert_checkpoint(replace(config, output_tflite_file=tmp_path / "again.bin"), num_threads=1)
    assert Path(plan.output_file).read_bytes() == Path(again.output_file).read_bytes()
    got = logprobs(Path(plan.output_file), activation_data_type="float32", kv_cache_dtype="float32")
    assert np.abs(got - logprobs(checkpoint)).mean() < 0.2  # int8


def test_what_mediapipe_cannot_say_travels_in_our_entry(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("llama_untied", tmp_path / "checkpoint")
    (checkpoint / "tokenizer.model").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / "inputs" / "hf_bpe" / name, checkpoint / name)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], "bos_token_id": 3}))
    plan = convert_checkpoint(ConversionConfig(checkpoint, "safetensors", None, "cpu", tmp_path))
    assert plan.model_type == "none"
    with WeightsBin.open(plan.output_file) as file:
        assert file.model_type == 0
        assert file.tokenizer is not None
    info = inspect_model(plan.output_file)
    assert (info.family, info.start_id, info.stop_ids) == ("llama", 3, (1, 5))
    text = "hello there, it is the end"
    with LlmInference.create_from_model_path(plan.output_file) as converted:
        with LlmInference.create_from_model_path(checkpoint) as source:
            assert converted.tokenizer.kind == "hugging_face"
            assert converted.tokenizer.encode(text) == source.tokenizer.encode(text)
            messages = [{"role": "user", "content": "hello"}]
            assert converted.chat_format.encode(messages) == source.chat_format.encode(messages)


def test_other_runtimes_begin_and_end_a_text_as_the_checkpoint_does(tmp_path: Path) -> None:
    config = random_models.CONFIGS["gemma_mqa"] | {"vocab_size": 512}
    checkpoint = random_models.write_checkpoint(tmp_path / "in", config, random_models.random_tensors(config))
    shutil.copyfile(GOLDEN / "tokenizers" / "bpe_512_byte_fallback.model", checkpoint / "tokenizer.model")
    # `<end_of_turn>`, and a piece of text, which may be spelled anywhere
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5, 300], "bos_token_id": 3}))
    conversion = ConversionConfig(checkpoint, None, "GEMMA_2B", "cpu", tmp_path)
    for compatible, start, stop in ((False, 3, ["<eos>", "</s>", "<end_of_turn>"]), (True, 2, ["<eos>"])):
        plan = convert_checkpoint(replace(conversion, mediapipe_compatible=compatible))
        with WeightsBin.open(plan.output_file) as file:
            assert (file.parameters.start_token_id, list(file.parameters.stop_tokens)) == (start, stop)


def test_files_for_the_gpu_are_as_large_as_the_web_runtime_wants_them(tmp_path: Path) -> None:
    settings = {"lora_ckpt": GOLDEN / "inputs" / "gemma_2b_lora_r4", "lora_alpha": 4}
    sizes = {}
    for name, changes in (("gpu", {}), ("compatible", {"mediapipe_compatible": True}), ("cpu", {"backend": "cpu"})):
        case = CASES["0.10.14/gemma_2b_gpu_int8"][1]
        plan = convert_checkpoint(golden_config(case, tmp_path / name, **settings, **changes))
        assert plan.lora_output_file is not None
        sizes[name] = (Path(plan.output_file).stat().st_size, Path(plan.lora_output_file).stat().st_size)
    assert sizes["gpu"] == (2 << 20, 2 << 20)
    assert sizes["compatible"] == (131072, 131072)
    assert sizes["cpu"][0] < 65536
    assert sizes["cpu"][1] == 2 << 20


def test_a_tied_model_gets_the_output_matrix_that_its_type_has(tmp_path: Path) -> None:
    folder = tmp_path / "falcon"
    folder.mkdir()
    shutil.copyfile(GOLDEN / "inputs" / "falcon" / "pytorch_model.bin", folder / "pytorch_model.bin")
    config = {
        "model_type": "falcon",
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_hidden_size": 64,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    case = CASES["0.10.14/falcon_rw_1b_cpu_int8"][1]
    convert_checkpoint(golden_config(case, tmp_path, input_ckpt=folder, head_dim=None))
    written = tmp_path / "falcon_rw_1b_cpu_int8.bin"
    with WeightsBin.open(written) as file:
        assert {"params.lm.softmax.logits_ffn.w", "params.lm.token_embedding.w"} <= set(file.tensors)


# Where checkpoints come from


def test_a_pattern_a_folder_and_shards_are_one_checkpoint(tmp_path: Path) -> None:
    case = CASES["0.10.14/gemma_2b_cpu_int8"][1]
    tensors = load_file(GOLDEN / "inputs" / "gemma_2b" / "model.safetensors")
    names = sorted(tensors)
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, shards / f"model-{number}.safetensors")
    whole = convert_checkpoint(golden_config(case, tmp_path))
    for source in (shards, shards / "model*.safetensors"):
        config = golden_config(case, tmp_path, input_ckpt=source, output_tflite_file=tmp_path / "other.bin")
        assert Path(convert_checkpoint(config).output_file).read_bytes() == Path(whole.output_file).read_bytes()
    shutil.copyfile(shards / "model-0.safetensors", shards / "model-2.safetensors")
    with pytest.raises(TensorMismatchError, match=r"model-2.safetensors: tensor .* is in model-0.safetensors, too"):
        convert_checkpoint(golden_config(case, tmp_path, input_ckpt=shards))
    with pytest.raises(FileNotFoundError, match="no file matches the pattern"):
        convert_checkpoint(golden_config(case, tmp_path, input_ckpt=shards / "x*.safetensors"))


def test_prefixes_of_larger_models_are_understood(tmp_path: Path) -> None:
    case = CASES["0.10.14/gemma_2b_cpu_int8"][1]
    tensors = load_file(GOLDEN / "inputs" / "gemma_2b" / "model.safetensors")
    renamed = {f"language_model.{name}": values for name, values in tensors.items()}
    renamed["vision_tower.layers.0.weight"] = np.zeros(4, np.float32)
    save_file(renamed, tmp_path / "model.safetensors")
    config = golden_config(case, tmp_path, input_ckpt=tmp_path / "model.safetensors")
    plan = convert_checkpoint(replace(config, mediapipe_compatible=True))
    assert plan.left_over == ("vision_tower.layers.0.weight",)
    golden = GOLDEN / "outputs" / "0.10.14" / "gemma_2b_cpu_int8.bin"
    assert tensor_bytes(Path(plan.output_file), "params.lm.softmax.logits_ffn.w").tobytes() == (
        tensor_bytes(golden, "params.lm.softmax.logits_ffn.w").tobytes()
    )


# Adapters


def test_any_rank_is_written_and_read_back_with_its_scale(tmp_path: Path) -> None:
    case = CASES["0.10.14/gemma_2b_gpu_int8"][1]
    generator = np.random.default_rng(0)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    tensors = {}
    for layer in range(2):
        for module, out, columns in (
            ("self_attn.q_proj", 16, 16),
            ("self_attn.o_proj", 16, 16),
            ("mlp.up_proj", 32, 16),
        ):
            base = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{base}.lora_A.weight"] = generator.normal(size=(3, columns)).astype(np.float32)
            tensors[f"{base}.lora_B.weight"] = generator.normal(size=(out, 3)).astype(np.float32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))
    plan = convert_checkpoint(golden_config(case, tmp_path, lora_ckpt=adapter))
    assert plan.lora_output_file == str(tmp_path / "gemma_2b_gpu_int8_lora.bin")
    with WeightsBin.open(plan.lora_output_file) as file:
        assert file.lora_rank == 4  # the layout has multiples of 4
        right = dequantize(file.matrix("params.lm.transformer.x_layers_1.self_attention.q.w_prime_right", (16, 4)))
        wanted = 2 * tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
        np.testing.assert_array_equal(right[:, :3], wanted.astype(np.float16))
        left = dequantize(file.matrix("params.lm.transformer.x_layers_1.self_attention.post.w_prime_left", (16, 4)))
        wanted = 2 * tensors["base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"]
        np.testing.assert_array_equal(left[:, :3], wanted.astype(np.float16))
        assert "params.lm.transformer.x_layers_0.ff_layer.ffn_layer1.w_prime_left" in file.tensors
    model = Path(plan.output_file)
    plain = logprobs(model)
    with_file, with_folder = logprobs(model, lora_path=plan.lora_output_file), logprobs(model, lora_path=adapter)
    assert np.abs(with_file - plain).max() > 0.01
    np.testing.assert_allclose(with_file, with_folder, atol=2e-2)  # float16
    with pytest.raises(TensorMismatchError, match="lora_rank: expected 8, but the adapter has 3"):
        convert_checkpoint(golden_config(case, tmp_path, lora_ckpt=adapter, lora_rank=8))
    with pytest.raises(TensorMismatchError, match=r"lora_alpha: adapter_config.json says 6, got 7"):
        convert_checkpoint(golden_config(case, tmp_path, lora_ckpt=adapter, lora_alpha=7))


# Refusals


def gemma(folder: Path, **changes: Any) -> ConversionConfig:
    return golden_config(CASES["0.10.14/gemma_2b_cpu_int8"][1], folder, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "npu"}, "Unsupported backend: npu"),
        ({"ckpt_format": "gguf"}, "Unknown checkpoint format: gguf"),
        ({"model_type": "GEMMA_3B"}, "Unknown model type: GEMMA_3B; expected one of FALCON"),
        ({"attention_quant_bits": 5}, r"attention_quant_bits: expected one of \(4, 8, 32\) for cpu, got 5"),
        ({"embedding_quant_bits": 16}, "embedding_quant_bits: expected one of"),
        ({"block_size": 64}, r"Block size must be one of \(0 \(off\), 32, 128\), got 64"),
        ({"num_heads": 0}, "num_heads: expected a positive integer, got 0"),
        ({"quantization_method": "best"}, "quantization_method: expected one of minmax"),
        ({"use_mse_quant": True, "quantization_method": "mse"}, "use_mse_quant: expected False"),
        ({"is_symmetric": False}, "is_symmetric: expected True for cpu"),
        (
            {"is_symmetric": False, "use_mse_quant": True, "backend": "gpu"},
            "is_symmetric: expected True for 'mediapipe",
        ),
        ({"lora_rank": 4}, "lora_rank: there is no lora_ckpt"),
        ({"lora_ckpt": "x", "lora_main_model_type": "PHI_2"}, "lora_main_model_type: expected GEMMA_2B, got PHI_2"),
    ],
)
def test_a_config_out_of_range_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        gemma(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"combine_file_only": True},
        {"block_size": 32},
        {"image_encoder_file": "x"},
        {"image_adapter_file": "x"},
        {"submodel_type": "x"},
        {"apply_srq": True},
        {"is_quantized": True},
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=next(iter(changes))):
        gemma(tmp_path, **changes)


def test_a_config_is_inert(tmp_path: Path) -> None:
    gemma(tmp_path, output_dir=tmp_path / "new", output_tflite_file=None, input_ckpt=tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_effect_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert_checkpoint(gemma(tmp_path, obfuscate=True, fp16_scale=1.0))
    assert [record.message.split()[0] for record in caplog.records] == ["obfuscate", "fp16_scale"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "GEMMA2_2B"}, TensorMismatchError, "post_feedforward_layernorm|pre_feedforward_layernorm"),
        ({"model_type": "PHI_2"}, TensorMismatchError, "expected a matrix model.layers.0.mlp.fc1"),
        ({"model_type": None}, UnsupportedModelError, "there is no config.json beside the weights; model_type must be"),
        ({"model_type": "LLAMA"}, UnsupportedModelError, "there is no config.json beside the weights"),
        ({"head_dim": None}, TensorMismatchError, "16 rows of the query and 8 of the key are no heads of 256"),
        ({"head_dim": None, "num_heads": 3}, TensorMismatchError, "say num_heads or head_dim"),
        ({"ckpt_format": "pytorch"}, UnsupportedModelError, "ckpt_format: expected safetensors, which the files are"),
        ({"input_ckpt": GOLDEN / "inputs" / "nothing"}, FileNotFoundError, "nothing"),
        (
            {"vocab_model_file": GOLDEN / "inputs" / "nothing"},
            FileNotFoundError,
            "no tokenizer.json or tokenizer.model",
        ),
        ({"vocab_model_file": GOLDEN / "cases.json"}, HearthLMError, "tokenizer"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        convert_checkpoint(gemma(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_another_published_model_than_the_named_one_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("gemma_mqa", tmp_path / "checkpoint")
    described = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(described | MODEL_TYPES["GEMMA_7B"].config))
    config = ConversionConfig(checkpoint, None, "GEMMA_2B", "cpu", tmp_path)
    with pytest.raises(
        TensorMismatchError, match=r"has the dimensions of GEMMA_7B; pass model_type='GEMMA_7B' or None"
    ):
        convert_checkpoint(config)
    with pytest.raises(TensorMismatchError, match="is of the family gemma, not phi"):
        convert_checkpoint(replace(config, model_type="PHI_2"))


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "inputs" / "gemma_2b" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptFileError, match=r"model.layers.1.mlp.up_proj.weight, from row 0: .*row 3"):
        convert_checkpoint(gemma(tmp_path, input_ckpt=tmp_path / "model.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_tensor_of_a_layer_that_would_be_dropped_is_refused(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "inputs" / "gemma_2b" / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TensorMismatchError, match="no place for the tensor 'model.layers.1.self_attn.q_proj.bias'"):
        convert_checkpoint(gemma(tmp_path, input_ckpt=tmp_path / "model.safetensors"))


HOSTILE_NAMES = [
    *(f"{up}{target}" for up in ("../", "../../", "./../", "a/../../") for target in ("evil", "x.w", "etc/passwd", "")),
    *(f"{root}{rest}" for root in ("/", "//", "/etc/", "/tmp/") for rest in ("passwd", "evil")),
    *(f"{root}{rest}" for root in ("C:\\", "C:", "\\\\host\\share\\", "..\\", "\\") for rest in ("evil", "x.w")),
    *("CON", "NUL", "aux.w", "COM1", "LPT9.txt", "con.json"),
    *("..", ".", "...", "~", "~root/x", "-rf", "$(touch evil)", "`touch evil`", "%2e%2e%2fevil", "x;touch evil"),
    *("model.\0", "\0", "a\nb", "a\rb", "\u202eniam", "a\u2028b", "\ud7ff", "ＭＯＤＥＬ", "mOdEl.NoRm.WeIgHt"),
    *("x" * 4000, "a/" * 300 + "b", "."),
]


def test_names_of_tensors_never_become_paths(tmp_path: Path) -> None:
    """MediaPipe's converter writes a file for each tensor, under its name."""
    tensors = load_file(GOLDEN / "inputs" / "gemma_2b" / "model.safetensors")
    assert len(HOSTILE_NAMES) >= 60
    inner = tmp_path / "in" / "side"
    inner.mkdir(parents=True)
    for name in HOSTILE_NAMES:
        save_file(tensors | {name: np.zeros(4, np.float32)}, inner / "model.safetensors")
        with contextlib.suppress(HearthLMError):
            convert_checkpoint(gemma(inner, input_ckpt=inner / "model.safetensors"))
        assert {path.name for path in inner.iterdir()} <= {"model.safetensors", "gemma_2b_cpu_int8.bin"}, name
        assert [path.name for path in tmp_path.iterdir()] == ["in"], name


def test_a_checkpoint_cut_off_in_its_header_is_refused(tmp_path: Path) -> None:
    whole = (GOLDEN / "inputs" / "gemma_2b" / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    for size in (*range(int.from_bytes(whole[:8], "little") + 8), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(HearthLMError):
            convert_checkpoint(gemma(tmp_path, input_ckpt=path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


# Whole or not at all


def test_a_full_disk_at_any_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = gemma(tmp_path)
    output = Path(convert_checkpoint(config).output_file)
    whole = output.read_bytes()
    write_at: Callable[..., None] = tensor_plan.write_at
    allowed = countdown = 0

    def write_until_full(*arguments: Any) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            raise OSError(28, "No space left on device")
        write_at(*arguments)

    monkeypatch.setattr(weights_bin, "write_at", write_until_full)
    while True:
        output.write_bytes(b"before")
        countdown = allowed
        try:
            convert_checkpoint(config)
        except OSError as error:
            assert error.errno == 28
            assert output.read_bytes() == b"before"
            assert [path.name for path in tmp_path.iterdir()] == [output.name]
            allowed += 1
            continue
        break
    assert allowed >= 40
    assert output.read_bytes() == whole


@pytest.mark.parametrize("output", ["folder", "file/model.bin", "file/deeper/model.bin"])
def test_an_output_that_cannot_be_made_is_named(output: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileExistsError, match=output.removesuffix("/model.bin")):
        convert_checkpoint(gemma(tmp_path, output_tflite_file=tmp_path / output))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_disk_with_too_little_space_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="the file takes 0 MB, and 0 MB are free") as caught:
        convert_checkpoint(gemma(tmp_path))
    assert caught.value.errno == 28


_CONVERT = """
import sys
from hearthlm.converter import ConversionConfig, convert_checkpoint
config = ConversionConfig(sys.argv[1], None, "GEMMA_2B", "cpu", sys.argv[2], head_dim=8, vocab_model_file=sys.argv[3])
print("ready", flush=True)
while True:
    convert_checkpoint(config)
"""


@pytest.mark.parametrize("old", [b"before", None])
def test_killed_at_any_moment_leaves_a_whole_file_or_the_old_one(old: bytes | None, tmp_path: Path) -> None:
    inputs, output = GOLDEN / "inputs", tmp_path / "out" / "model.tflite"
    whole = Path(
        convert_checkpoint(gemma(tmp_path, output_dir=tmp_path / "whole", output_tflite_file=None)).output_file
    ).read_bytes()
    moments = np.random.default_rng(0).uniform(0, 0.03, 50)
    output.parent.mkdir()
    for moment in moments:
        if old is not None:
            output.write_bytes(old)
        arguments = [str(inputs / "gemma_2b"), str(output.parent), str(inputs / "spm64" / "tokenizer.model")]
        with subprocess.Popen([sys.executable, "-c", _CONVERT, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(float(moment))
            os.kill(process.pid, signal.SIGKILL)
        if output.exists():
            assert output.read_bytes() in (whole, old)
            output.unlink()
        litter = [path for path in output.parent.iterdir() if path != output]
        # between its two names a file that replaces another may be caught whole under the first
        assert all(path.read_bytes() == whole for path in litter)
        assert len(litter) <= 1
        for path in litter:
            path.unlink()


# The plan


def test_a_plan_says_what_would_be_written_and_writes_nothing(tmp_path: Path) -> None:
    config = gemma(tmp_path, feedforward_quant_bits=4)
    plan = plan_conversion(config)
    assert list(tmp_path.iterdir()) == []
    assert convert_checkpoint(config) == plan
    with WeightsBin.open(plan.output_file) as file:
        assert {tensor.name for tensor in plan.tensors} == {
            name for name in file.tensors if not name.endswith("_quantized_scale")
        }
        for tensor in plan.tensors:
            scale = file.tensors.get(f"{tensor.name}_quantized_scale")
            assert tensor.num_bytes == file.tensors[tensor.name].num_bytes + (scale.num_bytes if scale else 0)
    by_source = {tensor.source: tensor for tensor in plan.tensors}
    assert by_source["model.layers.0.mlp.up_proj.weight"].dtype == "int4"
    assert by_source["model.norm.weight"].dtype == "float32"
    json.dumps(plan.to_json())


def test_progress_names_every_tensor_and_ends_at_one(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    plan = convert_checkpoint(gemma(tmp_path), lambda part, name: seen.append((name, part)))
    assert {name for name, _ in seen} == {tensor.name for tensor in plan.tensors}
    assert [part for _, part in seen] == sorted(part for _, part in seen)
    assert seen[-1][1] == 1.0
