"""One context in ids: what has been said, and what of it the state has already seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from os import PathLike
from typing import Any

from hearthlm.errors import SessionBusyError, SessionFileError
from hearthlm.formats.session_file import read_session_file, write_session_file
from hearthlm.runtime.constraint import Constraint
from hearthlm.runtime.engine import Engine, FinishedGeneration, Generation
from hearthlm.runtime.lora import Adapter
from hearthlm.runtime.sampler import Sampler, TokenLogprobs


class Session:
    """Grow a list of ids by appending and by generating.

    `ids` is the truth; whatever of it the state has not seen yet is fed with the next generation. One call at a time:
    another meanwhile raises SessionBusyError. What other texts have computed before is reused where they begin alike.
    """

    def __init__(self, engine: Engine, ids: Sequence[int] = (), adapter: Adapter | None = None) -> None:
        self._engine = engine
        self._adapter = adapter
        self._state = engine.new_state(ids, adapter)
        self._busy = threading.Lock()
        self._is_closed = False
        self._streams: list[IdStream] = []  # under way
        self.ids: list[int] = list(ids)
        self.last_generation: FinishedGeneration | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is under way, or the session is closed."""
        return self._busy.locked()

    def check_free(self) -> None:
        """Raise SessionBusyError while the session is busy."""
        if self.is_busy:
            raise self._busy_error()

    def append(self, ids: Sequence[int]) -> None:
        """Add ids to the context; they are computed with the next generation."""
        self._acquire()
        try:
            self.ids.extend(ids)
        finally:
            self._busy.release()

    def prepare(
        self,
        samplers: Sequence[Sampler],
        *,
        ids: Sequence[int] | None = None,
        stop_ids: Collection[int] = (),
        max_output_tokens: int | None = None,
        num_logprobs: int = 0,
        constraint: Constraint | None = None,
    ) -> list[IdStream]:
        """Return one answer per sampler to the context; they begin with `submit`.

        `ids`, if given, become the context first; what the state has computed of their beginning is kept. The first
        answer grows this session, the others forks of it, which end with them. Raises ContextLengthError, with nothing
        changed, where the context has no room for one more token, and ValueError where it is empty.
        """
        self._acquire()
        try:
            context = self.ids if ids is None else list(ids)
            if not context:
                raise ValueError("the context is empty: add something to it first")
            self._engine.check_room(len(context))
            num_shared = _num_shared(self.ids, context, self._state.length) if ids is not None else self._state.length
            # The logits after the last id are needed, perhaps again.
            num_kept = min(num_shared, len(context) - 1)
            if num_kept < self._state.length:
                self._state.truncate(num_kept)
            if self._state.length == 0:
                self._state.close()
                self._state = self._engine.new_state(context, self._adapter)
            self.ids = context
            generations = self._engine.prepare(
                self._state,
                context,
                samplers=samplers,
                stop_ids=stop_ids,
                max_output_tokens=max_output_tokens,
                num_logprobs=num_logprobs,
                constraint=constraint,
            )
            self._streams = [IdStream(self, generations[0]), *(IdStream(self._child(), g) for g in generations[1:])]
            return self._streams
        except BaseException:
            self._busy.release()
            raise

    def submit(self, streams: Sequence[IdStream]) -> None:
        """Begin what `prepare` returned."""
        try:
            self._engine.submit(self.ids, [stream.generation for stream in streams])
        except BaseException:
            self._streams = []
            self._busy.release()
            raise

    def generate(
        self, *, sampler: Sampler, stop_ids: Collection[int] = (), max_output_tokens: int | None = None
    ) -> Generator[int, None, None]:
        """Yield the ids of an answer, appending each to the context; closing the iterator cancels.

        Work starts with the first id asked for. How it ended is in `last_generation` afterwards.
        """
        streams = self.prepare([sampler], stop_ids=stop_ids, max_output_tokens=max_output_tokens)
        self.submit(streams)
        try:
            while (token := streams[0].take()) is not None:
                yield token
        finally:
            streams[0].close()

    def cancel(self) -> None:
        """End the answers under way, if any, before the scheduler's next step."""
        for stream in self._streams:
            stream.cancel()

    def fork(self) -> Session:
        """Return an independent session with the same context; the memory of what was computed is shared."""
        self._acquire()
        try:
            copy = self._child()
            copy._state.close()
            copy._state = self._state.fork()
            copy._busy.release()
            return copy
        finally:
            self._busy.release()

    def save(self, path: str | PathLike[str], extra: Mapping[str, Any]) -> None:
        """Write the context with everything computed for it; `extra` is a JSON object that `load` gives back."""
        self._acquire()
        try:
            write_session_file(
                path,
                fingerprint=self._fingerprint,
                ids=self.ids,
                arrays=self._state.save(),
                extra={"num_computed": self._state.length, **extra},
            )
        finally:
            self._busy.release()

    def load(self, path: str | PathLike[str]) -> dict[str, Any]:
        """Replace the context by what `save` wrote and return its `extra`; on an error nothing has changed.

        Raises SessionFileError where the file is damaged or another model's, ContextLengthError where it is longer
        than this engine's contexts.
        """
        self._acquire()
        try:
            executor = self._engine.executor
            file = read_session_file(path, expected_fingerprint=self._fingerprint)
            self._engine.check_room(len(file.ids))
            extra = dict(file.extra)
            if file.ids.max(initial=0) >= executor.vocab_size:
                raise SessionFileError(
                    f"{path}: ids: expected 0 to {executor.vocab_size - 1}, got {file.ids.max(initial=0)}"
                )
            num_computed = extra.pop("num_computed", None)
            if type(num_computed) is not int or not 0 <= num_computed <= len(file.ids):
                raise SessionFileError(
                    f"{path}: num_computed: expected 0 to {len(file.ids)}, the number of ids, got {num_computed!r}"
                )
            state = executor.load_state(num_computed, file.arrays, self._adapter)
            self._state.close()
            self._state = state
            self.ids = file.ids.tolist()
            return extra
        finally:
            self._busy.release()

    def close(self) -> None:
        """End what is under way and give the memory back; it may serve a later text that begins alike."""
        if self._is_closed:
            return
        for stream in self._streams[:1]:
            stream.close()
        self._acquire()  # for good: a closed session answers nothing
        self._is_closed = True
        self._engine.keep_state(self.ids, self._state, self._adapter)
        self._state.close()

    @property
    def _fingerprint(self) -> str:
        """What a saved state depends on: the model, and the adapter."""
        fingerprint = self._engine.executor.fingerprint
        return fingerprint if self._adapter is None else f"{fingerprint}+{self._adapter.digest}"

    def _child(self) -> Session:
        """Return a busy session with the same context and an empty state."""
        child = Session(self._engine, adapter=self._adapter)
        child.ids = list(self.ids)
        child._busy.acquire()
        return child

    def _acquire(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise self._busy_error()

    def _busy_error(self) -> SessionBusyError:
        what = "closed" if self._is_closed else "still answering an earlier call"
        return SessionBusyError(f"the session is {what}")


class IdStream:
    """Give out the ids of one answer as they come, and append each to the context of its session."""

    def __init__(self, session: Session, generation: Generation) -> None:
        self.session = session
        self.generation = generation
        self._closing = threading.Lock()
        self._is_closed = False

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return self.generation.logprobs

    def on_event(self, notify: Callable[[], None]) -> None:
        """Have `notify` called by the scheduler's thread whenever there is something to take; before `submit`."""
        self.generation.on_event = notify

    def take(self, *, block: bool = True, keep: bool = True) -> int | None:
        """Return the next id, None once there is no other; raises what made the generation fail.

        Without `keep` it does not become a part of the context.
        """
        token = self.generation.take(block=block)
        if token is not None and keep:
            self.session.ids.append(token)
        return token

    def cancel(self) -> None:
        """End the answer before the scheduler's next step; ids already made can still be taken."""
        self.generation.cancel()

    def close(self) -> None:
        """Wait until the scheduler has let go of the session, which can then be used again."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            session, state = self.session, self.generation.state
            self.cancel()
            try:
                self.generation.join()
            finally:
                if session._state is not state:  # a fork that the scheduler made
                    session._state.close()
                    session._state = state
                session.last_generation = self.generation.finished
                if session._state.length > len(session.ids):  # the scheduler was ahead of a reader who left
                    session._state.truncate(len(session.ids))
                session._streams = []
                self.generation.on_event = None  # it knows the answer, which knows this
                session._busy.release()


def _num_shared(old: Sequence[int], new: Sequence[int], limit: int) -> int:
    """Return how many of the first `limit` ids are the same."""
    for i, (a, b) in enumerate(zip(old[:limit], new, strict=False)):
        if a != b:
            return i
    return min(limit, len(old), len(new))
