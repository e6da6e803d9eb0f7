"""How a model's maker would have it sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SamplerType = Literal["top_k", "top_p", "greedy"]


@dataclass(frozen=True)
class SamplerDefaults:
    """Say how to sample where a caller does not; a field that is None is not said."""

    type: SamplerType | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    seed: int | None = None
