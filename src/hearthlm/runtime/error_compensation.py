"""Rounding that makes up for its own errors: each column's is carried into those not yet rounded.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): for inputs with second moments H = E[x x^T], the columns
of a matrix are rounded one after the other, and what the rounding of one does to the output is undone, as far as it can
be, by those to come. Rows are independent of each other.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels

# Errors are carried within blocks of so many columns: the factors of a block take 48 MB at most while they are made.
MAX_BLOCK = 2048
# Of the mean square of the inputs, added to each: what a few thousand tokens say of the inputs is not to be believed.
DAMPING = 0.05
_INVERSE_BASE = 64


class ErrorCompensation:
    """Hold what rounding needs to know of the inputs of a matrix [out, num_inputs].

    `second_moments` are the mean squares of the inputs, float32 [num_inputs].
    """

    def __init__(
        self,
        second_moments: NDArray[np.float32],
        blocks: list[tuple[NDArray[np.intp], NDArray[np.float32]]],
        pool: kernels.ThreadPool,
    ) -> None:
        self.second_moments = second_moments
        self._blocks = blocks  # columns as they are rounded, and U for them: the inverse of H is U^T U
        self._pool = pool

    @classmethod
    def from_inputs(
        cls,
        inputs: NDArray[np.float32],
        pool: kernels.ThreadPool,
        *,
        damping: float = DAMPING,
        max_block: int = MAX_BLOCK,
    ) -> Self:
        """Prepare the compensation for inputs that were seen, float32 [tokens, num_inputs].

        `damping` times the mean square of all inputs is added to that of each. Columns with the largest inputs are
        rounded first. Raises ValueError for inputs that are not finite.
        """
        num_tokens, num_inputs = inputs.shape
        moments = np.einsum("ti,ti->i", inputs, inputs) / np.float32(max(1, num_tokens))
        if not np.all(np.isfinite(moments)):
            raise ValueError(f"inputs: column {int(np.argmin(np.isfinite(moments)))} holds a value that is not finite")
        mean = float(moments.mean(dtype=np.float64))
        order = np.argsort(-moments, kind="stable")
        blocks = []
        for columns in np.array_split(order, -(-num_inputs // max_block)):
            seen = inputs[:, columns]
            hessian = (seen.T @ seen).astype(np.float64)
            hessian /= max(1, num_tokens)
            # Inputs that are always zero say nothing about their columns, which then round each by itself.
            hessian[np.diag_indices(len(columns))] += damping * mean if mean > 0 else 1.0
            blocks.append((columns, _factor(hessian)))
        return cls(moments, blocks, pool)

    @property
    def num_inputs(self) -> int:
        return len(self.second_moments)

    def round(
        self, weights: NDArray[np.float32], scales: NDArray[np.float32], lowest: int, highest: int
    ) -> NDArray[np.int8]:
        """Return int8 [out, num_inputs] in [lowest, highest], to be multiplied by `scales`, float32 [out]."""
        q = np.empty(weights.shape, np.int8)
        for columns, factor in self._blocks:
            w = np.ascontiguousarray(weights[:, columns])
            q[:, columns] = kernels.round_compensated(w, factor, scales, lowest, highest, self._pool)
        return q


def _factor(hessian: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the upper triangular U with inverse(hessian) = U^T U.

    With J the reversal of order and J hessian J = L L^T, it is J inverse(L) J: one factorisation, one triangular
    inverse.
    """
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    return np.ascontiguousarray(_inverse_of_lower(lower)[::-1, ::-1], dtype=np.float32)


def _inverse_of_lower(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    size = len(lower)
    if size <= _INVERSE_BASE:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    result = np.zeros_like(lower)
    result[:half, :half] = _inverse_of_lower(lower[:half, :half])
    result[half:, half:] = _inverse_of_lower(lower[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (lower[half:, :half] @ result[:half, :half])
    return result
