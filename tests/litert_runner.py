"""LiteRT language models run as any runtime would: signature by signature, the caches carried from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCKED = np.float32(-0.7) * np.finfo(np.float32).max  # what LiteRT-LM writes into masks


class LiteRtRunner:
    """Run one model through ai-edge-litert's Interpreter; `length` tokens are in the caches."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=1)
        self.signatures: dict[str, Any] = self._interpreter.get_signature_list()
        self._runners = {name: self._interpreter.get_signature_runner(name) for name in self.signatures}
        inputs = self._runners["decode"].get_input_details()
        self._cache_length = int(inputs["mask"]["shape"][-1])
        self._caches: dict[str, NDArray[np.float32]] = {
            name: np.zeros(tensor["shape"], np.float32)
            for name, tensor in inputs.items()
            if name.startswith("kv_cache_")
        }
        self.length = 0

    def prefill(self, ids: Sequence[int], num_tokens: int) -> None:
        """Take `ids` in by the signature for `num_tokens`, filled up as LiteRT-LM does it."""
        outputs = self._call(f"prefill_{num_tokens}", list(ids), num_tokens)
        assert outputs.keys() == self._caches.keys()
        self._caches = outputs

    def decode(self, token: int) -> NDArray[np.float32]:
        """Take one token in and return the logits after it, [vocabulary]."""
        outputs = self._call("decode", [token], 1)
        logits: NDArray[np.float32] = outputs.pop("logits")
        assert logits.shape[:2] == (1, 1)
        self._caches = outputs
        row: NDArray[np.float32] = logits[0, 0]
        return row

    def logits(self, ids: Sequence[int], prefills: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Return the logits of those of `ids` that decode takes in: `prefills` are pairs of length and used part."""
        for num_tokens, used in prefills:
            self.prefill(ids[self.length : self.length + used], num_tokens)
        return np.stack([self.decode(token) for token in ids[self.length :]])

    def _call(self, signature: str, ids: list[int], num_tokens: int) -> dict[str, NDArray[np.float32]]:
        positions = range(self.length, self.length + len(ids))
        tokens, input_pos = np.zeros((1, num_tokens), np.int32), np.zeros(num_tokens, np.int32)
        mask = np.full((1, 1, num_tokens, self._cache_length), BLOCKED, np.float32)
        tokens[0, : len(ids)], input_pos[: len(ids)] = ids, positions
        for row, position in enumerate(positions):
            mask[0, 0, row, : position + 1] = 0
        self.length += len(ids)
        result: dict[str, NDArray[np.float32]] = self._runners[signature](
            tokens=tokens, input_pos=input_pos, mask=mask, **self._caches
        )
        return result
