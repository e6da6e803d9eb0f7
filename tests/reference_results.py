"""Runs transformers (eager, float32) on the random models and stores what it answers, for tests without torch.

python tests/reference_results.py [NAME ...]      rewrites tests/golden/references.npz, or what it says of these models
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids, random_tensors

from hearthlm.models import read_config
from hearthlm.quantization import dequantize, quantize
from hearthlm.runtime.checkpoint_source import rows_of, view_of

STORED = Path(__file__).parent / "golden" / "references.npz"
NUM_IDS = 200
NUM_PROMPT_IDS = 24
NUM_GREEDY_IDS = 40


def transformers_model(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> Any:
    """Return transformers' own model with these weights, float32, eager attention.

    With ALiBi sdpa instead: eager adds the bias twice, to the scores and, folded into the mask, once more
    (transformers 5), and no Falcon was trained so.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: value for name, value in config.items() if name != "architectures"}
    torch_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    attention = "sdpa" if config.get("alibi") else "eager"
    model = AutoModelForCausalLM.from_config(torch_config, attn_implementation=attention, dtype=torch.float32)
    state = {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name == "lm_head.weight" for name in missing), missing
    model.tie_weights()
    return model.eval()


def reference_logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """Return float32 [len(ids), vocab_size]."""
    import torch

    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].float().numpy()
    return logits


def logprobs_of(logits: NDArray[np.float32], ids: list[int]) -> NDArray[np.float32]:
    """Return float32 [len(ids) - 1], computed in float64."""
    wide = logits[:-1].astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    picked = wide[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(wide).sum(axis=1))
    return picked.astype(np.float32)


def greedy_ids(model: Any, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Return the greedy continuation and the smallest distance between the two best logits on the way."""
    ids, gap = list(prompt), np.inf
    for _ in range(count):
        logits = reference_logits(model, ids)[-1]
        second, first = np.partition(logits, -2)[-2:]
        gap = min(gap, float(first - second))
        ids.append(int(np.argmax(logits)))
    return ids[len(prompt) :], gap


def quantized(config: dict[str, Any], bits: int) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a random model with its matrices quantised to `bits` and widened again."""
    tensors = random_tensors(config)
    family, architecture = read_config(config)
    for spec in family.tensors(architecture):
        if len(spec.shape) == 2:
            stored = tensors[spec.checkpoint_name]
            view = view_of(stored, spec)
            view[...] = dequantize(quantize(rows_of(stored, spec), bits)).reshape(view.shape)
    return tensors


def compute(names: Iterable[str] = CONFIGS) -> dict[str, NDArray[Any]]:
    """Return for each model `<name>/logprobs`, `/greedy` and, on dequantised weights, `/logprobs_int8` and `_int4`."""
    results: dict[str, NDArray[Any]] = {}
    for name in names:
        config = CONFIGS[name]
        model = transformers_model(config, random_tensors(config))
        ids = random_ids(config, NUM_IDS)
        logits = reference_logits(model, ids)
        greedy, gap = greedy_ids(model, ids[:NUM_PROMPT_IDS], NUM_GREEDY_IDS)
        print(f"{name}: logits spread by {logits.std():.2f}, {len(set(greedy))} different ids, smallest gap {gap:.4f}")
        if gap < 1e-3:
            raise SystemExit(f"{name}: the two best logits are too close for a test; change a dimension")
        results[f"{name}/logprobs"] = logprobs_of(logits, ids)
        results[f"{name}/greedy"] = np.array(greedy, dtype=np.int32)
        for bits in (4, 8):
            logits = reference_logits(transformers_model(config, quantized(config, bits)), ids)
            results[f"{name}/logprobs_int{bits}"] = logprobs_of(logits, ids)
    return results


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(CONFIGS)
    kept = dict(np.load(STORED)) if STORED.exists() else {}
    kept = {key: values for key, values in kept.items() if key.split("/")[0] in CONFIGS}
    np.savez_compressed(STORED, **kept | compute(wanted))
