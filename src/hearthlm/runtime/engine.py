"""The token loop: one scheduler thread per engine serves every request, in ids.

A step takes one row from each sequence that is decoding and a chunk from those whose prompt is still being read, runs
`forward` over all of them together and hands each its logits. The thread lives only while there is work.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hearthlm import kernels
from hearthlm.errors import ContextLengthError, EngineClosedError
from hearthlm.runtime.constraint import Constraint
from hearthlm.runtime.executor import Executor, ForwardRequest, State, Wanted
from hearthlm.runtime.lora import Adapter
from hearthlm.runtime.prefix_cache import PrefixCache
from hearthlm.runtime.prompt_lookup import PromptLookup
from hearthlm.runtime.sampler import Sampler, TokenLogprobs, token_logprobs

FinishReason = Literal["stop", "length", "cancelled"]

PREFILL_CHUNK = 128  # rows per step for all prompts together: the bound on how late a cancel or another answer comes
LONE_PREFILL_CHUNK = 256  # where nobody decodes meanwhile and that takes a second at most: larger ones gain nothing
MAX_LOGIT_BYTES_PER_STEP = 32 << 20
MAX_ROWS_WITH_GUESSES = 16  # per step, over all answers: up to here another row costs a tenth of the first


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
        """Say what is needed of a chunk of the next `num_ids`."""
        raise NotImplementedError

    def max_rows(self, vocab_size: int) -> int:
        """Return how many ids may be fed in one step, whatever the executor would like."""
        return sys.maxsize

    def guess(self, limit: int) -> list[int]:
        """Return up to `limit` ids that may follow the one that is pending; they are fed with it and can be wrong."""
        return []

    def accept(self, ids: Sequence[int], rows: NDArray[np.float32] | None, pool: kernels.ThreadPool) -> bool:
        """Take the result of a chunk; return True when nothing is left to do."""
        raise NotImplementedError

    def successors(self) -> Sequence[_Work]:
        """Return what can begin now that this is done."""
        return ()

    def fail(self, error: BaseException) -> None:
        raise NotImplementedError

    def cancel(self) -> None:
        """End the request before its next step."""
        self.cancelled.set()

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    def on_cancelled(self) -> None:
        raise NotImplementedError


class Generation(_Work):
    """Make the ids of one answer; `finished` is set once the last has been taken.

    The state has then seen the prompt and every id, but for the last one where the answer ended by its length.
    `logprobs` holds an entry for every id that has been taken, if any were asked for. `on_event` is called by the
    scheduler whenever there is something to take.
    """

    def __init__(
        self,
        state: State,
        prompt_ids: Sequence[int],
        *,
        context_ids: Sequence[int],
        sampler: Sampler,
        stop_ids: Collection[int],
        max_output_tokens: int,
        num_logprobs: int = 0,
        constraint: Constraint | None = None,
        looks_up: bool = False,
    ) -> None:
        super().__init__(state, deque(prompt_ids))
        self._sampler = sampler
        self._stop_ids = frozenset(stop_ids)
        self._max_output_tokens = max_output_tokens
        self._num_logprobs = num_logprobs
        self._matcher = None if constraint is None else constraint.matcher_after(context_ids)
        self._context_ids = tuple(context_ids) if sampler.penalises or looks_up else ()
        self._looks_up = looks_up
        self._lookup: PromptLookup | None = None
        self._num_cached_tokens = state.length
        self._num_prompt_tokens = len(context_ids)
        self._output_ids: list[int] = []
        self._events: queue.SimpleQueue[int | FinishedGeneration | BaseException] = queue.SimpleQueue()
        self._started = time.perf_counter()
        self._first_token: float | None = None
        self._failed = False
        self._end: FinishedGeneration | BaseException | None = None  # the last event, set before it can be taken
        self.logprobs: list[TokenLogprobs] = []
        self.finished: FinishedGeneration | None = None
        self.on_event: Callable[[], None] | None = None

    def take(self, *, block: bool = True) -> int | None:
        """Return the next id, None once there is no other; raises what made the generation fail.

        Without `block`, raises queue.Empty where nothing has come yet.
        """
        if self.finished is not None or self._failed:
            return None
        event: int | FinishedGeneration | BaseException
        try:
            event = self._events.get(block)
        except queue.Empty:
            if self._end is None:
                raise
            event = self._end  # another thread is just taking it
        if isinstance(event, int):
            return event
        self._events.put(event)  # for whoever else waits
        if isinstance(event, FinishedGeneration):
            self.finished = event
            return None
        self._failed = True
        raise event

    def join(self) -> None:
        """Wait until the scheduler has let go of the state, then pass on an interrupt that came; other ids are lost."""
        interrupt: KeyboardInterrupt | None = None
        # At the end of the process the scheduler's thread is frozen already and would never answer.
        while self.finished is None and not self._failed and not sys.is_finalizing():
            try:
                self.take()
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def wanted(self, num_ids: int) -> Wanted:
        if num_ids > len(self.pending):
            return "all"
        return "last" if num_ids == len(self.pending) else "none"

    def guess(self, limit: int) -> list[int]:
        if not self._looks_up or not self._output_ids:
            return []
        if self._lookup is None:
            self._lookup = PromptLookup([*self._context_ids, *self._output_ids])
        return self._lookup.guess(min(limit, self._max_output_tokens - len(self._output_ids) - 1))

    def accept(self, ids: Sequence[int], rows: NDArray[np.float32] | None, pool: kernels.ThreadPool) -> bool:
        """Choose a token by the last row, or by one row after the other as long as the ids fed were guessed right."""
        if rows is None:
            return False
        num_guessed = len(rows) - 1
        first = self.state.length - num_guessed  # the position that the first row is about
        for i, logits in enumerate(rows):
            allowed = None if self._matcher is None else self._matcher.mask()
            chosen = self._sampler.sample(logits, first + i, self._output_ids, self._context_ids, allowed)
            reason = self._take_chosen(chosen, logits, pool)
            is_right = i < num_guessed and chosen == ids[i + 1]
            if reason is not None or not is_right:
                break
        if num_guessed:
            assert self._lookup is not None
            self._lookup.learn(num_guessed, i)
            if i < num_guessed:
                self.state.truncate(first + i)
        if reason is None:
            self.pending.append(chosen)
            return False
        self._finish(reason)  # last: the state is somebody else's from here on
        return True

    def _take_chosen(self, chosen: int, logits: NDArray[np.float32], pool: kernels.ThreadPool) -> FinishReason | None:
        """Add an id to the answer, unless it is a stop; return why the answer ends with it, if it does."""
        if self._first_token is None:
            self._first_token = time.perf_counter()
        if chosen in self._stop_ids:
            return "stop"
        self._output_ids.append(chosen)
        if self._lookup is not None:
            self._lookup.append(chosen)
        if self._num_logprobs:
            self.logprobs.append(token_logprobs(logits, chosen, self._num_logprobs, pool))
        self._put(chosen)
        if self._matcher is not None:
            self._matcher.take(chosen)
            if self._matcher.is_over and not self._stop_ids:  # no token could say so
                return "stop"
        return "length" if len(self._output_ids) >= self._max_output_tokens else None

    def fail(self, error: BaseException) -> None:
        self._put(error)

    def on_cancelled(self) -> None:
        self._finish("cancelled")

    def _finish(self, reason: FinishReason) -> None:
        now = time.perf_counter()
        first = self._first_token or now
        self._put(
            FinishedGeneration(
                reason=reason,
                num_prompt_tokens=self._num_prompt_tokens,
                num_cached_tokens=self._num_cached_tokens,
                num_output_tokens=len(self._output_ids),
                prefill_s=first - self._started,
                decode_s=now - first,
            )
        )

    def _put(self, event: int | FinishedGeneration | BaseException) -> None:
        if not isinstance(event, int):
            self._end = event
        notify = self.on_event  # whoever takes the last event may drop it at once
        self._events.put(event)
        if notify is not None:
            notify()


class _SharedPrompt(_Work):
    """Read a prompt once for several answers; each then goes on from a fork of the state, the first from itself."""

    def __init__(self, state: State, ids: Sequence[int], generations: Sequence[Generation]) -> None:
        super().__init__(state, deque(ids))
        self._generations = generations

    def wanted(self, num_ids: int) -> Wanted:
        return "none"

    def accept(self, ids: Sequence[int], rows: NDArray[np.float32] | None, pool: kernels.ThreadPool) -> bool:
        return not self.pending

    def successors(self) -> Sequence[_Work]:
        for generation in self._generations[1:]:
            generation.state = self.state.fork()
        return self._generations

    def fail(self, error: BaseException) -> None:
        for generation in self._generations:
            generation.fail(error)

    def cancel(self) -> None:
        for generation in self._generations:
            generation.cancel()

    def is_cancelled(self) -> bool:
        return all(generation.is_cancelled() for generation in self._generations)

    def on_cancelled(self) -> None:
        for generation in self._generations:
            generation.on_cancelled()


class _Awaited(_Work):
    """Hold a request whose caller waits for the whole result."""

    def __init__(self, state: State, ids: Sequence[int]) -> None:
        super().__init__(state, deque(ids))
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def wait(self) -> None:
        """Wait for the end; interrupted, wait only until the scheduler has let go of the state."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                error = self._done.get()
                break
            except KeyboardInterrupt as raised:
                interrupt = raised
                self.cancel()
        if interrupt is not None:
            raise interrupt
        if error is not None:
            raise error

    def accept(self, ids: Sequence[int], rows: NDArray[np.float32] | None, pool: kernels.ThreadPool) -> bool:
        assert rows is not None  # wanted for all
        self.take_rows(rows, pool)
        if self.pending:
            return False
        self._done.put(None)
        return True

    def take_rows(self, rows: NDArray[np.float32], pool: kernels.ThreadPool) -> None:
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        self._done.put(error)

    def on_cancelled(self) -> None:
        self.fail(EngineClosedError("the model was closed, or the call cancelled, before the answer was complete"))


class Scoring(_Awaited):
    """Compute the log-probability of each id given those before it, float32 [len(ids) - 1]."""

    def __init__(self, state: State, ids: Sequence[int]) -> None:
        super().__init__(state, ids[:-1])
        self._ids = ids
        self._logprobs: list[NDArray[np.float32]] = []

    def result(self) -> NDArray[np.float32]:
        self.wait()
        return np.concatenate(self._logprobs)

    def wanted(self, num_ids: int) -> Wanted:
        return "all"

    def max_rows(self, vocab_size: int) -> int:
        return max(1, min(PREFILL_CHUNK, MAX_LOGIT_BYTES_PER_STEP // (4 * vocab_size)))

    def take_rows(self, rows: NDArray[np.float32], pool: kernels.ThreadPool) -> None:
        end = self.state.length + 1
        targets = np.asarray(self._ids[end - len(rows) : end], dtype=np.int32)
        self._logprobs.append(kernels.log_softmax_at(rows, targets, pool))


class Embedding(_Awaited):
    """Compute the mean of the last layer's normed rows over all ids, float32 [embedding_dim]."""

    def __init__(self, state: State, ids: Sequence[int]) -> None:
        super().__init__(state, ids)
        self._num_ids = len(ids)
        self._sum: NDArray[np.float64] | None = None

    def result(self) -> NDArray[np.float32]:
        self.wait()
        assert self._sum is not None  # at least one id was fed
        return (self._sum / self._num_ids).astype(np.float32)

    def wanted(self, num_ids: int) -> Wanted:
        return "hidden"

    def take_rows(self, rows: NDArray[np.float32], pool: kernels.ThreadPool) -> None:
        wide = rows.astype(np.float64)
        if self._sum is not None:
            wide = np.concatenate([self._sum[None], wide])
        # Row after row, so that the sum does not depend on how the text was divided into chunks.
        self._sum = np.add.accumulate(wide, axis=0)[-1]


class Engine:
    """Run requests on one executor; any thread may submit, any number at once."""

    def __init__(
        self, executor: Executor, *, max_tokens: int, prefix_cache_bytes: int = 0, looks_up: bool = True
    ) -> None:
        self.executor = executor
        self._looks_up = looks_up and executor.has_cheap_rows
        self.max_tokens = max_tokens
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._lock = threading.Lock()
        self._incoming: list[_Work] = []
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False
        self._rows_per_s = 0.0  # of the last step that read nothing but prompts

    def new_state(self, ids: Sequence[int] = (), adapter: Adapter | None = None) -> State:
        """Return a state for a text that begins with `ids`: empty, or one that has seen a part of them before."""
        known = self._prefixes.take(ids, "" if adapter is None else adapter.digest) if ids else None
        return known or self.executor.new_state(adapter)

    def keep_state(self, ids: Sequence[int], state: State, adapter: Adapter | None = None) -> None:
        """Remember what `state` has computed for the beginning of `ids`, within the budget."""
        if not self._closed:
            self._prefixes.keep(ids, state, "" if adapter is None else adapter.digest)

    def check_room(self, num_tokens: int) -> None:
        """Raise ContextLengthError unless a context of `num_tokens` has room for one more."""
        self._check_process()
        if num_tokens >= self.max_tokens:
            raise ContextLengthError(num_tokens, self.max_tokens)

    def prepare(
        self,
        state: State,
        ids: Sequence[int],
        *,
        samplers: Sequence[Sampler],
        stop_ids: Collection[int],
        max_output_tokens: int | None = None,
        num_logprobs: int = 0,
        constraint: Constraint | None = None,
    ) -> list[Generation]:
        """Return one answer per sampler to the context `ids`, of which `state` has seen all but at least the last.

        They begin with `submit`. The first uses `state` itself and the others forks of it; with several, the prompt is
        read once. Raises ContextLengthError where no room is left for one more token.
        """
        if state.length >= len(ids):
            raise ValueError("ids: expected at least one that the state has not seen")
        self.check_room(len(ids))
        room = self.max_tokens - len(ids)
        pending = ids[state.length :] if len(samplers) == 1 else ids[-1:]
        generations = [
            Generation(
                state,
                pending,
                context_ids=ids,
                sampler=sampler,
                stop_ids=stop_ids,
                max_output_tokens=room if max_output_tokens is None else min(room, max_output_tokens),
                num_logprobs=num_logprobs,
                constraint=constraint,
                looks_up=self._looks_up,
            )
            for sampler in samplers
        ]
        for generation in generations[1:]:
            generation.state = self.executor.new_state()  # a fork takes its place once the prompt has been read
        return generations

    def submit(self, ids: Sequence[int], generations: Sequence[Generation]) -> None:
        """Begin what `prepare` returned for `ids`."""
        if len(generations) == 1:
            self._submit(generations[0])
            return
        state = generations[0].state
        shared = _SharedPrompt(state, ids[state.length : -1], generations)
        if shared.pending:
            self._submit(shared)
        else:
            self._submit(*shared.successors())

    def score(self, ids: Sequence[int], adapter: Adapter | None = None) -> NDArray[np.float32]:
        """Return float32 [len(ids) - 1]: the log-probability of each id given those before it."""
        if len(ids) < 2:
            return np.empty(0, dtype=np.float32)
        if len(ids) > self.max_tokens:
            raise ContextLengthError(len(ids), self.max_tokens)
        state = self.executor.new_state(adapter)
        try:
            scoring = Scoring(state, ids)
            self._submit(scoring)
            return scoring.result()
        finally:
            state.close()

    def embed(
        self, ids: Sequence[int], adapter: Adapter | None = None, cancelled: threading.Event | None = None
    ) -> NDArray[np.float32]:
        """Return float32 [embedding_dim]: the mean over all ids of the last layer's normed rows.

        Setting `cancelled` ends it before the next step, with EngineClosedError.
        """
        if not ids:
            raise ValueError("ids: expected at least one")
        if len(ids) > self.max_tokens:
            raise ContextLengthError(len(ids), self.max_tokens)
        state = self.executor.new_state(adapter)
        try:
            embedding = Embedding(state, ids)
            embedding.cancelled = cancelled or embedding.cancelled
            self._submit(embedding)
            return embedding.result()
        finally:
            state.close()

    def close(self) -> None:
        """Cancel what is under way and wait for the scheduler; later calls raise EngineClosedError."""
        if self._process != os.getpid():
            return
        with self._lock:
            was_closed, self._closed = self._closed, True
            thread = self._thread
        if thread is not None:
            thread.join()
        if not was_closed:
            self._prefixes.clear()
            self.executor.close()

    def _submit(self, *work: _Work) -> None:
        self._check_process()
        with self._lock:
            if self._closed:
                raise EngineClosedError("the model is closed")
            self._incoming.extend(work)
            if self._thread is None:
                atexit.register(self._end_with_process)
                self._thread = threading.Thread(target=self._run, name="hearthlm-scheduler", daemon=True)
                self._thread.start()

    def _check_process(self) -> None:
        """Raise EngineClosedError in a forked child: the threads, and who holds the locks, stayed in the other one."""
        if self._process != os.getpid():
            raise EngineClosedError("the model was loaded before this process was forked: load it again in here")

    def _end_with_process(self) -> None:
        """Close at the end of the program: a thread that is in a kernel when the interpreter goes would abort it."""
        self.close()

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
                    atexit.unregister(self._end_with_process)
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
            if work.is_cancelled():
                work.on_cancelled()
            else:
                running.append(work)
        chosen: list[tuple[_Work, list[int]]] = []
        num_decoding = sum(len(work.pending) == 1 for work in running)
        can_be_long = num_decoding == 0 and self._rows_per_s >= LONE_PREFILL_CHUNK
        budget = LONE_PREFILL_CHUNK if can_be_long else PREFILL_CHUNK
        max_guesses = MAX_ROWS_WITH_GUESSES // max(1, num_decoding) - 1
        for work in running:
            if len(work.pending) == 1:  # decoding: always taken along
                chosen.append((work, [work.pending[0], *work.guess(max_guesses)]))
            elif budget > 0:
                wanted = work.wanted(len(work.pending))
                count = self.executor.chunk_length(work.state, len(work.pending), wanted, budget)
                count = min(count, work.max_rows(self.executor.vocab_size))
                chosen.append((work, [work.pending[i] for i in range(count)]))
                budget -= count
        if not chosen:
            return running
        requests = [ForwardRequest(work.state, ids, work.wanted(len(ids))) for work, ids in chosen]
        started = time.perf_counter()
        try:
            results = self.executor.forward(requests)
        except BaseException as error:
            for work, _ in chosen:
                work.fail(error)
            failed = {id(work) for work, _ in chosen}
            return [work for work in running if id(work) not in failed]
        num_rows = sum(len(ids) for _, ids in chosen)
        if num_decoding == 0 and num_rows >= PREFILL_CHUNK:
            self._rows_per_s = num_rows / (time.perf_counter() - started)
        finished = set()
        begun: list[_Work] = []
        for (work, ids), rows in zip(chosen, results, strict=True):
            for _ in ids[: len(work.pending)]:  # what was guessed is not among them
                work.pending.popleft()
            try:
                if work.accept(ids, rows, self.executor.pool):
                    finished.add(id(work))
                    begun += work.successors()
            except BaseException as error:
                work.fail(error)
                finished.add(id(work))
        return [work for work in running if id(work) not in finished] + begun
