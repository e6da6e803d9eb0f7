"""What a model will take in memory, told before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from hearthlm.llm_inference import LlmInferenceOptions, executor_settings_of, max_tokens_of, text_settings_of
from hearthlm.runtime.language_model import open_language_model
from hearthlm.runtime.process_memory import free_memory, process_memory

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
    container, has left now. Of a LiteRT model `loaded_bytes` are the graph, where it is copied out of a bundle, and the
    weights in XNNPACK's order, once for each signature; with a `cache_dir` they are once in `mapped_bytes`.
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
    _cache_bytes_of: Callable[[int], int] = field(repr=False, compare=False)  # of one sequence of so many tokens

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
        """Return the largest `max_tokens`, up to the model's context, whose keys and values fit into `num_bytes`.

        For a LiteRT model, which holds its whole context for every text, it is the context, whether that fits or not.
        """
        low, high = 1, self.context_length
        if self._cache_bytes_of(low) == self._cache_bytes_of(high):
            return high
        while low < high:
            middle = (low + high + 1) // 2
            if self.num_sequences * self._cache_bytes_of(middle) <= num_bytes:
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

    The tokenizer is loaded to see what it takes, and ai-edge-litert for a LiteRT model; weights are not read. What is
    said of a LiteRT model holds for LiteRT's CompiledModel; one that only its Interpreter can load takes more. Raises
    what opening the model would raise, and ValueError where `max_tokens` exceeds what the model was built for.
    """
    if num_sequences < 1:
        raise ValueError(f"num_sequences: expected at least 1, got {num_sequences}")
    files = _model_files(options.model_path)
    before = process_memory()
    with open_language_model(options.model_path, text_settings_of(options)) as model:
        opened = process_memory()
        context_length, vocab_size = model.context_length, model.vocab_size
        max_tokens = max_tokens_of(options.max_tokens, context_length, has_fixed_cache=model.has_fixed_cache)
        executor = model.memory(
            executor_settings_of(options),
            max_tokens=max_tokens,
            num_sequences=num_sequences,
            looks_up=options.prompt_lookup,
        )
        after = process_memory(files)
    if before is None or opened is None or after is None:
        process_bytes, tokenizer_bytes = _PROCESS_BYTES, 100 * vocab_size
    else:
        # Libraries that were loaded for it count as the process's: the next model finds them there.
        tokenizer_bytes = max(0, opened.anonymous_bytes - before.anonymous_bytes)
        process_bytes = min(before.anonymous_bytes, opened.anonymous_bytes) + after.file_bytes
    return MemoryEstimate(
        mapped_bytes=executor.mapped_bytes,
        loaded_bytes=executor.loaded_bytes,
        cache_bytes=num_sequences * executor.cache_bytes(max_tokens),
        prefix_cache_bytes=options.prefix_cache_mb * 1_000_000,
        tokenizer_bytes=tokenizer_bytes,
        working_bytes=executor.working_bytes + _ENGINE_BYTES,
        process_bytes=process_bytes,
        free_bytes=free_memory(),
        max_tokens=max_tokens,
        num_sequences=num_sequences,
        context_length=context_length,
        _cache_bytes_of=executor.cache_bytes,
    )


def _model_files(path: str | PathLike[str]) -> list[Path]:
    return [*Path(path).iterdir()] if Path(path).is_dir() else [Path(path)]
