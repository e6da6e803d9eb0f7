"""LiteRT models run as any other: checked against ai-edge-litert's own Interpreter, fed one token at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litert_graphs import CAPACITY, expected_logits, toy_model
from numpy.typing import NDArray

import hearthlm
from hearthlm import (
    LlmInference,
    LlmInferenceOptions,
    LlmInferenceSession,
    LlmInferenceSessionOptions,
    PromptTemplate,
    PromptTemplates,
)
from hearthlm.formats.litert_lora import read_litert_lora
from hearthlm.formats.litert_model import llm_signatures, read_litert_model
from hearthlm.formats.litert_verifier import verify_litert_model
from hearthlm.formats.litertlm import LiteRtLmFile, NewSection, packed_tokenizer, write_litertlm
from hearthlm.formats.llm_metadata import LlmMetadata, write_llm_metadata
from hearthlm.formats.llm_metadata_pb2 import ExecutorMetadata
from hearthlm.formats.llm_parameters_pb2 import LlmParameters
from hearthlm.formats.sampler_defaults import SamplerDefaults
from hearthlm.formats.task_bundle import (
    CHAT_TEMPLATE,
    METADATA,
    MODEL,
    TOKENIZER,
    TOKENIZER_JSON,
    TaskBundle,
    write_task_bundle,
)
from hearthlm.runtime.executor import ForwardRequest, Wanted
from hearthlm.runtime.litert import CALL_COST, LiteRtExecutor, cover
from hearthlm.runtime.litert_graph import Interface, load_graph
from hearthlm.runtime.litert_language_model import _stops
from hearthlm.tokenizers import from_hugging_face, from_sentencepiece

GOLDEN = Path(__file__).parent / "golden" / "litert"
DEFAULT_LAYOUT = GOLDEN / "gemma3_q8_ekv128.task"  # keys and values [1, tokens, heads, size], no mask
TRANSPOSED = GOLDEN / "gemma3_mask_transposed_q8_ekv128.task"
LITERTLM = GOLDEN / "gemma3_mask_transposed_q8_ekv128.litertlm"
HUGGING_FACE = GOLDEN / "hf_llama_wi8.litertlm"
FLOAT = GOLDEN / "smollm_mask_transposed_f32_ekv128_lora4.task"
ADAPTER = GOLDEN / "smollm_lora4_adapter.tflite"
INT4 = GOLDEN / "gemma3_q4_block32_ekv128.tflite"
FILES = (DEFAULT_LAYOUT, TRANSPOSED, LITERTLM, HUGGING_FACE, FLOAT, INT4)

BYTES_TO_UNICODE = LlmParameters.INPUT_OUTPUT_NORMALIZATION_BYTES_TO_UNICODE

IDS = [2, 77, 31, 9, 200, 17, 301, 44, 5, 120, 63, 7, 411, 88, 500, 3, 19, 250, 66, 12, 90]
GREEDY = LlmInferenceSessionOptions(temperature=0.0, max_output_tokens=12)


@cache
def model_bytes(path: Path) -> bytes:
    if path.suffix == ".task":
        with TaskBundle.open(path) as bundle, bundle.entry(MODEL) as data:
            return bytes(data)
    if path.suffix == ".litertlm":
        with LiteRtLmFile.open(path) as file, file.data(file.language_model) as data:
            return bytes(data)
    return path.read_bytes()


@cache
def reference(path: Path, ids: tuple[int, ...], adapter: Path | None = None) -> NDArray[np.float32]:
    """Return the logits after each of `ids`, by the signature decode and nothing else, [len(ids), vocabulary]."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model_bytes(path), num_threads=1)
    lora = {} if adapter is None else read_litert_lora(adapter.read_bytes(), "adapter").matrices
    runner = interpreter.get_signature_runner("decode" if adapter is None else "decode_lora_r4")
    details = runner.get_input_details()
    state = {name: np.zeros(d["shape"], d["dtype"]) for name, d in details.items() if "cache" in name}
    rows = []
    for position, token in enumerate(ids):
        inputs = {"tokens": np.array([[token]], np.int32), "input_pos": np.array([position], np.int32)}
        if "mask" in details:
            mask = np.full(details["mask"]["shape"], -0.7 * np.finfo(np.float32).max, np.float32)
            mask[..., : position + 1] = 0
            inputs["mask"] = mask
        outputs = runner(**inputs, **state, **lora)
        state = {name: outputs[name] for name in state}
        rows.append(outputs["logits"].reshape(-1))
    return np.stack(rows)


def open_executor(path: Path, interface: Interface = "compiled") -> LiteRtExecutor:
    return executor_of(model_bytes(path), interface)


def executor_of(data: bytes, interface: Interface = "compiled") -> LiteRtExecutor:
    verify_litert_model(data, "m")
    model = read_litert_model(data, "m")
    graph = load_graph(data, model, where="m", num_threads=1, interface=interface)
    return LiteRtExecutor(graph, model, llm_signatures(model, "m"), where="m", num_threads=1, digest=b"")


@pytest.fixture(params=["compiled", "interpreter"])
def interface(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def executor() -> Iterator[LiteRtExecutor]:
    executor = open_executor(FLOAT)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmInference]:
    with LlmInference.create_from_options(LlmInferenceOptions(FLOAT, num_threads=1, prefix_cache_mb=8)) as llm:
        yield llm


def feed(executor: LiteRtExecutor, state: Any, ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32] | None:
    (rows,) = executor.forward([ForwardRequest(state, ids, wanted)])
    return rows


def last_row(executor: LiteRtExecutor, state: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    rows = feed(executor, state, ids, "last")
    assert rows is not None and rows.shape == (1, executor.vocab_size)
    row: NDArray[np.float32] = rows[0]
    return row


def ids_of(llm: LlmInference, prompt: Any, options: LlmInferenceSessionOptions = GREEDY) -> tuple[int, ...]:
    return llm.generate(prompt, options).token_ids[0]


# Logits


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_logits_are_those_of_a_plain_loop(path: Path, interface: Interface) -> None:
    executor = open_executor(path, interface)
    assert executor.graph.interface == interface
    rows = feed(executor, executor.new_state(), IDS, "all")
    executor.close()
    assert rows is not None
    assert np.abs(rows - reference(path, tuple(IDS))).max() <= 1e-5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_last_token_of_a_prompt_is_decoded_at_its_own_position(path: Path) -> None:
    executor = open_executor(path)
    wanted = reference(path, tuple(IDS))
    tolerance = 1e-4 if path == FLOAT else 0.2  # rows of activations are quantised together in a prefill
    for count in (1, 2, 8, 9, 10, 17, len(IDS)):
        row = last_row(executor, executor.new_state(), IDS[:count])
        assert np.abs(row - wanted[count - 1]).max() <= tolerance
    executor.close()


def test_any_division_of_a_prompt_gives_the_same_logits(executor: LiteRtExecutor, interface: Interface) -> None:
    long = (IDS * 6)[:120]
    wanted = last_row(executor, executor.new_state(), long)
    other = open_executor(FLOAT, interface)
    for lengths in ((1,) * 119, (3,) * 39, (8,) * 14, (31, 32, 33), (119,), (100, 7)):
        state, done = other.new_state(), 0
        for length in lengths:
            assert feed(other, state, long[done : done + length], "none") is None
            done += length
        assert state.length == done
        assert np.abs(last_row(other, state, long[done:]) - wanted).max() <= 1e-4
    other.close()


def test_a_whole_cache_can_be_filled_and_no_more(executor: LiteRtExecutor) -> None:
    state = executor.new_state()
    full = [7] * 128
    feed(executor, state, full[:121], "none")  # 7 are left: a prefill of 8 would begin earlier than it should
    row = last_row(executor, state, full[121:])
    assert state.length == 128
    assert np.abs(row - reference(FLOAT, (7,) * 128)[-1]).max() <= 1e-4
    with pytest.raises(ValueError, match=r"at most 0 more .* 128 tokens, got 1"):
        feed(executor, state, [1], "last")


@given(
    num_tokens=st.integers(0, 300),
    spare=st.integers(0, 300),
    lengths=st.lists(st.integers(1, 128), min_size=1, max_size=4, unique=True),
)
def test_a_cover_reads_every_token_within_the_room(num_tokens: int, spare: int, lengths: list[int]) -> None:
    room = num_tokens + spare
    steps = cover(num_tokens, room, {f"prefill_{length}": length for length in lengths})
    assert sum(step.num_tokens for step in steps) == num_tokens
    begin = 0
    for step in steps:
        assert 1 <= step.num_tokens <= step.length
        assert step.signature == ("decode" if step.length == 1 else f"prefill_{step.length}")
        assert begin + step.length <= room
        begin += step.num_tokens
    assert all(step.num_tokens == step.length for step in steps[:-1])
    cost = sum(step.length + CALL_COST for step in steps)
    assert cost <= num_tokens * (1 + CALL_COST)  # decoding each
    for length in lengths:  # filling one up, again and again
        if -(-num_tokens // length) * length <= room:
            assert cost <= -(-num_tokens // length) * (length + CALL_COST)


def test_a_cover_is_the_cheapest() -> None:
    lengths = {"prefill_8": 8, "prefill_32": 32, "prefill_128": 128}

    def called(num_tokens: int, room: int = 1000) -> list[int]:
        return [step.length for step in cover(num_tokens, room, lengths)]

    assert called(0) == []
    assert called(2) == [1, 1]
    assert called(6) == [8]
    assert called(40) == [32, 8]
    assert called(60) == [32, 32]
    assert called(60, room=60) == [32, 8, 8, 8, 1, 1, 1, 1]
    assert called(1000) == [128] * 7 + [32] * 3 + [8]


# States


def test_a_fork_and_its_origin_go_on_alone(executor: LiteRtExecutor) -> None:
    a = executor.new_state()
    feed(executor, a, IDS[:10], "none")
    b = a.fork()
    assert a.memory().keys() == b.memory().keys()
    first = last_row(executor, a, IDS[10:15])
    assert a.memory().keys() == b.memory().keys()  # b has seen nothing of what a wrote over
    other = last_row(executor, b, IDS[15:20])
    assert a.memory().keys() != b.memory().keys()
    assert sum(a.memory().values()) == 2 * 2 * 128 * 32 * 4
    assert (first == last_row(executor, _state_of(executor, IDS[:10]), IDS[10:15])).all()
    assert (other == last_row(executor, _state_of(executor, IDS[:10]), IDS[15:20])).all()
    again = last_row(executor, a, IDS[15:18])  # a still knows what it has seen
    fresh = _state_of(executor, IDS[:10])
    last_row(executor, fresh, IDS[10:15])
    assert (again == last_row(executor, fresh, IDS[15:18])).all()


def _state_of(executor: LiteRtExecutor, ids: Sequence[int]) -> Any:
    state = executor.new_state()
    feed(executor, state, ids, "none")
    return state


def test_a_rewound_state_forgets(executor: LiteRtExecutor) -> None:
    state = _state_of(executor, IDS)
    assert state.truncate(10) == 10
    row = last_row(executor, state, IDS[10:15])
    assert (row == last_row(executor, _state_of(executor, IDS[:10]), IDS[10:15])).all()
    assert state.truncate(0) == 0
    assert state.memory() == {}
    with pytest.raises(ValueError, match="length: expected 0 to 0, got 1"):
        state.truncate(1)


def test_a_saved_state_goes_on_bit_for_bit(executor: LiteRtExecutor, interface: Interface) -> None:
    state = _state_of(executor, IDS[:10])
    arrays = state.save()
    assert arrays["kv_cache_k_0"].shape == (1, 1, 10, 32)
    assert arrays["kv_cache_v_1"].shape == (1, 1, 32, 10)
    other = open_executor(FLOAT, interface)
    loaded = other.load_state(10, arrays)
    assert (last_row(other, loaded, IDS[10:15]) == last_row(executor, state, IDS[10:15])).all()
    assert other.fingerprint == executor.fingerprint
    for length, changed, says in (
        (129, arrays, "expected 0 to 128 tokens, got 129"),
        (9, arrays, r"expected float32 \[1, 1, 9, 32\] for 9 tokens, got float32 \[1, 1, 10, 32\]"),
        (10, {"kv_cache_k_0": arrays["kv_cache_k_0"]}, "expected the arrays"),
        (10, {**arrays, "kv_cache_k_0": arrays["kv_cache_k_0"].astype(np.float16)}, "expected float32"),
    ):
        with pytest.raises(hearthlm.SessionFileError, match=says):
            other.load_state(length, changed)
    assert other.load_state(0, {}).length == 0
    other.close()


# The public API


def test_the_answer_is_the_most_likely_continuation(llm: LlmInference) -> None:
    text = list(IDS[:9])
    for _ in range(12):
        text.append(int(reference(FLOAT, tuple(text))[-1].argmax()))
    assert list(ids_of(llm, IDS[:9])) == text[9:]


@pytest.mark.parametrize("path", [DEFAULT_LAYOUT, TRANSPOSED, LITERTLM, HUGGING_FACE, FLOAT], ids=lambda p: p.name)
def test_every_file_answers(path: Path) -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(path, temperature=0.0, num_threads=1)) as llm:
        assert llm.max_tokens == 128
        prompt = "Once upon a time there was a little boat."
        result = llm.generate(prompt)
        assert result.num_output_tokens > 0
        assert "".join(llm.generate_response_stream(prompt)) == result.texts[0] == llm.generate_response(prompt)
        assert llm.generate_response_async(prompt).result(timeout=60) == result.texts[0]
        assert isinstance(llm.info, hearthlm.FileInfo)
        assert llm.info.metadata["prefill_lengths"]


def test_both_containers_of_a_model_answer_alike() -> None:
    answers = []
    for path in (TRANSPOSED, LITERTLM):
        with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
            answers.append(llm.generate("A boat", replace(GREEDY, temperature=1.0, random_seed=5)).token_ids)
            assert llm.start_id == 2
    assert answers[0] == answers[1]


def test_log_probabilities_are_those_of_the_logits(llm: LlmInference) -> None:
    logits = reference(FLOAT, tuple(IDS[:-1])).astype(np.float64)
    wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert np.allclose(llm.token_logprobs(IDS), wanted[np.arange(len(IDS) - 1), IDS[1:]], atol=1e-4)
    assert len(llm.token_logprobs([3] * 128)) == 127
    with pytest.raises(hearthlm.ContextLengthError):
        llm.token_logprobs([3] * 129)


def test_seeds_repeat_and_differ(llm: LlmInference) -> None:
    options = LlmInferenceSessionOptions(temperature=1.0, top_k=0, max_output_tokens=12)
    drawn = [ids_of(llm, IDS[:5], replace(options, random_seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_interleaved_sessions_answer_as_each_alone(llm: LlmInference) -> None:
    prompts = ["the boat", "a lost key"]
    alone = [[ids_of(llm, prompt)] for prompt in prompts]
    sessions = [LlmInferenceSession.create_from_options(llm, GREEDY) for _ in prompts]
    for session, prompt in zip(sessions, prompts, strict=True):
        session.add_query_chunk(prompt)
    streams = [session.generate_response_stream() for session in sessions]
    texts = ["", ""]
    for _ in range(40):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == [llm.tokenizer.decode(ids, at_start=False) for (ids,) in alone]
    for session in sessions:
        session.close()


def test_a_clone_goes_on_as_its_origin(llm: LlmInference) -> None:
    with LlmInferenceSession.create_from_options(llm, GREEDY) as session:
        session.add_query_chunk("the boat")
        session.generate()
        with session.clone_session() as clone:
            session.add_query_chunk(" and the key")
            clone.add_query_chunk(" and the key")
            first, second = clone.generate(), session.generate()
            assert first.token_ids == second.token_ids
            assert first.num_cached_tokens > 10


def test_a_saved_session_goes_on_in_another_process_alike(llm: LlmInference, tmp_path: Path) -> None:
    with LlmInferenceSession.create_from_options(llm, GREEDY) as session:
        session.add_query_chunk("the boat")
        session.generate()
        session.save(tmp_path / "talk")
        session.add_query_chunk(" and the key")
        wanted = session.generate()
    with LlmInference.create_from_options(LlmInferenceOptions(FLOAT, num_threads=1)) as other:
        with LlmInferenceSession.create_from_options(other, GREEDY) as session:
            session.load(tmp_path / "talk")
            session.add_query_chunk(" and the key")
            result = session.generate()
            assert result.token_ids == wanted.token_ids
            assert result.num_cached_tokens > 10
    with LlmInference.create_from_options(LlmInferenceOptions(TRANSPOSED, num_threads=1)) as other:
        with LlmInferenceSession.create_from_options(other, GREEDY) as session:
            with pytest.raises(hearthlm.SessionFileError, match="another model"):
                session.load(tmp_path / "talk")


def test_what_texts_begin_with_is_computed_once(llm: LlmInference) -> None:
    llm.generate([*IDS, 4], GREEDY)
    result = llm.generate([*IDS, 5, 6], GREEDY)
    assert result.num_cached_tokens == len(IDS)
    with LlmInference.create_from_options(LlmInferenceOptions(FLOAT, num_threads=1, prefix_cache_mb=0)) as cold:
        assert cold.generate([*IDS, 5, 6], GREEDY).token_ids == result.token_ids


def test_several_responses_share_the_prompt() -> None:
    options = LlmInferenceOptions(FLOAT, num_threads=1, num_responses=3, temperature=1.0, top_k=0)
    with LlmInference.create_from_options(options) as llm:
        result = llm.generate(IDS)
        assert len(set(result.token_ids)) == 3
        again = llm.generate(IDS)
        assert again.token_ids == result.token_ids


def test_a_cancelled_answer_leaves_the_session_usable(llm: LlmInference) -> None:
    with LlmInferenceSession.create_from_options(llm, GREEDY) as session:
        session.add_query_chunk("the boat")
        stream = session.generate_response_stream()
        next(stream)
        session.cancel_generate_response_async()
        for _ in stream:
            pass
        session.add_query_chunk(" and the key")
        assert session.generate().num_output_tokens > 0


def test_several_threads_may_call(llm: LlmInference) -> None:
    wanted = ids_of(llm, IDS[:7])
    found: list[tuple[int, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(ids_of(llm, IDS[:7]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


def test_a_prompt_that_does_not_fit_is_refused(llm: LlmInference) -> None:
    with pytest.raises(hearthlm.ContextLengthError, match="128"):
        llm.generate([5] * 128)
    with pytest.raises(ValueError, match="max_tokens: expected at most 128"):
        LlmInference.create_from_options(LlmInferenceOptions(FLOAT, max_tokens=129))
    with LlmInference.create_from_options(LlmInferenceOptions(FLOAT, max_tokens=20, num_threads=1)) as short:
        assert short.generate(IDS[:15], replace(GREEDY, max_output_tokens=None)).num_output_tokens == 5


def test_stop_tokens_end_an_answer(llm: LlmInference) -> None:
    ids = ids_of(llm, IDS)
    text = llm.tokenizer.decode(ids[:3], at_start=False)
    assert text
    result = llm.generate(IDS, replace(GREEDY, stop=(text[-1],)))
    assert result.finish_reason == "stop"
    assert text[-1] not in result.texts[0]


# A graph alone


@pytest.fixture
def bare(tmp_path: Path) -> tuple[Path, Path]:
    """Return a `.tflite` and its tokenizer, out of a bundle."""
    (tmp_path / "model.tflite").write_bytes(model_bytes(FLOAT))
    with TaskBundle.open(FLOAT) as bundle:
        (tmp_path / "tokenizer.model").write_bytes(bundle.sentencepiece_model)
    return tmp_path / "model.tflite", tmp_path / "tokenizer.model"


def test_a_bare_graph_is_told_its_tokens(llm: LlmInference, bare: tuple[Path, Path]) -> None:
    model, tokenizer = bare
    stop = ids_of(llm, "a boat")[4]
    options = LlmInferenceOptions(
        model, tokenizer_path=tokenizer, start_token="<s>", stop_tokens=("</s>", stop), num_threads=1
    )
    with LlmInference.create_from_options(options) as alone:
        assert alone.start_id == llm.start_id
        result = alone.generate("a boat", GREEDY)
        assert result.finish_reason == "stop"
        wanted = ids_of(llm, "a boat")
        assert result.token_ids[0] == wanted[: wanted.index(stop)]
    for place in (tokenizer.parent, tokenizer):
        with LlmInference.create_from_options(replace(options, tokenizer_path=place)) as alone:
            assert alone.size_in_tokens("a boat") == llm.size_in_tokens("a boat")


def test_a_bare_graph_takes_ids_without_a_tokenizer(llm: LlmInference, bare: tuple[Path, Path]) -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(bare[0], num_threads=1)) as alone:
        assert np.allclose(alone.token_logprobs(IDS), llm.token_logprobs(IDS))
        with pytest.raises(hearthlm.TokenizerFormatError, match="tokenizer_path"):
            alone.generate_response("a boat")


def test_tokens_that_cannot_be_are_refused(bare: tuple[Path, Path], tmp_path: Path) -> None:
    model, tokenizer = bare

    def load(path: Path = model, **options: Any) -> None:
        LlmInference.create_from_options(LlmInferenceOptions(path, **options)).close()

    with pytest.raises(ValueError, match="start_token: expected ids, as no tokenizer_path is given"):
        load(start_token="<s>")
    with pytest.raises(ValueError, match="stop_tokens: expected ids, as no tokenizer_path is given"):
        load(stop_tokens=("</s>",))
    with pytest.raises(ValueError, match="start_token: 'no such' is not in the vocabulary"):
        load(tokenizer_path=tokenizer, start_token="no such")
    with pytest.raises(ValueError, match="start_token: expected an id below 512"):
        load(start_token=512)
    with pytest.raises(ValueError, match="stop_tokens: expected an id below 512"):
        load(stop_tokens=(512,))
    for path in (FLOAT, LITERTLM):
        with pytest.raises(ValueError, match="are for a bare .tflite"):
            load(path, tokenizer_path=tokenizer)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json or tokenizer\.model"):
        (tmp_path / "empty").mkdir()
        load(tokenizer_path=tmp_path / "empty")
    (tmp_path / "nonsense").write_bytes(b"nonsense")
    with pytest.raises(hearthlm.TokenizerFormatError, match="nonsense"):
        load(tokenizer_path=tmp_path / "nonsense")


# Options and files that are refused


@pytest.mark.parametrize(
    "wrong", [{"weights": "mmap"}, {"activation_data_type": "int8"}, {"kv_cache_dtype": "float16"}]
)
def test_an_option_that_does_not_apply_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* a LiteRT model is computed as it was exported"):
        LlmInference.create_from_options(LlmInferenceOptions(FLOAT, **wrong))


def test_embeddings_are_not_to_be_had(llm: LlmInference) -> None:
    with pytest.raises(hearthlm.UnsupportedModelError, match="no rows of its last layer"):
        llm.embed("a boat")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r'pip install "hearthlm\[litert\]"'):
        LlmInference.create_from_model_path(FLOAT)


def test_nothing_is_written_but_into_the_cache_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.task"
    path.write_bytes(TRANSPOSED.read_bytes())
    with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
        wanted = ids_of(llm, IDS)
    assert [p.name for p in tmp_path.iterdir()] == ["model.task"]
    folder = tmp_path / "cache" / "deep"
    options = LlmInferenceOptions(path, num_threads=1, cache_dir=folder)
    with LlmInference.create_from_options(options) as llm:
        assert ids_of(llm, IDS) == wanted
    (stored,) = folder.iterdir()
    assert stored.suffix == ".xnnpack_cache" and stored.stat().st_size > 300_000
    before = stored.stat().st_mtime_ns
    with LlmInference.create_from_options(options) as llm:
        assert ids_of(llm, IDS) == wanted
    assert [p.name for p in folder.iterdir()] == [stored.name]
    assert stored.stat().st_mtime_ns == before


def test_the_library_is_silent(llm: LlmInference, capfd: pytest.CaptureFixture[str]) -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(DEFAULT_LAYOUT, num_threads=1)) as other:
        other.generate(IDS, GREEDY)
    assert capfd.readouterr() == ("", "")


def test_a_bundle_with_a_model_of_no_signatures_is_refused(tmp_path: Path) -> None:
    with TaskBundle.open(FLOAT) as bundle:
        entries = {name: bytes(bundle.entry(name)) for name in (MODEL, TOKENIZER, METADATA)}
    broken = entries[MODEL].replace(b"decode", b"decoda")
    write_task_bundle(tmp_path / "broken.task", {**entries, MODEL: broken})
    with pytest.raises(hearthlm.UnsupportedModelError, match=r"expected signatures prefill\* and decode, got decoda"):
        LlmInference.create_from_model_path(tmp_path / "broken.task")


def test_a_mutated_graph_is_refused_before_the_library_sees_it(tmp_path: Path) -> None:
    data = bytearray(model_bytes(INT4))
    where = data.index(b"decode_kv_cache_k_0") - 4  # the length of a tensor's name
    data[where : where + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "model.tflite").write_bytes(data)
    with pytest.raises(hearthlm.ModelFormatError):
        LlmInference.create_from_model_path(tmp_path / "model.tflite")
    (tmp_path / "model.tflite").write_bytes(model_bytes(INT4)[:-1000])
    with pytest.raises(hearthlm.TruncatedFileError):
        LlmInference.create_from_model_path(tmp_path / "model.tflite")


# Adapters


def adapter_bytes(matrices: dict[str, NDArray[np.float32]], rank: int = 4, **changes: Any) -> bytes:
    """Return an adapter in MediaPipe's `.tflite`, its values outside of the flatbuffer."""
    from hearthlm.formats.flatbuffer import Scalar, build_flatbuffer

    def build(begin: int) -> bytes:
        tensors, buffers, end = [], [{1: Scalar("Q", 0)}], begin
        for i, (name, values) in enumerate(matrices.items()):
            tensors.append({0: list(values.shape), 1: Scalar("B", 0), 2: Scalar("I", i + 1), 3: name})
            buffers.append({1: Scalar("Q", end), 2: Scalar("Q", values.nbytes)})
            end += values.nbytes
        root = {
            0: Scalar("I", 3),
            2: [{0: tensors}],
            4: buffers,
            6: [{0: "lora_rank", 1: Scalar("I", rank)}],
            **{int(k[1:]): v for k, v in changes.items()},
        }
        return build_flatbuffer(root, b"TFL3")

    size = len(build(0))
    return build(size) + b"".join(values.tobytes() for values in matrices.values())


@pytest.fixture(scope="module")
def matrices() -> dict[str, NDArray[np.float32]]:
    return dict(read_litert_lora(ADAPTER.read_bytes(), "adapter").matrices)


def test_an_adapter_goes_into_the_signatures_of_its_rank(llm: LlmInference, interface: Interface) -> None:
    lora = llm.load_lora(ADAPTER)
    assert (lora.rank, lora.num_bytes) == (4, 2 * (6 * 128 + 2 * 32) * 4 * 4)
    text = list(IDS[:9])
    for _ in range(12):
        text.append(int(reference(FLOAT, tuple(text), ADAPTER)[-1].argmax()))
    adapted = list(ids_of(llm, IDS[:9], replace(GREEDY, lora=lora)))
    assert adapted == text[9:]
    assert adapted != list(ids_of(llm, IDS[:9]))
    executor = open_executor(FLOAT, interface)
    row = last_row(executor, executor.new_state(lora), IDS)
    assert np.abs(row - reference(FLOAT, tuple(IDS), ADAPTER)[-1]).max() <= 1e-4
    executor.close()


def test_adapted_and_plain_sessions_answer_side_by_side(
    llm: LlmInference, matrices: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    lora = llm.load_lora(ADAPTER)
    wanted = [ids_of(llm, IDS[:9], replace(GREEDY, lora=adapter)) for adapter in (None, lora)]
    results = [llm.generate_batch([IDS[:9]] * 2, replace(GREEDY, lora=adapter)) for adapter in (None, lora)]
    assert [r.token_ids[0] for batch in results for r in batch] == [wanted[0]] * 2 + [wanted[1]] * 2
    options = LlmInferenceOptions(FLOAT, num_threads=1, lora_path=ADAPTER)
    with LlmInference.create_from_options(options) as always:
        assert ids_of(always, IDS[:9]) == wanted[1]
        assert np.abs(always.token_logprobs(IDS) - llm.token_logprobs(IDS)).max() > 0.01
        (tmp_path / "other.tflite").write_bytes(adapter_bytes({name: 2 * v for name, v in matrices.items()}))
        with pytest.raises(ValueError, match="was not loaded by this model"):
            always.generate(IDS[:9], replace(GREEDY, lora=llm.load_lora(tmp_path / "other.tflite")))


def test_a_smaller_adapter_is_filled_up(
    llm: LlmInference, matrices: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    half = {n: v[:, :2].copy() if "_a_" in n else v[:2].copy() for n, v in matrices.items()}
    zeroed = {name: values.copy() for name, values in matrices.items()}
    for name, values in zeroed.items():
        (values[:, 2:] if "_a_" in name else values[2:])[:] = 0
    (tmp_path / "half.tflite").write_bytes(adapter_bytes(half, rank=2))
    (tmp_path / "zeroed.tflite").write_bytes(adapter_bytes(zeroed))
    first, second = (llm.load_lora(tmp_path / name) for name in ("half.tflite", "zeroed.tflite"))
    assert (first.digest, first.rank) == (second.digest, 4)


def test_a_peft_adapter_says_the_same(
    llm: LlmInference, matrices: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    import json

    from safetensors.numpy import save_file

    tensors = {}
    for name, values in matrices.items():
        _, _, kind, side, _, _, layer = name.split("_")
        module = f"base_model.model.model.layers.{layer}.self_attn.{kind}_proj.lora_{side.upper()}.weight"
        tensors[module] = np.ascontiguousarray(values.T if side == "a" else values.T / 2)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert llm.load_lora(tmp_path).digest == llm.load_lora(ADAPTER).digest
    save_file({**tensors, "x.lora_A.weight": np.ones((4, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(hearthlm.TensorMismatchError, match="no place"):
        llm.load_lora(tmp_path)


def test_adapters_that_do_not_fit_are_refused(
    llm: LlmInference, matrices: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    def load(matrices: dict[str, NDArray[np.float32]], rank: int = 4, **changes: Any) -> None:
        (tmp_path / "a.tflite").write_bytes(adapter_bytes(matrices, rank, **changes))
        llm.load_lora(tmp_path / "a.tflite")

    name = "lora_atten_q_a_prime_weight_0"
    load(matrices)
    with pytest.raises(hearthlm.TensorMismatchError, match="rank 5: expected at most 4"):
        load(matrices, 5)
    with pytest.raises(hearthlm.TensorMismatchError, match=rf"{name}: expected \[128, 4\], got \[64, 4\]"):
        load({**matrices, name: matrices[name][:64]})
    with pytest.raises(hearthlm.TensorMismatchError, match="no place for 1 of its tensors: lora_other_b_9"):
        load({**matrices, "lora_other_b_9": np.ones((4, 4), np.float32)})
    with pytest.raises(hearthlm.TensorMismatchError, match="would change nothing"):
        load({name: np.zeros_like(values) for name, values in matrices.items()})
    with pytest.raises(hearthlm.CorruptFileError, match="lora_rank: expected 1 to 4096, got 0"):
        load(matrices, 0)
    with pytest.raises(hearthlm.UnsupportedModelError, match="expected a LoRA adapter: one entry lora_rank"):
        load(matrices, f2=[])
    with pytest.raises(hearthlm.UnsupportedModelError, match="this is a LoRA adapter, not a model"):
        LlmInference.create_from_model_path(ADAPTER)
    with pytest.raises(hearthlm.UnsupportedModelError, match="MediaPipe's .tflite or a PEFT folder, got .* 'task'"):
        llm.load_lora(FLOAT)
    with pytest.raises(hearthlm.UnsupportedModelError, match=r"expected signatures \.\.\._lora_r<rank>"):
        LlmInference.create_from_options(LlmInferenceOptions(TRANSPOSED, num_threads=1, lora_path=ADAPTER))


@given(data=st.data())
def test_a_mutated_adapter_is_read_or_refused(data: st.DataObject) -> None:
    changed = bytearray(ADAPTER.read_bytes())
    places = st.integers(0, 3000) | st.integers(0, len(changed) - 4)  # most of it is values
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        value = data.draw(st.sampled_from([0, 1, 4, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF))
        changed[place : place + 4] = value.to_bytes(4, "little")
    with contextlib.suppress(hearthlm.ModelFormatError, hearthlm.UnsupportedModelError):
        read_litert_lora(bytes(changed), "adapter")


@pytest.mark.parametrize("size", [8, 100, 1000, 20000])
def test_a_cut_adapter_is_refused(size: int) -> None:
    with pytest.raises(hearthlm.ModelFormatError):
        read_litert_lora(ADAPTER.read_bytes()[:size], "adapter")


# Graphs of every kind, computed by hand

TOY_IDS = [3, 7, 1, 20, 5, 5, 9, 0, 23, 11, 2]


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"transposed": True},
        {"mask": "float32", "transposed": True},
        {"mask": "float16"},
        {"mask": "bool"},
        {"cache": "float16"},
        {"cache": "int8", "transposed": True},
        {"names": ("token_ids", "positions", "attn_mask"), "mask": "bool"},
        {"cache_names": ("k_cache_0", "v_cache_0")},
        {"in_place": False},
        {"lengths": (1,)},
        {"lengths": (32,)},
        {"num_decoded": 3},
        {"num_decoded": 2, "transposed": True, "mask": "float32", "cache": "int8"},
    ],
    ids=str,
)
def test_every_kind_of_graph_is_computed(kind: dict[str, Any], interface: Interface) -> None:
    executor = executor_of(toy_model(**kind), interface)
    wanted = expected_logits(TOY_IDS)
    rows = feed(executor, executor.new_state(), TOY_IDS, "all")
    assert rows is not None and np.allclose(rows, wanted, atol=1e-6)
    state = executor.new_state()
    assert np.allclose(last_row(executor, state, TOY_IDS[:7]), wanted[6], atol=1e-6)
    copy = state.fork()
    assert np.allclose(last_row(executor, state, TOY_IDS[7:]), wanted[-1], atol=1e-6)
    assert np.allclose(last_row(executor, copy, [4, 4]), expected_logits([*TOY_IDS[:7], 4, 4])[-1], atol=1e-6)
    loaded = executor.load_state(state.length, state.save())
    assert np.allclose(last_row(executor, loaded, [8]), expected_logits([*TOY_IDS, 8])[-1], atol=1e-6)
    full = (TOY_IDS * 3)[:CAPACITY]
    assert np.allclose(last_row(executor, executor.new_state(), full), expected_logits(full)[-1], atol=1e-6)
    executor.close()


def test_sequences_of_one_position_are_decoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(toy_model(num_decoded=3))
    calls: list[str] = []
    run = executor.graph.run

    def counted(name: str, *rest: Any) -> Any:
        calls.append(name)
        return run(name, *rest)

    monkeypatch.setattr(executor.graph, "run", counted)
    first = executor.new_state()
    feed(executor, first, TOY_IDS[:6], "none")
    texts = {state: list(TOY_IDS[:6]) for state in (first, first.fork(), first.fork(), first.fork())}

    def step(tokens: dict[Any, int]) -> None:
        rows = executor.forward([ForwardRequest(state, [token], "last") for state, token in tokens.items()])
        for (state, token), row in zip(tokens.items(), rows, strict=True):
            texts[state].append(token)
            assert row is not None and np.allclose(row[0], expected_logits(texts[state])[-1], atol=1e-6)

    calls.clear()
    states = list(texts)
    step({state: i for i, state in enumerate(states)})
    assert calls == ["decode"] * 2  # three slots, and one
    assert len({key for state in states for key in state.memory()}) == 2
    calls.clear()
    step({states[0]: 5, states[1]: 6})
    step({states[0]: 7})
    step({states[2]: 8, states[1]: 9})  # one is two positions behind the first
    assert calls == ["decode"] * 4
    step({states[2]: 1})
    step({states[0]: 2, states[1]: 3, states[2]: 4, states[3]: 5})
    # A slot is left for a prefill, a rewind and a fork, and taken again.
    feed(executor, states[0], [1, 2, 3, 4, 5], "none")
    texts[states[0]] += [1, 2, 3, 4, 5]
    states[1].truncate(7)
    del texts[states[1]][7:]
    copy = states[2].fork()
    texts[copy] = list(texts[states[2]])
    step({states[0]: 2, states[1]: 3, states[2]: 4, copy: 9})
    step({states[0]: 2, states[1]: 3, states[2]: 4, copy: 9})
    for state in texts:
        state.close()
        assert state.memory() == {}
    executor.close()


def test_responses_of_a_batch_are_those_of_each_alone(tmp_path: Path) -> None:
    answers = []
    for name, num_decoded in (("one", 1), ("three", 3)):
        (tmp_path / name).write_bytes(toy_model(num_decoded=num_decoded))
        options = LlmInferenceOptions(
            tmp_path / name,
            tokenizer_path=GOLDEN.parent / "tokenizers" / "bpe_512_byte_fallback.model",
            num_responses=4,
            num_threads=1,
            temperature=2.0,
            top_k=0,
            stop_tokens=(9,),
        )
        with LlmInference.create_from_options(options) as llm:
            answers.append(llm.generate([3, 7, 1, 20]).token_ids)
            assert llm.generate([3, 7, 1, 20]).token_ids == answers[-1]
            assert llm.max_tokens == CAPACITY
            assert llm.token_logprobs([3, 7, 1]).shape == (2,)
    assert answers[0] == answers[1]
    assert len({len(ids) for ids in answers[0]}) > 1


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            {"names": ("embeddings", "input_pos", "mask"), "mask": "float32"},
            "takes embeddings, made by a model of their own; expected .* tokens or token_ids",
        ),
        ({"names": ("words", "input_pos", "mask")}, "expected one of the inputs and outputs input_pos, mask, tokens"),
        ({"cache_names": ("past_k", "past_v")}, "expected one of the inputs"),
        ({"cache_names": ("kv_cache_k_0", "kv_cache_k_1")}, "no KV cache inputs found"),
    ],
)
def test_an_unknown_graph_is_refused_with_what_is_known(kind: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(toy_model(**kind))
    with pytest.raises(hearthlm.UnsupportedModelError, match=says):
        LlmInference.create_from_model_path(tmp_path / "m.tflite")


# What a file says of how it is spoken to


def write_with_metadata(path: Path, metadata: LlmMetadata, model: Path = TRANSPOSED) -> Path:
    with TaskBundle.open(model) as bundle:
        pieces = bundle.sentencepiece_model
    sections = [
        NewSection("LlmMetadata", write_llm_metadata(metadata)),
        NewSection("sentencepiece", pieces),
        NewSection("tflite", model_bytes(model), {"model_type": "tf_lite_prefill_decode"}),
    ]
    write_litertlm(path, sections)
    return path


def test_a_file_says_how_to_sample_and_a_caller_says_otherwise(tmp_path: Path) -> None:
    sampler = SamplerDefaults(type="top_p", top_k=7, top_p=0.5, temperature=1.5)
    path = write_with_metadata(tmp_path / "m.litertlm", LlmMetadata(start_token=(2,), sampler=sampler))
    with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1, top_k=3)) as llm:
        with LlmInferenceSession.create_from_options(llm) as session:
            options = session.session_options
            assert (options.top_k, options.top_p, options.temperature) == (3, 0.5, 1.5)
        with LlmInferenceSession.create_from_options(llm, LlmInferenceSessionOptions(temperature=0.1)) as session:
            options = session.session_options
            assert (options.top_k, options.top_p, options.temperature) == (7, 0.5, 0.1)
    path = write_with_metadata(tmp_path / "g.litertlm", LlmMetadata(sampler=SamplerDefaults(type="greedy")))
    with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
        assert llm.start_id is None
        texts = {llm.generate([2, 5], LlmInferenceSessionOptions(random_seed=s)).token_ids for s in range(3)}
        assert len(texts) == 1
    path = write_with_metadata(tmp_path / "n.litertlm", LlmMetadata())
    with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
        with LlmInferenceSession.create_from_options(llm) as session:
            options = session.session_options
            assert (options.top_k, options.top_p, options.temperature) == (40, 1.0, 0.8)


def test_a_file_says_where_answers_end(tmp_path: Path) -> None:
    with LlmInference.create_from_options(LlmInferenceOptions(FLOAT, num_threads=1)) as llm:
        free = ids_of(llm, IDS)
        text = llm.tokenizer.decode(free[:8], at_start=False)

    def answered(*stop_tokens: Any, **changes: Any) -> Any:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.litertlm"
        write_with_metadata(path, LlmMetadata(start_token="<s>", stop_tokens=stop_tokens, **changes), FLOAT)
        with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
            return llm.generate(IDS, GREEDY)

    assert answered().token_ids[0] == free
    assert answered((free[3],)).token_ids[0] == free[: free.index(free[3])]
    assert answered(text[-2:]).texts[0] == text[: text.index(text[-2:])]
    several = answered((free[4], free[5]))
    assert several.finish_reason == "stop"
    assert len(several.token_ids[0]) < len(free)
    assert answered(max_num_tokens=len(IDS) + 5).token_ids[0] == free[:5]
    banned = answered(suppressed_tokens=tuple(set(free))).token_ids[0]
    assert not set(banned) & set(free)


def test_a_special_token_in_a_stop_text_ends_the_turn() -> None:
    with TaskBundle.open(FLOAT) as bundle:
        tokenizer = from_sentencepiece(bundle.sentencepiece_model)
    end = tokenizer.token_id("<end_of_turn>")
    assert _stops((".<end_of_turn>\n", "stop", "</s>", (17, 18)), tokenizer) == (
        frozenset((end, tokenizer.token_id("</s>"))),
        ("stop", tokenizer.decode((17, 18), skip_special=False)),
    )
    assert _stops(((4,), (5, 6)), None) == (frozenset((4, 5)), ())


def test_conversations_are_written_as_the_file_says(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a boat"}]
    jinja = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}{{ 'go' if add_generation_prompt }}"
    turns = PromptTemplates(user=PromptTemplate("<start_of_turn>user\n", "<end_of_turn>\n"), model=PromptTemplate("go"))
    both = LlmMetadata(start_token="<s>", templates=turns, chat_template=jinja)
    for name, metadata, written in (
        ("jinja", both, "[a boat]go"),
        ("turns", replace(both, chat_template=None), "<start_of_turn>user\na boat<end_of_turn>\ngo"),
    ):
        path = write_with_metadata(tmp_path / name, metadata, FLOAT)
        with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
            assert llm.start_id is not None
            wanted = [llm.start_id, *llm.tokenizer.encode(written)]
            assert llm.chat_format.encode(messages) == wanted
            assert llm.generate(messages, GREEDY).num_prompt_tokens == len(wanted)
            assert llm.generate("a boat", GREEDY).num_prompt_tokens == len(llm.tokenizer.encode(turned("a boat"))) + 1
    path = write_with_metadata(tmp_path / "none", LlmMetadata(start_token="<s>"), FLOAT)
    with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
        with pytest.raises(hearthlm.UnsupportedModelError, match="without a chat template"):
            llm.generate(messages)
    path = write_with_metadata(tmp_path / "hostile", replace(both, chat_template="{{ ''.__class__.__mro__ }}"), FLOAT)
    with LlmInference.create_from_options(LlmInferenceOptions(path, num_threads=1)) as llm:
        with pytest.raises(hearthlm.TemplateError):
            llm.generate(messages)


def turned(text: str) -> str:
    return f"<start_of_turn>user\n{text}<end_of_turn>\ngo"


def test_an_encoder_of_images_is_refused_by_name(tmp_path: Path) -> None:
    sections = [
        NewSection("LlmMetadata", write_llm_metadata(LlmMetadata())),
        NewSection("tflite", model_bytes(TRANSPOSED), {"model_type": "tf_lite_prefill_decode"}),
        NewSection("tflite", model_bytes(INT4), {"model_type": "tf_lite_vision_encoder"}),
    ]
    write_litertlm(tmp_path / "m.litertlm", sections)
    with pytest.raises(hearthlm.UnsupportedModelError, match="tf_lite_vision_encoder"):
        LlmInference.create_from_model_path(tmp_path / "m.litertlm")


def test_tokenizers_of_byte_level_vocabularies_are_read(tmp_path: Path) -> None:
    pieces = (GOLDEN.parent / "tokenizers" / "byte_bpe_converted.model").read_bytes()
    tokenizer_json = (GOLDEN.parent / "inputs" / "hf_bpe" / "tokenizer.json").read_bytes()
    parameters = LlmParameters(stop_tokens=["zz"], input_output_normalizations=[BYTES_TO_UNICODE])
    entries: dict[str, bytes | str | PathLike[str]] = {
        MODEL: model_bytes(FLOAT), TOKENIZER: pieces, METADATA: parameters.SerializeToString()
    }  # fmt: skip
    write_task_bundle(tmp_path / "alphabet", entries)
    chat = {TOKENIZER_JSON: tokenizer_json, CHAT_TEMPLATE: b"{% for m in messages %}({{ m.content }}){% endfor %}"}
    write_task_bundle(tmp_path / "hugging_face", {**entries, **chat})
    sections = [
        NewSection("LlmMetadata", write_llm_metadata(LlmMetadata(stop_tokens=("zz",)))),
        NewSection("tokenizer.json", packed_tokenizer(tokenizer_json)),
        NewSection("tflite", model_bytes(FLOAT), {"model_type": "tf_lite_prefill_decode"}),
    ]
    write_litertlm(tmp_path / "packed", sections)
    in_alphabet, in_json = from_sentencepiece(pieces, bytes_to_unicode=True), from_hugging_face(tokenizer_json)
    for name, tokenizer in (("alphabet", in_alphabet), ("hugging_face", in_json), ("packed", in_json)):
        with LlmInference.create_from_options(LlmInferenceOptions(tmp_path / name, num_threads=1)) as llm:
            assert llm.tokenizer.kind == tokenizer.kind
            result = llm.generate("hello, é boat", GREEDY)
            assert result.num_prompt_tokens == len(tokenizer.encode("hello, é boat"))
            assert result.texts[0] == llm.tokenizer.decode(result.token_ids[0], at_start=False)
            if name == "hugging_face":
                assert llm.chat_format.encode([{"role": "user", "content": "a"}]) == tokenizer.encode("(a)")


def test_options_of_graphs_are_refused_for_weights(tmp_path: Path) -> None:
    weights = GOLDEN.parent / "outputs" / "0.10.14" / "gemma_2b_cpu_int8.bin"
    with pytest.raises(ValueError, match="cache_dir: expected None"):
        LlmInference.create_from_options(LlmInferenceOptions(weights, cache_dir=tmp_path))
    with pytest.raises(ValueError, match="are for a bare .tflite"):
        LlmInference.create_from_options(LlmInferenceOptions(weights, start_token=2))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"start_token": 1.5}, TypeError),
        ({"start_token": -1}, ValueError),
        ({"start_token": ""}, ValueError),
        ({"stop_tokens": "abc"}, TypeError),
        ({"stop_tokens": ("",)}, ValueError),
        ({"tokenizer_path": 5}, TypeError),
        ({"cache_dir": 5}, TypeError),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(wrong))):
        LlmInferenceOptions(INT4, **wrong)


def test_the_axis_of_tokens_is_what_the_file_declares(tmp_path: Path) -> None:
    def write(name: str, key_axis: int, value_axis: int) -> Path:
        declared = ExecutorMetadata()
        for tensor, axis in (("kv_cache_k_0", key_axis), ("kv_cache_v_0", value_axis)):
            declared.llm_executor_metadata.state_buffers.add(decode_input_name=tensor, sequence_axis=axis)
        sections = [
            NewSection("LlmMetadata", write_llm_metadata(LlmMetadata())),
            NewSection("ExecutorMetadata", declared.SerializeToString()),
            NewSection("tflite", toy_model(transposed=True), {"model_type": "tf_lite_prefill_decode"}),
        ]
        write_litertlm(tmp_path / name, sections)
        return tmp_path / name

    with LlmInference.create_from_options(LlmInferenceOptions(write("right", 2, 3), num_threads=1)) as llm:
        assert llm.max_tokens == CAPACITY
        assert llm.token_logprobs([3, 7, 1]).shape == (2,)
    with pytest.raises(hearthlm.UnsupportedModelError, match="kv_cache_v_0: expected 8 tokens on axis 3, as in"):
        LlmInference.create_from_model_path(write("other", 3, 3))
    with pytest.raises(hearthlm.CorruptFileError, match="kv_cache_v_0: axis 4 is declared"):
        LlmInference.create_from_model_path(write("beyond", 2, 4))
