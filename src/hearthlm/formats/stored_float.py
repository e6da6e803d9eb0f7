"""The float types in which checkpoints store weights, and the NumPy types that hold their bits."""

from __future__ import annotations

from typing import Literal

import numpy as np

StoredFloat = Literal["float32", "float16", "bfloat16"]

STORED_FLOATS: dict[StoredFloat, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,  # NumPy has no bfloat16
}
