"""Adapters add what they should, in every form in which they are stored, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids, random_tensors, write_checkpoint
from safetensors.numpy import load_file, save_file

import hearthlm
from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSession, LlmInferenceSessionOptions
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.kernels import LoraFactors
from hearthlm.models import FAMILIES, read_config
from hearthlm.models.model_types import MODEL_TYPES
from hearthlm.quantization import bfloat16_to_float32, dequantize, float32_to_bfloat16
from hearthlm.runtime import transformer
from hearthlm.runtime.lora import Adapter, LoraAdapter, open_adapter, write_lora_bin
from hearthlm.runtime.model import Model

GOLDEN = Path(__file__).parent / "golden"
OUTPUTS = GOLDEN / "outputs"
GEMMA = OUTPUTS / "0.10.14" / "gemma_2b_cpu_int8.bin"
FAMILY_CONFIGS = ["gemma3_mqa", "llama_untied", "qwen2_bias", "phi_parallel", "phi3_window", "gpt2", "falcon_alibi"]


def draw_adapter(name: str, seed: int = 0, rank: int = 4) -> dict[str, NDArray[np.float32]]:
    """Draw factors for every linear layer of a random model, under the names that PEFT gives them."""
    generator = np.random.default_rng(seed)
    family, architecture = read_config(CONFIGS[name])
    tensors = {}
    for spec in family.tensors(architecture):
        if len(spec.shape) == 2 and spec.group in ("attention", "feed_forward"):
            out, columns = spec.checkpoint_rows.shape[:: -1 if spec.checkpoint_rows.transposed else 1]
            module = f"base_model.model.{spec.checkpoint_name.removesuffix('.weight')}"
            if f"{module}.lora_A.weight" not in tensors:
                down = generator.normal(0, columns**-0.5, (rank, columns))
                tensors[f"{module}.lora_A.weight"] = down.astype(np.float32)
                tensors[f"{module}.lora_B.weight"] = generator.normal(0, 0.3, (out, rank)).astype(np.float32)
    return tensors


def up_of(factors: LoraFactors) -> NDArray[np.float32]:
    """Return B times the scale, [out, rank]."""
    return dequantize(factors.up_transposed).T * np.float32(factors.scale)


def write_adapter(folder: Path, tensors: dict[str, NDArray[np.float32]], **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["x"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(name: str, tensors: dict[str, NDArray[np.float32]], scale: float) -> dict[str, NDArray[np.float32]]:
    """Return the random model's tensors with the adapter multiplied out and added."""
    result = dict(random_tensors(CONFIGS[name]))
    for key, down in tensors.items():
        if ".lora_A." in key:
            weight = key.removeprefix("base_model.model.").replace(".lora_A", "")
            change = scale * (tensors[key.replace("lora_A", "lora_B")].astype(np.float64) @ down)
            change = change.T if result[weight].shape != change.shape or "c_" in weight else change
            result[weight] = (result[weight] + change).astype(np.float32)
    return result


@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_an_adapter_is_what_it_would_be_merged(name: str, tmp_path: Path) -> None:
    tensors = draw_adapter(name)
    ids = random_ids(CONFIGS[name], 60)
    with LlmInference.create_from_model_path(write_checkpoint(tmp_path / "base", CONFIGS[name])) as llm:
        plain = llm.token_logprobs(ids)
    whole = write_checkpoint(tmp_path / "merged", CONFIGS[name], merged(name, tensors, 2.0))
    with LlmInference.create_from_model_path(whole) as llm:
        wanted = llm.token_logprobs(ids)
    options = LlmInferenceOptions(tmp_path / "base", lora_path=write_adapter(tmp_path / "adapter", tensors))
    with LlmInference.create_from_options(options) as llm:
        got = llm.token_logprobs(ids)
    assert np.abs(got - wanted).max() < 1e-3
    assert np.abs(plain - wanted).max() > 0.1


@pytest.mark.parametrize(
    ("file", "source", "model_type", "names"),
    [
        ("0.10.14/gemma_2b_gpu_lora_lora.bin", "gemma_2b_lora_r4", "gemma", "hf"),
        ("0.10.21/gemma2_2b_gpu_lora_lora.bin", "gemma2_2b_lora_r4", "gemma2", "hf"),
        ("0.10.14/phi_2_gpu_lora_renamed_lora.bin", "phi2_lora_r4_renamed", "phi", "renamed"),
    ],
)
def test_files_of_mediapipe_hold_the_adapter_that_they_were_made_from(
    file: str, source: str, model_type: str, names: str
) -> None:
    base = OUTPUTS / file.replace("_lora.bin", ".bin")
    inputs = GOLDEN / "inputs" / source / "adapter_model.safetensors"
    if not base.exists() or not inputs.exists():
        pytest.skip("the golden inputs are not here")
    stored = load_file(inputs)
    with Model.open(base) as model:
        adapter = open_adapter(OUTPUTS / file, FAMILIES[model_type], model.architecture)
    parts = {"query": "q", "key": "k", "value": "v", "output": "post" if names == "renamed" else "o"}
    for role, factors in adapter.factors.items():
        _, layer, _, part = role.split(".")
        if names == "renamed":
            key = f"model.layers.{layer}.self_attention.{parts[part]}.lora_{{}}.linear.w"
        else:
            key = f"base_model.model.model.layers.{layer}.self_attn.{parts[part]}_proj.lora_{{}}.weight"
        wanted_down, wanted_up = stored[key.format("A")], stored[key.format("B")]
        kept = np.float32 if names == "renamed" else np.float16
        np.testing.assert_array_equal(dequantize(factors.down), wanted_down.astype(kept).astype(np.float32))
        np.testing.assert_array_equal(up_of(factors), wanted_up.astype(kept).astype(np.float32))
    assert len(adapter.factors) == 4 * len({role.split(".")[1] for role in adapter.factors})


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / str(seed), draw_adapter("gemma_mqa", seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmInference]:
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "m", CONFIGS["gemma_mqa"])
    with LlmInference.create_from_model_path(folder) as model:
        yield model


def greedy(llm: LlmInference, ids: list[int], lora: Adapter | None, count: int = 12) -> list[int]:
    from hearthlm.runtime.sampler import Sampler
    from hearthlm.runtime.session import Session

    session = Session(llm._engine, ids, lora)
    result = list(session.generate(sampler=Sampler(top_k=1), max_output_tokens=count))
    session.close()
    return result


def test_several_adapters_serve_side_by_side_and_prefixes_are_not_mixed(
    llm: LlmInference, adapters: list[Path]
) -> None:
    from hearthlm.runtime.sampler import Sampler
    from hearthlm.runtime.session import Session

    loaded: list[Adapter | None] = [None, *(llm.load_lora(path) for path in adapters)]
    ids = random_ids(CONFIGS["gemma_mqa"], 40)
    alone = [greedy(llm, ids, lora) for lora in loaded]
    assert len({tuple(answer) for answer in alone}) == 3
    assert [greedy(llm, ids, lora) for lora in loaded] == alone  # what was computed before is another adapter's
    sessions = [Session(llm._engine, ids, lora) for lora in loaded + loaded]
    streams = [session.prepare([Sampler(top_k=1)], max_output_tokens=12)[0] for session in sessions]
    for session, stream in zip(sessions, streams, strict=True):
        session.submit([stream])
    for stream, wanted in zip(streams, alone + alone, strict=True):
        got = []
        while (token := stream.take()) is not None:
            got.append(token)
        stream.close()
        assert got == wanted


def test_recorded_steps_add_what_an_adapter_adds_call_by_call(
    llm: LlmInference, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(CONFIGS["gemma_mqa"], 30)
    loaded: list[Adapter | None] = [None, *(llm.load_lora(path) for path in adapters)]
    recorded = [greedy(llm, ids, lora) for lora in loaded]
    monkeypatch.setattr(transformer, "MAX_RECORDED_ROWS", 0)
    assert [greedy(llm, ids, lora) for lora in loaded] == recorded


def test_an_adapter_on_quantised_weights_changes_calls_that_ask_for_it(tmp_path: Path) -> None:
    with Model.open(GEMMA) as model:
        architecture = model.architecture
    generator = np.random.default_rng(0)
    tensors = {}
    for i in range(architecture.num_layers):
        for part, out in (("q_proj", architecture.query_dim), ("v_proj", architecture.kv_dim)):
            module = f"base_model.model.model.layers.{i}.self_attn.{part}"
            tensors[f"{module}.lora_A.weight"] = generator.normal(0, 1, (4, 16)).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = generator.normal(0, 1, (out, 4)).astype(np.float32)
    path = write_adapter(tmp_path / "a", tensors)
    call = {"max_output_tokens": 20, "temperature": 1.0}
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, supported_lora_ranks=(4, 8))) as llm:
        plain = llm.generate("abcabc", LlmInferenceSessionOptions(**call))  # type: ignore[arg-type]
        lora = llm.load_lora(path)
        adapted = llm.generate("abcabc", LlmInferenceSessionOptions(lora=lora, **call))  # type: ignore[arg-type]
        assert adapted.token_ids != plain.token_ids
        again = llm.generate("abcabc", LlmInferenceSessionOptions(**call))  # type: ignore[arg-type]
        assert again.token_ids == plain.token_ids
        with LlmInferenceSession(llm, LlmInferenceSessionOptions(lora=lora, **call)) as session:  # type: ignore[arg-type]
            session.add_query_chunk("abcabc")
            assert session.generate_response() == adapted.texts[0]
            session.save(tmp_path / "talk")
            with pytest.raises(ValueError, match="keeps the adapter"):
                session.update_session_options(lora=None)
        with LlmInferenceSession(llm) as session, pytest.raises(hearthlm.SessionFileError):
            session.load(tmp_path / "talk")
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, lora_path=path)) as llm:
        default = llm.generate("abcabc", LlmInferenceSessionOptions(**call))  # type: ignore[arg-type]
        assert default.token_ids == adapted.token_ids
        with LlmInferenceSession(llm, LlmInferenceSessionOptions(**call)) as session:  # type: ignore[arg-type]
            session.load(tmp_path / "talk")
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, supported_lora_ranks=(8,))) as other:
        with pytest.raises(ValueError, match=r"rank 4: expected one of supported_lora_ranks, \[8\]"):
            other.load_lora(path)
        with pytest.raises(ValueError, match="not loaded by this model"):
            other.generate("abc", LlmInferenceSessionOptions(lora=lora))
    with pytest.raises(TypeError, match="load_lora"):
        LlmInferenceSessionOptions(lora="a path")  # type: ignore[arg-type]


def test_settings_that_are_null_are_off(llm: LlmInference, tmp_path: Path) -> None:
    llm.load_lora(write_adapter(tmp_path / "a", draw_adapter("gemma_mqa"), newest_variant_config=None))


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"use_dora": True}, hearthlm.UnsupportedModelError, "use_dora"),
        ({"bias": "all"}, hearthlm.UnsupportedModelError, "bias"),
        ({"modules_to_save": ["lm_head"]}, hearthlm.UnsupportedModelError, "modules_to_save"),
        ({"peft_type": "IA3"}, hearthlm.UnsupportedModelError, "peft_type LORA"),
        ({"new_field": 1}, hearthlm.UnsupportedModelError, "new_field"),
        ({"r": 8}, hearthlm.TensorMismatchError, "says rank 8, its tensors have 4"),
        ({"lora_alpha": "x"}, hearthlm.UnsupportedModelError, "lora_alpha"),
        ({"rank_pattern": 3}, hearthlm.UnsupportedModelError, "rank_pattern"),
    ],
)
def test_a_setting_that_changes_the_result_and_is_not_understood_is_refused(
    settings: dict[str, Any], error: type[Exception], says: str, llm: LlmInference, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        llm.load_lora(write_adapter(tmp_path / "a", draw_adapter("gemma_mqa"), **settings))


def test_settings_of_scale_are_obeyed(llm: LlmInference, tmp_path: Path) -> None:
    tensors = draw_adapter("gemma_mqa")
    role = "layers.0.attention.query"
    plain_adapter = llm.load_lora(write_adapter(tmp_path / "a", tensors))
    assert isinstance(plain_adapter, LoraAdapter)
    plain = plain_adapter.factors[role]
    for settings, factor in (
        ({"lora_alpha": 4}, 0.5),
        ({"use_rslora": True}, 2.0),
        ({"alpha_pattern": {"q_proj": 16}}, 2.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2}, "rank_pattern": {"q_proj": 4}, "r": 4}, 0.25),
    ):
        adapter = llm.load_lora(write_adapter(tmp_path / "b", tensors, **settings))
        assert isinstance(adapter, LoraAdapter)
        assert np.allclose(up_of(adapter.factors[role]), up_of(plain) * factor)


def test_what_does_not_fit_is_named(llm: LlmInference, tmp_path: Path) -> None:
    tensors = draw_adapter("gemma_mqa")
    name = next(key for key in tensors if "q_proj.lora_B" in key)
    cases: list[tuple[dict[str, NDArray[np.float32]], str]] = [
        ({**tensors, name: np.zeros((3, 4), np.float32)}, r"q_proj: expected lora_A \[rank, 64\]"),
        ({**tensors, "base_model.model.x.lora_A.weight": np.zeros((4, 4), np.float32)}, "no place for 1 .*x.lora_A"),
        ({**tensors, "other": np.zeros(3, np.float32)}, "no place for 1 of its tensors: other"),
        ({key: values for key, values in tensors.items() if key != name}, "expected lora_A and lora_B"),
        ({key: values * 0 if "lora_B" in key else values for key, values in tensors.items()}, "change nothing"),
    ]
    for i, (changed, says) in enumerate(cases):
        with pytest.raises(hearthlm.TensorMismatchError, match=says):
            llm.load_lora(write_adapter(tmp_path / str(i), changed))
    with pytest.raises(hearthlm.UnsupportedModelError, match="a whole model"):
        llm.load_lora(GEMMA)
    with pytest.raises(hearthlm.TensorMismatchError, match="another type of model"):
        with LlmInference.create_from_model_path(write_checkpoint(tmp_path / "llama", CONFIGS["llama_tied"])) as other:
            other.load_lora(OUTPUTS / "0.10.14" / "gemma_2b_gpu_lora_lora.bin")
    with pytest.raises(hearthlm.UnsupportedModelError, match="format 'task'"):
        llm.load_lora(OUTPUTS / "0.10.35" / "bundle_min.task")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the libraries among themselves
@pytest.mark.parametrize("name", FAMILY_CONFIGS)
def test_an_adapter_is_what_peft_computes(name: str, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from reference_results import logprobs_of, transformers_model

    tensors = draw_adapter(name)
    targets = sorted({key.split(".lora_")[0].rsplit(".", 1)[1] for key in tensors})
    folder = write_adapter(
        tmp_path / "a", tensors, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2"
    )
    model = PeftModel.from_pretrained(transformers_model(CONFIGS[name], random_tensors(CONFIGS[name])), folder).eval()
    ids = random_ids(CONFIGS[name], 100)
    with torch.no_grad():
        wanted = logprobs_of(model(torch.tensor([ids])).logits[0].float().numpy(), ids)
    options = LlmInferenceOptions(write_checkpoint(tmp_path / "m", CONFIGS[name]), lora_path=folder)
    with LlmInference.create_from_options(options) as llm:
        assert np.abs(llm.token_logprobs(ids) - wanted).max() < 1e-3


def test_factors_take_16_bits_where_that_loses_nothing(llm: LlmInference, tmp_path: Path) -> None:
    role = "layers.0.attention.query"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = draw_adapter("gemma_mqa")
    down, up = (tensors[name.format(side)] for side in "AB")
    down[0, 0] = 2.0**-40  # not in float16
    bits = float32_to_bfloat16(down)
    halves = np.round(down, 1).astype(np.float16)
    for half, kept in ((halves, halves.astype(np.float32)), (bits, bfloat16_to_float32(bits)), (down, down)):
        tensors[name.format("A")] = kept
        adapter = llm.load_lora(write_adapter(tmp_path / str(half.dtype), tensors, lora_alpha=3))
        assert isinstance(adapter, LoraAdapter)
        factors = adapter.factors[role]
        assert factors.down.data.dtype == half.dtype
        np.testing.assert_array_equal(dequantize(factors.down), kept)
        np.testing.assert_array_equal(dequantize(factors.up_transposed).T, up)


@pytest.mark.parametrize(("name", "type_name"), [("gemma_mqa", "GEMMA_2B"), ("phi_parallel", "PHI_2")])
def test_a_written_adapter_is_read_back_and_has_mediapipes_names(name: str, type_name: str, tmp_path: Path) -> None:
    """Of the attention's output MediaPipe's runtime swaps the names for Gemma alone: found by asking it."""
    family, architecture = read_config(CONFIGS[name])
    adapter = open_adapter(write_adapter(tmp_path / "peft", draw_adapter(name)), family, architecture)
    path = tmp_path / "lora.bin"
    model_type = MODEL_TYPES[type_name].number
    write_lora_bin(path, adapter, family, LlmParameters(), model_type, tokenizer=None)
    read = open_adapter(path, family, architecture)
    for role, factors in adapter.factors.items():
        np.testing.assert_allclose(dequantize(read.factors[role].down), dequantize(factors.down), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(up_of(read.factors[role]), up_of(factors), rtol=1e-3, atol=1e-6)
    up = up_of(adapter.factors["layers.0.attention.output"])
    side = "left" if family.name == "gemma" else "right"
    with WeightsBin.open(path) as file:
        stored = file.matrix(f"params.lm.transformer.x_layers_0.self_attention.post.w_prime_{side}", (len(up), 4))
        np.testing.assert_allclose(dequantize(stored), up, rtol=1e-3, atol=1e-6)
