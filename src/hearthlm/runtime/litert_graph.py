"""A LiteRT model loaded by ai-edge-litert: its signatures are run, with keys and values in memory of their own.

Two of the library's interfaces can do it. CompiledModel keeps the cache in native buffers that serve as input and as
output of a call, so a token costs no copy of it; Interpreter is for what CompiledModel refuses, and copies the cache
in and out with every call. Both compute with XNNPACK, and the same numbers.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import UnsupportedModelError
from hearthlm.formats.litert_model import LiteRtModel, TensorSpec

Interface = Literal["compiled", "interpreter"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT32": np.dtype(np.float32), "FLOAT16": np.dtype(np.float16), "INT32": np.dtype(np.int32),
    "INT8": np.dtype(np.int8), "UINT8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip

_log = logging.getLogger("hearthlm")
_stderr_lock = threading.Lock()


class Buffers(Protocol):
    """Hold named tensors in memory that a graph can run on: a KV cache, or an adapter's matrices."""

    @property
    def num_bytes(self) -> int: ...

    def read(self, name: str) -> NDArray[Any]:
        """Return a copy of a tensor, in its shape."""

    def write(self, name: str, values: NDArray[Any]) -> None: ...

    def close(self) -> None:
        """Give the memory back; may be called twice."""


class Graph(Protocol):
    """Run the signatures of one loaded model; one call at a time."""

    interface: Interface

    def new_buffers(self, signature: str, names: Sequence[str]) -> Buffers:
        """Return memory for these inputs of a signature, which then serve every signature that has them; all zero."""

    def run(
        self,
        signature: str,
        inputs: Mapping[str, NDArray[Any]],
        cache: Buffers,
        fixed: Buffers | None,
        wanted: str | None,
    ) -> NDArray[np.float32] | None:
        """Run a signature on `inputs`, the matrices in `fixed`, and `cache`, which it changes.

        Returns the output `wanted` in its shape.
        """

    def close(self) -> None:
        """Give the model's memory back."""


def spec_bytes(spec: TensorSpec) -> int:
    """Return how many bytes a tensor takes that `numpy_dtype` knows the type of."""
    return _size(spec) * _DTYPES[spec.dtype].itemsize


def numpy_dtype(spec: TensorSpec, what: str) -> np.dtype[Any]:
    """Return the type of a tensor's values; raises UnsupportedModelError for one that no input here has."""
    if spec.dtype not in _DTYPES:
        raise UnsupportedModelError(f"{what}: expected one of {', '.join(_DTYPES)}, got {spec.dtype}")
    return _DTYPES[spec.dtype]


def load_graph(
    source: bytes | Path,
    model: LiteRtModel,
    *,
    where: str,
    num_threads: int,
    weight_cache: Path | None = None,
    interface: Interface | None = None,
) -> Graph:
    """Load a model whose bytes have been verified: a `.tflite` of its own, which is mapped, or bytes, which are kept.

    `weight_cache` is a file for the weights in the order in which XNNPACK reads them: made by the first load, mapped by
    later ones. `interface` None tries both. Raises ImportError where ai-edge-litert is not installed and
    UnsupportedModelError, with what the library said, where it cannot load the model.
    """
    load_library()
    if interface != "interpreter":
        try:
            return _CompiledGraph(source, model, num_threads, weight_cache)
        except _LibraryError as error:
            if interface == "compiled":
                raise UnsupportedModelError(f"{where}: LiteRT cannot load the model: {error}") from None
            _log.warning("%s: CompiledModel cannot load the model (%s); going on with Interpreter", where, error)
    try:
        return _InterpretedGraph(source, model, num_threads)
    except _LibraryError as error:
        raise UnsupportedModelError(f"{where}: LiteRT cannot load the model: {error}") from None


def load_library() -> None:
    """Import ai-edge-litert and make what all models share; raises ImportError where it is not installed."""
    try:
        import ai_edge_litert.compiled_model  # noqa: F401
    except ImportError:
        raise ImportError(
            'LiteRT models (.task, .litertlm, .tflite) are run by ai-edge-litert: pip install "hearthlm[litert]"'
        ) from None
    with _said():
        _environment()


class _LibraryError(Exception):
    """The library refused; the text is the reason that it wrote."""


class _NativeBuffers:
    """Hold tensors in the library's own buffers."""

    def __init__(self, specs: Mapping[str, TensorSpec], buffers: Mapping[str, Any]) -> None:
        self._specs = specs
        self.tensors = dict(buffers)
        self.spare: dict[str, Any] = {}  # where a graph that cannot update in place writes

    @property
    def num_bytes(self) -> int:
        return sum(spec_bytes(spec) for spec in self._specs.values()) * (2 if self.spare else 1)

    def read(self, name: str) -> NDArray[Any]:
        spec = self._specs[name]
        dtype = _DTYPES[spec.dtype]
        values: NDArray[Any] = self.tensors[name].read(_size(spec), dtype)
        return values.reshape(spec.shape)

    def write(self, name: str, values: NDArray[Any]) -> None:
        spec = self._specs[name]
        self.tensors[name].write(np.ascontiguousarray(values, dtype=_DTYPES[spec.dtype]).reshape(-1))

    def close(self) -> None:
        for tensors in (self.tensors, self.spare):
            while tensors:
                tensors.popitem()[1].destroy()

    def __del__(self) -> None:
        if hasattr(self, "spare"):
            self.close()


class _CompiledGraph:
    interface: Interface = "compiled"

    def __init__(self, source: bytes | Path, model: LiteRtModel, num_threads: int, weight_cache: Path | None) -> None:
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

        self._signatures = model.signatures
        self._steps: dict[str, tuple[_NativeBuffers, dict[str, Any]]] = {}
        for signature in model.signatures.values():
            for name, spec in signature.inputs.items():
                if spec.dtype not in _DTYPES:
                    raise _LibraryError(f"{name}: it has no buffers of type {spec.dtype}")
        building = None
        if weight_cache is not None and not weight_cache.exists():
            building = weight_cache.with_name(f"{weight_cache.name}.{os.getpid()}")
        options = Options(
            hardware_accelerators=HardwareAccelerator.CPU,
            cpu_options=CpuOptions(
                num_threads=num_threads, xnnpack_weight_cache_path=str(building or weight_cache or "")
            ),
        )
        try:
            with _said() as said:
                load = CompiledModel.from_buffer if isinstance(source, bytes) else CompiledModel.from_file
                try:
                    self._model = load(
                        source if isinstance(source, bytes) else str(source),
                        environment=_environment(),
                        options=options,
                    )
                except (RuntimeError, ValueError) as error:
                    raise _LibraryError(said.reason() or str(error)) from None
            if building is not None and weight_cache is not None:
                with contextlib.suppress(OSError):  # without it the next load only takes longer
                    building.replace(weight_cache)
        finally:
            if building is not None:
                building.unlink(missing_ok=True)
        self._source = source  # the library reads it where it lies

    def new_buffers(self, signature: str, names: Sequence[str]) -> _NativeBuffers:
        specs = {name: self._signatures[signature].inputs[name] for name in names}
        tensors = {name: self._model.create_input_buffer_by_name(signature, name) for name in names}
        buffers = _NativeBuffers(specs, tensors)
        for name, spec in specs.items():
            buffers.write(name, np.zeros(spec.shape, _DTYPES[spec.dtype]))
        return buffers

    def run(
        self,
        signature: str,
        inputs: Mapping[str, NDArray[Any]],
        cache: Buffers,
        fixed: Buffers | None,
        wanted: str | None,
    ) -> NDArray[np.float32] | None:
        assert isinstance(cache, _NativeBuffers)
        outputs_of = self._signatures[signature].outputs
        if signature not in self._steps:
            others = {
                name: self._model.create_output_buffer_by_name(signature, name)
                for name in outputs_of
                if name not in cache.tensors
            }
            self._steps[signature] = self.new_buffers(signature, list(inputs)), others
        step, others = self._steps[signature]
        for name, values in inputs.items():
            step.write(name, values)
        given = {**step.tensors, **cache.tensors}
        if fixed is not None:
            assert isinstance(fixed, _NativeBuffers)
            given |= fixed.tensors
        if cache.tensors.keys() <= self._signatures[signature].updated:
            self._model.run_by_name(signature, given, {**others, **cache.tensors})
        else:
            if not cache.spare:
                cache.spare = {name: self._model.create_input_buffer_by_name(signature, name) for name in cache.tensors}
            self._model.run_by_name(signature, given, {**others, **cache.spare})
            cache.tensors, cache.spare = cache.spare, cache.tensors
        if wanted is None:
            return None
        spec = outputs_of[wanted]
        values = others[wanted].read(_size(spec), _DTYPES[spec.dtype])
        return np.asarray(values, dtype=np.float32).reshape(spec.shape)

    def close(self) -> None:
        with _said():
            for step, others in self._steps.values():
                step.close()
                for buffer in others.values():
                    buffer.destroy()
            self._steps.clear()
            self._model.close()
        self._source = b""


class _HostBuffers:
    """Hold tensors as arrays."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.tensors = {name: np.zeros(spec.shape, _DTYPES[spec.dtype]) for name, spec in specs.items()}

    @property
    def num_bytes(self) -> int:
        return sum(values.nbytes for values in self.tensors.values())

    def read(self, name: str) -> NDArray[Any]:
        values: NDArray[Any] = self.tensors[name]
        return values.copy()

    def write(self, name: str, values: NDArray[Any]) -> None:
        self.tensors[name][:] = values

    def close(self) -> None:
        self.tensors.clear()


class _InterpretedGraph:
    interface: Interface = "interpreter"

    def __init__(self, source: bytes | Path, model: LiteRtModel, num_threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._signatures = model.signatures
        given = {"model_content": source} if isinstance(source, bytes) else {"model_path": str(source)}
        with _said() as said:
            try:
                self._interpreter = Interpreter(num_threads=num_threads, **given)
            except (RuntimeError, ValueError) as error:
                raise _LibraryError(said.reason() or str(error)) from None
        self._runners: dict[str, Any] = {}

    def new_buffers(self, signature: str, names: Sequence[str]) -> _HostBuffers:
        return _HostBuffers({name: self._signatures[signature].inputs[name] for name in names})

    def run(
        self,
        signature: str,
        inputs: Mapping[str, NDArray[Any]],
        cache: Buffers,
        fixed: Buffers | None,
        wanted: str | None,
    ) -> NDArray[np.float32] | None:
        assert isinstance(cache, _HostBuffers)
        given = dict(inputs)
        if fixed is not None:
            assert isinstance(fixed, _HostBuffers)
            given |= fixed.tensors
        if signature not in self._runners:
            with _said():
                self._runners[signature] = self._interpreter.get_signature_runner(signature)
        results = self._runners[signature](**given, **cache.tensors)
        for name in cache.tensors:
            cache.tensors[name] = results[name]
        return None if wanted is None else np.asarray(results[wanted], dtype=np.float32)

    def close(self) -> None:
        self._runners.clear()
        with _said():
            self._interpreter = None


def _size(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64))


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Return what all models share; made and kept without a word, and without the accelerators of a GPU.

    The library would write about both to stderr, when it begins and, from static destructors, when the process ends.
    """
    from ai_edge_litert.environment import Environment, EnvironmentOptions
    from ai_edge_litert.tensor_buffer import TensorBuffer

    environment = Environment.create(options=EnvironmentOptions(runtime_path=os.devnull))
    TensorBuffer.create_from_host_memory(np.zeros(16, np.float32)).write(np.zeros(16, np.float32))
    atexit.register(_silence_end)
    return environment


def _silence_end() -> None:
    """Send what the library's destructors write at the very end of the process nowhere; Python has said all it has."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


class _Said:
    """Hold what the library wrote to stderr."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self._file: Any = None

    def reason(self) -> str:
        """Return the errors among it, on one line."""
        if self._file is not None:
            self._file.seek(0)
            self.text = self._file.read(64 << 10).decode("utf-8", "replace")
        lines = [line.strip(" └") for line in self.text.splitlines()]
        errors = [line for line in lines if line and not line.startswith(("INFO", "WARNING", "VERBOSE"))]
        return " ".join("; ".join(line.removeprefix("ERROR: ") for line in errors).split())[:500]


@contextlib.contextmanager
def _said() -> Iterator[_Said]:
    """Keep what the library writes to the process's stderr meanwhile from it.

    It has no setting for that, and writes ten lines for every model; where something fails, the reason is among them.
    """
    said = _Said()
    with _stderr_lock, contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # the process has no stderr
            yield said
            return
        stack.callback(os.close, kept)
        said._file = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(said._file.fileno(), 2)
        stack.callback(os.dup2, kept, 2)
        yield said
