"""What this package's own network takes in memory to run a model, told before its weights are read."""

from __future__ import annotations

from hearthlm.models.params import Architecture
from hearthlm.quantization import WeightMatrix
from hearthlm.runtime.engine import LONE_PREFILL_CHUNK, MAX_ROWS_WITH_GUESSES
from hearthlm.runtime.kv_cache import cache_layouts
from hearthlm.runtime.language_model import ExecutorMemory, ExecutorSettings
from hearthlm.runtime.model import Model
from hearthlm.runtime.weights import WeightPlacement, Weights, chosen_placement, is_mapped

_PAGES_AROUND_FAULT = 64 << 10  # bytes that Linux maps around a page of a file that is touched


def transformer_memory(
    model: Model, settings: ExecutorSettings, *, max_tokens: int, num_sequences: int, looks_up: bool
) -> ExecutorMemory:
    """Return what `model.new_executor(settings)` takes; see `LanguageModel.memory`."""
    weights = _WeightBytes(model, settings.weights, max_tokens * num_sequences)
    cache_type = settings.kv_cache_dtype or ("float16" if weights.is_quantized else "float32")
    layouts = cache_layouts(model.architecture, cache_type)
    return ExecutorMemory(
        mapped_bytes=weights.mapped,
        loaded_bytes=weights.loaded,
        working_bytes=_working_bytes(
            model.architecture,
            settings,
            max_tokens=max_tokens,
            num_sequences=num_sequences,
            looks_up=looks_up,
            is_quantized=weights.is_quantized,
        ),
        cache_bytes=lambda num_tokens: sum(layout.max_bytes(num_tokens, LONE_PREFILL_CHUNK) for layout in layouts),
    )


class _WeightBytes:
    """What the weights take, by where they will lie."""

    def __init__(self, model: Model, placement: WeightPlacement, num_tokens: int) -> None:
        self.mapped = self.loaded = 0
        if model.info.metadata.get("backend") == "gpu":  # its blocks are put into rows, and their pages given back
            self.is_quantized = any(tensor.dtype in ("INT8", "INT4") for tensor in model.info.tensors)
            for tensor in model.info.tensors:
                if len(tensor.shape) == 2 or tensor.dtype in ("INT8", "INT4"):
                    self.loaded += tensor.num_bytes
                else:
                    self.mapped += tensor.num_bytes
            return
        weights = model.load_weights(placement="mmap")
        placement = chosen_placement(placement, weights.num_bytes)
        self.is_quantized = weights.layers[0].query.weight.is_quantized
        for matrix in _matrices(weights):
            for array in (matrix.data, matrix.scales, matrix.zero_points):
                if array is None:
                    continue
                if placement == "ram":
                    self.loaded += array.nbytes  # one after the other: their pages are given back
                    continue
                num_bytes = array.nbytes
                if matrix is weights.embedding and matrix is not weights.logits.weight:  # only the rows asked for
                    num_bytes = min(num_bytes, num_tokens * (num_bytes // matrix.shape[0] + _PAGES_AROUND_FAULT))
                self.mapped += num_bytes
                self.loaded += 0 if is_mapped(array) else array.nbytes
        vectors = weights.num_bytes - sum(matrix.num_bytes for matrix in _matrices(weights))
        self.mapped += vectors if placement == "mmap" else 0
        self.loaded += vectors


def _matrices(weights: Weights) -> list[WeightMatrix]:
    """Return every matrix once; logits may be the embedding itself."""
    found = [weights.embedding]
    if weights.position_embedding is not None:
        found.append(weights.position_embedding)
    found += weights.layer_matrices()
    if weights.logits.weight is not weights.embedding:
        found.append(weights.logits.weight)
    return found


def _working_bytes(
    a: Architecture,
    settings: ExecutorSettings,
    *,
    max_tokens: int,
    num_sequences: int,
    looks_up: bool,
    is_quantized: bool,
) -> int:
    """Return what one step needs beside weights and cache, at most, and the tables that grow with the positions."""
    rows = min(LONE_PREFILL_CHUNK, max_tokens) + num_sequences - 1
    is_int8 = is_quantized and settings.activation_data_type != "float32"
    # float32: x, what is added to it, and its norm where matrices do not read that in int8.
    stream = 4 * rows * (2 if is_int8 else 3) * a.embedding_dim
    heads = 4 * rows * (2 * a.query_dim + 2 * a.num_kv_heads * a.head_dim)  # queries, what they attend to, keys, values
    # What a gate is multiplied by is not kept where both are computed together.
    hidden = 4 * rows * a.hidden_dim * (2 if a.gated and not is_int8 else 1)
    hidden += 2 * rows * a.hidden_dim if is_int8 else 0  # in int8, and arranged
    num_logits = max(num_sequences, MAX_ROWS_WITH_GUESSES if looks_up else 1)
    logits = 4 * num_logits * a.vocab_size
    scratch = settings.num_threads * (
        128 * max(a.hidden_dim, a.embedding_dim) + 4 * rows * 32 + 4 * max_tokens * a.num_heads
    )
    # Tables double when they grow; cosines and sines, or one bias for each head.
    positions = max(256, 2 * max_tokens)
    ropes = {layer.rope for layer in a.layers if layer.rope is not None}
    tables = sum(4 * positions * rope.rotary_dim for rope in ropes) + (4 * positions * a.num_heads if a.alibi else 0)
    return stream + max(heads, hidden) + logits + scratch + tables
