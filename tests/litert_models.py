"""The structure of LiteRT language models, without weights: as much as a bundler looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hearthlm.formats.flatbuffer import Scalar, build_flatbuffer

FLOAT32, INT32 = 0, 2

Tensors = Mapping[str, tuple[int, list[int]]]


def cache(
    key: list[int], value: list[int], layers: int = 2, names: tuple[str, str] = ("kv_cache_k_{}", "kv_cache_v_{}")
) -> dict[str, tuple[int, list[int]]]:
    """Return the KV cache tensors of a model."""
    found = {}
    for layer in range(layers):
        found[names[0].format(layer)] = (FLOAT32, key)
        found[names[1].format(layer)] = (FLOAT32, value)
    return found


CACHE = cache([1, 128, 1, 32], [1, 128, 1, 32])


def step(length: int, kv: Tensors = CACHE, *, tokens: str = "tokens", positions: str = "input_pos") -> dict[str, Any]:
    """Return the inputs of a signature that takes `length` tokens."""
    return {tokens: (INT32, [1, length]), positions: (INT32, [length]), **kv}


LOGITS: Tensors = {"logits": (FLOAT32, [1, 1, 64])}
SIGNATURES: dict[str, tuple[Tensors, Tensors]] = {
    "prefill_8": (step(8), CACHE),
    "decode": (step(1), {**LOGITS, **CACHE}),
}


def litert_model(signatures: Mapping[str, tuple[Tensors, Tensors]] = SIGNATURES, **changes: Any) -> bytes:
    """Return a flatbuffer with one subgraph for each signature; `changes` replace fields of the root by index."""
    subgraphs, entries = [], []
    for index, (name, (inputs, outputs)) in enumerate(signatures.items()):
        tensors = [*inputs.items(), *outputs.items()]
        subgraphs.append(
            {
                0: [{0: shape, 1: Scalar("B", kind), 3: tensor} for tensor, (kind, shape) in tensors],
                3: [{0: Scalar("I", 0)}],
                4: name,
            }
        )
        maps = [{0: tensor, 1: Scalar("I", i)} for i, (tensor, _) in enumerate(tensors)]
        entries.append({0: maps[: len(inputs)], 1: maps[len(inputs) :], 2: name, 4: Scalar("I", index)})
    fields: dict[int, Any] = {0: Scalar("I", 3), 2: subgraphs, 4: [{1: Scalar("Q", 0)}], 7: entries}
    for field, value in changes.items():
        fields[int(field.removeprefix("field_"))] = value
    return build_flatbuffer({i: value for i, value in fields.items() if value is not None}, b"TFL3")
