"""The token loop: one scheduler thread per engine serves every request, in ids.

A step takes one row from each sequence that is decoding and a chunk from those whose prompt is still being read, runs
`forward` over all of them together and hands each its logits. The thread lives only while there is work.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.errors import ContextLengthError, EngineClosedError
from hearthlm.runtime.executor import Executor, ForwardRequest, State, Wanted
from hearthlm.runtime.sampler import Sampler

FinishReason = Literal["stop", "length", "cancelled"]

PREFILL_CHUNK = 128  # rows per step for all prompts together: the bound on how late a cancel or another answer comes
MAX_LOGIT_BYTES_PER_STEP = 32 << 20


@dataclass(frozen=True)
class FinishedGeneration:
    """Say how a generation ended and what it took, in seconds."""

    reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    prefill_s: float
    decode_s: float


@dataclass
class _Work:
    """Hold one request under way: what is to be fed next and what for."""

    state: State
    pending: deque[int]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def wanted(self, num_ids: int) -> Wanted:
        """Say which logits are needed of a chunk of the next `num_ids`."""
        raise NotImplementedError

    def max_rows(self, vocab_size: int) -> int:
        """Return how many ids may be fed in one step."""
        return PREFILL_CHUNK

    def accept(self, ids: Sequence[int], logits: NDArray[np.float32] | None, pool: kernels.ThreadPool) -> bool:
        """Take the result of a chunk; return True when nothing is left to do."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        """End the request before its next step."""
        self.cancelled.set()

    def on_cancelled(self) -> None:
        raise NotImplementedError


class Generation(_Work):
    """Yield the ids of one answer as they are made; `finished` is set once the last is out.

    The state has then seen the prompt and every id, but for the last one where the answer ended by its length.
    """

    def __init__(
        self,
        state: State,
        prompt_ids: Sequence[int],
        *,
        sampler: Sampler,
        stop_ids: Collection[int],
        max_output_tokens: int,
    ) -> None:
        super().__init__(state, deque(prompt_ids))
        self._sampler = sampler
        self._stop_ids = frozenset(stop_ids)
        self._max_output_tokens = max_output_tokens
        self._num_cached_tokens = state.length
        self._num_prompt_tokens = state.length + len(prompt_ids)
        self._num_output_tokens = 0
        self._events: queue.SimpleQueue[int | FinishedGeneration | BaseException] = queue.SimpleQueue()
        self._started = time.perf_counter()
        self._first_token: float | None = None
        self._failed = False
        self.finished: FinishedGeneration | None = None

    def __iter__(self) -> Iterator[int]:
        while self.finished is None and not self._failed:
            event = self._events.get()
            if isinstance(event, int):
                yield event
            else:
                self._end(event)

    def join(self) -> None:
        """Wait until the scheduler has let go of the state; ids that were not read are lost."""
        # At the end of the process the scheduler's thread is frozen already and would never answer.
        while self.finished is None and not self._failed and not sys.is_finalizing():
            event = self._events.get()
            if not isinstance(event, int):
                self._end(event)

    def _end(self, event: FinishedGeneration | BaseException) -> None:
        if isinstance(event, FinishedGeneration):
            self.finished = event
        else:
            self._failed = True
            raise event

    def wanted(self, num_ids: int) -> Wanted:
        return "last" if num_ids == len(self.pending) else "none"

    def accept(self, ids: Sequence[int], logits: NDArray[np.float32] | None, pool: kernels.ThreadPool) -> bool:
        if logits is None:
            return False
        chosen = self._sampler.sample(logits[-1], self.state.length)
        if self._first_token is None:
            self._first_token = time.perf_counter()
        if chosen in self._stop_ids:
            self._finish("stop")
            return True
        self._num_output_tokens += 1
        self._events.put(chosen)
        if self._num_output_tokens >= self._max_output_tokens:
            self._finish("length")
            return True
        self.pending.append(chosen)
        return False

    def fail(self, error: BaseException) -> None:
        self._events.put(error)

    def on_cancelled(self) -> None:
        self._finish("cancelled")

    def _finish(self, reason: FinishReason) -> None:
        now = time.perf_counter()
        first = self._first_token or now
        self._events.put(
            FinishedGeneration(
                reason=reason,
                num_prompt_tokens=self._num_prompt_tokens,
                num_cached_tokens=self._num_cached_tokens,
                num_output_tokens=self._num_output_tokens,
                prefill_s=first - self._started,
                decode_s=now - first,
            )
        )


class Scoring(_Work):
    """Compute the log-probability of each id given those before it."""

    def __init__(self, state: State, ids: Sequence[int]) -> None:
        super().__init__(state, deque(ids[:-1]))
        self._ids = ids
        self._logprobs: list[NDArray[np.float32]] = []
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def result(self) -> NDArray[np.float32]:
        """Wait for float32 [len(ids) - 1]; interrupted, wait only until the scheduler has let go of the state."""
        try:
            error = self._done.get()
        except BaseException:
            self.cancel()
            self._done.get()
            raise
        if error is not None:
            raise error
        return np.concatenate(self._logprobs)

    def wanted(self, num_ids: int) -> Wanted:
        return "all"

    def max_rows(self, vocab_size: int) -> int:
        return max(1, min(PREFILL_CHUNK, MAX_LOGIT_BYTES_PER_STEP // (4 * vocab_size)))

    def accept(self, ids: Sequence[int], logits: NDArray[np.float32] | None, pool: kernels.ThreadPool) -> bool:
        assert logits is not None  # wanted for all
        end = self.state.length + 1
        targets = np.asarray(self._ids[end - len(ids) : end], dtype=np.int32)
        self._logprobs.append(kernels.log_softmax_at(logits, targets, pool))
        if not self.pending:
            self._done.put(None)
            return True
        return False

    def fail(self, error: BaseException) -> None:
        self._done.put(error)

    def on_cancelled(self) -> None:
        self.fail(EngineClosedError("the scoring was cancelled"))


class Engine:
    """Run requests on one executor; any thread may submit, any number at once."""

    def __init__(self, executor: Executor, *, max_tokens: int) -> None:
        self.executor = executor
        self.max_tokens = max_tokens
        self._lock = threading.Lock()
        self._incoming: list[_Work] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def new_state(self) -> State:
        return self.executor.new_state()

    def check_room(self, num_tokens: int) -> None:
        """Raise ContextLengthError unless a context of `num_tokens` has room for one more."""
        if num_tokens >= self.max_tokens:
            raise ContextLengthError(num_tokens, self.max_tokens)

    def generate(
        self,
        state: State,
        prompt_ids: Sequence[int],
        *,
        sampler: Sampler,
        stop_ids: Collection[int],
        max_output_tokens: int | None = None,
    ) -> Generation:
        """Start an answer to what `state` holds followed by `prompt_ids` (at least one id).

        Raises ContextLengthError before any work where no room is left for one more token.
        """
        if not prompt_ids:
            raise ValueError("prompt_ids: expected at least one id")
        num_tokens = state.length + len(prompt_ids)
        self.check_room(num_tokens)
        room = self.max_tokens - num_tokens
        generation = Generation(
            state,
            prompt_ids,
            sampler=sampler,
            stop_ids=stop_ids,
            max_output_tokens=room if max_output_tokens is None else min(room, max_output_tokens),
        )
        self._submit(generation)
        return generation

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return float32 [len(ids) - 1]: the log-probability of each id given those before it."""
        if len(ids) < 2:
            return np.empty(0, dtype=np.float32)
        if len(ids) > self.max_tokens:
            raise ContextLengthError(len(ids), self.max_tokens)
        state = self.new_state()
        try:
            scoring = Scoring(state, ids)
            self._submit(scoring)
            return scoring.result()
        finally:
            state.close()

    def close(self) -> None:
        """Cancel what is under way and wait for the scheduler; later calls raise EngineClosedError."""
        with self._lock:
            was_closed, self._closed = self._closed, True
            thread = self._thread
        if thread is not None:
            thread.join()
        if not was_closed:
            self.executor.close()

    def _submit(self, work: _Work) -> None:
        with self._lock:
            if self._closed:
                raise EngineClosedError("the model is closed")
            self._incoming.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hearthlm-scheduler", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        active: list[_Work] = []
        while True:
            with self._lock:
                active += self._incoming
                self._incoming.clear()
                if self._closed:
                    for work in active:
                        work.cancel()
                if not active:
                    self._thread = None
                    return
            try:
                active = self._step(active)
            except BaseException as error:  # a fault of ours: nobody may be left waiting for it
                for work in active:
                    work.fail(error)
                active = []

    def _step(self, active: list[_Work]) -> list[_Work]:
        """Advance every request by one step; return those that go on."""
        running = []
        for work in active:
            if work.cancelled.is_set():
                work.on_cancelled()
            else:
                running.append(work)
        chosen: list[tuple[_Work, list[int]]] = []
        budget = PREFILL_CHUNK
        for work in running:
            if len(work.pending) == 1:  # decoding: always taken along
                chosen.append((work, [work.pending[0]]))
            elif budget > 0:
                count = min(budget, len(work.pending), work.max_rows(self.executor.vocab_size))
                chosen.append((work, [work.pending[i] for i in range(count)]))
                budget -= count
        if not chosen:
            return running
        requests = [ForwardRequest(work.state, ids, work.wanted(len(ids))) for work, ids in chosen]
        try:
            results = self.executor.forward(requests)
        except BaseException as error:
            for work, _ in chosen:
                work.fail(error)
            failed = {id(work) for work, _ in chosen}
            return [work for work in running if id(work) not in failed]
        finished = set()
        for (work, ids), logits in zip(chosen, results, strict=True):
            for _ in ids:
                work.pending.popleft()
            try:
                if work.accept(ids, logits, self.executor.pool):
                    finished.add(id(work))
            except BaseException as error:
                work.fail(error)
                finished.add(id(work))
        return [work for work in running if id(work) not in finished]
