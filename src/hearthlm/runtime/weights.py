"""The weights of one model in memory: immutable, shared by every sequence."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hearthlm.models.family import TensorSpec
from hearthlm.models.params import Architecture
from hearthlm.quantization import WeightMatrix
from hearthlm.runtime.cpu_count import default_num_threads
from hearthlm.runtime.process_memory import free_memory

WeightPlacement = Literal["auto", "mmap", "ram"]

_HUGE_PAGE_BYTES = 1 << 21
_LEAST_COPIED_BYTES = 64 << 20
_SAMPLE_BYTES = 512


class Digest(Protocol):
    """Take in bytes, as the hashes of hashlib do."""

    def update(self, data: Any, /) -> None: ...


class TensorSource(Protocol):
    """Give out the tensors of a file under the names of a TensorSpec, raising TensorMismatchError by name."""

    def matrix(self, spec: TensorSpec) -> WeightMatrix: ...

    def vector(self, spec: TensorSpec) -> NDArray[np.float32]: ...

    def release_pages(self) -> None:
        """Let the system take back the memory of what was mapped and read."""


@dataclass(frozen=True)
class LinearWeights:
    weight: WeightMatrix
    bias: NDArray[np.float32] | None


@dataclass(frozen=True)
class NormWeights:
    """Hold the factors of a norm, the offset of its kind already added."""

    scale: NDArray[np.float32]
    bias: NDArray[np.float32] | None


@dataclass(frozen=True)
class LayerWeights:
    attention_norm: NormWeights | None
    query: LinearWeights
    key: LinearWeights
    value: LinearWeights
    query_norm: NormWeights | None
    key_norm: NormWeights | None
    output: LinearWeights
    post_attention_norm: NormWeights | None
    feed_forward_norm: NormWeights | None
    gate: LinearWeights | None
    up: LinearWeights
    down: LinearWeights
    post_feed_forward_norm: NormWeights | None


@dataclass(frozen=True)
class Weights:
    embedding: WeightMatrix
    position_embedding: WeightMatrix | None
    layers: tuple[LayerWeights, ...]
    final_norm: NormWeights
    logits: LinearWeights  # the embedding itself where the two are tied
    num_bytes: int

    def layer_matrices(self) -> list[WeightMatrix]:
        """Return the matrices of all layers, in their order."""
        return [
            linear.weight
            for w in self.layers
            for linear in (w.query, w.key, w.value, w.output, w.gate, w.up, w.down)
            if linear is not None
        ]


def chosen_placement(wanted: WeightPlacement, num_bytes: int) -> Literal["mmap", "ram"]:
    """Return where weights of `num_bytes` in all are put: "auto" copies them where that is worth it.

    That is where huge pages can be had, a quarter of the free memory is enough, and a cache is not.
    """
    if wanted != "auto":
        return wanted
    is_worth_it = num_bytes >= _LEAST_COPIED_BYTES and _has_huge_pages() and num_bytes <= free_memory() // 4
    return "ram" if is_worth_it else "mmap"


def _has_huge_pages() -> bool:
    try:
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


def load_weights(
    architecture: Architecture,
    specs: Iterable[TensorSpec],
    source: TensorSource,
    *,
    placement: WeightPlacement = "auto",
    progress: Callable[[float], None] | None = None,
) -> Weights:
    """Read every tensor of `specs` from `source`.

    "mmap" keeps them where the source mapped them: no copy, pages are read when touched, as huge ones where the file's
    system has such, and shared between processes. "ram" reads them once into memory asked for as huge pages, one at a
    time, and lets go of the file. "auto" chooses by `chosen_placement`. `progress` receives the part that is done, 0
    to 1. Raises TensorMismatchError naming the tensor that is missing or has another shape.
    """
    tensors: dict[str, Any] = {}
    num_bytes = num_done = 0
    asked: set[int] = set()
    all_specs = list(specs)

    def report() -> None:
        nonlocal num_done
        num_done += 1
        if progress is not None:
            progress(num_done / (2 * len(all_specs)))

    for spec in all_specs:
        if len(spec.shape) == 2:
            matrix = tensors[spec.role] = source.matrix(spec)
            num_bytes += matrix.num_bytes
            _ask_for_huge_pages(matrix, asked)
            if spec.role == "embedding" and not architecture.tied_embedding:
                _ask_for_small_pages(matrix)
        else:
            tensors[spec.role] = source.vector(spec)
            num_bytes += tensors[spec.role].nbytes
        report()
    if chosen_placement(placement, num_bytes) == "ram":
        source.release_pages()  # reading the head may have mapped the most of the file
        for role, tensor in tensors.items():
            tensors[role] = _in_memory(tensor)
            source.release_pages()
            report()
    if progress is not None:
        progress(1.0)

    def linear(role: str) -> LinearWeights:
        return LinearWeights(tensors[role], tensors.get(f"{role}.bias"))

    def norm(role: str, scale_offset: float) -> NormWeights | None:
        scale = tensors.get(f"{role}.scale")
        if scale is None:
            return None
        return NormWeights(scale + np.float32(scale_offset), tensors.get(f"{role}.bias"))

    a = architecture
    offset = a.final_norm.scale_offset
    query_key_offset = a.query_key_norm.scale_offset if a.query_key_norm else 0.0
    layers = []
    for i in range(a.num_layers):
        p = f"layers.{i}."
        layers.append(
            LayerWeights(
                attention_norm=norm(f"{p}attention_norm", offset),
                query=linear(f"{p}attention.query"),
                key=linear(f"{p}attention.key"),
                value=linear(f"{p}attention.value"),
                query_norm=norm(f"{p}attention.query_norm", query_key_offset),
                key_norm=norm(f"{p}attention.key_norm", query_key_offset),
                output=linear(f"{p}attention.output"),
                post_attention_norm=norm(f"{p}post_attention_norm", offset),
                feed_forward_norm=norm(f"{p}feed_forward_norm", offset),
                gate=linear(f"{p}feed_forward.gate") if a.gated else None,
                up=linear(f"{p}feed_forward.up"),
                down=linear(f"{p}feed_forward.down"),
                post_feed_forward_norm=norm(f"{p}post_feed_forward_norm", offset),
            )
        )
    final_norm = norm("final_norm", offset)
    assert final_norm is not None  # every architecture has one
    return Weights(
        embedding=tensors["embedding"],
        position_embedding=tensors.get("position_embedding"),
        layers=tuple(layers),
        final_norm=final_norm,
        logits=linear("embedding" if a.tied_embedding else "logits"),
        num_bytes=num_bytes,
    )


def update_with_samples(digest: Digest, weights: Weights) -> None:
    """Feed every tensor's place, type and shape to `digest`, all of its vectors and scales, and samples of matrices.

    The samples are the first, the middle and the last bytes, so that three pages are touched of a mapped matrix.
    """
    _update(digest, "weights", weights)


def _update(digest: Digest, name: str, value: Any) -> None:
    if is_dataclass(value):
        for field in fields(value):
            _update(digest, f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            _update(digest, f"{name}.{i}", item)
    elif isinstance(value, np.ndarray):
        digest.update(f"{name}: {value.dtype} {list(value.shape)}\n".encode())
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        middle = (data.size - _SAMPLE_BYTES) // 2
        if value.ndim == 1 or middle <= 0:
            digest.update(data)
        else:
            for begin in (0, middle, data.size - _SAMPLE_BYTES):
                digest.update(data[begin : begin + _SAMPLE_BYTES])
    else:
        digest.update(f"{name}: {value!r}\n".encode())


def is_mapped(array: NDArray[Any]) -> bool:
    """Say whether an array lies in memory that NumPy did not allocate."""
    return _owner(array) is not None


def _owner(array: NDArray[Any]) -> object | None:
    """Return what owns an array's memory, None where NumPy allocated it."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base.obj if isinstance(array.base, memoryview) else array.base


def _ask_for_huge_pages(matrix: WeightMatrix, asked: set[int]) -> None:
    """Ask for the file that a matrix is mapped from in huge pages, once; pages that are cached already stay small.

    Linux gives them where the file's system has large folios: before anything of them was read in small ones.
    """
    owner = _owner(matrix.data)
    if hasattr(mmap, "MADV_HUGEPAGE") and isinstance(owner, mmap.mmap) and id(owner) not in asked:
        asked.add(id(owner))
        with suppress(OSError):  # a kernel that was built without them
            owner.madvise(mmap.MADV_HUGEPAGE)


def _ask_for_small_pages(matrix: WeightMatrix) -> None:
    """Take that back for a mapped matrix of which tokens read only rows of their own."""
    owner = _owner(matrix.data)
    if not hasattr(mmap, "MADV_NOHUGEPAGE") or not isinstance(owner, mmap.mmap):
        return
    begin = matrix.data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first, last = -(-begin // mmap.PAGESIZE), (begin + matrix.data.nbytes) // mmap.PAGESIZE
    if first < last:
        with suppress(OSError):
            owner.madvise(mmap.MADV_NOHUGEPAGE, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def _in_memory(tensor: WeightMatrix | NDArray[np.float32]) -> WeightMatrix | NDArray[np.float32]:
    """Copy what is mapped of a tensor, the data of a matrix into memory that the system may back with huge pages."""
    if not isinstance(tensor, WeightMatrix):
        return tensor.copy() if is_mapped(tensor) else tensor
    scales, zero_points = (
        array.copy() if array is not None and is_mapped(array) else array
        for array in (tensor.scales, tensor.zero_points)
    )
    data = _in_huge_pages(tensor.data) if is_mapped(tensor.data) else tensor.data
    return replace(tensor, data=data, scales=scales, zero_points=zero_points)


def _in_huge_pages(values: NDArray[Any]) -> NDArray[Any]:
    if values.nbytes < _HUGE_PAGE_BYTES:
        return values.copy()
    size = -(-values.nbytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    if hasattr(mmap, "MAP_ANONYMOUS"):  # by default it would be shared memory, which gets no huge pages
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, dtype=values.dtype, count=values.size).reshape(values.shape)
    num_parts = min(default_num_threads(), 4)
    bounds = [len(data) * i // num_parts for i in range(num_parts + 1)]
    with ThreadPoolExecutor(num_parts) as threads:  # a page fault at a time costs more than the copy
        list(threads.map(lambda part: np.copyto(data[slice(*part)], values[slice(*part)]), pairwise(bounds)))
    data.flags.writeable = False
    return data
