"""The forward pass means what transformers means, and depends on a sequence's own tokens only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids, random_tensors
from reference_results import NUM_IDS, NUM_PROMPT_IDS, STORED, logprobs_of

from hearthlm.models import read_config
from hearthlm.models.family import TensorSpec
from hearthlm.quantization import WeightMatrix, quantize
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.transformer import TransformerExecutor, TransformerState
from hearthlm.runtime.weights import load_weights


class InMemory:
    """Serve a dictionary of tensors, quantised to `bits` if given."""

    def __init__(self, tensors: dict[str, NDArray[np.float32]], bits: int | None = None) -> None:
        self._tensors = tensors
        self._bits = bits

    def matrix(self, spec: TensorSpec) -> WeightMatrix:
        values = self._tensors[spec.checkpoint_name]
        return WeightMatrix("float32", values.shape, values) if self._bits is None else quantize(values, self._bits)

    def vector(self, spec: TensorSpec) -> NDArray[np.float32]:
        return self._tensors[spec.checkpoint_name]


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
    one, two = executor(name, bits=bits, num_threads=1), executor(name, bits=bits, num_threads=2)
    whole = logits(one, one.new_state(), ids)
    assert np.array_equal(logits(two, two.new_state(), ids), whole)
    state, companion = two.new_state(), two.new_state()
    parts = []
    for begin, end in ((0, 1), (1, 2), (2, 66), (66, 67), (67, 149), (149, 150)):
        requests = [ForwardRequest(companion, other[begin:end], "none"), ForwardRequest(state, ids[begin:end], "all")]
        parts.append(two.forward(requests)[1])
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


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma2_gqa", "gemma3_mqa"])
def test_forks_diverge_without_disturbing_each_other(name: str) -> None:
    e = executor(name, bits=8)
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


@pytest.mark.parametrize("name", ["gemma_mqa", "gemma3_mqa"])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 100])
def test_a_rewound_state_goes_on_as_if_nothing_had_followed(name: str, length: int) -> None:
    e = executor(name, bits=4)
    ids = random_ids(CONFIGS[name], 150)
    fresh = e.new_state()
    if length:
        logits(e, fresh, ids[:length])
    wanted = logits(e, fresh, ids[100:])
    state = e.new_state()
    logits(e, state, ids)
    assert state.truncate(length) == length
    assert np.array_equal(logits(e, state, ids[100:]), wanted)


def test_a_rewind_behind_a_dropped_window_starts_over() -> None:
    e = executor("gemma3_mqa", bits=8)
    state = e.new_state()
    for seed in range(5):
        logits(e, state, random_ids(CONFIGS["gemma3_mqa"], 100, seed))
    assert state.truncate(50) == 0
    assert state.length == 0


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
