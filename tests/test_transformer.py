"""The forward pass means what transformers means, and depends on a sequence's own tokens only."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids, random_tensors
from reference_results import NUM_IDS, NUM_PROMPT_IDS, STORED, logprobs_of, reference_logits, transformers_model

from hearthlm.errors import SessionFileError
from hearthlm.kernels import instruction_set
from hearthlm.models import read_config
from hearthlm.models.family import TensorSpec
from hearthlm.quantization import WeightMatrix, dequantize, quantize
from hearthlm.runtime import transformer
from hearthlm.runtime.checkpoint_source import rows_of, view_of
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.model import Model
from hearthlm.runtime.transformer import MAX_RECORDED_ROWS, AlibiTable, TransformerExecutor, TransformerState
from hearthlm.runtime.weights import load_weights


class InMemory:
    """Serve a dictionary of tensors, quantised to `bits` if given."""

    def __init__(self, tensors: dict[str, NDArray[np.float32]], bits: int | None = None) -> None:
        self._tensors = tensors
        self._bits = bits

    def matrix(self, spec: TensorSpec) -> WeightMatrix:
        values = rows_of(self._tensors[spec.checkpoint_name], spec)
        return WeightMatrix("float32", values.shape, values) if self._bits is None else quantize(values, self._bits)

    def vector(self, spec: TensorSpec) -> NDArray[np.float32]:
        return rows_of(self._tensors[spec.checkpoint_name], spec)

    def release_pages(self) -> None:
        pass


def executor(name: str, *, bits: int | None = None, num_threads: int = 1, **options: Any) -> TransformerExecutor:
    config = CONFIGS[name]
    family, architecture = read_config(config)
    weights = load_weights(architecture, family.tensors(architecture), InMemory(random_tensors(config), bits))
    return TransformerExecutor(architecture, weights, num_threads=num_threads, **options)


def logits(e: TransformerExecutor, state: TransformerState, ids: list[int]) -> NDArray[np.float32]:
    result = e.forward([ForwardRequest(state, ids, "all")])[0]
    assert result is not None
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_are_those_of_transformers(name: str) -> None:
    ids = random_ids(CONFIGS[name], NUM_IDS)
    e = executor(name)
    got = logprobs_of(logits(e, e.new_state(), ids), ids)
    assert np.abs(got - np.load(STORED)[f"{name}/logprobs"]).max() < 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_forty_greedy_ids_are_those_of_transformers(name: str) -> None:
    e = executor(name)
    state = e.new_state()
    ids = random_ids(CONFIGS[name], NUM_IDS)[:NUM_PROMPT_IDS]
    wanted = np.load(STORED)[f"{name}/greedy"].tolist()
    got: list[int] = []
    for _ in wanted:
        result = e.forward([ForwardRequest(state, ids, "last")])[0]
        assert result is not None
        ids = [int(np.argmax(result[-1]))]
        got += ids
    assert got == wanted


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_chunks_threads_and_company_change_no_bit(name: str, bits: int | None) -> None:
    ids = random_ids(CONFIGS[name], 150)
    other = random_ids(CONFIGS[name], 150, seed=7)
    one, two, three = (executor(name, bits=bits, num_threads=count) for count in (1, 2, 3))
    whole = logits(one, one.new_state(), ids)
    assert np.array_equal(logits(two, two.new_state(), ids), whole)
    for e, cuts, num_others in ((two, (0, 1, 2, 66, 67, 149, 150), 1), (three, (0, 5, 6, 7, 134, 135, 150), 3)):
        state, *company = (e.new_state() for _ in range(1 + num_others))
        parts = []
        for begin, end in pairwise(cuts):
            requests = [
                ForwardRequest(c, other[begin : end - i], "none") for i, c in enumerate(company) if end - i > begin
            ]
            requests.insert(1, ForwardRequest(state, ids[begin:end], "all"))
            parts.append(e.forward(requests)[1])
        assert np.array_equal(np.concatenate([part for part in parts if part is not None]), whole)


def test_wanted_chooses_rows_and_changes_none_of_them() -> None:
    e = executor("gemma3_mqa", bits=8)
    ids = random_ids(CONFIGS["gemma3_mqa"], 40)
    whole = logits(e, e.new_state(), ids)
    states = [e.new_state() for _ in range(3)]
    results = e.forward([ForwardRequest(s, ids, w) for s, w in zip(states, ("none", "last", "all"), strict=True)])  # type: ignore[arg-type]
    assert results[0] is None
    assert np.array_equal(results[1], whole[-1:])  # type: ignore[arg-type]
    assert np.array_equal(results[2], whole)  # type: ignore[arg-type]
    assert e.forward([ForwardRequest(s, ids[:2], "none") for s in states]) == [None, None, None]
    follow = [logits(e, s, ids[2:4]) for s in states]
    assert np.array_equal(follow[0], follow[1])
    assert np.array_equal(follow[0], follow[2])


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2_gqa", "gemma3_mqa"])
def test_forks_diverge_without_disturbing_each_other(name: str, cache_dtype: Any) -> None:
    e = executor(name, bits=8, kv_cache_dtype=cache_dtype)
    prefix, left, right = (random_ids(CONFIGS[name], 70, seed) for seed in (1, 2, 3))
    alone = {}
    for key, tail in (("left", left), ("right", right)):
        state = e.new_state()
        logits(e, state, prefix)
        alone[key] = logits(e, state, tail)
    trunk = e.new_state()
    logits(e, trunk, prefix)
    branch = trunk.fork()
    results = e.forward([ForwardRequest(trunk, left, "all"), ForwardRequest(branch, right, "all")])
    assert np.array_equal(results[0], alone["left"])  # type: ignore[arg-type]
    assert np.array_equal(results[1], alone["right"])  # type: ignore[arg-type]


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_mqa"])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 100])
def test_a_rewound_state_goes_on_as_if_nothing_had_followed(name: str, length: int, cache_dtype: Any) -> None:
    e = executor(name, bits=4, kv_cache_dtype=cache_dtype)
    ids = random_ids(CONFIGS[name], 150)
    fresh = e.new_state()
    if length:
        logits(e, fresh, ids[:length])
    wanted = logits(e, fresh, ids[100:])
    state = e.new_state()
    logits(e, state, ids)
    assert state.truncate(length) == length
    assert np.array_equal(logits(e, state, ids[100:]), wanted)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bits", [None, 8])
def test_history_changes_no_bit(name: str, bits: int | None) -> None:
    e = executor(name, bits=bits)
    ids = random_ids(CONFIGS[name], 90)
    fresh = e.new_state()
    wanted = logits(e, fresh, ids)
    used = e.new_state()
    logits(e, used, ids[::-1][:70])
    used.truncate(0)
    logits(e, used, [*ids[:40], *ids[10:50]])
    used.truncate(40)
    fork = used.fork()
    logits(e, used, ids[:30])  # what a fork shares is written by the other
    used.close()
    loaded = e.load_state(40, fork.save())
    for state in (fork, loaded):
        assert np.array_equal(logits(e, state, ids[40:]), wanted[40:])


def test_a_rewind_behind_a_dropped_window_starts_over() -> None:
    e = executor("gemma3_mqa", bits=8)
    state = e.new_state()
    for seed in range(5):
        logits(e, state, random_ids(CONFIGS["gemma3_mqa"], 100, seed))
    assert state.truncate(50) == 0
    assert state.length == 0


@cache
def shared_executor(name: str, cache_dtype: Any = None, bits: int | None = None) -> TransformerExecutor:
    return executor(name, bits=bits, kv_cache_dtype=cache_dtype)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["gemma_mqa", "gemma3_mqa", "mistral_window", "qwen2_window"]),
    cache_dtype=st.sampled_from(["float32", "float16", "int8"]),
    length=st.integers(0, 450),
    rewind=st.integers(0, 200),
    rewind_later=st.integers(0, 400),
)
def test_a_saved_state_goes_on_bit_for_bit(
    name: str, cache_dtype: str, length: int, rewind: int, rewind_later: int
) -> None:
    e = shared_executor(name, cache_dtype)
    ids = random_ids(CONFIGS[name], 500)
    state = e.new_state()
    if length:
        e.forward([ForwardRequest(state, ids[:length], "none")])
    state.truncate(max(0, length - rewind))
    saved = state.save()
    loaded = e.load_state(state.length, saved)
    for array in saved.values():
        assert array.dtype == cache_dtype
        array.view(np.uint8)[...] = 0xFF  # not a number: the new state has copies of its own
    assert (loaded.length, loaded.num_bytes) == (state.length, state.num_bytes)
    for tail in (ids[:1], ids[1:40], ids[:130]):
        assert np.array_equal(logits(e, loaded, tail), logits(e, state, tail))
    shorter = max(0, state.length - rewind_later)
    assert loaded.truncate(shorter) == state.truncate(shorter)
    assert np.array_equal(logits(e, loaded, ids[:70]), logits(e, state, ids[:70]))


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_mqa"])
def test_a_window_is_saved_without_what_it_has_dropped(name: str) -> None:
    e = shared_executor(name)
    state = e.new_state()
    for begin in range(0, 1000, 100):
        logits(e, state, random_ids(CONFIGS[name], 100, begin))
    saved = state.save()
    kept = {key: array.shape[3] for key, array in saved.items()}
    assert kept == ({"full": 1000} if name == "gemma_mqa" else {"full": 1000, "window_24": 296})
    assert np.array_equal(logits(e, e.load_state(1000, saved), [5, 6]), logits(e, state, [5, 6]))


@pytest.mark.parametrize(
    ("change", "length", "message"),
    [
        (lambda a: a.pop("full"), 30, "expected the arrays full, window_24, got window_24$"),
        (lambda a: a.clear(), 30, "expected the arrays full, window_24, got none"),
        (lambda a: a.update(other=a["full"]), 30, "got full, other, window_24"),
        (lambda a: a.update(full=a["full"].astype(np.float16)), 30, "'full': expected float32 .*, got float16"),
        (lambda a: a.update(full=a["full"][..., :-1]), 30, r"'full': expected .* 32\] for 30 tokens, got .* 31\]"),
        (lambda a: a.update(window_24=a["full"]), 30, r"'window_24': expected float32 \[6, 2, 1, 23 to 30, 32\]"),
        (lambda a: None, 29, "for 29 tokens"),
        (lambda a: None, -1, "length: expected 0 to 16777216 tokens, got -1"),
        (lambda a: None, 1 << 40, "length: expected 0 to 16777216 tokens, got 1099511627776"),
    ],
)
def test_a_saved_state_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], length: int, message: str
) -> None:
    e = shared_executor("gemma3_mqa")
    state = e.new_state()
    logits(e, state, random_ids(CONFIGS["gemma3_mqa"], 30))
    arrays = state.save()
    change(arrays)
    with pytest.raises(SessionFileError, match=message):
        e.load_state(length, arrays)


def test_the_fingerprint_is_that_of_everything_a_state_depends_on() -> None:
    e = executor("gemma3_mqa", bits=8)
    weights, architecture = e._weights, e.architecture

    def of(**changes: Any) -> str:
        return TransformerExecutor(architecture, replace(weights, **changes), num_threads=2).fingerprint

    assert of() == e.fingerprint == executor("gemma3_mqa", bits=8, activation_data_type="int8").fingerprint
    first, *others = weights.layers
    scaled = replace(first.up.weight, scales=first.up.weight.scales * np.float32(1.0001))  # type: ignore[operator]
    data = weights.embedding.data.copy()
    data[-1, -1] += 1
    different = [
        e.fingerprint,
        of(layers=(replace(first, up=replace(first.up, weight=scaled)), *others)),
        of(embedding=replace(weights.embedding, data=data)),
        of(final_norm=replace(weights.final_norm, scale=weights.final_norm.scale + np.float32(1e-6))),
        executor("gemma3_mqa").fingerprint,
        executor("gemma3_mqa", bits=4).fingerprint,
        executor("gemma3_mqa", bits=8, kv_cache_dtype="float32").fingerprint,
        executor("gemma3_mqa", bits=8, kv_cache_dtype="int8").fingerprint,
        executor("gemma3_mqa", bits=8, activation_data_type="float32").fingerprint,
        executor("gemma3_gqa_scaled", bits=8).fingerprint,
        TransformerExecutor(replace(architecture, embedding_scale=2.0), weights, num_threads=1).fingerprint,
    ]
    assert len(set(different)) == len(different)
    assert executor("gemma_mqa").fingerprint == executor("gemma_mqa", activation_data_type="float32").fingerprint


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    code = "from test_transformer import executor; print(executor('gemma3_mqa', bits=8).fingerprint)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == shared_executor("gemma3_mqa", None, 8).fingerprint


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_rows_are_what_logits_are_made_of(name: str) -> None:
    e = shared_executor(name)
    ids = random_ids(CONFIGS[name], 100)
    hidden = e.forward([ForwardRequest(e.new_state(), ids, "hidden")])[0]
    assert hidden is not None
    assert hidden.dtype == np.float32
    assert hidden.shape == (100, e.architecture.embedding_dim)
    made = hidden @ dequantize(e._weights.logits.weight).T
    if e._weights.logits.bias is not None:
        made += e._weights.logits.bias
    if (cap := e.architecture.final_soft_cap) is not None:
        made = cap * np.tanh(made / cap)
    assert np.abs(made - logits(e, e.new_state(), ids)).max() < 1e-4


@pytest.mark.parametrize("name", ["gemma2_gqa", "gemma3_mqa", "phi_parallel"])
@pytest.mark.parametrize("bits", [None, 8])
def test_hidden_rows_are_the_same_in_chunks_and_in_company(name: str, bits: int | None) -> None:
    e = shared_executor(name, None, bits)
    ids = random_ids(CONFIGS[name], 100)
    alone = {w: e.forward([ForwardRequest(e.new_state(), ids[-20:], w)])[0] for w in ("last", "all", "hidden")}
    order = ("all", "hidden", "none", "last", "hidden", "all")
    results = e.forward([ForwardRequest(e.new_state(), ids[-20:], w) for w in order])  # type: ignore[arg-type]
    for wanted, result in zip(order, results, strict=True):
        assert (result is None) == (wanted == "none")
        assert result is None or np.array_equal(result, alone[wanted])  # type: ignore[arg-type]
    state = e.new_state()
    parts = [e.forward([ForwardRequest(state, ids[a:b], "hidden")])[0] for a, b in ((0, 1), (1, 70), (70, 100))]
    whole = e.forward([ForwardRequest(e.new_state(), ids, "hidden")])[0]
    assert np.array_equal(np.concatenate([part for part in parts if part is not None]), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bits", [None, 8])
def test_recorded_calls_compute_what_calls_one_by_one_do(
    name: str, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(CONFIGS[name], 2000)
    results = []
    for limit in (MAX_RECORDED_ROWS, 0):
        monkeypatch.setattr(transformer, "MAX_RECORDED_ROWS", limit)
        e = executor(name, bits=bits, num_threads=2)
        states = [e.new_state() for _ in range(3)]
        starts = [0, 0, 0]
        got = []
        order = np.random.default_rng(1)
        for _ in range(60):  # any number of rows of any sequences, on and on, with rewinds
            requests = []
            for i in order.permutation(3)[: order.integers(1, 4)]:
                count = int(order.choice([1, 1, 1, 2, 3, 5, 40]))
                wanted = ["all", "last"][order.integers(2)]
                requests.append(ForwardRequest(states[i], ids[starts[i] : starts[i] + count], wanted))  # type: ignore[arg-type]
                starts[i] += count
            got += e.forward(requests)
            if order.random() < 0.2:
                starts[0] = states[0].truncate(starts[0] // 2)
            if order.random() < 0.2:
                states[1] = states[0].fork()
                starts[1] = starts[0]
        results.append(got)
        assert bool(e._recorded) == (limit > 0 and instruction_set != "reference")
    for recorded, single in zip(*results, strict=True):
        assert recorded is not None and single is not None
        assert recorded.tobytes() == single.tobytes()


def test_a_recorded_step_keeps_no_memory_of_a_sequence() -> None:
    e = executor("gemma3_mqa")
    state = e.new_state()
    logits(e, state, [2, 3, 4])
    blocks = [weakref.ref(block.array) for cache in state.caches for block in cache.blocks if block is not None]
    assert blocks
    state.close()
    assert not any(block() is not None for block in blocks)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_quantised_weights_with_float_activations_equal_the_dequantised_model(name: str, bits: int) -> None:
    ids = random_ids(CONFIGS[name], NUM_IDS)
    config = CONFIGS[name]
    e = executor(name, bits=bits, activation_data_type="float32", kv_cache_dtype="float32")
    got = logprobs_of(logits(e, e.new_state(), ids), ids)
    assert np.abs(got - np.load(STORED)[f"{name}/logprobs_int{bits}"]).max() < 2e-3
    assert config["vocab_size"] == e.vocab_size


@pytest.mark.parametrize("ids", [[-1], [320], [2, 10**6]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    e = executor("gemma_mqa")
    with pytest.raises(ValueError, match="expected 0 to 319"):
        e.forward([ForwardRequest(e.new_state(), ids, "last")])


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONFIGS)
def test_stored_references_are_what_transformers_says_today(name: str) -> None:
    from reference_results import compute

    for key, values in compute([name]).items():
        stored = np.load(STORED)[key]
        if values.dtype == np.int32:
            assert np.array_equal(values, stored)
        else:
            assert np.abs(values - stored).max() < 1e-4


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_rows_are_those_of_transformers(name: str) -> None:
    import torch

    ids = random_ids(CONFIGS[name], NUM_IDS)
    with torch.no_grad():
        model = transformers_model(CONFIGS[name], random_tensors(CONFIGS[name]))
        wanted = model.base_model(torch.tensor([ids])).last_hidden_state[0].numpy()
    e = shared_executor(name)
    got = e.forward([ForwardRequest(e.new_state(), ids, "hidden")])[0]
    assert np.abs(got - wanted).max() < 1e-3


@pytest.mark.oracle
@pytest.mark.parametrize("num_heads", [1, 2, 6, 32, 71])
def test_alibi_is_that_of_transformers_where_positions_are_rounded_too(num_heads: int) -> None:
    import torch
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    mask = torch.ones((1, 3000), dtype=torch.long)
    wanted = build_alibi_tensor(mask, num_heads, torch.float32)[:, 0].numpy() * np.float32(0.125)
    assert np.array_equal(AlibiTable(num_heads, 0.125).columns(3000)[:, :3000], wanted)


# What the small files of MediaPipe's converter hold, as a config.json would say it; see their cases.json.
_SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CONVERTED: dict[str, dict[str, Any]] = {
    "gemma_2b": CONFIGS["gemma_mqa"] | _SMALL | {"head_dim": 8, "num_key_value_heads": 1},
    "gemma2_2b": CONFIGS["gemma2_gqa"]
    | _SMALL
    | {"head_dim": 8, "num_attention_heads": 4, "query_pre_attn_scalar": 8, "sliding_window": 4096}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "falcon_rw_1b": CONFIGS["falcon_alibi"]
    | {name: value for name, value in _SMALL.items() if name not in ("intermediate_size", "num_key_value_heads")}
    | {"tie_word_embeddings": False},
    "phi_2": CONFIGS["phi_parallel"] | _SMALL | {"partial_rotary_factor": 0.25},  # 0.4 of 8 channels: 2 of them
    "stablelm_4e1t_3b": CONFIGS["stablelm_partial"] | _SMALL | {"use_qkv_bias": False},
}
CONVERTED_FILES = sorted(
    (name, path) for name in CONVERTED for path in (STORED.parent / "outputs").glob(f"*/{name}_[cg]pu_int[48].bin")
)
every_converted_file = pytest.mark.parametrize(
    ("name", "path"), CONVERTED_FILES, ids=[f"{path.parent.name}-{path.stem}" for _, path in CONVERTED_FILES]
)


@every_converted_file
def test_a_file_of_mediapipe_and_a_config_say_the_same(name: str, path: Path) -> None:
    _, wanted = read_config(CONVERTED[name])
    with Model.open(path) as model:
        assert model.architecture.attention_scale == pytest.approx(wanted.attention_scale, rel=1e-9)
        scale, length = wanted.attention_scale, wanted.context_length
        assert replace(model.architecture, attention_scale=scale, context_length=length) == wanted


@pytest.mark.oracle
@every_converted_file
def test_a_file_of_mediapipe_means_what_transformers_means(name: str, path: Path) -> None:
    config = CONVERTED[name]
    ids = random_ids(config, NUM_IDS)
    with Model.open(path) as model:
        tensors: dict[str, NDArray[np.float32]] = {}
        for spec in model.family.tensors(model.architecture):
            stored = tensors.setdefault(spec.checkpoint_name, np.empty(spec.checkpoint_rows.shape, np.float32))
            view = view_of(stored, spec)
            is_matrix = len(spec.shape) == 2
            values = dequantize(model._source.matrix(spec)) if is_matrix else model._source.vector(spec)
            view[...] = values.reshape(view.shape)
        weights = model.load_weights()
        e = TransformerExecutor(
            model.architecture, weights, num_threads=1, activation_data_type="float32", kv_cache_dtype="float32"
        )
    wanted = logprobs_of(reference_logits(transformers_model(config, tensors), ids), ids)
    assert np.abs(logprobs_of(logits(e, e.new_state(), ids), ids) - wanted).max() < 1e-4
