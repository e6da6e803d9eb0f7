"""Checkpoints to LiteRT models as LiteRT-LM drives them, alone (`.tflite`) or bundled with a tokenizer.

Neither torch nor tensorflow is needed, and a few MiB of weights are in memory at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hearthlm.blueprint import left_over
from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats.atomic_file import check_space, make_folder
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.litert_graph import Weight, litert_model_size, write_litert_model
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.litert_bundle import ENDINGS, LiteRtBundle
from hearthlm.litert_network import KvLayout, build_graph
from hearthlm.models import read_config
from hearthlm.models.family import Family, TensorSpec
from hearthlm.models.params import Architecture
from hearthlm.quantization import WeightMatrix, quantize, quantize_blocks
from hearthlm.runtime.checkpoint_source import CheckpointSource
from hearthlm.runtime.cpu_count import default_num_threads

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("hearthlm")

ExportQuantization = Literal["none", "int8", "int4", "int4_block32"]
ExportMethod = Literal["minmax", "mse"]
TorchQuantization = Literal["none", "int8"]
BLOCK_SIZE = 32
MAX_SIGNATURES = 64
_PART_OF_MODEL = 0.8  # of the work on a bundle
_PEAK_RSS_MB = 200  # measured at 1B: benchmarks/README.md

StrPath = str | PathLike[str]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class ExportedWeight:
    """Say what lies in the file: the roles that it is made of, its shape, type, and bytes with scales."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


@dataclass(frozen=True)
class ExportPlan:
    """Say what an export writes; `num_operators` are those of each signature."""

    family: str
    output_file: str
    quantization: str
    kv_layout: str
    cache_length: int
    num_operators: dict[str, int]
    weights: tuple[ExportedWeight, ...]
    num_bytes: int
    peak_rss_mb: int

    def to_json(self) -> dict[str, Any]:
        """Return the document of `hearthlm export --dry-run --json`."""
        return asdict(self)


def export_tflite(
    checkpoint: StrPath,
    output: StrPath,
    prefill_lengths: Sequence[int] = (32, 128, 512),
    cache_length: int = 1280,
    quantization: ExportQuantization = "int8",
    kv_layout: KvLayout = "transposed",
    *,
    quantization_method: ExportMethod = "minmax",
    progress: Progress | None = None,
    num_threads: int | None = None,
) -> ExportPlan:
    """Write a checkpoint as a LiteRT model with the signatures `prefill_N`, one for each length, and `decode`.

    `cache_length` is how many tokens prompt and answer have together. "int8" and "int4" have one scale for each output
    channel, "int4_block32" one for each 32 weights of it; activations stay float between operators, and XNNPACK
    quantises them row by row. "minmax" scales fit the largest values, "mse" scales err least and take longer. Of a
    `.task` LiteRT-LM reads the "transposed" layout of keys and values only.
    `progress(part, name)` gets the part that is written and the weight's name; `num_threads` None means one per
    physical core. The file appears whole or not at all, and the same input gives the same bytes.

    Raises ValueError for an argument out of range; FileNotFoundError, ModelFormatError and UnsupportedModelError by
    name for a checkpoint that cannot be exported; OSError for a disk that is full.
    """
    with _Export(
        checkpoint, output, prefill_lengths, cache_length, quantization, kv_layout, quantization_method
    ) as export:
        export.write(export.output, progress, num_threads or default_num_threads())
        return export.plan


def export_bundle(
    checkpoint: StrPath,
    output: StrPath,
    prefill_lengths: Sequence[int] = (32, 128, 512),
    cache_length: int = 1280,
    quantization: ExportQuantization = "int8",
    kv_layout: KvLayout = "transposed",
    *,
    quantization_method: ExportMethod = "minmax",
    progress: Progress | None = None,
    num_threads: int | None = None,
) -> ExportPlan:
    """Write a checkpoint as a `.task` or a `.litertlm`, which the ending of `output` says.

    It is what `export_tflite` writes, with the checkpoint's tokenizer, the tokens that begin a text and end an answer,
    and the turns of its conversations. While it is written the model lies a second time in a folder beside `output`.
    Raises what `export_tflite` raises, and BundleError where the checkpoint does not say what a bundle must.
    """
    with _Export(
        checkpoint, output, prefill_lengths, cache_length, quantization, kv_layout, quantization_method
    ) as export:
        bundle = export.bundle
        if bundle is None:
            raise ValueError(f"output: expected a name that ends in {' or '.join(ENDINGS)}, got {export.output.name!r}")
        make_folder(export.output.parent)
        with TemporaryDirectory(prefix=f".{export.output.name[:100]}.", dir=export.output.parent) as folder:
            model = Path(folder, "model.tflite")

            def first_part(part: float, name: str) -> None:
                if progress is not None:
                    progress(part * _PART_OF_MODEL, name)

            def second_part(part: float) -> None:
                if progress is not None:
                    progress(_PART_OF_MODEL + part * (1 - _PART_OF_MODEL), export.output.name)

            export.write(model, first_part, num_threads or default_num_threads())
            bundle.write(export.output, model, second_part)
        return export.plan


def export_torch_module(
    module: torch.nn.Module,
    output: StrPath,
    *,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    prefill_lengths: Sequence[int] = (32, 128, 512),
    cache_length: int = 1280,
    quantization: TorchQuantization = "none",
) -> None:
    """Write a PyTorch language model of no known family as a LiteRT model, through litert-torch.

    `module(tokens, input_pos, mask, keys, values)` returns (logits, keys, values): tokens int32 [1, T], input_pos int32
    [T], mask float32 [1, 1, T, S] to be added to the scores; for each of `num_layers` keys [1, num_kv_heads, S,
    head_dim] and values [1, num_kv_heads, head_dim, S], returned with the new ones put in from the first of `input_pos`
    on (places that are filled up carry position 0); logits [1, T, vocabulary]. S is `cache_length`.
    The signatures are those of `export_tflite`, and `bundler.create_bundle` makes a bundle of the file. It takes the
    memory and time of torch: known families need neither.

    Raises ValueError for an argument out of range, ImportError where hearthlm[torch] is not installed, and what
    litert-torch raises for a module that it cannot convert.
    """
    lengths = _checked_lengths(prefill_lengths, cache_length)
    for name, value in (("num_layers", num_layers), ("num_kv_heads", num_kv_heads), ("head_dim", head_dim)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    if quantization not in ("none", "int8"):
        raise ValueError(f"quantization: expected one of none, int8, got {quantization!r}")
    try:
        from hearthlm.torch_exporter import write_torch_module
    except ImportError as error:
        raise ImportError(
            f'{error}; PyTorch modules are exported by litert-torch: pip install "hearthlm[torch]"'
        ) from None
    write_torch_module(
        module,
        Path(output),
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        prefill_lengths=lengths,
        cache_length=cache_length,
        quantization=quantization,
    )


def plan_export(
    checkpoint: StrPath,
    output: StrPath,
    prefill_lengths: Sequence[int] = (32, 128, 512),
    cache_length: int = 1280,
    quantization: ExportQuantization = "int8",
    kv_layout: KvLayout = "transposed",
    *,
    quantization_method: ExportMethod = "minmax",
) -> ExportPlan:
    """Check everything but the values of the weights, and write nothing.

    Raises what `export_tflite` raises, and what `export_bundle` does where the ending of `output` is that of a bundle.
    """
    with _Export(
        checkpoint, output, prefill_lengths, cache_length, quantization, kv_layout, quantization_method
    ) as export:
        return export.plan


class _Export:
    """A checkpoint that is open, and the graphs that it becomes."""

    def __init__(
        self,
        checkpoint: StrPath,
        output: StrPath,
        prefill_lengths: Sequence[int],
        cache_length: int,
        quantization: ExportQuantization,
        kv_layout: KvLayout,
        quantization_method: ExportMethod,
    ) -> None:
        lengths = _checked_lengths(prefill_lengths, cache_length)
        for name, value, known in (
            ("quantization", quantization, ExportQuantization),
            ("kv_layout", kv_layout, KvLayout),
            ("quantization_method", quantization_method, ExportMethod),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(known))}, got {value!r}")
        self.output = Path(output)
        self._checkpoint = Checkpoint.open(checkpoint)
        try:
            self._source = CheckpointSource(checkpoint, self._checkpoint)
            family, architecture = _read_architecture(checkpoint, self._checkpoint)
            if architecture.learned_positions and cache_length > architecture.context_length:
                raise UnsupportedModelError(
                    f"{checkpoint}: cache_length: expected at most {architecture.context_length}, as many positions as "
                    f"the model has learned, got {cache_length}"
                )
            left_over(self._checkpoint, family.tensors(architecture), self._source)
            self._weights = _ExportedWeights(family, architecture, self._source, quantization, quantization_method)
            signatures = [(f"prefill_{n}", n, False) for n in lengths] + [("decode", 1, True)]
            self._graphs = [
                build_graph(
                    name,
                    num_tokens,
                    architecture,
                    self._weights,
                    cache_length=cache_length,
                    kv_layout=kv_layout,
                    with_logits=with_logits,
                )
                for name, num_tokens, with_logits in signatures
            ]
            self.bundle = None
            if self.output.name.endswith(ENDINGS):
                if kv_layout != "transposed" and self.output.name.endswith(".task"):
                    raise ValueError(
                        f"kv_layout: expected 'transposed' in a .task, got {kv_layout!r}: LiteRT-LM reads no other"
                    )
                self.bundle = LiteRtBundle.read(checkpoint)
                self.bundle.check(self.output)
            self.plan = self._plan(family, quantization, kv_layout, cache_length)
        except BaseException:
            self._checkpoint.close()
            raise

    def __enter__(self) -> _Export:
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoint.close()

    def write(self, path: Path, progress: Progress | None, num_threads: int) -> None:
        """Write the model; a bundle needs room for it twice."""
        done, total = 0, sum(weight.num_bytes for weight in self._weights.all)

        def advance(name: str, num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            self._checkpoint.release_pages()
            if progress is not None:
                progress(done / total, name)

        make_folder(path.parent)
        check_space(path, self.plan.num_bytes * (1 if self.bundle is None else 2))
        write_litert_model(path, self._graphs, description=_DESCRIPTION, num_threads=num_threads, progress=advance)

    def _plan(self, family: Family, quantization: str, kv_layout: str, cache_length: int) -> ExportPlan:
        tokenizer_bytes = 0 if self.bundle is None else self.bundle.tokenizer.num_bytes
        return ExportPlan(
            family=family.name,
            output_file=os.fspath(self.output),
            quantization=quantization,
            kv_layout=kv_layout,
            cache_length=cache_length,
            num_operators={graph.name: len(graph.operators) for graph in self._graphs},
            weights=tuple(
                ExportedWeight(
                    weight.plan.name, weight.shape, weight.plan.dtype, weight.num_bytes + _scale_bytes(weight)
                )
                for weight in self._weights.all
            ),
            num_bytes=litert_model_size(self._graphs, description=_DESCRIPTION) + tokenizer_bytes,
            peak_rss_mb=round(_PEAK_RSS_MB + 3e-6 * tokenizer_bytes),
        )


_DESCRIPTION = "hearthlm"


def _scale_bytes(weight: Weight) -> int:
    return weight.scale_bytes or 4 * weight.num_scales


def _checked_lengths(prefill_lengths: Sequence[int], cache_length: int) -> list[int]:
    """Return the lengths of the prefill signatures, each once, the shortest first."""
    lengths = list(prefill_lengths)
    for name, values in (("cache_length", [cache_length]), ("prefill_lengths", lengths)):
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 2:
                raise ValueError(f"{name}: expected integers of at least 2, got {value!r}")
    if not 1 <= len(lengths) <= MAX_SIGNATURES:
        raise ValueError(f"prefill_lengths: expected 1 to {MAX_SIGNATURES} of them, got {len(lengths)}")
    if max(lengths) > cache_length:
        raise ValueError(f"prefill_lengths: expected at most {cache_length}, which is cache_length, got {max(lengths)}")
    return sorted(set(lengths))


def _read_architecture(path: StrPath, checkpoint: Checkpoint) -> tuple[Family, Architecture]:
    config = checkpoint.config
    if config is None:
        raise UnsupportedModelError(
            f"{path}: there is no config.json beside the weights, so nothing says what model they are"
        )
    if isinstance(config.get("text_config"), dict):
        _log.warning("%s: the model's vision part is left out; only the text part is exported", path)
    return read_config(config)


class _ExportedWeights:
    """Turn the tensors of a checkpoint into weights of a graph, each made once."""

    def __init__(
        self,
        family: Family,
        architecture: Architecture,
        source: CheckpointSource,
        quantization: ExportQuantization,
        method: ExportMethod,
    ) -> None:
        self._source = source
        self._quantization = quantization
        self._method: ExportMethod = method
        self._specs = {spec.role: spec for spec in family.tensors(architecture)}
        self._made: dict[tuple[Any, ...], Weight] = {}
        for spec in self._specs.values():
            source.check(spec)

    @property
    def all(self) -> list[Weight]:
        return list(self._made.values())

    def matrix(self, *roles: str) -> Weight:
        if roles not in self._made:
            self._made[roles] = self._matrix([self._specs[role] for role in roles])
        return self._made[roles]

    def vector(self, *roles: str, offset: float = 0.0, shape: tuple[int, ...] | None = None) -> Weight:
        key = (*roles, offset, shape)
        if key not in self._made:
            specs = [self._specs[role] for role in roles]
            count = sum(spec.shape[0] for spec in specs)

            def produce(first: int, last: int) -> NDArray[np.float32]:
                values = {spec.role: self._source.vector(spec) + np.float32(offset) for spec in specs}
                return np.concatenate([values[spec.role] for spec in specs])[first:last]

            plan = TensorPlan(_joined_name(roles), (count,), "float32", produce)
            self._made[key] = Weight(plan, shape or (count,))
        return self._made[key]

    def _matrix(self, specs: list[TensorSpec]) -> Weight:
        name = _joined_name([spec.role for spec in specs])
        out, columns = sum(spec.shape[0] for spec in specs), specs[0].shape[1]
        quantization = self._quantization if specs[0].group is not None else "none"
        if quantization == "int4_block32":
            if columns % BLOCK_SIZE:
                raise UnsupportedModelError(
                    f"{self._source.path}: {name}: int4_block32 needs rows of a multiple of {BLOCK_SIZE} values, got "
                    f"{columns}; use int4 or int8"
                )
            per_row = columns // BLOCK_SIZE
            produce_blocks = lambda first, last: self._blocks(specs, name, first, last)  # noqa: E731
            return Weight(
                TensorPlan(name, (out * per_row, BLOCK_SIZE), "int4", produce_blocks), (out, columns), BLOCK_SIZE
            )
        if quantization == "none":
            plan = TensorPlan(
                name,
                (out, columns),
                "float32",
                lambda first, last: WeightMatrix("float32", (last - first, columns), self._rows(specs, first, last)),
            )
        else:
            bits = 8 if quantization == "int8" else 4
            plan = TensorPlan(
                name, (out, columns), quantization, lambda first, last: self._channels(specs, name, bits, first, last)
            )
        return Weight(plan, (out, columns))

    def _rows(self, specs: list[TensorSpec], first: int, last: int) -> NDArray[np.float32]:
        """Return the rows [first, last) of matrices that lie one below the other."""
        parts, begin = [], 0
        for spec in specs:
            low, high = max(first, begin), min(last, begin + spec.shape[0])
            if low < high:
                parts.append(self._source.rows(spec, low - begin, high - begin))
            begin += spec.shape[0]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _channels(self, specs: list[TensorSpec], name: str, bits: int, first: int, last: int) -> WeightMatrix:
        try:
            return quantize(self._rows(specs, first, last), bits, method=self._method)
        except ValueError as error:
            raise CorruptFileError(f"{self._source.path}: {name}, from row {first}: {error}") from None

    def _blocks(self, specs: list[TensorSpec], name: str, first: int, last: int) -> WeightMatrix:
        """Return the blocks [first, last) of all rows one after the other."""
        per_row = specs[0].shape[1] // BLOCK_SIZE
        first_row = first // per_row
        rows = self._rows(specs, first_row, -(-last // per_row))
        blocks = rows.reshape(-1, BLOCK_SIZE)[first - first_row * per_row : last - first_row * per_row]
        try:
            return quantize_blocks(blocks, method=self._method)
        except ValueError as error:
            raise CorruptFileError(f"{self._source.path}: {name}, from row {first_row}: {error}") from None


def _joined_name(roles: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(roles))


__all__ = [
    "ExportMethod",
    "ExportPlan",
    "ExportQuantization",
    "ExportedWeight",
    "export_bundle",
    "export_tflite",
    "plan_export",
]
