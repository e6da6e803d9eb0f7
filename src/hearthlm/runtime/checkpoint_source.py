"""The tensors of a model out of a checkpoint, under whatever prefix and in whatever fused tensor they lie there."""

from __future__ import annotations

from os import PathLike
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import TensorMismatchError
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.models.family import TensorSpec
from hearthlm.quantization import WeightMatrix, dequantize

_T = TypeVar("_T", bound=np.generic)


def view_of(stored: NDArray[_T], spec: TensorSpec) -> NDArray[_T]:
    """Return the rows of `spec` in a checkpoint's tensor as a view [num_groups, rows of each, in]."""
    rows = spec.checkpoint_rows
    values = stored.T if rows.transposed else stored
    count = spec.shape[0] // rows.num_groups
    return values.reshape(rows.num_groups, -1, *values.shape[1:])[:, rows.begin : rows.begin + count]


def rows_of(stored: NDArray[_T], spec: TensorSpec) -> NDArray[_T]:
    """Return the tensor of `spec` [out, in] out of a checkpoint's; copied only if its rows are not one piece there."""
    return np.ascontiguousarray(view_of(stored, spec).reshape(spec.shape))


class CheckpointSource:
    """Give out the tensors of an open checkpoint."""

    def __init__(self, path: str | PathLike[str], file: Checkpoint) -> None:
        self.path = path
        self._file = file
        self._names = frozenset(file.names)

    def matrix(self, spec: TensorSpec) -> WeightMatrix:
        matrix = self._stored(spec)
        return WeightMatrix(matrix.dtype, (spec.shape[0], spec.shape[1]), rows_of(matrix.data, spec))

    def rows(self, spec: TensorSpec, first: int, last: int) -> NDArray[np.float32]:
        """Return the rows [first, last) of a matrix as float32 [last - first, in], reading no others."""
        matrix, where = self._stored(spec), spec.checkpoint_rows
        values = matrix.data.T if where.transposed else matrix.data
        count = spec.shape[0] // where.num_groups
        row = np.arange(first, last)
        at = row // count * (len(values) // where.num_groups) + where.begin + row % count
        is_one_piece = where.num_groups == 1
        part = np.ascontiguousarray(values[int(at[0]) : int(at[-1]) + 1] if is_one_piece else values[at])
        return dequantize(WeightMatrix(matrix.dtype, (last - first, spec.shape[1]), part))

    def vector(self, spec: TensorSpec) -> NDArray[np.float32]:
        vector = self._file.vector(self.name_of(spec))
        self._check(spec, vector.shape)
        return rows_of(vector, spec)

    def find(self, name: str) -> str | None:
        """Return a tensor's name under the prefix that the checkpoint uses (text parts of larger models differ)."""
        bare = name.removeprefix("model.").removeprefix("transformer.")
        spellings = (name, f"language_model.{name}", f"model.language_model.{bare}", f"base_model.model.{name}", bare)
        return next((spelling for spelling in spellings if spelling in self._names), None)

    def name_of(self, spec: TensorSpec) -> str:
        """Return what the checkpoint calls the tensor of `spec`; raises TensorMismatchError where it has none."""
        name = self.find(spec.checkpoint_name)
        if name is None:
            raise TensorMismatchError(
                f"{self.path}: the model needs the tensor {spec.checkpoint_name} {list(spec.checkpoint_rows.shape)}, "
                "and the checkpoint has none of that name"
            )
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor under the name that the checkpoint uses."""
        return self._file.shape(name)

    def check(self, spec: TensorSpec) -> None:
        """Raise TensorMismatchError where the tensor of `spec` is missing or has another shape."""
        self._check(spec, self._file.shape(self.name_of(spec)))

    def _stored(self, spec: TensorSpec) -> WeightMatrix:
        matrix = self._file.matrix(self.name_of(spec))
        self._check(spec, matrix.shape)
        return matrix

    def _check(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        rows = spec.checkpoint_rows
        if shape != rows.shape:
            raise TensorMismatchError(
                f"{self.path}: tensor {spec.checkpoint_name}: expected {list(rows.shape)} "
                f"({'in, out' if rows.transposed else 'out, in'}), got {list(shape)}"
            )

    def release_pages(self) -> None:
        self._file.release_pages()

    def close(self) -> None:
        self._file.close()
