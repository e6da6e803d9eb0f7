"""How numbers are computed: one set of kernels, chosen once when this package is imported.

`HEARTHLM_KERNELS` selects it: unset takes the best native one that the CPU runs, `reference` the NumPy one; the native
ones are `portable`, on x86-64 `avx2`, `avxvnni` and `avx512vnni`, on 64-bit ARM `neon`, `neon_dotprod` and `neon_i8mm`.
`instruction_set` names what was chosen. What each function does is written in `interface.Kernels`.
"""

from __future__ import annotations

import logging
import os

from hearthlm.kernels import reference
from hearthlm.kernels.cache_batch import BlockTable, CacheBatch
from hearthlm.kernels.interface import Activation, Kernels, LoraFactors, LoraRows, QuantizedRows, Recording
from hearthlm.kernels.thread_pool import ThreadPool

__all__ = [
    "Activation",
    "BlockTable",
    "CacheBatch",
    "Kernels",
    "LoraFactors",
    "LoraRows",
    "QuantizedRows",
    "Recording",
    "ThreadPool",
    "activation",
    "add",
    "attention",
    "available_instruction_sets",
    "chosen",
    "draw",
    "embed_rows",
    "gated_activation",
    "instruction_set",
    "kv_append",
    "layer_norm",
    "linear",
    "linear_each",
    "linear_gated",
    "log_softmax_at",
    "lora_add",
    "quantize_rows",
    "record",
    "rms_norm",
    "rms_norm_add",
    "rms_norm_quantize",
    "rope",
    "round_compensated",
    "soft_cap",
    "top_k",
]


def available_instruction_sets() -> tuple[str, ...]:
    """Return the names of the kernels that this CPU runs, the best first and the NumPy ones last."""
    try:
        from hearthlm.kernels import native
    except ImportError:
        return ("reference",)
    return (*native.instruction_sets(), "reference")


def choose_kernels(wanted: str | None) -> Kernels:
    """Return the kernels called `wanted`, the best ones for None. Raises ValueError for a name this CPU lacks."""
    try:
        from hearthlm.kernels import native
    except ImportError as error:
        if wanted is None:
            logging.getLogger(__name__).warning("no native kernels, using the slow NumPy ones: %s", error)
            return reference
        available: tuple[str, ...] = ()
    else:
        available = native.instruction_sets()
    if wanted == "reference":
        return reference
    if wanted is None:
        return native.NativeKernels(available[0])
    if wanted in available:
        return native.NativeKernels(wanted)
    raise ValueError(f"HEARTHLM_KERNELS: this CPU has {', '.join((*available, 'reference'))}; got {wanted!r}")


chosen: Kernels = choose_kernels(os.environ.get("HEARTHLM_KERNELS") or None)

instruction_set = chosen.instruction_set
record = chosen.record
quantize_rows = chosen.quantize_rows
linear = chosen.linear
linear_each = chosen.linear_each
linear_gated = chosen.linear_gated
lora_add = chosen.lora_add
embed_rows = chosen.embed_rows
rms_norm = chosen.rms_norm
rms_norm_add = chosen.rms_norm_add
rms_norm_quantize = chosen.rms_norm_quantize
layer_norm = chosen.layer_norm
rope = chosen.rope
gated_activation = chosen.gated_activation
activation = chosen.activation
add = chosen.add
soft_cap = chosen.soft_cap
kv_append = chosen.kv_append
attention = chosen.attention
top_k = chosen.top_k
draw = chosen.draw
log_softmax_at = chosen.log_softmax_at
round_compensated = chosen.round_compensated
