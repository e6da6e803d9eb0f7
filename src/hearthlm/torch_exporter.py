"""PyTorch language models of no known family to LiteRT models, through litert-torch; imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import litert_torch  # its generative part asks for a tensorflow that it does not require, and stays unused
import torch
from torch import nn

from hearthlm.formats.atomic_file import make_folder, replace_file

TorchQuantization = Literal["none", "int8"]


def write_torch_module(
    module: nn.Module,
    output: Path,
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    prefill_lengths: Sequence[int],
    cache_length: int,
    quantization: TorchQuantization,
) -> None:
    """Write `module` as a LiteRT model; see `exporter.export_torch_module`, which checks the arguments."""
    keys = [torch.zeros(1, num_kv_heads, cache_length, head_dim) for _ in range(num_layers)]
    values = [torch.zeros(1, num_kv_heads, head_dim, cache_length) for _ in range(num_layers)]
    module = module.eval()
    signatures: Any = litert_torch
    for name, num_tokens in [*((f"prefill_{n}", n) for n in prefill_lengths), ("decode", 1)]:
        inputs = {
            "tokens": torch.zeros(1, num_tokens, dtype=torch.int32),
            "input_pos": torch.arange(num_tokens, dtype=torch.int32),
            "mask": torch.zeros(1, 1, num_tokens, cache_length),
            **{f"kv_cache_k_{i}": tensor for i, tensor in enumerate(keys)},
            **{f"kv_cache_v_{i}": tensor for i, tensor in enumerate(values)},
        }
        step = _Step(module, num_layers, with_logits=name == "decode")
        signatures = signatures.signature(name, step, sample_kwargs=inputs)
    make_folder(output.parent)
    with TemporaryDirectory(prefix=f".{output.name[:100]}.", dir=output.parent) as folder:
        path = Path(folder, "model.tflite")
        signatures.convert().export(str(path))
        if quantization == "int8":
            path = _quantized(path)
        with replace_file(output) as file, path.open("rb") as written:
            while piece := written.read(1 << 20):
                file.write(piece)


class _Step(nn.Module):
    """Give a module the inputs and outputs of a signature, under their names."""

    def __init__(self, module: nn.Module, num_layers: int, with_logits: bool) -> None:
        super().__init__()
        self._module = module
        self._num_layers = num_layers
        self._with_logits = with_logits

    def forward(self, tokens: Any, input_pos: Any, mask: Any, **caches: Any) -> dict[str, Any]:
        layers = range(self._num_layers)
        logits, keys, values = self._module(
            tokens,
            input_pos,
            mask,
            [caches[f"kv_cache_k_{i}"] for i in layers],
            [caches[f"kv_cache_v_{i}"] for i in layers],
        )
        outputs = {f"kv_cache_k_{i}": keys[i] for i in layers} | {f"kv_cache_v_{i}": values[i] for i in layers}
        return {**outputs, "logits": logits} if self._with_logits else outputs


def _quantized(path: Path) -> Path:
    """Quantise the weights of a float model to int8, one scale for each output channel."""
    from ai_edge_quantizer import quantizer, recipe

    result = path.with_name("quantized.tflite")
    quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32()).quantize().export_model(str(result))
    return result
