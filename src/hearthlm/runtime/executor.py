"""What the engine needs of whatever computes tokens: a protocol with two implementations.

`transformer.py` runs weights on this package's kernels, `litert.py` a graph on ai-edge-litert. A state belongs to one
sequence and is used by one thread at a time; everything else about an executor is immutable and may be shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hearthlm.kernels import ThreadPool

Wanted = Literal["none", "last", "all", "hidden"]


class State(Protocol):
    """Hold what one sequence has seen so far."""

    @property
    def length(self) -> int:
        """The number of tokens that the state has seen."""

    def truncate(self, length: int) -> int:
        """Forget all but the first `length` tokens; return how many are left.

        That is `length`, or 0 where a sliding window has already dropped what `length` tokens would have to see:
        then the tokens must be fed again.
        """

    def fork(self) -> State:
        """Return an independent state with the same past; memory is shared until either side writes."""

    def save(self) -> dict[str, NDArray[Any]]:
        """Return a copy of everything that `Executor.load_state` needs, as named arrays."""

    def memory(self) -> Mapping[int, int]:
        """Return the bytes of each piece of memory that the state holds, by a number that forks share."""

    def close(self) -> None:
        """Give the memory back; the state must not be used afterwards."""


@dataclass(frozen=True)
class RowCost:
    """Say what a step costs at least: the limits that a machine sets.

    A step reads `weight_bytes` once, whatever its rows, and for each sequence `cache_bytes(position)`. A row is
    multiplied with `num_layer_weights` weights, those of the logits not counted, as integers if `is_int8`.
    """

    weight_bytes: int
    num_layer_weights: int
    is_int8: bool
    cache_bytes: Callable[[int], int]


@dataclass(frozen=True)
class ForwardRequest:
    """Ask for `ids` to be appended to `state`, and for the logits after none, the last or all of them.

    "hidden" asks for the rows that the logits of all would be computed from instead.
    """

    state: Any  # a State made by the same executor
    ids: Sequence[int]
    wanted: Wanted


class Executor(Protocol):
    """Compute logits for any number of sequences at once."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pool(self) -> ThreadPool:
        """The threads that compute; also used on the logits that come out."""

    @property
    def has_cheap_rows(self) -> bool:
        """Whether a few rows of one sequence cost little more than one, so that it pays to guess the next tokens."""

    @property
    def row_cost(self) -> RowCost | None:
        """What rows cost at least, None where that is not known."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that a state depends on: equal where a saved state may be continued.

        Weights enter by samples; another model, quantisation, fine-tune or type of cache or activations differs. The
        adapter of a state is not in it.
        """

    def new_state(self, adapter: Any = None) -> State:
        """Return the state of an empty sequence, all of which goes through `adapter`, one made for this model."""

    def load_state(self, length: int, arrays: Mapping[str, NDArray[Any]], adapter: Any = None) -> State:
        """Return a state of `length` tokens that goes on bit for bit like the one that `save` returned `arrays` of.

        Raises SessionFileError, before anything is allocated, for arrays of another name, type or shape.
        """

    def chunk_length(self, state: Any, num_ids: int, wanted: Wanted, budget: int) -> int:
        """Return how many of the next `num_ids`, at least 1, are best fed in a step that has `budget` rows left.

        `wanted` is what will be asked of all of them. More than `budget` where fewer would take as long.
        """

    def forward(self, requests: Sequence[ForwardRequest]) -> list[NDArray[np.float32] | None]:
        """Append every request's ids to its state; return float32 [wanted rows, vocab_size] or None per request.

        Of "hidden" the result is float32 [len(ids), embedding_dim], after the final norm.
        A result depends on the state's own tokens only: in whatever company bit for bit the same, and in whatever
        chunks too, or where a graph is run, but for the last bits of the floats. Each state may appear once.
        """

    def close(self) -> None:
        """Give the threads back."""
