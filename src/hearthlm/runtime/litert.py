"""Run the language model in a `.tflite` of any graph: the second implementation of Executor, on ai-edge-litert.

A prompt goes through the prefill signatures, which take a fixed number of tokens and give no logits, so its last token
goes through decode. Tokens that fill a signature up are 0 and stand at the positions that follow: no earlier position
sees them, and what they leave in the cache is overwritten before any later one does.

A decode that was exported for several sequences computes those of one position together: each has a slot in shared
buffers, and the answers to one prompt go through it side by side. A sequence that is behind finds its next positions
overwritten by what it writes itself; one that is ahead is fed the token that it had there, again.
"""

from __future__ import annotations

import hashlib
import json
import math
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
# What a token of a prompt costs where decode takes several sequences: the cache goes into a slot and out again.
SLOT_COST = 64
SCORED_PER_STEP = 8  # decode calls: the bound on how late a cancel comes

_MAX_WEIGHED = 2048  # tokens; of a longer prompt the beginning goes through the longest signature

_TOKENS = ("tokens", "token_ids")
_MASKS = ("FLOAT32", "FLOAT16", "BOOL")
_BLOCKED = {np.dtype(np.float32): -0.7 * float(np.finfo(np.float32).max), np.dtype(np.float16): -45824.0}


@dataclass(frozen=True)
class Step:
    """Say which signature takes the next `num_tokens`."""

    signature: str
    length: int  # of the signature
    num_tokens: int


def cover(num_tokens: int, room: int, lengths: Mapping[str, int], *, decode_cost: int = 1 + CALL_COST) -> list[Step]:
    """Return the calls that read `num_tokens` with the least work, where the cache has room for `room`.

    `lengths` are those of the prefill signatures. A call costs its own length, filled up or not, and CALL_COST; only
    the last is filled up. What fits nowhere else is decoded token by token.
    """
    signatures = sorted(
        ({"decode": 1} | {n: t for n, t in lengths.items() if t > 1}).items(), key=lambda s: (s[1], s[0])
    )
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
            cost = length + CALL_COST if i else decode_cost
            if length <= n:
                costs.append((best[n - length][0] + cost, -i))
            elif length - n <= spare:
                costs.append((cost, -i))
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


class _Slots:
    """Own the caches of sequences that are decoded side by side."""

    def __init__(self, buffers: Buffers, adapter: LiteRtAdapter | None, num_slots: int) -> None:
        self.buffers = buffers
        self.adapter = adapter
        self._taken: list[weakref.ref[LiteRtState] | None] = [None] * num_slots

    def state(self, slot: int) -> LiteRtState | None:
        """Return the state in a slot, None for one that is free."""
        taken = self._taken[slot]
        found = None if taken is None else taken()
        return found if found is not None and found.slots is self and found.slot == slot else None

    @property
    def states(self) -> list[LiteRtState | None]:
        return [self.state(slot) for slot in range(len(self._taken))]

    def take(self, slot: int, state: LiteRtState) -> None:
        self._taken[slot] = weakref.ref(state)
        state.slots, state.slot = self, slot


class LiteRtState:
    """Hold what one sequence has seen: how many positions of a cache, which others may hold, too.

    The cache is one of its own, or a slot in `slots`. `ids` are the tokens that it has seen, None where it was loaded.
    """

    def __init__(self, executor: LiteRtExecutor, adapter: LiteRtAdapter | None = None) -> None:
        self.ids: list[int] | None = []
        self.length = 0
        self.adapter = adapter
        self.cache: _Cache | None = None
        self.slots: _Slots | None = None
        self.slot = 0
        self._executor = executor

    def truncate(self, length: int) -> int:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 to {self.length}, got {length}")
        if length < self.length and self.slots is not None:  # there lengths only grow: see `_seated`
            with self._executor.ownership:
                self.adopt(self._executor.taken_out(self))
                self.slots = None
        self.length = length
        if self.ids is not None:
            del self.ids[length:]
        if length == 0:
            self.close()
        return length

    def append(self, ids: Sequence[int]) -> None:
        """Note that the next positions have been computed."""
        self.length += len(ids)
        if self.ids is not None:
            self.ids += ids

    def fork(self) -> LiteRtState:
        copy = LiteRtState(self._executor, self.adapter)
        with self._executor.ownership:
            copy.length = self.length
            copy.ids = None if self.ids is None else list(self.ids)
            if self.cache is not None:
                copy.adopt(self.cache)
            elif self.slots is not None:
                copy.adopt(self._executor.taken_out(self))
        return copy

    def adopt(self, cache: _Cache) -> None:
        self.cache = cache
        cache.owners.add(self)

    def save(self) -> dict[str, NDArray[Any]]:
        return self._executor.saved(self)

    def memory(self) -> Mapping[int, int]:
        held = self.cache or self.slots
        return {} if held is None else {id(held): held.buffers.num_bytes}

    def close(self) -> None:
        with self._executor.ownership:
            cache, self.cache, self.slots = self.cache, None, None
            if cache is not None:
                cache.owners.discard(self)
        self.length, self.ids = 0, []


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
        self._layout = checked_layout(model, signatures, where)
        self._num_slots = signatures.num_decoded
        self._slots: weakref.WeakSet[_Slots] = weakref.WeakSet()
        logits = model.signatures["decode"].outputs[signatures.logits]
        self._vocab_size = logits.shape[-1]

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def has_cheap_rows(self) -> bool:
        return False  # a signature for one token is run for each

    @property
    def pool(self) -> kernels.ThreadPool:
        return self._pool

    @property
    def row_cost(self) -> None:
        return None

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
            state.length, state.ids = length, None
        return state

    def saved(self, state: LiteRtState) -> dict[str, NDArray[Any]]:
        """Return what the positions that a state has seen hold, by the names of the model's inputs."""
        if state.cache is None and state.slots is None:
            return {}
        return {name: self._layout.cut(name, self._read(state, name), state.length) for name in self._layout.specs}

    def taken_out(self, state: LiteRtState) -> _Cache:
        """Return a copy of the cache of a state."""
        cache = _Cache(self._new_buffers())
        for name in self._layout.specs:
            cache.buffers.write(name, self._read(state, name))
        return cache

    def _read(self, state: LiteRtState, name: str) -> NDArray[Any]:
        """Return a tensor of the cache of one state."""
        if state.slots is not None:
            return self._layout.of_slot(name, state.slots.buffers.read(name), state.slot)
        assert state.cache is not None
        return state.cache.buffers.read(name)

    def chunk_length(self, state: LiteRtState, num_ids: int, wanted: Wanted, budget: int) -> int:
        if wanted == "all":
            return min(num_ids, SCORED_PER_STEP)
        num_prefilled = num_ids - (wanted == "last")
        if num_prefilled == 0:
            return 1
        return self._cover(state, num_prefilled)[0].num_tokens

    def forward(self, requests: Sequence[ForwardRequest]) -> list[NDArray[np.float32] | None]:
        with self._calls:
            if self._num_slots == 1:
                return [self._advance(request.state, request.ids, request.wanted) for request in requests]
            decoded = [r for r in requests if len(r.ids) == 1 and r.wanted in ("last", "all")]
            for request in decoded:
                self._check_room(request.state, 1)
            rows = iter(self._decode([(request.state, request.ids[0]) for request in decoded]))
            return [next(rows) if r in decoded else self._advance(r.state, r.ids, r.wanted) for r in requests]

    def close(self) -> None:
        with self._calls:
            self.graph.close()
            self._pool.close()

    def _advance(self, state: LiteRtState, ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32] | None:
        if wanted == "hidden":
            raise UnsupportedModelError("a LiteRT model gives logits and no rows of its last layer")
        self._check_room(state, len(ids))
        num_prefilled = len(ids) - {"none": 0, "last": 1, "all": len(ids)}[wanted]
        rest = list(ids)
        for step in self._cover(state, num_prefilled):
            if step.length == 1:
                self._decode([(state, rest[0])])
            else:
                cache = self._writable(state)
                self._call(step, state.length, rest[: step.num_tokens], state.adapter, cache.buffers, None)
                state.append(rest[: step.num_tokens])
            del rest[: step.num_tokens]
        return np.concatenate([self._decode([(state, token)])[0] for token in rest]) if rest else None

    def _check_room(self, state: LiteRtState, num_ids: int) -> None:
        room = self._layout.num_tokens - state.length
        if num_ids > room:
            raise ValueError(
                f"ids: expected at most {room} more for a cache of {self._layout.num_tokens} tokens, got {num_ids}"
            )

    def _cover(self, state: LiteRtState, num_tokens: int) -> list[Step]:
        return cover(
            num_tokens,
            self._layout.num_tokens - state.length,
            self._signatures.prefill_lengths,
            decode_cost=1 + CALL_COST if self._num_slots == 1 else SLOT_COST,
        )

    def _decode(self, pairs: Sequence[tuple[LiteRtState, int]]) -> list[NDArray[np.float32]]:
        """Append a token to each state; return the logits after each, float32 [1, vocab_size]."""
        step, logits = Step("decode", 1, 1), self._signatures.logits
        results: list[NDArray[np.float32]] = []
        if self._num_slots == 1:
            for state, token in pairs:
                cache = self._writable(state)
                rows = self._call(step, state.length, [token], state.adapter, cache.buffers, logits)
                assert rows is not None
                results.append(rows.reshape(1, self._vocab_size))
                state.append([token])
            return results
        calls: dict[tuple[int, int], tuple[_Slots, dict[int, int]]] = {}
        for state, token in pairs:
            slots = self._seated(state)
            calls.setdefault((id(slots), state.length), (slots, {}))[1][state.slot] = token
        found: dict[tuple[int, int], NDArray[np.float32]] = {}
        for (_, position), (slots, given) in calls.items():
            states = slots.states
            tokens = [0] * self._num_slots
            for slot, other in enumerate(states):
                if slot in given:
                    tokens[slot] = given[slot]
                elif other is not None and other.length > position and other.ids is not None:
                    tokens[slot] = other.ids[position]  # what it had there; computed again it is the same
            rows = self._call(step, position, tokens, slots.adapter, slots.buffers, logits)
            assert rows is not None
            for slot, token in given.items():
                found[id(slots), slot] = rows.reshape(self._num_slots, self._vocab_size)[slot : slot + 1]
                seated = states[slot]
                assert seated is not None
                seated.append([token])
        return [found[id(state.slots), state.slot] for state, _ in pairs]

    def _call(
        self,
        step: Step,
        position: int,
        ids: Sequence[int],
        adapter: LiteRtAdapter | None,
        buffers: Buffers,
        wanted: str | None,
    ) -> NDArray[np.float32] | None:
        """Run one signature: on the next ids of one sequence, or on the next of several."""
        name = step.signature if adapter is None else f"{step.signature}_lora_r{adapter.rank}"
        inputs = self._inputs(self._model.signatures[name].inputs, position, step.length, ids)
        return self.graph.run(name, inputs, buffers, None if adapter is None else adapter.buffers(self.graph), wanted)

    def _inputs(
        self, specs: Mapping[str, TensorSpec], position: int, length: int, ids: Sequence[int]
    ) -> dict[str, NDArray[Any]]:
        """Return tokens, positions and mask for `ids`, filled up to `length`."""
        s = self._signatures
        tokens = np.zeros(max(length, len(ids)), np.int64)
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
            own = _Cache(self._new_buffers()) if cache is None and state.slots is None else self.taken_out(state)
            if cache is not None:
                cache.owners.discard(state)
            state.slots = None
            state.adopt(own)
            return own

    def _seated(self, state: LiteRtState) -> _Slots:
        """Return the buffers in which a state has a slot, one beside a state of its length if there is any.

        So whatever others in them have seen beyond that length, they have decoded there.
        """
        with self.ownership:
            if state.slots is not None:
                return state.slots
            chosen = None
            for slots in self._slots:
                states = slots.states
                beside = [other for other in states if other is not None]
                if slots.adapter is not state.adapter or len(beside) == len(states):
                    continue
                knows = state.ids is not None and all(other.ids is not None for other in beside)
                if knows and any(other.length == state.length for other in beside):
                    chosen = slots, states.index(None)
                    break
            if chosen is None:
                signature = "decode" if state.adapter is None else f"decode_lora_r{state.adapter.rank}"
                buffers = self.graph.new_buffers(signature, list(self._layout.specs))
                chosen = _Slots(buffers, state.adapter, self._num_slots), 0
                self._slots.add(chosen[0])
            slots, slot = chosen
            if state.cache is not None:
                for name in self._layout.specs:
                    whole = slots.buffers.read(name)
                    self._layout.of_slot(name, whole, slot)[:] = state.cache.buffers.read(name)
                    slots.buffers.write(name, whole)
                state.cache.owners.discard(state)
                state.cache = None
            slots.take(slot, state)
            return slots

    def _new_buffers(self) -> Buffers:
        return self.graph.new_buffers(self._layout.signature, list(self._layout.specs))


def checked_layout(model: LiteRtModel, signatures: LlmSignatures, where: str) -> CacheLayout:
    """Return how the cache lies of a model whose signatures are understood.

    Raises UnsupportedModelError for what cannot be run: inputs other than tokens, positions and a mask, or of a type or
    shape that cannot be filled, a cache that the model keeps to itself or in a ring.
    """
    s = signatures
    if s.tokens not in _TOKENS:
        raise UnsupportedModelError(
            f"{where}: the model takes {s.tokens}, made by a model of their own; expected one that takes "
            f"{' or '.join(_TOKENS)}"
        )
    layout = CacheLayout(model, signatures, where)
    for name, length in {"decode": 1, **signatures.prefill_lengths}.items():
        batch = signatures.num_decoded if name == "decode" else 1
        inputs, what = model.signatures[name].inputs, f"{where}: signature {name!r}"
        row = length * layout.num_tokens
        sizes = {s.tokens: {batch * length}, s.positions: {length, batch * length}, s.mask: {row, batch * row}}
        for tensor, wanted in sizes.items():
            if tensor is None:
                continue
            spec = inputs[tensor]
            known = _MASKS if tensor == s.mask else ("INT32",)
            if spec.dtype not in known:
                raise UnsupportedModelError(f"{what}: {tensor}: expected {' or '.join(known)}, got {spec.dtype}")
            if min(spec.shape, default=0) < 1 or math.prod(spec.shape) not in wanted:
                raise UnsupportedModelError(
                    f"{what}: {tensor}: expected {' or '.join(map(str, sorted(wanted)))} values, got the shape "
                    f"{list(spec.shape)}"
                )
    logits = model.signatures["decode"].outputs[s.logits]
    numpy_dtype(logits, f"{where}: {s.logits}")
    if min(logits.shape, default=0) < 1 or math.prod(logits.shape) != signatures.num_decoded * logits.shape[-1]:
        raise UnsupportedModelError(
            f"{where}: {s.logits}: expected [{signatures.num_decoded}, 1, vocabulary], got {list(logits.shape)}"
        )
    return layout


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

    def of_slot(self, name: str, values: NDArray[Any], slot: int) -> NDArray[Any]:
        """Return the part of a tensor of several sequences that is one's, as a view."""
        shape = self.specs[name].shape
        axis = next((i for i, (n, one) in enumerate(zip(values.shape, shape, strict=True)) if n != one), 0)
        return np.moveaxis(np.moveaxis(values, axis, 0)[slot * shape[axis] : (slot + 1) * shape[axis]], 0, axis)

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
