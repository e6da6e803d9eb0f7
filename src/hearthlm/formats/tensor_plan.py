"""A tensor that is written before it exists: its size is known, its values come piece by piece."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from hearthlm.quantization import WeightMatrix, WeightType

_PIECE_VALUES = 1 << 21  # of a tensor that is being written


@dataclass(frozen=True)
class TensorPlan:
    """Declare a tensor to be written before it exists: its size is known, its values are not yet.

    `shape` is (out, in) for a matrix and (n,) or (1, 1, n) for a vector, which is float32. `produce(first, last)`
    returns the rows [first, last) of a matrix as a WeightMatrix of `dtype`, or those values of a vector as float32. It
    is called once for each piece, from several threads at a time if the writer has them. A quantised matrix brings its
    scales, and zero points exactly if `has_zero_points`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: WeightType
    produce: Callable[[int, int], WeightMatrix | NDArray[np.float32]]
    has_zero_points: bool = False

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"{self.name}: shape: expected positive dimensions, got {self.shape}")
        if self.dtype == "bfloat16" or (self.dtype != "float32" and not self.is_matrix):
            raise ValueError(f"{self.name}: a tensor {list(self.shape)} cannot be stored as {self.dtype}")
        if self.has_zero_points and self.dtype not in ("int8", "int4"):
            raise ValueError(f"{self.name}: has_zero_points: expected False for {self.dtype}")

    @classmethod
    def of(cls, name: str, value: WeightMatrix | NDArray[np.float32], shape: tuple[int, ...] | None = None) -> Self:
        """Plan a tensor that is in memory already, a vector under another `shape` if given."""
        if isinstance(value, WeightMatrix):
            return cls(name, value.shape, value.dtype, value.rows, value.zero_points is not None)
        return cls(name, shape or value.shape, "float32", lambda first, last: value.reshape(-1)[first:last])

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of rows, or of values, in which the tensor is produced."""
        count, size = (self.shape[0], self.shape[1]) if self.is_matrix else (math.prod(self.shape), 1)
        step = max(4, _PIECE_VALUES // size // 4 * 4) if self.is_matrix else count  # 4 rows share a block
        for first in range(0, count, step):
            yield first, min(first + step, count)


def produced_pieces(
    plan: TensorPlan, pool: ThreadPoolExecutor, num_threads: int
) -> Iterator[tuple[int, int, Callable[[], WeightMatrix | NDArray[np.float32]]]]:
    """Yield the pieces of a tensor in order, each as a function that waits for it; some are under way ahead."""
    if num_threads <= 1:
        for first, last in plan.pieces():
            yield first, last, partial(plan.produce, first, last)
        return
    waiting: deque[tuple[int, int, Future[WeightMatrix | NDArray[np.float32]]]] = deque()
    for first, last in plan.pieces():
        waiting.append((first, last, pool.submit(plan.produce, first, last)))
        if len(waiting) > num_threads:
            begin, end, future = waiting.popleft()
            yield begin, end, future.result
    while waiting:
        begin, end, future = waiting.popleft()
        yield begin, end, future.result


def write_at(file: BinaryIO, offset: int, data: bytes | NDArray[Any]) -> None:
    """Write `data` at `offset` of a file that several may be writing to."""
    view = memoryview(data) if isinstance(data, bytes) else np.ascontiguousarray(data).data.cast("B")
    while view.nbytes:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written
