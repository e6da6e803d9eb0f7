"""What a model will take in memory, told before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats import detect_format
from hearthlm.llm_inference import LlmInferenceOptions, max_tokens_of
from hearthlm.models.params import Architecture
from hearthlm.quantization import WeightMatrix
from hearthlm.runtime.cpu_count import default_num_threads
from hearthlm.runtime.engine import MAX_ROWS_WITH_GUESSES, PREFILL_CHUNK
from hearthlm.runtime.kv_cache import CacheLayout, cache_layouts
from hearthlm.runtime.model import Model
from hearthlm.runtime.process_memory import free_memory, process_memory
from hearthlm.runtime.weights import Weights, is_mapped

_PAGES_AROUND_FAULT = 64 << 10  # bytes that Linux maps around a page of a file that is touched
_ENGINE_BYTES = 1 << 20  # Python's objects for a model and its calls, stacks of threads
_PROCESS_BYTES = 70 << 20  # Python, NumPy and this package, where the system does not tell


@dataclass(frozen=True)
class MemoryEstimate:
    """Say what a model takes, in bytes, with `num_sequences` contexts of `max_tokens` under way at a time.

    `mapped_bytes` are pages of the model's file: shared with every process that has it open, and given back first when
    memory is short. The rest is the process's own: `loaded_bytes` of weights that are not used where they lie,
    `cache_bytes` of keys and values, `prefix_cache_bytes` of them kept for later calls at most, `tokenizer_bytes`, and
    `working_bytes` of rows between layers, logits and tables of positions. `process_bytes` is what the process holds
    without a model: Python, NumPy and whatever else this one had done. `free_bytes` is what the machine, or the
    container, has left now.
    """

    mapped_bytes: int
    loaded_bytes: int
    cache_bytes: int
    prefix_cache_bytes: int
    tokenizer_bytes: int
    working_bytes: int
    process_bytes: int
    free_bytes: int
    max_tokens: int
    num_sequences: int
    context_length: int
    _layouts: tuple[CacheLayout, ...] = field(repr=False, compare=False)

    @property
    def model_bytes(self) -> int:
        """What the model adds to a process, at most."""
        return (
            self.mapped_bytes
            + self.loaded_bytes
            + self.cache_bytes
            + self.prefix_cache_bytes
            + self.tokenizer_bytes
            + self.working_bytes
        )

    @property
    def peak_bytes(self) -> int:
        """What the process will hold at most: VmHWM on Linux."""
        return self.process_bytes + self.model_bytes

    def max_tokens_within(self, num_bytes: int) -> int:
        """Return the largest `max_tokens`, up to the model's context, whose keys and values fit into `num_bytes`."""
        low, high = 1, self.context_length
        while low < high:
            middle = (low + high + 1) // 2
            if self.num_sequences * _cache_bytes(self._layouts, middle) <= num_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def to_json(self) -> dict[str, Any]:
        """Return the document of `hearthlm estimate --json`."""
        return {
            "max_tokens": self.max_tokens,
            "sequences": self.num_sequences,
            "mapped_bytes": self.mapped_bytes,
            "loaded_bytes": self.loaded_bytes,
            "cache_bytes": self.cache_bytes,
            "prefix_cache_bytes": self.prefix_cache_bytes,
            "tokenizer_bytes": self.tokenizer_bytes,
            "working_bytes": self.working_bytes,
            "model_bytes": self.model_bytes,
            "process_bytes": self.process_bytes,
            "peak_bytes": self.peak_bytes,
            "free_bytes": self.free_bytes,
        }


def estimate_memory(options: LlmInferenceOptions, *, num_sequences: int = 1) -> MemoryEstimate:
    """Say what `LlmInference.create_from_options(options)` and `num_sequences` calls at once will take in memory.

    The tokenizer is loaded to see what it takes; weights are not read. Raises what opening the model would raise, and
    ValueError where `max_tokens` exceeds what the model was built for, and UnsupportedModelError for LiteRT models,
    whose memory is their runtime's.
    """
    if num_sequences < 1:
        raise ValueError(f"num_sequences: expected at least 1, got {num_sequences}")
    if (kind := detect_format(options.model_path)) in ("task", "litertlm", "tflite"):
        raise UnsupportedModelError(
            f"{options.model_path}: what a LiteRT model takes is decided by ai-edge-litert, and cannot be told before "
            f"loading: expected a .bin or a checkpoint, got a .{kind}"
        )
    files = _model_files(options.model_path)
    before = process_memory()
    with Model.open(options.model_path) as model:
        after = process_memory(files)
        a = model.architecture
        max_tokens = max_tokens_of(options.max_tokens, a.context_length)
        weights = _WeightBytes(model, options, max_tokens * num_sequences)
        tokenizer = model.info.tokenizer is not None
    cache_type = options.kv_cache_dtype or ("float16" if weights.is_quantized else "float32")
    layouts = cache_layouts(a, cache_type)
    tokenizer_bytes = process_bytes = 0
    if before is None or after is None:
        process_bytes = _PROCESS_BYTES
        tokenizer_bytes = 100 * a.vocab_size if tokenizer else 0
    else:
        # Libraries that were loaded for it count as the process's: the next model finds them there.
        tokenizer_bytes = max(0, after.anonymous_bytes - before.anonymous_bytes)
        process_bytes = min(before.anonymous_bytes, after.anonymous_bytes) + after.file_bytes
    return MemoryEstimate(
        mapped_bytes=weights.mapped,
        loaded_bytes=weights.loaded,
        cache_bytes=num_sequences * _cache_bytes(layouts, max_tokens),
        prefix_cache_bytes=options.prefix_cache_mb * 1_000_000,
        tokenizer_bytes=tokenizer_bytes,
        working_bytes=_working_bytes(a, options, max_tokens, num_sequences, is_quantized=weights.is_quantized),
        process_bytes=process_bytes,
        free_bytes=free_memory(),
        max_tokens=max_tokens,
        num_sequences=num_sequences,
        context_length=a.context_length,
        _layouts=layouts,
    )


def _cache_bytes(layouts: tuple[CacheLayout, ...], max_tokens: int) -> int:
    return sum(layout.max_bytes(max_tokens, PREFILL_CHUNK) for layout in layouts)


def _model_files(path: str | PathLike[str]) -> list[Path]:
    return [*Path(path).iterdir()] if Path(path).is_dir() else [Path(path)]


class _WeightBytes:
    """What the weights take, by where they will lie."""

    def __init__(self, model: Model, options: LlmInferenceOptions, num_tokens: int) -> None:
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
        self.is_quantized = weights.layers[0].query.weight.is_quantized
        for matrix in _matrices(weights):
            for array in (matrix.data, matrix.scales, matrix.zero_points):
                if array is None:
                    continue
                if options.weights == "ram" and array is matrix.data and is_mapped(array):
                    self.loaded += array.nbytes  # one after the other: their pages are given back
                    continue
                num_bytes = array.nbytes
                if matrix is weights.embedding and matrix is not weights.logits.weight:  # only the rows asked for
                    num_bytes = min(num_bytes, num_tokens * (num_bytes // matrix.shape[0] + _PAGES_AROUND_FAULT))
                self.mapped += num_bytes
                self.loaded += 0 if is_mapped(array) else array.nbytes
        vectors = weights.num_bytes - sum(matrix.num_bytes for matrix in _matrices(weights))
        self.mapped += vectors
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
    a: Architecture, options: LlmInferenceOptions, max_tokens: int, num_sequences: int, *, is_quantized: bool
) -> int:
    """Return what one step needs beside weights and cache, at most, and the tables that grow with the positions."""
    rows = min(PREFILL_CHUNK, max_tokens) + num_sequences - 1
    stream = 4 * rows * (3 * a.embedding_dim + a.query_dim)  # float32: x, its norm, what attention adds, its heads
    hidden = 4 * rows * a.hidden_dim * (2 if a.gated else 1)
    int8 = 2 * rows * a.hidden_dim if is_quantized and options.activation_data_type != "float32" else 0  # and arranged
    num_logits = max(num_sequences, MAX_ROWS_WITH_GUESSES if options.prompt_lookup else 1)
    logits = 4 * num_logits * a.vocab_size
    threads = options.num_threads or default_num_threads()
    scratch = threads * (128 * max(a.hidden_dim, a.embedding_dim) + 4 * rows * 32 + 4 * max_tokens * a.num_heads)
    # Tables double when they grow; cosines and sines, or one bias for each head.
    positions = max(256, 2 * max_tokens)
    ropes = {layer.rope for layer in a.layers if layer.rope is not None}
    tables = sum(4 * positions * rope.rotary_dim for rope in ropes) + (4 * positions * a.num_heads if a.alibi else 0)
    return stream + hidden + int8 + logits + scratch + tables + _ENGINE_BYTES
