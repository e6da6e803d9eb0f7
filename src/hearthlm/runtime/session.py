"""One context in ids: what has been said, and what of it the state has already seen."""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator, Sequence

from hearthlm.errors import SessionBusyError
from hearthlm.runtime.engine import Engine, FinishedGeneration
from hearthlm.runtime.executor import State
from hearthlm.runtime.sampler import Sampler


class Session:
    """Grow a list of ids by appending and by generating.

    `ids` is the truth; whatever of it the state has not seen yet is fed with the next generation. One call at a time:
    another meanwhile raises SessionBusyError.
    """

    def __init__(self, engine: Engine, state: State | None = None, ids: Sequence[int] = ()) -> None:
        self._engine = engine
        self._state = engine.new_state() if state is None else state
        self._busy = threading.Lock()
        self.ids: list[int] = list(ids)
        self.last_generation: FinishedGeneration | None = None

    def append(self, ids: Sequence[int]) -> None:
        """Add ids to the context; they are computed with the next generation."""
        self._acquire()
        try:
            self.ids.extend(ids)
        finally:
            self._busy.release()

    def generate(
        self, *, sampler: Sampler, stop_ids: Collection[int] = (), max_output_tokens: int | None = None
    ) -> Generator[int, None, None]:
        """Yield the ids of an answer, appending each to the context; closing the iterator cancels.

        Work starts with the first id asked for; ContextLengthError comes before it where the context has no room for
        one more token. How it ended is in `last_generation` afterwards.
        """
        self._acquire()
        try:
            if not self.ids:
                raise ValueError("the context is empty: append at least one id first")
            if self._state.length >= len(self.ids):  # the logits after the last id are needed again
                self._state.truncate(len(self.ids) - 1)
            generation = self._engine.generate(
                self._state,
                self.ids[self._state.length :],
                sampler=sampler,
                stop_ids=stop_ids,
                max_output_tokens=max_output_tokens,
            )
            try:
                for token in generation:
                    self.ids.append(token)
                    yield token
            finally:
                generation.cancel()
                generation.join()
                self.last_generation = generation.finished
                if self._state.length > len(self.ids):  # the scheduler was ahead of a reader who left
                    self._state.truncate(len(self.ids))
        finally:
            self._busy.release()

    def fork(self) -> Session:
        """Return an independent session with the same context; the memory of what was computed is shared."""
        self._acquire()
        try:
            return Session(self._engine, self._state.fork(), self.ids)
        finally:
            self._busy.release()

    def close(self) -> None:
        """Give the memory back."""
        self._acquire()
        self._state.close()  # stays busy: a closed session answers nothing

    def _acquire(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise SessionBusyError("the session is still answering an earlier call, or is closed")
