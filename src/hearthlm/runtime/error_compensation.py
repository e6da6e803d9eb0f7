"""Rounding that makes up for its own errors: each column's is carried into those not yet rounded.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): for inputs with second moments H = E[x x^T], the columns
of a matrix are rounded one after the other, and what the rounding of one does to the output is undone, as far as it can
be, by those to come. Rows are independent of each other.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.quantization import WeightMatrix

# Errors are carried within blocks of so many columns: the factors of a block take 24 MB at most while they are made.
MAX_BLOCK = 1024
# Of the mean square of the inputs, added to each: what some thousand tokens say of them is not quite to be believed.
DAMPING = 0.01
_INVERSE_BASE = 64
_PARTS = (1.0, 0.94, 1.06, 0.88, 1.12, 0.82, 1.18)  # of the scale with the least error without compensation


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
        squares = np.einsum("ti,ti->t", inputs, inputs)
        if not np.all(np.isfinite(squares)):
            raise ValueError(f"inputs: row {int(np.argmin(np.isfinite(squares)))} holds a value that is not finite")
        # Every token counts the same: a norm after the matrix levels them, and the first may be 1000 times larger.
        sizes = np.sqrt(squares / np.float32(num_inputs))
        inputs = inputs / np.where(sizes > 0, sizes, 1).astype(np.float32)[:, None]
        moments = np.einsum("ti,ti->i", inputs, inputs) / np.float32(max(1, num_tokens))
        mean = float(moments.mean(dtype=np.float64))
        order = np.argsort(-moments, kind="stable")
        blocks = []
        for columns in np.array_split(order, -(-num_inputs // max_block)):
            seen = np.ascontiguousarray(inputs[:, columns].T)
            as_matrix = WeightMatrix("float32", (len(columns), num_tokens), seen)
            hessian = kernels.linear(seen, as_matrix, None, pool).astype(np.float64)
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
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return int8 [out, num_inputs] in [lowest, highest] and the scales, float32 [out], that it belongs to.

        Each row gets that scale around the given one with which the outputs' error is least.
        """
        best = np.empty(weights.shape, np.int8)
        best_scales, least = scales.copy(), np.full(len(weights), np.inf, np.float32)
        ordered = [(columns, factor, np.ascontiguousarray(weights[:, columns])) for columns, factor in self._blocks]
        q = np.empty_like(best)
        for part in _PARTS:
            tried = scales * np.float32(part)
            losses = np.zeros(len(weights), np.float32)
            for columns, factor, w in ordered:
                q[:, columns], loss = kernels.round_compensated(w, factor, tried, lowest, highest, self._pool)
                losses += loss
            is_better = losses < least
            least[is_better], best[is_better], best_scales[is_better] = (
                losses[is_better],
                q[is_better],
                tried[is_better],
            )
        return best, best_scales


def _factor(hessian: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the upper triangular U with inverse(hessian) = U^T U.

    With J the reversal of order and J hessian J = L L^T, it is J inverse(L) J: one factorisation, one triangular
    inverse.
    """
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    return np.ascontiguousarray(_inverse_of_lower(lower)[::-1, ::-1], dtype=np.float32)


def _inverse_of_lower(lower: NDArray[Any]) -> NDArray[Any]:
    size = len(lower)
    if size <= _INVERSE_BASE:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    result = np.zeros_like(lower)
    result[:half, :half] = _inverse_of_lower(lower[:half, :half])
    result[half:, half:] = _inverse_of_lower(lower[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (lower[half:, :half] @ result[:half, :half])
    return result
