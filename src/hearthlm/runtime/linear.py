"""y = x W^T + b: the one place that knows in which type weights and activations meet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.quantization import WeightMatrix


class Activations:
    """Hold float32 rows [m, k] and, once somebody asks, their int8 form, shared by all who read the same rows."""

    __slots__ = ("_pool", "_quantized", "values")

    def __init__(self, values: NDArray[np.float32], pool: kernels.ThreadPool) -> None:
        self.values = values
        self._pool = pool
        self._quantized: kernels.QuantizedRows | None = None

    def quantized(self) -> kernels.QuantizedRows:
        if self._quantized is None:
            self._quantized = kernels.quantize_rows(self.values, self._pool)
        return self._quantized


class Linear:
    """Multiply by one weight matrix [out, in].

    Quantised weights meet int8 activations (one scale per row) unless `float_activations`; float weights always meet
    float ones.
    """

    __slots__ = ("_pool", "_quantizes", "bias", "weight")

    def __init__(
        self,
        weight: WeightMatrix,
        bias: NDArray[np.float32] | None,
        pool: kernels.ThreadPool,
        *,
        float_activations: bool,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self._pool = pool
        self._quantizes = weight.is_quantized and not float_activations

    def __call__(self, x: Activations) -> NDArray[np.float32]:
        """Return float32 [m, out]."""
        return kernels.linear(x.quantized() if self._quantizes else x.values, self.weight, self.bias, self._pool)
