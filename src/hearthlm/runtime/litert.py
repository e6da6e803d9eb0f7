"""Run the language model in a `.tflite` of any graph: the second implementation of Executor, on ai-edge-litert.

A prompt goes through the prefill signatures, which take a fixed number of tokens and give no logits, so its last token
goes through decode. Tokens that fill a signature up are 0 and stand at the positions that follow: no earlier position
sees them, and what they leave in the cache is overwritten before any later one does.
"""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.errors import SessionFileError, UnsupportedModelError
from hearthlm.formats.litert_model import LiteRtModel, LlmSignatures, TensorSpec
from hearthlm.runtime.executor import ForwardRequest, Wanted
from hearthlm.runtime.litert_graph import Buffers, Graph, numpy_dtype
from hearthlm.runtime.litert_lora import LiteRtAdapter

# What a call costs beside its tokens, in tokens: all weights are read once for each call.
CALL_COST = 4
SCORED_PER_STEP = 8  # decode calls: the bound on how late a cancel comes

_MAX_WEIGHED = 2048  # tokens; of a longer prompt the beginning goes through the longest signature

_BLOCKED = {np.dtype(np.float32): -0.7 * float(np.finfo(np.float32).max), np.dtype(np.float16): -45824.0}


@dataclass(frozen=True)
class Step:
    """Say which signature takes the next `num_tokens`."""

    signature: str
    length: int  # of the signature
    num_tokens: int


def cover(num_tokens: int, room: int, lengths: Mapping[str, int], decode: str = "decode") -> list[Step]:
    """Return the calls that read `num_tokens` with the least work, where the cache has room for `room`.

    `lengths` are those of the prefill signatures. A call costs its own length, filled up or not, and CALL_COST; only
    the last is filled up. What fits nowhere else is decoded token by token.
    """
    signatures = sorted(({decode: 1} | {n: t for n, t in lengths.items() if t > 1}).items(), key=lambda s: (s[1], s[0]))
    longest = signatures[-1]
    steps = []
    while num_tokens > max(_MAX_WEIGHED, 2 * longest[1]) and longest[1] > 1:
        steps.append(Step(longest[0], longest[1], longest[1]))
        num_tokens -= longest[1]
        room -= longest[1]
    # best[n] is the cheapest way to read the last n tokens: (cost, the longest signature of it).
    best: list[tuple[int, int]] = [(0, 0)]
    spare = room - num_tokens
    for n in range(1, num_tokens + 1):
        costs = []
        for i, (_, length) in enumerate(signatures):
            if length <= n:
                costs.append((best[n - length][0] + length + CALL_COST, -i))
            elif length - n <= spare:
                costs.append((length + CALL_COST, -i))
        best.append(min(costs))
    while num_tokens > 0:
        name, length = signatures[-best[num_tokens][1]]
        steps.append(Step(name, length, min(length, num_tokens)))
        num_tokens -= steps[-1].num_tokens
    return steps


class _Cache:
    """Own the KV cache of one sequence, or of several that began alike, until one writes over what another has seen."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.owners: weakref.WeakSet[LiteRtState] = weakref.WeakSet()

    def is_seen_from(self, position: int, writer: LiteRtState) -> bool:
        """Say whether a state other than `writer` has seen something at `position` or later."""
        return any(owner.length > position for owner in self.owners if owner is not writer)


class LiteRtState:
    """Hold what one sequence has seen: how many positions of a cache, which others may hold, too."""

    def __init__(self, executor: LiteRtExecutor, adapter: LiteRtAdapter | None = None) -> None:
        self.length = 0
        self.adapter = adapter
        self.cache: _Cache | None = None
        self._executor = executor

    def truncate(self, length: int) -> int:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 to {self.length}, got {length}")
        self.length = length
        if length == 0:
            self.close()
        return length

    def fork(self) -> LiteRtState:
        copy = LiteRtState(self._executor, self.adapter)
        with self._executor.ownership:
            copy.length = self.length
            if self.cache is not None:
                copy.adopt(self.cache)
        return copy

    def adopt(self, cache: _Cache) -> None:
        self.cache = cache
        cache.owners.add(self)

    def save(self) -> dict[str, NDArray[Any]]:
        return {} if self.cache is None else self._executor.saved(self.cache.buffers, self.length)

    def memory(self) -> Mapping[int, int]:
        return {} if self.cache is None else {id(self.cache): self.cache.buffers.num_bytes}

    def close(self) -> None:
        with self._executor.ownership:
            cache, self.cache = self.cache, None
            if cache is not None:
                cache.owners.discard(self)
        self.length = 0


class LiteRtExecutor:
    """Compute tokens with a graph that is loaded; sequences go through it one after the other.

    A result depends on the other sequences in nothing, and on how a prompt is divided into calls only in the last bits
    of the floats. Raises UnsupportedModelError for signatures that are understood and cannot be run.
    """

    def __init__(
        self,
        graph: Graph,
        model: LiteRtModel,
        signatures: LlmSignatures,
        *,
        where: str,
        num_threads: int,
        digest: bytes,
    ) -> None:
        self.graph = graph
        self.ownership = threading.RLock()  # of caches; reentrant, as the garbage collector may end a state inside it
        self._model = model
        self._signatures = signatures
        self._calls = threading.Lock()
        self._pool = kernels.ThreadPool(num_threads)
        self._digest = digest
        self._layout = CacheLayout(model, signatures, where)
        logits = model.signatures["decode"].outputs[signatures.logits]
        self._vocab_size = logits.shape[-1]
        numpy_dtype(logits, f"{where}: {signatures.logits}")
        for name in ("decode", *signatures.prefill_lengths):
            self._check_inputs(model.signatures[name].inputs, f"{where}: signature {name!r}")

    def _check_inputs(self, inputs: Mapping[str, TensorSpec], what: str) -> None:
        """Raise UnsupportedModelError for an input of a type that cannot be filled."""
        s = self._signatures
        for name in (s.tokens, s.positions):
            if numpy_dtype(inputs[name], f"{what}: {name}") != np.int32:
                raise UnsupportedModelError(f"{what}: {name}: expected INT32, got {inputs[name].dtype}")
        if s.mask is not None:
            dtype = numpy_dtype(inputs[s.mask], f"{what}: {s.mask}")
            if dtype != np.bool_ and dtype not in _BLOCKED:
                raise UnsupportedModelError(
                    f"{what}: {s.mask}: expected FLOAT32, FLOAT16 or BOOL, got {inputs[s.mask].dtype}"
                )

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def pool(self) -> kernels.ThreadPool:
        return self._pool

    @property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(b"hearthlm-litert-state-1", digest_size=32)
        digest.update(json.dumps(self._layout.description).encode())
        digest.update(self._digest)
        return digest.hexdigest()

    def new_state(self, adapter: Any = None) -> LiteRtState:
        return LiteRtState(self, adapter)

    def load_state(self, length: int, arrays: Mapping[str, NDArray[Any]], adapter: Any = None) -> LiteRtState:
        self._layout.check_saved(length, arrays)
        state = LiteRtState(self, adapter)
        if length:
            cache = _Cache(self._new_buffers())
            for name, values in arrays.items():
                cache.buffers.write(name, self._layout.filled(name, values))
            state.adopt(cache)
            state.length = length
        return state

    def saved(self, buffers: Buffers, length: int) -> dict[str, NDArray[Any]]:
        """Return what the first `length` positions of a cache hold, by the names of the model's inputs."""
        return {name: self._layout.cut(name, buffers.read(name), length) for name in self._layout.specs}

    def chunk_length(self, state: LiteRtState, num_ids: int, wanted: Wanted, budget: int) -> int:
        if wanted == "all":
            return min(num_ids, SCORED_PER_STEP)
        num_prefilled = num_ids - (wanted == "last")
        if num_prefilled == 0:
            return 1
        return self._cover(state, num_prefilled)[0].num_tokens

    def forward(self, requests: Sequence[ForwardRequest]) -> list[NDArray[np.float32] | None]:
        with self._calls:
            return [self._advance(request.state, request.ids, request.wanted) for request in requests]

    def close(self) -> None:
        with self._calls:
            self.graph.close()
            self._pool.close()

    def _advance(self, state: LiteRtState, ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32] | None:
        if wanted == "hidden":
            raise UnsupportedModelError("a LiteRT model gives logits and no rows of its last layer")
        if state.length + len(ids) > self._layout.num_tokens:
            raise ValueError(
                f"ids: expected at most {self._layout.num_tokens - state.length} more for a cache of "
                f"{self._layout.num_tokens} tokens, got {len(ids)}"
            )
        num_prefilled = len(ids) - {"none": 0, "last": 1, "all": len(ids)}[wanted]
        rest = list(ids)
        for step in self._cover(state, num_prefilled):
            self._call(state, step, rest[: step.num_tokens], None)
            del rest[: step.num_tokens]
        if wanted == "none":
            return None
        logits = self._signatures.logits
        rows = [self._call(state, Step("decode", 1, 1), [token], logits) for token in rest]
        return np.concatenate([row.reshape(-1, self._vocab_size)[:1] for row in rows if row is not None])

    def _cover(self, state: LiteRtState, num_tokens: int) -> list[Step]:
        return cover(num_tokens, self._layout.num_tokens - state.length, self._signatures.prefill_lengths)

    def _call(
        self, state: LiteRtState, step: Step, ids: Sequence[int], wanted: str | None
    ) -> NDArray[np.float32] | None:
        """Run one signature on the next ids of a sequence."""
        cache = self._writable(state)
        name = step.signature if state.adapter is None else f"{step.signature}_lora_r{state.adapter.rank}"
        inputs = self._inputs(self._model.signatures[name].inputs, state.length, step.length, ids)
        fixed = None if state.adapter is None else state.adapter.buffers(self.graph)
        result = self.graph.run(name, inputs, cache.buffers, fixed, wanted)
        state.length += len(ids)
        return result

    def _inputs(
        self, specs: Mapping[str, TensorSpec], position: int, length: int, ids: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        """Return tokens, positions and mask for `ids`, filled up to `length`."""
        s = self._signatures
        tokens = np.zeros(length, np.int64)
        tokens[: len(ids)] = ids
        positions = np.arange(position, position + length)
        inputs = {s.tokens: _shaped(tokens, specs[s.tokens]), s.positions: _shaped(positions, specs[s.positions])}
        if s.mask is not None:
            spec = specs[s.mask]
            last = np.minimum(positions, position + len(ids) - 1)
            is_seen = np.arange(spec.shape[-1])[None, :] <= last[:, None]
            dtype = numpy_dtype(spec, s.mask)
            if dtype == np.bool_:
                mask: NDArray[Any] = is_seen
            else:
                mask = np.where(is_seen, dtype.type(0), dtype.type(_BLOCKED[dtype]))
            inputs[s.mask] = _shaped(mask, spec)
        return inputs

    def _writable(self, state: LiteRtState) -> _Cache:
        """Return the cache of a state, where from its length on nobody else has seen anything."""
        with self.ownership:
            cache = state.cache
            if cache is not None and not cache.is_seen_from(state.length, state):
                return cache
            own = _Cache(self._new_buffers())
            if cache is not None:
                for name in self._layout.specs:
                    own.buffers.write(name, cache.buffers.read(name))
                cache.owners.discard(state)
            state.adopt(own)
            return own

    def _new_buffers(self) -> Buffers:
        return self.graph.new_buffers(self._layout.signature, list(self._layout.specs))


class CacheLayout:
    """Say which inputs are the cache of one sequence, and which of their axes counts tokens."""

    def __init__(self, model: LiteRtModel, signatures: LlmSignatures, where: str) -> None:
        kv = signatures.kv_cache
        if kv is None:
            raise UnsupportedModelError(
                f"{where}: expected a KV cache among the inputs and outputs (kv_cache_k_0, ...), but the model keeps "
                f"its own ({signatures.tokens}, {signatures.positions} -> {signatures.logits}): it can hold one text "
                "only"
            )
        self.signature = next(iter(signatures.prefill_lengths))
        inputs = model.signatures[self.signature].inputs
        self.specs = {name: inputs[name] for pair in kv.tensors for name in pair}
        if kv.num_tokens is None or kv.key_axis is None or kv.value_axis is None:
            raise UnsupportedModelError(
                f"{where}: KV cache: expected keys and values of [batch, tokens, heads, size], or keys of [batch, "
                f"heads, tokens, size] and values of [batch, heads, size, tokens], got {list(kv.key_shape)} and "
                f"{list(kv.value_shape)}"
            )
        self.num_tokens = kv.num_tokens
        self._axes: dict[str, int] = {}
        for pair in kv.tensors:
            for name, axis in zip(pair, (kv.key_axis, kv.value_axis), strict=True):
                spec = self.specs[name]
                numpy_dtype(spec, f"{where}: {name}")
                if len(spec.shape) <= axis or spec.shape[axis] != self.num_tokens or min(spec.shape) < 1:
                    raise UnsupportedModelError(
                        f"{where}: {name}: expected {self.num_tokens} tokens on axis {axis}, as in the other layers, "
                        f"got the shape {list(spec.shape)}; caches that a window writes in a ring cannot be run"
                    )
                self._axes[name] = axis

    @property
    def description(self) -> dict[str, Any]:
        """What a saved state depends on, as JSON."""
        return {name: [spec.dtype, list(spec.shape), self._axes[name]] for name, spec in self.specs.items()}

    def cut(self, name: str, values: NDArray[Any], length: int) -> NDArray[Any]:
        """Return the first `length` tokens of a tensor."""
        return np.ascontiguousarray(np.take(values, range(length), axis=self._axes[name]))

    def filled(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Return a whole tensor that begins with what `cut` returned, zero from there on."""
        spec, axis = self.specs[name], self._axes[name]
        whole = np.zeros(spec.shape, values.dtype)
        np.moveaxis(whole, axis, 0)[: values.shape[axis]] = np.moveaxis(values, axis, 0)
        return whole

    def check_saved(self, length: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raise SessionFileError unless `arrays` is what `saved` returns at `length`."""
        if not 0 <= length <= self.num_tokens:
            raise SessionFileError(f"the saved state's length: expected 0 to {self.num_tokens} tokens, got {length}")
        wanted = self.specs.keys() if length else set()
        if arrays.keys() != wanted:
            raise SessionFileError(
                f"the saved state: expected the arrays {', '.join(sorted(wanted))[:200] or 'none'}, "
                f"got {', '.join(sorted(arrays))[:200] or 'none'}"
            )
        for name, values in arrays.items():
            spec, axis = self.specs[name], self._axes[name]
            shape = (*spec.shape[:axis], length, *spec.shape[axis + 1 :])
            dtype = numpy_dtype(spec, name)
            if values.dtype != dtype or values.shape != shape:
                raise SessionFileError(
                    f"the saved state's {name!r}: expected {dtype} {list(shape)} for {length} tokens, got "
                    f"{values.dtype} {list(values.shape)[:8]}"
                )


def _shaped(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Return values of one sequence in the shape and type of an input, repeated where it takes several sequences."""
    dtype = numpy_dtype(spec, "input")
    size = int(np.prod(spec.shape, dtype=np.int64))
    return np.broadcast_to(values.astype(dtype).reshape(-1), (size // values.size, values.size)).reshape(spec.shape)
