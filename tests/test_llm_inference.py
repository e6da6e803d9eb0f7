"""The public API, on files that MediaPipe's own converter made and on random checkpoints."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import CONFIGS, random_ids, write_checkpoint
from reference_results import NUM_GREEDY_IDS, NUM_IDS, NUM_PROMPT_IDS, STORED

import hearthlm
from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions

GOLDEN = Path(__file__).parent / "golden" / "outputs"
GEMMA = GOLDEN / "0.10.14" / "gemma_2b_cpu_int8.bin"
MODEL_FILES = sorted(path for path in GOLDEN.glob("*/*.bin") if not path.stem.endswith(("_lora_lora", "_renamed_lora")))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write_checkpoint(folder / name, config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_folder_answers_as_transformers_does(checkpoints: dict[str, Path], name: str) -> None:
    stored = np.load(STORED)
    ids = random_ids(CONFIGS[name], NUM_IDS)
    with LlmInference.create_from_model_path(checkpoints[name]) as llm:
        assert np.abs(llm.token_logprobs(ids) - stored[f"{name}/logprobs"]).max() < 1e-3


def greedy(llm: LlmInference, ids: list[int], count: int) -> list[int]:
    """Return greedy ids through scores alone: the API without a tokenizer."""
    from hearthlm.runtime.sampler import Sampler
    from hearthlm.runtime.session import Session

    session = Session(llm._engine, ids=ids)
    return list(session.generate(sampler=Sampler(top_k=1), max_output_tokens=count))


@pytest.mark.parametrize("name", CONFIGS)
def test_forty_greedy_ids_equal_those_of_transformers(checkpoints: dict[str, Path], name: str) -> None:
    prompt = random_ids(CONFIGS[name], NUM_IDS)[:NUM_PROMPT_IDS]
    with LlmInference.create_from_model_path(checkpoints[name]) as llm:
        assert greedy(llm, prompt, NUM_GREEDY_IDS) == np.load(STORED)[f"{name}/greedy"].tolist()


def test_a_model_without_a_tokenizer_scores_ids_and_says_what_is_missing(checkpoints: dict[str, Path]) -> None:
    with LlmInference.create_from_model_path(checkpoints["gemma_mqa"]) as llm:
        with pytest.raises(hearthlm.TokenizerFormatError, match="no tokenizer"):
            llm.generate_response("Hello")
        assert llm.token_logprobs([2, 3, 4]).shape == (2,)


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_golden_model_file_answers_text(path: Path) -> None:
    with LlmInference.create_from_model_path(path) as llm:
        if path.name.startswith("phi"):  # the small dimensions were put under the real start token, 50256
            with pytest.raises(hearthlm.ModelFormatError, match="token 50256, but the model knows only 64"):
                llm.generate("ab")
            prompt: str | list[int] = [2, 10, 11]
        else:
            prompt = "ab"
        result = llm.generate(prompt, LlmInferenceSessionOptions(max_output_tokens=8))
        assert 0 <= result.num_output_tokens <= 8
        assert result.finish_reason in ("stop", "length")
        assert isinstance(result.texts[0], str)
        assert np.isfinite(llm.token_logprobs([2, 10, 11])).all()


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("model", ["gemma_2b", "falcon_rw_1b"])
def test_both_layouts_of_one_conversion_give_the_same_scores(model: str, bits: str) -> None:
    ids = [2, *range(4, 60)]
    scores = []
    for backend in ("cpu", "gpu"):
        with LlmInference.create_from_model_path(GOLDEN / "0.10.14" / f"{model}_{backend}_{bits}.bin") as llm:
            scores.append(llm.token_logprobs(ids))
    assert np.abs(scores[0] - scores[1]).max() < 1e-5


def test_a_stream_joined_is_the_response_and_a_seed_repeats_it() -> None:
    options = LlmInferenceOptions(GEMMA, max_tokens=80, random_seed=3, temperature=1.5)
    with LlmInference.create_from_options(options) as llm:
        pieces = list(llm.generate_response_stream("abc"))
        assert "".join(pieces) == llm.generate_response("abc") == llm.generate("abc").texts[0]
        assert len(pieces) > 3
        other = llm.generate("abc", LlmInferenceSessionOptions(random_seed=4, temperature=1.5))
        assert other.texts[0] != "".join(pieces)


@pytest.mark.parametrize("change", [{"num_threads": 1}, {"num_threads": 3}, {"weights": "ram"}, {"weights": "mmap"}])
def test_threads_and_placement_of_weights_change_nothing(change: dict[str, Any]) -> None:
    base = LlmInferenceOptions(GEMMA, max_tokens=100, temperature=1.5)
    with LlmInference.create_from_options(base) as llm:
        wanted = llm.generate("abcab").token_ids
    with LlmInference.create_from_options(dataclasses.replace(base, **change)) as llm:
        assert llm.generate("abcab").token_ids == wanted


def test_eight_threads_on_one_model_get_what_one_after_the_other_gets() -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=150, temperature=1.5)) as llm:
        prompts = ["abc" * (i + 1) for i in range(8)]
        wanted = [llm.generate_response(prompt) for prompt in prompts]
        got: list[str] = [""] * 8

        def ask(i: int) -> None:
            got[i] = llm.generate_response(prompts[i])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == wanted


def test_greedy_is_temperature_0_or_top_k_1_whatever_the_seed() -> None:
    with LlmInference.create_from_model_path(GEMMA) as llm:
        results = {
            llm.generate("abc", LlmInferenceSessionOptions(max_output_tokens=20, **options)).token_ids
            for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_k": 1, "random_seed": 9})
        }
    assert len(results) == 1


def test_the_start_token_is_written_once() -> None:
    with LlmInference.create_from_model_path(GEMMA) as llm:
        n = llm.size_in_tokens("abc")
        assert llm.generate("abc", LlmInferenceSessionOptions(max_output_tokens=1)).num_prompt_tokens == n + 1
        start = llm.tokenizer.piece(2)
        assert llm.generate(f"{start}abc", LlmInferenceSessionOptions(max_output_tokens=1)).num_prompt_tokens == n + 1


def test_a_prompt_that_does_not_fit_is_refused_by_the_call_itself() -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=8)) as llm:
        for call in (llm.generate_response, llm.generate_response_stream, llm.generate):
            with pytest.raises(hearthlm.ContextLengthError, match=r"tokens, but max_tokens is 8"):
                call("abcabcabcabcabc")
        with pytest.raises(hearthlm.ContextLengthError):
            llm.token_logprobs([2] * 9)


def test_max_tokens_beyond_what_the_model_was_built_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most 8192"):
        LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=8193))


def test_a_stop_string_is_never_printed() -> None:
    with LlmInference.create_from_model_path(GEMMA) as llm:
        text = llm.generate("abc", LlmInferenceSessionOptions(max_output_tokens=40, random_seed=1)).texts[0]
        stop = text[5:8]
        result = llm.generate("abc", LlmInferenceSessionOptions(max_output_tokens=40, random_seed=1, stop=(stop,)))
        assert result.texts[0] == text[: text.index(stop)]
        assert result.finish_reason == "stop"


def test_closing_a_stream_early_leaves_no_thread_behind() -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(GEMMA, max_tokens=4000)) as llm:
        stream = llm.generate_response_stream("abc")
        next(iter(stream))
        stream.close()  # type: ignore[attr-defined]
        assert llm.generate("abc", LlmInferenceSessionOptions(max_output_tokens=3)).num_output_tokens <= 3
    assert not [t for t in threading.enumerate() if t.name == "hearthlm-scheduler" and t.is_alive()]


def test_a_closed_model_says_so() -> None:
    llm = LlmInference.create_from_model_path(GEMMA)
    llm.close()
    with pytest.raises(hearthlm.EngineClosedError):
        llm.generate_response("abc")
    llm.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"random_seed": -1},
        {"random_seed": 1 << 64},
        {"max_tokens": 0},
        {"num_threads": 0},
        {"weights": "disk"},
        {"activation_data_type": "int3"},
        {"kv_cache_dtype": "int2"},
        {"preferred_backend": "npu"},
        {"num_responses": 0},
        {"prefix_cache_mb": -1},
        {"supported_lora_ranks": (0,)},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LlmInferenceOptions(GEMMA, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_path": None},
        {"lora_path": 5},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": "1"},
        {"temperature": "1"},
        {"random_seed": 1.0},
        {"max_tokens": "512"},
        {"num_responses": 2.0},
        {"supported_lora_ranks": 4},
        {"error_listener": "print"},
    ],
)
def test_an_option_of_another_type_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        LlmInferenceOptions(**{"model_path": GEMMA, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_p": "0"},
        {"presence_penalty": None},
        {"logprobs": 1.0},
        {"max_output_tokens": 2.5},
        {"logit_bias": [3]},
        {"logit_bias": {"3": 1.0}},
        {"logit_bias": {3: "much"}},
        {"prompt_templates": "<start_of_turn>"},
        {"lora": "adapter.bin"},
    ],
)
def test_a_session_option_of_another_type_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        LlmInferenceSessionOptions(**wrong)


def test_a_conversation_that_ends_with_the_model_is_refused() -> None:
    messages = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "ab"}]
    with LlmInference.create_from_model_path(GEMMA) as llm:
        with pytest.raises(ValueError, match="the last is the model's own: expected one of the user"):
            llm.generate(messages)
        assert llm.generate([*messages, {"role": "user", "content": "c"}]).num_prompt_tokens > 5


def test_numbers_of_numpy_are_numbers() -> None:
    options = LlmInferenceSessionOptions(top_k=np.int64(3), temperature=np.float32(0.5))  # type: ignore[arg-type]
    with LlmInference.create_from_model_path(GEMMA) as llm:
        wanted = llm.generate("abc", LlmInferenceSessionOptions(top_k=3, temperature=0.5))
        assert llm.generate(np.array(llm.tokenizer.encode("abc")), options).seed == wanted.seed  # type: ignore[arg-type]
        assert llm.generate("abc", options).token_ids == wanted.token_ids


def test_what_is_no_prompt_is_refused_by_its_type() -> None:
    with LlmInference.create_from_model_path(GEMMA) as llm:
        for wrong in (None, 5, b"abc", {"role": "user", "content": "abc"}, iter([2, 3])):
            with pytest.raises(TypeError, match="prompt: expected a str, token ids or messages, got"):
                llm.generate(wrong)  # type: ignore[arg-type]
        for ids in ([2, 1.5], ["7"], [[2]]):
            with pytest.raises(TypeError, match="ids: expected integers, got"):
                llm.generate(ids)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="ids: expected integers, got 1.5"):
            llm.token_logprobs([2, 1.5])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="prompts: expected several prompts, got one str"):
            llm.generate_batch("abc")
        with pytest.raises(TypeError, match="options: expected LlmInferenceSessionOptions, got dict"):
            llm.generate("abc", {"top_k": 1})  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="text: expected a str, got int"):
            llm.size_in_tokens(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"texts\[1\]: expected a str or token ids, got int"):
            llm.embed(["abc", 5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="options: expected LlmInferenceOptions, got"):
        LlmInference.create_from_options(GEMMA)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_p": 1.0},
        {"presence_penalty": 3},
        {"frequency_penalty": -2.5},
        {"repetition_penalty": 0},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {3: float("nan")}},
        {"logprobs": -1},
        {"max_output_tokens": 0},
        {"stop": ("",)},
        {"stop": "abc"},
    ],
)
def test_a_session_option_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LlmInferenceSessionOptions(**wrong)


def test_an_option_that_is_not_built_yet_names_itself() -> None:
    with pytest.raises(NotImplementedError, match="preferred_backend='gpu'"):
        LlmInferenceOptions(GEMMA, preferred_backend="gpu")


def test_options_are_frozen_and_errors_can_be_pickled() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LlmInferenceOptions(GEMMA).top_k = 3  # type: ignore[misc]
    error = pickle.loads(pickle.dumps(hearthlm.ContextLengthError(10, 5)))
    assert (error.num_tokens, error.max_tokens) == (10, 5)


def test_a_missing_file_and_a_file_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        LlmInference.create_from_model_path(tmp_path / "nothing.bin")
    (tmp_path / "text.bin").write_text("this is not a model, whatever it is called")
    with pytest.raises(hearthlm.HearthLMError, match="text.bin"):
        LlmInference.create_from_model_path(tmp_path / "text.bin")


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    from random_models import random_tensors

    config = CONFIGS["gemma_mqa"]
    tensors = random_tensors(config)
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(hearthlm.TensorMismatchError, match=name):
        LlmInference.create_from_model_path(write_checkpoint(tmp_path / "missing", config, missing))
    wrong = {**tensors, name: np.zeros((3, 5), np.float32)}
    with pytest.raises(hearthlm.TensorMismatchError, match=rf"{name}.*\[128, 64\].*\[3, 5\]"):
        LlmInference.create_from_model_path(write_checkpoint(tmp_path / "wrong", config, wrong))


def test_info_tells_the_file_without_loading_it() -> None:
    info = hearthlm.inspect_model(GEMMA)
    assert (info.format, info.model_type, info.family) == ("weights_bin", "GEMMA_2B", "gemma")
    assert info.architecture.embedding_dim == 16
    assert info.start_id == 2
    document = info.to_json()
    assert set(document) == {
        "format",
        "model_type",
        "family",
        "parameters",
        "tensors",
        "tokenizer",
        "templates",
        "metadata",
    }
    assert sum(t["bytes"] for t in document["tensors"]) < GEMMA.stat().st_size


def test_asymmetric_cpu_files_are_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with LlmInference.create_from_model_path(GOLDEN / "0.10.14" / "gemma_2b_cpu_asym_int8.bin") as llm:
        assert "zero points" in caplog.text
        assert np.isfinite(llm.token_logprobs([2, 10, 11])).all()


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_of_text_and_images_answers_and_says_what_is_left_out(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from random_models import random_tensors

    text_config = CONFIGS["gemma3_mqa"]
    config = {"model_type": "gemma3", "text_config": text_config, "vision_config": {"hidden_size": 8}}
    tensors: dict[str, Any] = {
        name.replace("model.", prefix, 1): values for name, values in random_tensors(text_config).items()
    }
    tensors["vision_tower.weight"] = np.zeros((8, 8), np.float32)
    ids = random_ids(text_config, NUM_IDS)
    with LlmInference.create_from_model_path(write_checkpoint(tmp_path / "m", config, tensors)) as llm:
        assert np.abs(llm.token_logprobs(ids) - np.load(STORED)["gemma3_mqa/logprobs"]).max() < 1e-3
    assert "vision" in caplog.text


def test_several_responses_are_one_per_seed_and_index_and_the_prompt_is_read_once() -> None:
    options = LlmInferenceOptions(GEMMA, max_tokens=60, num_responses=4, temperature=1.5, random_seed=5)
    with LlmInference.create_from_options(options) as llm:
        texts = llm.generate_responses("abcab")
        assert len(texts) == 4
        assert len(set(texts)) > 1
        assert texts[0] == llm.generate_response("abcab")
        assert llm.generate_responses("abcab") == texts
        result = llm.generate("abcab")
        assert list(result.texts) == texts
        assert len(result.finish_reasons) == 4
        assert result.num_output_tokens == sum(map(len, result.token_ids))


def test_a_batch_gives_what_each_prompt_gives_alone() -> None:
    options = LlmInferenceOptions(GEMMA, max_tokens=80, temperature=1.5)
    prompts: list[Any] = ["abc" * (i % 7 + 1) for i in range(40)] + [[2, 10, 11, 12]]
    with LlmInference.create_from_options(options) as llm:
        wanted = [llm.generate(prompt).token_ids for prompt in prompts]
        results = llm.generate_batch(prompts)
        assert [result.token_ids for result in results] == wanted
        assert llm.generate_batch([]) == []
        with pytest.raises(hearthlm.ContextLengthError):
            llm.generate_batch(["ab", "abc" * 100])


def test_a_prompt_that_begins_like_an_earlier_one_is_not_computed_again_and_answers_alike() -> None:
    prompt = "abcabcab" * 20
    options = LlmInferenceOptions(GEMMA, max_tokens=400, temperature=1.5)
    call = LlmInferenceSessionOptions(temperature=1.5, max_output_tokens=20)
    with LlmInference.create_from_options(dataclasses.replace(options, prefix_cache_mb=0)) as llm:
        wanted = [llm.generate(prompt + tail, call) for tail in ("", "cc", "a" * 30)]
        assert [result.num_cached_tokens for result in wanted] == [0, 0, 0]
    with LlmInference.create_from_options(options) as llm:
        got = [llm.generate(prompt + tail, call) for tail in ("", "cc", "a" * 30)]
        assert [result.token_ids for result in got] == [result.token_ids for result in wanted]
        n = llm.size_in_tokens(prompt)
        assert got[0].num_cached_tokens == 0
        assert min(got[1].num_cached_tokens, got[2].num_cached_tokens) >= n - 3


def test_logprobs_are_those_that_scoring_gives() -> None:
    call = LlmInferenceSessionOptions(temperature=1.5, max_output_tokens=10, logprobs=3)
    options = LlmInferenceOptions(GEMMA, activation_data_type="float32")
    with LlmInference.create_from_options(options) as llm:
        result = llm.generate("abc", call)
        assert result.logprobs is not None
        entries = result.logprobs[0]
        assert tuple(entry.token_id for entry in entries) == result.token_ids[0]
        prompt = [2, *llm.tokenizer.encode("abc")]
        scores = llm.token_logprobs([*prompt, *result.token_ids[0]])[len(prompt) - 1 :]
        assert np.allclose([entry.logprob for entry in entries], scores, atol=1e-4)
        for entry in entries:
            values = [value for _, value in entry.top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert values[0] >= entry.logprob - 1e-6
        assert llm.generate("abc").logprobs is None


def test_a_bias_forces_or_bans_a_token_and_penalties_end_repetition() -> None:
    with LlmInference.create_from_model_path(GEMMA) as llm:

        def ids(**options: Any) -> tuple[int, ...]:
            call = LlmInferenceSessionOptions(max_output_tokens=12, **{"temperature": 0.0, **options})
            return llm.generate("abc", call).token_ids[0]

        plain = ids()
        assert ids(logit_bias={20: 1000.0}) == (20,) * 12
        assert plain[0] not in ids(logit_bias={plain[0]: float("-inf")})
        assert max(map(ids(logit_bias={20: 30.0}, presence_penalty=2.0).count, [20])) <= 12
        repeated = ids(logit_bias={20: 8.0})
        varied = ids(logit_bias={20: 8.0}, frequency_penalty=2.0)
        assert varied.count(20) < max(2, repeated.count(20))
        assert ids(repetition_penalty=1e6) != plain
        with pytest.raises(ValueError, match="logit_bias: expected token ids below"):
            ids(logit_bias={10**6: 1.0})


def test_embeddings_have_a_row_per_text_and_do_not_depend_on_company() -> None:
    with LlmInference.create_from_model_path(GEMMA) as llm:
        texts = ["abc", "cab" * 30, "abc"]
        rows = llm.embed(texts)
        assert isinstance(llm.info, hearthlm.ModelInfo)
        assert rows.shape == (3, llm.info.architecture.embedding_dim)
        assert rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert (rows[0] == rows[2]).all()
        assert (llm.embed("cab" * 30)[0] == rows[1]).all()
        raw = llm.embed(texts, normalize=False)
        assert np.allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), rows, atol=1e-6)
        assert llm.embed([]).shape == (0, rows.shape[1])
        with pytest.raises(hearthlm.ContextLengthError):
            llm.embed("abc" * 1000)
        with pytest.raises(TypeError, match="expected a str"):
            llm.embed([3])  # type: ignore[list-item]


def test_a_model_loads_in_the_background_with_progress() -> None:
    parts: list[float] = []
    with LlmInference.load_async(LlmInferenceOptions(GEMMA), parts.append).result(timeout=30) as llm:
        assert isinstance(llm.generate_response("abc"), str)
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    with pytest.raises(FileNotFoundError):
        LlmInference.load_async(LlmInferenceOptions("no-such-file")).result(timeout=30)


@pytest.mark.parametrize(
    "left",
    [
        "future = llm.generate_response_async('abc' * 600)",
        "stream = llm.generate_response_stream('abc'); next(stream)",
        "s = hearthlm.LlmInferenceSession(llm); s.add_query_chunk('abc'); s.generate_response_async()",
        "loading = hearthlm.LlmInference.load_async(options)",
    ],
)
@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)"])
def test_a_program_may_end_in_the_middle_of_an_answer(left: str, ending: str) -> None:
    code = f"""
import hearthlm
options = hearthlm.LlmInferenceOptions({str(GEMMA)!r}, max_tokens=8000, temperature=2.0, num_threads=2)
llm = hearthlm.LlmInference.create_from_options(options)
{left}
{ending}
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (3 if ending else 0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("is_busy", [False, True])
def test_a_forked_child_is_told_to_load_the_model_itself_and_ends(is_busy: bool) -> None:
    code = f"""
import os, sys
import hearthlm
from hearthlm.demo import model_path
options = hearthlm.LlmInferenceOptions(model_path(), max_tokens=30000, num_threads=2)
llm = hearthlm.LlmInference.create_from_options(options)
llm.generate_response("Hello")
if {is_busy}:
    future = llm.generate_response_async("Tell me a story. " * 1000)
child = os.fork()
if child:
    os.waitpid(child, 0)
    llm.close()
    sys.exit()
try:
    llm.generate_response("Hello")
except hearthlm.EngineClosedError as error:
    print(error, flush=True)
if not {is_busy}:
    with hearthlm.LlmInference.create_from_options(options) as own:
        print(own.generate_response("Hello"), flush=True)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "load it again" in result.stdout
    assert is_busy or "Hello!" in result.stdout
