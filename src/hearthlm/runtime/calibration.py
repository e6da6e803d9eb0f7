"""What the inputs of every matrix of a float model look like while it reads a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.models.params import Architecture
from hearthlm.runtime.error_compensation import DAMPING, ErrorCompensation
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.linear import Observer
from hearthlm.runtime.transformer import TransformerExecutor
from hearthlm.runtime.weights import Weights
from hearthlm.tokenizers import Tokenizer

SEQUENCE_LENGTH = 128
MAX_TOKENS = 4096
TIED_DAMPING = 2.0

_LAYER_ROLE = re.compile(r"layers\.(\d+)\.")


def calibration_ids(tokenizer: Tokenizer, start_id: int | None) -> list[list[int]]:
    """Return the text that ships with the package in sequences of SEQUENCE_LENGTH ids, at most MAX_TOKENS of the text.

    It is prose, talk, code, tables and several languages. Each sequence begins with `start_id`, if there is one.
    """
    text = (resources.files("hearthlm") / "data" / "calibration.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)[:MAX_TOKENS]
    prefix = [] if start_id is None else [start_id]
    step = SEQUENCE_LENGTH - len(prefix)
    return [[*prefix, *ids[first : first + step]] for first in range(0, len(ids), step)]


def generated_ids(
    architecture: Architecture,
    weights: Weights,
    starts: Sequence[Sequence[int]],
    *,
    num_threads: int,
    seed: int = 0,
    observe: Observer | None = None,
) -> list[list[int]]:
    """Continue all of `starts`, until the first has SEQUENCE_LENGTH ids, as the model itself would, at temperature 1.

    What a model was trained on is what it says: calibrated with its own words as well, it stays nearer to itself. All
    sequences are continued together, and every step reads all the weights. `observe` is shown the inputs of every
    matrix before it is read.
    """
    executor = TransformerExecutor(architecture, weights, num_threads=num_threads, observe=observe)
    generator = np.random.Generator(np.random.Philox(seed))
    try:
        states = [executor.new_state() for _ in starts]
        sequences = [list(start) for start in starts]
        latest = [list(start) for start in starts]
        while len(sequences[0]) < SEQUENCE_LENGTH:
            results = executor.forward(
                [ForwardRequest(state, ids, "last") for state, ids in zip(states, latest, strict=True)]
            )
            drawn = generator.random(len(results))
            for i, logits in enumerate(results):
                assert logits is not None  # asked for
                chances = np.cumsum(np.exp(logits[0] - logits[0].max(), dtype=np.float64))
                chosen = int(np.searchsorted(chances, drawn[i] * chances[-1], side="right"))
                latest[i] = [min(chosen, len(chances) - 1)]  # the product may be rounded up to the sum
                sequences[i] += latest[i]
    finally:
        executor.close()
    return sequences


class Calibration:
    """Follow `sequences` through a float model, one layer at a time, and compensate the rounding of each matrix.

    Layers must be asked for in order; the matrices of one in any order. In memory are the rows between two layers, the
    inputs of one layer's matrices, float32 [tokens, in] each, and while a layer is computed its keys and values. Close
    it, or use it as a context manager.
    """

    def __init__(
        self, architecture: Architecture, weights: Weights, sequences: Sequence[Sequence[int]], *, num_threads: int
    ) -> None:
        self._architecture = architecture
        self._weights = weights
        self._sequences = sequences
        self._num_threads = num_threads
        self._pool = kernels.ThreadPool(num_threads)
        self._rows: NDArray[np.float32] | None = None  # after layer `_layer`
        self._layer = -1
        self._inputs: dict[str, NDArray[np.float32]] = {}
        self._made: tuple[NDArray[np.float32], ErrorCompensation] | None = None

    def inputs(self, role: str) -> NDArray[np.float32]:
        """Return the rows that the matrix of `role`, as in TensorSpec, was multiplied by, [tokens, in].

        For an embedding that is also what computes the logits, they are those of the logits. Raises ValueError for a
        layer before the last one asked for and for a role that has no inputs.
        """
        matched = _LAYER_ROLE.match(role)
        last = len(self._architecture.layers)
        if matched is None:
            layer, name = last, "logits"
            if role != ("embedding" if self._architecture.tied_embedding else "logits"):
                raise ValueError(f"role: {role!r} has no inputs")
        else:
            layer, name = int(matched[1]), role[matched.end() :]
        if layer < self._layer or (matched is not None and layer >= last):
            raise ValueError(f"role: {role!r} was asked for after layer {self._layer} of {last}; layers go in order")
        while self._layer < layer:
            self._advance()
        if name not in self._inputs:
            raise ValueError(f"role: {role!r} has no inputs")
        return self._inputs[name]

    def compensation(self, role: str) -> ErrorCompensation:
        """Return what rounding the matrix of `role` has to know of its inputs; raises what `inputs` does.

        An embedding that also computes the logits is compensated for these, but less: its rows are themselves what the
        first layer reads.
        """
        inputs = self.inputs(role)
        if self._made is None or self._made[0] is not inputs:
            damping = TIED_DAMPING if role == "embedding" else DAMPING
            self._made = inputs, ErrorCompensation.from_inputs(inputs, self._pool, damping=damping)
        return self._made[1]

    def _advance(self) -> None:
        """Compute the next layer, or the rows of the logits after the last one, and keep the inputs."""
        self._inputs, self._made = {}, None
        self._layer += 1
        is_last = self._layer == len(self._architecture.layers)
        # A model of one layer; of the last one again, for its final norm and logits.
        i = min(self._layer, len(self._architecture.layers) - 1)

        seen: list[NDArray[np.float32]] = []  # the last rows and their copy: several matrices read the same

        def keep(role: str, rows: NDArray[np.float32]) -> None:
            if not seen or seen[0] is not rows:
                seen[:] = rows, rows.copy()
            matched = _LAYER_ROLE.match(role)
            if matched is not None:
                self._inputs[role[matched.end() :]] = seen[1]

        executor = TransformerExecutor(
            replace(self._architecture, layers=(self._architecture.layers[i],)),
            replace(self._weights, layers=(self._weights.layers[i],)),
            num_threads=self._num_threads,
            observe=keep,
        )
        try:
            requests = [ForwardRequest(executor.new_state(), ids, "hidden") for ids in self._sequences]
            if self._rows is None:
                self._rows = executor.embed(requests)
            if is_last:
                self._inputs["logits"] = executor.normalize(self._rows)
            else:
                self._rows = executor.run_layers(self._rows, requests)
        finally:
            executor.close()

    def close(self) -> None:
        self._inputs, self._made, self._rows = {}, None, None
        self._pool.close()

    def __enter__(self) -> Calibration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
