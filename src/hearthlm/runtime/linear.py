"""y = x W^T + b: the one place that knows in which type weights and activations meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.quantization import WeightMatrix
from hearthlm.runtime.lora import LoraAdapter

Observer = Callable[[str, NDArray[np.float32]], None]


class AdaptedRows(NamedTuple):
    """Say that the rows begin to end - 1 go through an adapter."""

    begin: int
    end: int
    adapter: LoraAdapter


class Activations:
    """Hold float32 rows [m, k] and, once somebody asks, their int8 form, shared by all who read the same rows.

    Everything that is computed from them goes through the kernels of `using`. With `rms_norm`, a weight [k] and an
    epsilon, they are what that makes of the rows given, of which floats may never be wanted.
    """

    __slots__ = ("_norm", "_pool", "_quantized", "_values", "adapted", "using")

    def __init__(
        self,
        values: NDArray[np.float32],
        pool: kernels.ThreadPool,
        adapted: Sequence[AdaptedRows] = (),
        using: kernels.Kernels = kernels.chosen,
        *,
        rms_norm: tuple[NDArray[np.float32], float] | None = None,
    ) -> None:
        self.adapted = adapted
        self.using = using
        self._values = values
        self._norm = rms_norm
        self._pool = pool
        self._quantized: kernels.QuantizedRows | None = None

    @property
    def values(self) -> NDArray[np.float32]:
        if self._norm is not None:
            self._values = self.using.rms_norm(self._values, *self._norm, self._pool)
            self._norm = None
        return self._values

    def quantized(self) -> kernels.QuantizedRows:
        if self._quantized is None:
            if self._norm is None:
                self._quantized = self.using.quantize_rows(self._values, self._pool)
            else:
                self._quantized = self.using.rms_norm_quantize(self._values, *self._norm, self._pool)
        return self._quantized


class Linear:
    """Multiply by one weight matrix [out, in].

    Quantised weights meet int8 activations (one scale per row) unless `float_activations`; float weights always meet
    float ones. Rows with an adapter get what it has for the matrix of this `role`, in float. `observe` is shown the
    role and the rows, float32 [m, in], of every call.
    """

    __slots__ = ("_observe", "_pool", "_quantizes", "bias", "role", "weight")

    def __init__(
        self,
        weight: WeightMatrix,
        bias: NDArray[np.float32] | None,
        pool: kernels.ThreadPool,
        *,
        role: str,
        float_activations: bool,
        observe: Observer | None = None,
    ) -> None:
        self.role = role
        self.weight = weight
        self.bias = bias
        self._observe = observe
        self._pool = pool
        self._quantizes = weight.is_quantized and not float_activations

    def __call__(self, x: Activations) -> NDArray[np.float32]:
        """Return float32 [m, out]."""
        if self._observe is not None:
            self._observe(self.role, x.values)
        y = x.using.linear(x.quantized() if self._quantizes else x.values, self.weight, self.bias, self._pool)
        self._adapt(x, y)
        return y

    def with_others(self, others: Sequence[Linear], x: Activations) -> list[NDArray[np.float32]]:
        """Return what this one and each of `others` makes of x, in one call of the kernels where they can."""
        linears = (self, *others)
        if self._observe is not None or not all(
            linear._quantizes and linear.weight.dtype == self.weight.dtype for linear in linears
        ):
            return [linear(x) for linear in linears]
        pairs = [(linear.weight, linear.bias) for linear in linears]
        results = x.using.linear_each(x.quantized(), pairs, self._pool)
        for linear, y in zip(linears, results, strict=True):
            linear._adapt(x, y)
        return results

    def gating(self, up: Linear, x: Activations, activation: kernels.Activation) -> NDArray[np.float32]:
        """Return activation(self(x)) * up(x), float32 [m, out]."""
        is_plain = not x.adapted and self._observe is None and self._quantizes and up._quantizes
        if is_plain and self.weight.dtype == up.weight.dtype:
            rows, pool = x.quantized(), self._pool
            return x.using.linear_gated(rows, self.weight, self.bias, up.weight, up.bias, activation, pool)
        y = self(x)
        x.using.gated_activation(y, up(x), activation, self._pool)
        return y

    def _adapt(self, x: Activations, y: NDArray[np.float32]) -> None:
        """Add what adapters have for this matrix to their rows of y."""
        if x.adapted:
            adapted = [
                kernels.LoraRows(begin, end, adapter.factors[self.role])
                for begin, end, adapter in x.adapted
                if self.role in adapter.factors
            ]
            x.using.lora_add(x.values, adapted, y, self._pool)
