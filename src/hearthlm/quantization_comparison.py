"""What each way of quantising costs a model: how far its predictions move from those of the float checkpoint."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hearthlm.converter import ConversionConfig, convert_checkpoint
from hearthlm.quantization import QuantizationMethod
from hearthlm.runtime.cpu_count import default_num_threads
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.model import Model
from hearthlm.runtime.transformer import TransformerExecutor

MAX_TOKENS = 512  # of a text that is compared at once; longer ones are cut into such parts
_ROWS = 32  # of logits at a time: a large vocabulary makes a MB of each


@dataclass(frozen=True)
class QuantizationVariant:
    """Choose a method and the bits of attention, feed-forward and embedding."""

    method: QuantizationMethod
    attention_bits: int
    feed_forward_bits: int
    embedding_bits: int

    @property
    def name(self) -> str:
        """The variant as the tables call it."""
        return f"{self.attention_bits}/{self.feed_forward_bits}/{self.embedding_bits} {self.method}"


@dataclass(frozen=True)
class QuantizationCost:
    """Say what a variant costs.

    `kl_divergence` is the mean of KL(float || quantised) in nats per token, `perplexity` that of the text, for the
    float checkpoint in the first row, `seconds` what the conversion took.
    """

    name: str
    file_mb: float
    seconds: float
    kl_divergence: float
    perplexity: float


VARIANTS: tuple[QuantizationVariant, ...] = (
    QuantizationVariant("minmax", 8, 8, 8),
    *(QuantizationVariant(method, 8, 4, 8) for method in ("minmax", "gptq")),
    *(QuantizationVariant(method, 4, 4, 8) for method in ("minmax", "mse", "gptq")),
    *(QuantizationVariant(method, 4, 4, 4) for method in ("minmax", "mse", "gptq")),
)


def comparison_text() -> str:
    """Return the text that ships for this: prose, talk, code; another than "gptq" is calibrated on."""
    return (resources.files("hearthlm") / "data" / "comparison.txt").read_text(encoding="utf-8")


def compare_quantization(
    config: ConversionConfig,
    text: str | None = None,
    variants: Sequence[QuantizationVariant] = VARIANTS,
    *,
    num_threads: int | None = None,
) -> Iterator[QuantizationCost]:
    """Convert the checkpoint of `config` by each variant, read `text` with each, and yield the float model's row first.

    Each file is written into a temporary folder beside the output of `config` and removed again. Activations are
    float, so that what is measured is the weights alone. Raises what `convert_checkpoint` raises, and ValueError for a
    text of fewer than two tokens.
    """
    text = comparison_text() if text is None else text
    threads = num_threads or default_num_threads()
    with Model.open(config.input_ckpt) as model:
        encoded = model.tokenizer.encode(text)
        start = [] if model.start_id is None else [model.start_id]
        step = MAX_TOKENS - len(start)
        parts = [[*start, *encoded[i : i + step]] for i in range(0, len(encoded), step)]
        parts = [part for part in parts if len(part) > 1]
        if not parts:
            raise ValueError("text: expected at least two tokens")
        size = sum(tensor.num_bytes for tensor in model.info.tensors)
        reference = _executor(model, threads)
    try:
        _, perplexity = _measure(reference, reference, parts)
        yield QuantizationCost("float", size / 1e6, 0.0, 0.0, perplexity)
        output_folder = config.output_file.parent
        with tempfile.TemporaryDirectory(dir=output_folder if output_folder.is_dir() else None) as folder:
            for variant in variants:
                path = Path(folder, "model.bin")
                started = time.perf_counter()
                convert_checkpoint(
                    replace(
                        config,
                        output_tflite_file=path,
                        use_mse_quant=False,
                        quantization_method=variant.method,
                        attention_quant_bits=variant.attention_bits,
                        feedforward_quant_bits=variant.feed_forward_bits,
                        embedding_quant_bits=variant.embedding_bits,
                    ),
                    num_threads=threads,
                )
                seconds = time.perf_counter() - started
                with Model.open(path) as model:
                    executor = _executor(model, threads)
                try:
                    divergence, perplexity = _measure(reference, executor, parts)
                finally:
                    executor.close()
                yield QuantizationCost(variant.name, path.stat().st_size / 1e6, seconds, divergence, perplexity)
                path.unlink()
    finally:
        reference.close()


def _executor(model: Model, num_threads: int) -> TransformerExecutor:
    return TransformerExecutor(
        model.architecture,
        model.load_weights(),
        num_threads=num_threads,
        activation_data_type="float32",
        kv_cache_dtype="float32",
    )


def _measure(
    reference: TransformerExecutor, executor: TransformerExecutor, parts: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Return the mean KL(reference || executor) in nats per token, and the perplexity of the executor."""
    divergence = surprise = 0.0
    num_tokens = num_predicted = 0
    for ids in parts:
        wanted_state, state = reference.new_state(), executor.new_state()
        for first in range(0, len(ids), _ROWS):
            chunk = ids[first : first + _ROWS]
            wanted = _log_softmax(reference, wanted_state, chunk)
            got = wanted if executor is reference else _log_softmax(executor, state, chunk)
            divergence += float(np.sum(np.exp(wanted) * (wanted - got), dtype=np.float64))
            num_tokens += len(chunk)
            following = ids[first + 1 : first + 1 + len(chunk)]
            surprise -= float(np.sum(got[np.arange(len(following)), following], dtype=np.float64))
            num_predicted += len(following)
    return divergence / num_tokens, math.exp(surprise / num_predicted)


def _log_softmax(executor: TransformerExecutor, state: object, ids: Sequence[int]) -> NDArray[np.float32]:
    (logits,) = executor.forward([ForwardRequest(state, ids, "all")])
    assert logits is not None  # asked for
    shifted: NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
