"""Exported LiteRT models: what they compute, and how they lie in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_checkpoint import read_demo, write_demo_checkpoint
from litert_runner import LiteRtRunner
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids, random_tensors, write_checkpoint

from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions
from hearthlm.errors import BundleError, CorruptFileError, TensorMismatchError, UnsupportedModelError
from hearthlm.exporter import BLOCK_SIZE, ExportQuantization, export_bundle, export_tflite, plan_export
from hearthlm.formats import litert_graph, tensor_plan
from hearthlm.formats.litert_model import llm_signatures, read_litert_model
from hearthlm.formats.litert_verifier import verify_litert_model
from hearthlm.formats.litertlm import LiteRtLmFile
from hearthlm.formats.task_bundle import MODEL, TOKENIZER_CONFIG, TaskBundle
from hearthlm.models import read_config
from hearthlm.models.family import PromptTemplate
from hearthlm.quantization import dequantize, quantize, quantize_blocks
from hearthlm.runtime.checkpoint_source import rows_of, view_of
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.model import Model
from hearthlm.runtime.transformer import TransformerExecutor
from hearthlm.tokenizers import from_sentencepiece

LENGTHS = (8, 32)
CACHE = 96
PREFILLS = [(32, 32), (8, 8), (8, 5)]  # the last one is filled up
NUM_TOKENS = 64  # beyond the windows of the random models, which see 24


def reference_logits(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """Return what this package's own network says of `ids`, from the first that decode takes in."""
    with Model.open(folder) as model:
        executor = TransformerExecutor(model.architecture, model.load_weights(), num_threads=1)
        [logits] = executor.forward([ForwardRequest(executor.new_state(), ids, "all")])
        executor.close()
    assert logits is not None
    return logits[sum(used for _, used in PREFILLS) :]


def rounded(
    config: dict[str, Any], tensors: dict[str, NDArray[np.float32]], quantization: str
) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a checkpoint as the quantised file has them."""
    family, architecture = read_config(config)
    result = {name: values.copy() for name, values in tensors.items()}
    for spec in family.tensors(architecture):
        if spec.group is None:
            continue
        rows = rows_of(result[spec.checkpoint_name], spec)
        if quantization == "int4_block32":
            values = dequantize(quantize_blocks(rows.reshape(-1, BLOCK_SIZE))).reshape(rows.shape)
        else:
            values = dequantize(quantize(rows, int(quantization.removeprefix("int"))))
        view = view_of(result[spec.checkpoint_name], spec)
        view[...] = values.reshape(view.shape)
    return result


def mean_kl(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Return the mean over rows of logits of KL(p || q), in nats."""
    log_p, log_q = (x - np.logaddexp.reduce(x.astype(np.float64), axis=1, keepdims=True) for x in (p, q))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def export(tmp_path: Path, config: dict[str, Any], **options: Any) -> Path:
    path = tmp_path / "model.tflite"
    folder = tmp_path / "checkpoint"
    if not folder.exists():
        write_checkpoint(folder, config)
    export_tflite(folder, path, LENGTHS, CACHE, **{"quantization": "none", **options})
    return path


@pytest.mark.parametrize("layout", ["transposed", "default"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_float_model_answers_as_its_checkpoint(name: str, layout: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    path = export(tmp_path, config, kv_layout=layout)
    verify_litert_model(path.read_bytes(), "model")
    ids = random_ids(config, NUM_TOKENS)
    logits = LiteRtRunner(path).logits(ids, PREFILLS)
    np.testing.assert_allclose(logits, reference_logits(tmp_path / "checkpoint", ids), rtol=0, atol=1e-4)


def test_every_prefill_signature_and_decode_fill_the_same_caches(tmp_path: Path) -> None:
    config = CONFIGS["gemma3_gqa_scaled"]
    path = export(tmp_path, config)
    ids = random_ids(config, 46)
    by_steps = [LiteRtRunner(path).logits(ids, steps)[-1] for steps in ([(32, 32), (8, 8)], [(8, 8)] * 5, [])]
    np.testing.assert_allclose(by_steps[1], by_steps[0], rtol=0, atol=2e-5)
    np.testing.assert_allclose(by_steps[2], by_steps[0], rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]], list[int]]:
    """Return the demo model as config and tensors of a checkpoint, and a text in its ids."""
    config, tensors, tokenizer = read_demo()
    text = "Once there was a small boat with a red sail. It wanted to see the island behind the fog. " * 4
    return config, tensors, [2, *from_sentencepiece(tokenizer).encode(text)][:NUM_TOKENS]


@pytest.mark.parametrize("quantization", ["int8", "int4", "int4_block32"])
def test_a_quantised_model_differs_by_the_rounding_of_activations_only(
    demo: tuple[dict[str, Any], dict[str, NDArray[np.float32]], list[int]],
    quantization: ExportQuantization,
    tmp_path: Path,
) -> None:
    config, tensors, ids = demo
    write_checkpoint(tmp_path / "checkpoint", config, tensors)
    path = export(tmp_path, config, quantization=quantization)
    expected = reference_logits(
        write_checkpoint(tmp_path / "rounded", config, rounded(config, tensors, quantization)), ids
    )
    verify_litert_model(path.read_bytes(), "model")
    assert mean_kl(expected, LiteRtRunner(path).logits(ids, PREFILLS)) <= 1e-2


def test_scales_of_least_error_are_nearer_to_float(
    demo: tuple[dict[str, Any], dict[str, NDArray[np.float32]], list[int]], tmp_path: Path
) -> None:
    config, tensors, ids = demo
    expected = reference_logits(write_checkpoint(tmp_path / "checkpoint", config, tensors), ids)
    cost = {}
    for method in ("minmax", "mse"):
        path = export(tmp_path, config, quantization="int4", quantization_method=method)
        cost[method] = mean_kl(expected, LiteRtRunner(path).logits(ids, PREFILLS))
    assert cost["mse"] < 0.9 * cost["minmax"]


# How it lies in the file


def test_the_signatures_are_those_that_runtimes_know(tmp_path: Path) -> None:
    config = CONFIGS["gemma2_gqa"]
    model = read_litert_model(export(tmp_path, config).read_bytes(), "model")
    signatures = llm_signatures(model, "model")
    assert list(model.signatures) == ["prefill_8", "prefill_32", "decode"]
    assert dict(signatures.prefill_lengths) == {"prefill_32": 32, "prefill_8": 8}
    assert signatures.mask == "mask" and signatures.kv_cache is not None
    assert signatures.kv_cache.num_layers == config["num_hidden_layers"]
    assert (signatures.kv_cache.key_shape, signatures.kv_cache.value_shape) == ((1, 2, CACHE, 32), (1, 2, 32, CACHE))
    decode = model.signatures["decode"]
    assert decode.outputs["logits"].shape == (1, 1, config["vocab_size"])
    assert "logits" not in model.signatures["prefill_8"].outputs
    path = export(tmp_path, config, kv_layout="default")
    cache = llm_signatures(read_litert_model(path.read_bytes(), "model"), "model").kv_cache
    assert cache is not None and cache.key_shape == cache.value_shape == (1, CACHE, 2, 32)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "int4_block32"])
def test_a_further_signature_adds_no_weights(quantization: ExportQuantization, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", CONFIGS["gemma3_mqa"])
    one, three = tmp_path / "1.tflite", tmp_path / "3.tflite"
    plan = export_tflite(folder, one, [8], CACHE, quantization)
    export_tflite(folder, three, [8, 16, 32], CACHE, quantization)
    weights = sum(weight.num_bytes for weight in plan.weights)
    graphs = one.stat().st_size - weights
    assert three.stat().st_size < weights + 2.2 * graphs
    assert [weight.shape for weight in plan.weights if weight.name == "embedding"] == [(320, 64)]  # the output, too


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    config = CONFIGS["llama_untied"]
    first = export(tmp_path, config, quantization="int8", num_threads=1).read_bytes()
    assert export(tmp_path, config, quantization="int8", num_threads=3).read_bytes() == first


def test_the_plan_tells_the_size_and_writes_nothing(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", CONFIGS["phi_parallel"])
    path = tmp_path / "out" / "model.tflite"
    plan = plan_export(folder, path, LENGTHS, CACHE, "int8")
    assert not path.parent.exists()
    assert export_tflite(folder, path, LENGTHS, CACHE, "int8") == plan
    assert path.stat().st_size == plan.num_bytes
    assert json.loads(json.dumps(plan.to_json()))["num_operators"].keys() == {"prefill_8", "prefill_32", "decode"}


def test_progress_goes_from_0_to_1(tmp_path: Path) -> None:
    parts: list[tuple[float, str]] = []
    export(tmp_path, CONFIGS["gpt2"], progress=lambda part, name: parts.append((part, name)))
    assert [part for part, _ in parts] == sorted(part for part, _ in parts)
    assert parts[-1][0] == 1.0
    assert any("feed_forward.up" in name for _, name in parts)


@pytest.mark.parametrize("failing_write", range(4))
def test_a_full_disk_leaves_what_was_there(failing_write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_demo_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "model.litertlm"
    path.write_bytes(b"before")
    write_at, done = tensor_plan.write_at, 0

    def write_until_full(*arguments: Any) -> None:
        nonlocal done
        done += 1
        if done > 20 * failing_write:
            raise OSError(28, "No space left on device")
        write_at(*arguments)

    monkeypatch.setattr(litert_graph, "write_at", write_until_full)
    with pytest.raises(OSError, match="No space left"):
        export_bundle(folder, path, LENGTHS, CACHE)
    assert path.read_bytes() == b"before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint", "model.litertlm"]


# Bundles


def test_a_task_has_the_tokens_and_turns_of_its_family(tmp_path: Path) -> None:
    folder = write_demo_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "model.task"
    plan = export_bundle(folder, path, LENGTHS, CACHE)
    export_tflite(folder, tmp_path / "model.tflite", LENGTHS, CACHE)
    with TaskBundle.open(path) as bundle:
        p = bundle.parameters
        assert p.start_token == "<bos>"
        assert list(p.stop_tokens) == ["<eos>", "<end_of_turn>"]
        assert p.prompt_templates.user_template.prompt_prefix == "<start_of_turn>user\n"
        assert p.prompt_templates.model_template.prompt_suffix == "<end_of_turn>\n"
        assert bundle.entries[MODEL].num_bytes == (tmp_path / "model.tflite").stat().st_size
    assert path.stat().st_size >= plan.num_bytes


def test_a_litertlm_says_the_same_in_ids(tmp_path: Path) -> None:
    folder = write_demo_checkpoint(tmp_path / "checkpoint")
    (folder / "chat_template.jinja").write_text(CHATML)
    path = tmp_path / "model.litertlm"
    export_bundle(folder, path, LENGTHS, CACHE)
    with LiteRtLmFile.open(path) as file:
        metadata = file.metadata
        assert metadata.start_token == (2,)
        assert metadata.stop_tokens == ((1,), (5,))
        assert metadata.max_num_tokens == CACHE
        assert metadata.model_type == "gemma3"
        assert metadata.chat_template is not None and metadata.chat_template.endswith(CHATML)
        assert metadata.templates is not None
        assert metadata.templates.user == PromptTemplate("<|im_start|>user\n", "<|im_end|>\n")
        assert metadata.templates.model == PromptTemplate("<|im_start|>assistant\n", "<|im_end|>\n")
        assert metadata.templates.system == PromptTemplate("<|im_start|>system\n", "<|im_end|>\n")
        assert file.sentencepiece_model == (folder / "tokenizer.model").read_bytes()
        assert file.executor_metadata is not None
        buffers = file.executor_metadata.llm_executor_metadata.state_buffers
        assert [(b.decode_input_name, b.sequence_axis) for b in buffers[:2]] == [
            ("kv_cache_k_0", 2),
            ("kv_cache_v_0", 3),
        ]


def test_a_hugging_face_tokenizer_goes_into_a_litertlm_as_it_is(tmp_path: Path) -> None:
    config = CONFIGS["qwen2_bias"] | {"vocab_size": 2000}
    folder = write_checkpoint(tmp_path / "checkpoint", config, random_tensors(config))
    source = Path(__file__).parent / "golden" / "inputs" / "hf_bpe"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    export_bundle(folder, tmp_path / "model.litertlm", LENGTHS, CACHE)
    with LiteRtLmFile.open(tmp_path / "model.litertlm") as file:
        assert file.tokenizer_json == (source / "tokenizer.json").read_bytes()
        assert file.sentencepiece_model is None
        carried = json.loads(file.own_entry(TOKENIZER_CONFIG) or b"{}")
        settings = json.loads((source / "tokenizer_config.json").read_text())
        assert carried and carried.items() <= settings.items()


@pytest.mark.parametrize("ending", [".task", ".litertlm"])
def test_a_bundle_answers_here_as_its_checkpoint(ending: str, tmp_path: Path) -> None:
    folder = write_demo_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / f"model{ending}"
    export_bundle(folder, path, LENGTHS, CACHE, "none")
    greedy = LlmInferenceSessionOptions(top_k=1, max_output_tokens=24)
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    results = []
    for model in (folder, path):
        with LlmInference.create_from_options(LlmInferenceOptions(model, max_tokens=CACHE)) as llm:
            results.append(llm.generate(messages, greedy))
    assert results[0].token_ids == results[1].token_ids
    assert results[0].num_prompt_tokens == results[1].num_prompt_tokens


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_ending_says_what_a_bundle_becomes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", CONFIGS["gemma_mqa"])
    with pytest.raises(ValueError, match="output: expected a name that ends in .task or .litertlm, got 'model.zip'"):
        export_bundle(folder, tmp_path / "model.zip")


def test_a_bundle_must_say_what_ends_an_answer(tmp_path: Path) -> None:
    config = {name: value for name, value in CONFIGS["llama_tied"].items() if name != "eos_token_id"}
    folder = write_checkpoint(tmp_path / "checkpoint", config | {"vocab_size": 2048})
    (folder / "tokenizer.model").write_bytes(read_demo()[2])
    with pytest.raises(BundleError, match="nothing says what ends an answer; set eos_token_id"):
        export_bundle(folder, tmp_path / "model.litertlm")


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefill_lengths": []}, "prefill_lengths: expected 1 to 64 of them, got 0"),
        ({"prefill_lengths": [1]}, "prefill_lengths: expected integers of at least 2, got 1"),
        ({"prefill_lengths": [32.0]}, "prefill_lengths: expected integers"),
        ({"prefill_lengths": [2000]}, "prefill_lengths: expected at most 1280, which is cache_length, got 2000"),
        ({"cache_length": 0}, "cache_length: expected integers of at least 2, got 0"),
        ({"quantization": "int2"}, "quantization: expected one of none, int8, int4, int4_block32, got 'int2'"),
        ({"quantization_method": "gptq"}, "quantization_method: expected one of minmax, mse, got 'gptq'"),
        ({"kv_layout": "rows"}, "kv_layout: expected one of transposed, default, got 'rows'"),
        ({"output": "model.task", "kv_layout": "default"}, "kv_layout: expected 'transposed' in a .task"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", CONFIGS["gemma_mqa"])
    with pytest.raises(ValueError, match=message):
        plan_export(folder, arguments.pop("output", tmp_path / "m.tflite"), **arguments)


def test_what_the_graph_cannot_express_is_named(tmp_path: Path) -> None:
    gpt2 = write_checkpoint(tmp_path / "gpt2", CONFIGS["gpt2"])
    with pytest.raises(UnsupportedModelError, match="cache_length: expected at most 512, as many positions as the mod"):
        plan_export(gpt2, tmp_path / "m.tflite", cache_length=513)
    with pytest.raises(
        UnsupportedModelError, match="down: int4_block32 needs rows of a multiple of 32 values, got 136"
    ):
        plan_export(gpt2, tmp_path / "m.tflite", cache_length=512, quantization="int4_block32")


def test_a_tensor_that_would_change_the_answers_is_not_left_out(tmp_path: Path) -> None:
    config = CONFIGS["gemma_mqa"]
    tensors = random_tensors(config) | {"model.layers.0.self_attn.q_proj.bias": np.ones(128, np.float32)}
    folder = write_checkpoint(tmp_path / "checkpoint", config, tensors)
    with pytest.raises(TensorMismatchError, match="no place for the tensor 'model.layers.0.self_attn.q_proj.bias'"):
        plan_export(folder, tmp_path / "m.tflite")


def test_a_checkpoint_that_lacks_a_tensor_or_a_config_is_refused(tmp_path: Path) -> None:
    config = CONFIGS["gemma_mqa"]
    tensors = random_tensors(config)
    del tensors["model.norm.weight"]
    folder = write_checkpoint(tmp_path / "checkpoint", config, tensors)
    with pytest.raises(TensorMismatchError, match=r"the model needs the tensor model.norm.weight \[64\]"):
        plan_export(folder, tmp_path / "m.tflite")
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="there is no config.json beside the weights"):
        plan_export(folder, tmp_path / "m.tflite")


@pytest.mark.parametrize("quantization", ["int8", "int4_block32"])
def test_a_value_that_is_not_finite_is_refused(quantization: ExportQuantization, tmp_path: Path) -> None:
    config = CONFIGS["gemma_mqa"]
    tensors = random_tensors(config)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.inf
    folder = write_checkpoint(tmp_path / "checkpoint", config, tensors)
    with pytest.raises(CorruptFileError, match="layers.1.feed_forward.up, from row 0: .* not finite"):
        export_tflite(folder, tmp_path / "m.tflite", LENGTHS, CACHE, quantization)
    assert not (tmp_path / "m.tflite").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", CONFIGS["gemma_mqa"])  # of 320
    (folder / "tokenizer.model").write_bytes(read_demo()[2])
    with pytest.raises(BundleError, match="the tokenizer has 2048 tokens, but the model 320"):
        export_bundle(folder, tmp_path / "m.task")
