"""The signatures of LiteRT models: real ones, every known convention, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from litert_models import CACHE, FLOAT32, INT32, LOGITS, SIGNATURES, cache, litert_model, step

from hearthlm.errors import CorruptFileError, HearthLMError, TruncatedFileError, UnsupportedModelError
from hearthlm.formats.flatbuffer import Scalar
from hearthlm.formats.litert_model import LlmSignatures, TensorSpec, llm_signatures, read_litert_model
from hearthlm.formats.task_bundle import MODEL, TaskBundle

GOLDEN = Path(__file__).parent / "golden"


def real(name: str) -> bytes:
    with TaskBundle.open(GOLDEN / "litert" / f"{name}.task") as bundle:
        return bytes(bundle.entry(MODEL))


def called(data: bytes) -> LlmSignatures:
    return llm_signatures(read_litert_model(data, "m"), "m")


@pytest.mark.parametrize(
    ("name", "mask", "key", "value", "axes"),
    [
        ("gemma3_q8_ekv128", None, (1, 128, 1, 32), (1, 128, 1, 32), (1, 1)),
        ("gemma3_mask_transposed_q8_ekv128", "mask", (1, 1, 128, 32), (1, 1, 32, 128), (2, 3)),
    ],
)
def test_models_of_the_pytorch_exporter(name: str, mask: Any, key: Any, value: Any, axes: Any) -> None:
    model = read_litert_model(real(name), name)
    assert list(model.signatures) == ["prefill_8", "prefill_32", "decode"]
    assert model.num_operators > 500
    assert model.signatures["prefill_8"].inputs["tokens"] == TensorSpec("INT32", (1, 8))
    assert model.signatures["decode"].outputs["logits"] == TensorSpec("FLOAT32", (1, 1, 512))
    found = llm_signatures(model, name)
    assert list(found.prefill_lengths.items()) == [("prefill_32", 32), ("prefill_8", 8)]
    assert (found.tokens, found.positions, found.mask, found.logits) == ("tokens", "input_pos", mask, "logits")
    cache = found.kv_cache
    assert cache is not None
    assert (cache.name, cache.num_layers, cache.dtype) == ("kv_cache_k_{layer}", 2, "FLOAT32")
    assert (cache.key_shape, cache.value_shape, cache.num_tokens) == (key, value, 128)
    assert (cache.key_axis, cache.value_axis) == axes


def test_every_known_convention_is_understood() -> None:
    mask = {"attn_mask": (FLOAT32, [1, 8, 1, 128])}
    kv = cache([1, 128, 2, 4], [1, 128, 2, 4], names=("k_cache_{}", "v_cache_{}"))
    names = {"tokens": "token_ids", "positions": "positions"}
    found = called(
        litert_model({"prefill": ({**step(8, kv, **names), **mask}, kv),
                      "decode": ({**step(1, kv, **names), **mask}, {**LOGITS, **kv})})
    )  # fmt: skip
    assert found.mask == "attn_mask"
    assert found.kv_cache is not None
    assert found.kv_cache.name == "k_cache_{layer}"

    more = {"embeddings": (FLOAT32, [1, 8, 16]), "per_layer_embeddings": (FLOAT32, [1, 8, 2, 4]),
            "mask": (FLOAT32, [1, 1, 8, 128]), "input_pos": (INT32, [8]), **CACHE}  # fmt: skip
    assert called(litert_model({"prefill": (more, CACHE), "decode": (more, {**LOGITS, **CACHE})})).mask == "mask"

    old = {"args_0": (4, [1, 8]), "args_1": (4, [8])}
    found = called(litert_model({"prefill": (old, {}), "decode": (old, {"output_0": (FLOAT32, [1, 1, 64])})}))
    assert found.kv_cache is None
    assert found.logits == "output_0"


def test_lora_variants_give_their_ranks() -> None:
    adapter = {"lora_atten_q_a_prime_weight_0": (FLOAT32, [32, 4])}
    signatures = dict(SIGNATURES)
    for rank in (16, 4):
        signatures[f"prefill_8_lora_r{rank}"] = ({**step(8), **adapter}, CACHE)
        signatures[f"decode_lora_r{rank}"] = ({**step(1), **adapter}, {**LOGITS, **CACHE})
    found = called(litert_model(signatures))
    assert found.lora_ranks == (4, 16)
    assert found.prefill_lengths == {"prefill_8": 8}


@pytest.mark.parametrize(
    ("key", "value", "mask", "axes", "num_tokens"),
    [
        ([1, 512, 4, 64], [1, 512, 4, 64], None, (1, 1), 512),
        ([1, 4, 512, 64], [1, 4, 64, 512], None, (2, 3), 512),
        ([1, 4, 512, 64], [1, 4, 512, 64], None, (2, 2), 512),
        ([1, 4, 64, 64], [1, 4, 64, 64], None, (2, 3), 64),  # as many tokens as a head is wide
        ([1, 8, 4, 64], [1, 8, 4, 64], 4, (2, 2), 4),  # the mask tells
        ([1, 4, 4, 64], [1, 4, 4, 64], None, (None, None), None),
        ([1, 512, 256], [1, 512, 256], None, (None, None), None),
        ([1, 4, 512, 64], [1, 4, 64, 511], None, (None, None), None),
    ],
)
def test_the_axis_of_tokens_is_told_by_the_shapes(
    key: list[int], value: list[int], mask: int | None, axes: Any, num_tokens: int | None
) -> None:
    kv = cache(key, value)
    more = {} if mask is None else {"mask": (FLOAT32, [1, 1, 8, mask])}
    found = called(
        litert_model({"prefill": ({**step(8, kv), **more}, kv), "decode": ({**step(1, kv), **more}, {**LOGITS, **kv})})
    ).kv_cache
    assert found is not None
    assert (found.key_axis, found.value_axis) == axes
    assert found.num_tokens == num_tokens


def test_the_layer_that_holds_most_tells_the_context() -> None:
    kv = {**cache([1, 32, 1, 4], [1, 32, 1, 4]), "kv_cache_k_1": (FLOAT32, [1, 256, 1, 4])}
    kv["kv_cache_v_1"] = kv["kv_cache_k_1"]
    found = called(litert_model({"prefill": (step(8, kv), kv), "decode": (step(1, kv), {**LOGITS, **kv})})).kv_cache
    assert found is not None
    assert found.num_tokens == 256


WITHOUT_CACHE = {"tokens": (INT32, [1, 8]), "input_pos": (INT32, [8])}
UNKNOWN: dict[str, tuple[dict[str, tuple[Any, Any]], str]] = {
    "others": ({"encode": SIGNATURES["decode"]}, "expected signatures prefill* and decode, got encode"),
    "no decode": ({"prefill": SIGNATURES["prefill_8"]}, "expected signatures prefill* and decode, got prefill"),
    "no prefill": ({"decode": SIGNATURES["decode"]}, "expected signatures prefill* and decode, got decode"),
    "another input": (
        {**SIGNATURES, "decode": ({**step(1), "pixels": (FLOAT32, [1])}, {**LOGITS, **CACHE})},
        "'decode': expected one of the inputs and outputs input_pos, mask, tokens -> logits; ",
    ),
    "another input, found": (
        {**SIGNATURES, "decode": ({**step(1), "pixels": (FLOAT32, [1])}, {**LOGITS, **CACHE})},
        "; got input_pos, pixels, tokens -> logits",
    ),
    "an image": (
        {**SIGNATURES, "decode": ({**step(1), "pixels": (FLOAT32, [1])}, {**LOGITS, **CACHE})},
        "; pixels: images and audio are not read, prompts are text",
    ),
    "an encoder": (
        {"encode": ({"audio_samples": (FLOAT32, [1])}, LOGITS)},
        "got encode; audio_samples: images and audio are not read, prompts are text",
    ),
    "no logits": ({**SIGNATURES, "decode": (step(1), CACHE)}, "'decode': expected one of .* -> none"),
    "two conventions": (
        {**SIGNATURES, "prefill_8": (step(8, tokens="embeddings") | {"mask": (FLOAT32, [8])}, CACHE)},
        "'prefill_8': its inputs are not those of decode",
    ),
    "no cache": (
        {"prefill": (WITHOUT_CACHE, {}), "decode": (WITHOUT_CACHE, LOGITS)},
        "no KV cache inputs found: expected kv_cache_k_{layer}, kv_cache_v_{layer} or k_cache_{layer}, v_cache_{layer} "
        "for every layer from 0, got input_pos, tokens",
    ),
    "a layer is missing": (
        {"prefill": (step(8), CACHE), "decode": (step(1, {k: v for k, v in CACHE.items() if k[-3:] != "v_1"}), LOGITS)},
        "got kv_cache_k_0, kv_cache_k_1, kv_cache_v_0",
    ),
    "the cache stays inside": (
        {"prefill": (step(8), CACHE), "decode": (step(1), LOGITS)},
        "the KV cache goes in but does not come out: kv_cache_k_0, kv_cache_k_1, kv_cache_v_0, kv_cache_v_1",
    ),
    "the cache changes": (
        {**SIGNATURES, "decode": (step(1), {**LOGITS, **cache([1, 127, 1, 32], [1, 127, 1, 32])})},
        "kv_cache_k_0 does not come out in the shape and type it goes in with",
    ),
    "two caches": (
        {**SIGNATURES, "prefill_8": (step(8, kv := cache([1, 64, 1, 32], [1, 64, 1, 32])), kv)},
        "'prefill_8': its KV cache is not that of decode",
    ),
    "no fixed length": (
        {**SIGNATURES, "prefill_8": ({**step(8), "input_pos": (INT32, [-1])}, CACHE)},
        r"input_pos: expected a fixed number of tokens as its last dimension, got shape \[-1\]",
    ),
}


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_signatures_that_no_runtime_knows_are_refused(name: str) -> None:
    signatures, reason = UNKNOWN[name]
    pattern = reason if re.search(r"\.\*|\\", reason) else re.escape(reason)
    with pytest.raises(UnsupportedModelError, match=pattern):
        called(litert_model(signatures))


def entry(name: str, **more: Any) -> dict[int, Any]:
    return {2: name, **{int(field.removeprefix("field_")): value for field, value in more.items()}}


GRAPH = {0: [{0: [1], 3: "x"}], 3: [{0: Scalar("I", 0)}]}
MAP = {0: "x", 1: Scalar("I", 0)}
BROKEN: dict[str, tuple[bytes, type[HearthLMError], str]] = {
    "empty": (b"", TruncatedFileError, "identifier: expected 8 bytes"),
    "another file": (b"\x08\0\0\0TFL2" + bytes(8), CorruptFileError, "expected b'TFL3' at offset 4"),
    "a .bin": (litert_model(field_2=[{4: "GEMMA_2B"}]), UnsupportedModelError, "a MediaPipe .bin needs no bundle"),
    "weights beyond the end": (
        litert_model(field_4=[{1: Scalar("Q", 4096), 2: Scalar("Q", 1 << 40)}]),
        TruncatedFileError,
        "data of a buffer: expected 1099511627776 bytes at offset 4096",
    ),
    "a signature twice": (
        litert_model(field_2=[GRAPH], field_7=[entry("a"), entry("a")]),
        CorruptFileError,
        "signature 'a': appears twice",
    ),
    "a subgraph that is not there": (
        litert_model(field_2=[GRAPH], field_7=[entry("a", field_4=Scalar("I", 1))]),
        CorruptFileError,
        "signature 'a': subgraph 1 is out of range, there are 1",
    ),
    "a tensor that is not there": (
        litert_model(field_2=[GRAPH], field_7=[entry("a", field_0=[{0: "x", 1: Scalar("I", 1)}])]),
        CorruptFileError,
        "tensor 1 is out of range, there are 1",
    ),
    "an input twice": (
        litert_model(field_2=[GRAPH], field_7=[entry("a", field_0=[MAP, MAP])]),
        CorruptFileError,
        "'x' appears twice",
    ),
    "an impossible shape": (
        litert_model(field_2=[{**GRAPH, 0: [{0: [-2], 3: "x"}]}], field_7=[entry("a", field_0=[MAP])]),
        CorruptFileError,
        r"the impossible shape \[-2\]",
    ),
    "too many dimensions": (
        litert_model(field_2=[{**GRAPH, 0: [{0: [1] * 9, 3: "x"}]}], field_7=[entry("a", field_0=[MAP])]),
        CorruptFileError,
        "the impossible shape",
    ),
    "too many signatures": (
        litert_model(field_2=[GRAPH], field_7=[entry(str(i)) for i in range(257)]),
        CorruptFileError,
        "expected at most 256 signatures, got 257",
    ),
    "too many inputs": (
        litert_model(field_2=[GRAPH], field_7=[entry("a", field_0=[MAP] * 16_385)]),
        CorruptFileError,
        "expected at most 16384 inputs and outputs in all",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_model_is_refused(name: str) -> None:
    data, error, reason = BROKEN[name]
    with pytest.raises(error, match=reason):
        read_litert_model(data, "m")


def test_a_model_cut_short_is_refused_or_says_the_same() -> None:
    whole = litert_model()
    for size in range(len(whole)):
        try:
            assert called(whole[:size]) == called(whole)
        except (CorruptFileError, TruncatedFileError):
            continue
        assert size > len(whole) * 0.9  # where nothing but operators and their names lies
    data = real("gemma3_q8_ekv128")
    for size in range(0, len(data) - 64, 9973):
        with pytest.raises((CorruptFileError, TruncatedFileError)):
            read_litert_model(data[:size], "m")
