"""Rounding that makes up for its own errors: each column's is carried into those not yet rounded.

GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): for inputs with second moments H = E[x x^T], the columns
of a matrix are rounded one after the other, and what a column's rounding does to the output is undone, as far as it
can be, by the columns to come. Rows are independent of each other.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

_BLOCK_COLUMNS = 32
_PANEL_ROWS = 256


class ErrorCompensation:
    """Hold what rounding needs to know of the inputs of a matrix [out, num_inputs].

    `second_moments` is the diagonal of H, float32 [num_inputs].
    """

    def __init__(
        self, second_moments: NDArray[np.float32], order: NDArray[np.intp], factor: NDArray[np.float32]
    ) -> None:
        self.second_moments = second_moments
        self._order = order  # columns as they are rounded
        self._factor = factor  # U, upper triangular in that order: the inverse of H is U^T U

    @classmethod
    def from_hessian(cls, hessian: NDArray[np.float32], *, damping: float = 0.01) -> Self:
        """Prepare the compensation for inputs with H, float32 [num_inputs, num_inputs], any multiple of E[x x^T].

        `damping` times the mean of H's diagonal is added to it. Columns with the largest inputs are rounded first.
        Raises ValueError for values that are not finite.
        """
        num_inputs = len(hessian)
        diagonal = np.diagonal(hessian).astype(np.float32)
        if hessian.shape != (num_inputs, num_inputs) or not np.all(np.isfinite(diagonal)):
            raise ValueError("hessian: expected a square matrix of finite values")
        order = np.argsort(-diagonal, kind="stable")
        h = hessian[np.ix_(order, order)].astype(np.float64)
        mean = float(diagonal.mean(dtype=np.float64))
        # An input that is always zero says nothing about its column, which is then rounded by itself.
        h[np.diag_indices(num_inputs)] += damping * mean if mean > 0 else 1.0
        # With J the reversal of order, J H J = L L^T gives inverse(H) = U^T U for U = J inverse(L) J, which is upper
        # triangular: one factorisation and one triangular inverse.
        lower = np.linalg.cholesky(h[::-1, ::-1])
        del h
        factor = np.linalg.solve(lower, np.eye(num_inputs))[::-1, ::-1]
        return cls(diagonal, order, np.triu(factor).astype(np.float32))

    @property
    def num_inputs(self) -> int:
        return len(self._order)

    def round(
        self, weights: NDArray[np.float32], scales: NDArray[np.float32], *, lowest: int, highest: int
    ) -> NDArray[np.int8]:
        """Return int8 [out, num_inputs] in [lowest, highest], to be multiplied by `scales`, float32 [out]."""
        q = np.empty(weights.shape, np.int8)
        for first in range(0, len(weights), _PANEL_ROWS):
            rows = slice(first, first + _PANEL_ROWS)
            q[rows] = self._round_panel(weights[rows], scales[rows], lowest, highest)
        return q

    def _round_panel(
        self, weights: NDArray[np.float32], scales: NDArray[np.float32], lowest: int, highest: int
    ) -> NDArray[np.int8]:
        # Always of the same number of rows: the library that multiplies matrices may sum in another order for another.
        panel = np.zeros((self.num_inputs, _PANEL_ROWS), np.float32)  # a column of the weights is a row here
        panel[:, : len(weights)] = weights.T[self._order]
        scale = np.ones(_PANEL_ROWS, np.float32)
        scale[: len(scales)] = scales
        u = self._factor
        q = np.empty((self.num_inputs, len(weights)), np.int8)
        for begin in range(0, self.num_inputs, _BLOCK_COLUMNS):
            end = min(begin + _BLOCK_COLUMNS, self.num_inputs)
            errors = np.zeros((end - begin, _PANEL_ROWS), np.float32)
            for j in range(begin, end):
                w = panel[j] - u[begin:j, j] @ errors[: j - begin]
                rounded = np.clip(np.rint(w / scale), lowest, highest)
                q[j] = rounded[: len(weights)]
                errors[j - begin] = (w - rounded * scale) / u[j, j]
            panel[end:] -= u[begin:end, end:].T @ errors
        result = np.empty(weights.shape, np.int8)
        result[:, self._order] = q.T
        return result
