"""A PyTorch module of no known family becomes a LiteRT model, through litert-torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert_runner import LiteRtRunner

from hearthlm.exporter import export_torch_module
from hearthlm.formats.litert_model import llm_signatures, read_litert_model

VOCABULARY, SIZE, HEADS, HEAD_DIM, CACHE = 96, 32, 2, 16, 48


def small_module() -> Any:
    """Return one layer that no family has: squared ReLU, positions added, no norm."""
    torch = pytest.importorskip("torch")

    class Small(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(VOCABULARY, SIZE)
            self.positions = torch.nn.Embedding(CACHE, SIZE)
            self.projection = torch.nn.Linear(SIZE, 3 * HEADS * HEAD_DIM)
            self.output = torch.nn.Linear(HEADS * HEAD_DIM, SIZE)
            self.up, self.down = torch.nn.Linear(SIZE, 64), torch.nn.Linear(64, SIZE)
            self.head = torch.nn.Linear(SIZE, VOCABULARY)

        def forward(self, tokens: Any, input_pos: Any, mask: Any, keys: list[Any], values: list[Any]) -> Any:
            x = self.embedding(tokens) + self.positions(input_pos)
            length = tokens.shape[1]
            query, key, value = self.projection(x).view(1, length, 3, HEADS, HEAD_DIM).unbind(2)
            # Not at input_pos: places that are filled up carry position 0.
            places = input_pos[:1].long() + torch.arange(length)
            k = keys[0].index_copy(2, places, key.transpose(1, 2))
            v = values[0].index_copy(3, places, value.permute(0, 2, 3, 1))
            scores = query.transpose(1, 2) @ k.transpose(2, 3) * HEAD_DIM**-0.5 + mask
            attended = scores.softmax(-1) @ v.transpose(2, 3)
            x = x + self.output(attended.transpose(1, 2).reshape(1, length, -1))
            x = x + self.down(self.up(x).relu().square())
            return self.head(x), [k], [v]

    torch.manual_seed(0)
    return Small().eval()


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")  # torch and its exporter warn about themselves
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_module_answers_in_litert_as_in_torch(quantization: Any, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason='pip install "hearthlm[torch]"')
    torch = pytest.importorskip("torch")
    module, path = small_module(), tmp_path / "model.tflite"
    export_torch_module(
        module,
        path,
        num_layers=1,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        prefill_lengths=(8, 16),
        cache_length=CACHE,
        quantization=quantization,
    )
    signatures = llm_signatures(read_litert_model(path.read_bytes(), "model"), "model")
    assert dict(signatures.prefill_lengths) == {"prefill_16": 16, "prefill_8": 8}
    assert signatures.kv_cache is not None and signatures.kv_cache.num_tokens == CACHE
    ids = [int(i) for i in np.random.default_rng(0).integers(1, VOCABULARY, 32)]
    mask = torch.full((1, 1, 32, CACHE), -1e30).triu(1)
    caches = torch.zeros(1, HEADS, CACHE, HEAD_DIM), torch.zeros(1, HEADS, HEAD_DIM, CACHE)
    with torch.no_grad():
        expected = module(torch.tensor([ids]), torch.arange(32), mask, [caches[0]], [caches[1]])[0][0, 21:].numpy()
    logits = LiteRtRunner(path).logits(ids, [(16, 16), (8, 5)])
    np.testing.assert_allclose(logits, expected, atol=1e-4 if quantization == "none" else 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers: expected a positive integer, got 0"),
        ({"quantization": "int4"}, "quantization: expected one of none, int8, got 'int4'"),
        ({"cache_length": 8, "prefill_lengths": [16]}, "prefill_lengths: expected at most 8"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 16, **arguments}
    with pytest.raises(ValueError, match=message):
        export_torch_module(None, tmp_path / "m.tflite", **given)
