"""One answer on its way from ids to its reader: an iterator, a listener, a future."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from hearthlm.errors import EngineClosedError
from hearthlm.runtime.constraint import Constraint
from hearthlm.runtime.engine import FinishedGeneration, FinishReason
from hearthlm.runtime.sampler import Sampler, TokenLogprobs
from hearthlm.runtime.session import IdStream, Session
from hearthlm.tokenizers import Tokenizer
from hearthlm.tokenizers.stream import StopMatcher, StreamDecoder

if TYPE_CHECKING:
    import asyncio

ResultListener = Callable[[str, bool], None]
ErrorListener = Callable[[Exception], None]

_log = logging.getLogger("hearthlm")

_NO_FAULT_OF_A_CALL = (EngineClosedError, MemoryError)  # the next call would meet them as well


@dataclass(frozen=True)
class GenerationResult:
    """Hold what one call produced: a text, its ids and why it ended for each response; times are in seconds.

    `num_cached_tokens` of the `num_prompt_tokens` were not computed again; `num_output_tokens` counts all responses.
    `logprobs`, where they were asked for, has an entry for each id of each response.
    """

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    finish_reasons: tuple[FinishReason, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    seed: int
    prefill_s: float
    decode_s: float
    logprobs: tuple[tuple[TokenLogprobs, ...], ...] | None = None

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first response ended: "stop", "length" or "cancelled"."""
        return self.finish_reasons[0]


@dataclass(frozen=True)
class ResponseIncrement:
    """Hold what one step has added to the response `index` of a call; the last one of a response says why it ended.

    `text` is certain, and so may lag behind the tokens. `logprobs`, where they were asked for, has an entry for each
    of `token_ids`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None


class Answer:
    """Turn the ids of one response into text, event by event."""

    def __init__(
        self,
        stream: IdStream,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str],
        index: int = 0,
        shown_ids: Collection[int] = (),
    ) -> None:
        self._stream = stream
        self._index = index
        self._num_reported = 0  # ids that increments have told of
        self._decoder = StreamDecoder(tokenizer, prompt_tail_ids=stream.session.ids, shown_ids=shown_ids)
        self._stops = StopMatcher(stop_strings)
        self._num_prompt_ids = len(stream.session.ids)
        self._parts: list[str] = []
        self._stopped = False
        self.is_done = False
        self.is_cancelled = False

    def advance(self, *, block: bool = True) -> str:
        """Take one event and return the text that it makes certain, often "".

        Raises what made the generation fail; the session is free again once `is_done`. Without `block`, an event that
        another thread took, closing the session, is "".
        """
        if self.is_done:
            return ""
        try:
            # What the scheduler made before it noticed the stop depends on its pace: the context must not.
            token = self._stream.take(block=block, keep=not self._stopped)
        except queue.Empty:
            return ""
        except BaseException:
            self.close()
            raise
        if self._stopped:
            text = ""
        elif token is None:
            text = self._cut(self._decoder.finish())
            text += "" if self._stopped else self._stops.finish()
        else:
            text = self._cut(self._decoder.push(token))
        self._parts.append(text)
        if token is None:
            self.close()
        elif self._stopped:
            self._stream.cancel()
        return text

    def increment(self, text: str) -> ResponseIncrement:
        """Return what the last event has added, `text` and the ids since the last increment."""
        begin, self._num_reported = self._num_reported, len(self._stream.session.ids) - self._num_prompt_ids
        return ResponseIncrement(
            self._index,
            text,
            tuple(self._stream.session.ids[self._num_prompt_ids + begin :]),
            tuple(self._stream.logprobs[begin : self._num_reported]),
            self.finish_reason if self.is_done else None,
        )

    def _cut(self, text: str) -> str:
        printable, self._stopped = self._stops.push(text)
        return printable

    def cancel(self) -> None:
        """End the answer before the next step of the scheduler; what is there can still be read."""
        self.is_cancelled = True
        self._stream.cancel()

    def close(self) -> None:
        """Cancel, and wait until the session can be used again."""
        if not self.is_done:
            self.is_done = True
            self._stream.close()

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._stream.session.ids[self._num_prompt_ids :])

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        return tuple(self._stream.logprobs[: len(self.token_ids)])

    @property
    def finished(self) -> FinishedGeneration:
        """How it ended; once `is_done`, unless it failed."""
        finished = self._stream.generation.finished
        assert finished is not None  # a generation that failed has raised
        return finished

    @property
    def finish_reason(self) -> FinishReason:
        return "stop" if self._stopped else self.finished.reason


class Call:
    """One call to a model: a context, and an answer from each sampler."""

    def __init__(
        self,
        session: Session,
        context: Callable[[], Sequence[int]],
        samplers: Sequence[Sampler],
        *,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        stop_strings: Sequence[str],
        max_output_tokens: int | None,
        num_logprobs: int,
        constraint: Constraint | None = None,
        shown_ids: Collection[int] = (),
        on_end: Callable[[Answer | None], None],
    ) -> None:
        """Take what is needed to begin.

        `context` returns the ids of the whole context when the call begins. `shown_ids` are special tokens that the
        text shows. `on_end` is called when the last answer
        is over, or none could begin, and the session is free again; it gets the first answer, or None.
        """
        self._session = session
        self._context = context
        self._samplers = samplers
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._stop_strings = stop_strings
        self._max_output_tokens = max_output_tokens
        self._num_logprobs = num_logprobs
        self._constraint = constraint
        self._shown_ids = shown_ids
        self._on_end = on_end
        self._streams: list[IdStream] = []
        self.answers: list[Answer] = []

    def begin(self, notify: Callable[[Answer], None] | None = None) -> None:
        """Start every answer; `notify` is called by the scheduler's thread for each event of each."""
        try:
            streams = self._session.prepare(
                self._samplers,
                ids=self._context(),
                stop_ids=self._stop_ids,
                max_output_tokens=self._max_output_tokens,
                num_logprobs=self._num_logprobs,
                constraint=self._constraint,
            )
            answers = [
                Answer(stream, self._tokenizer, self._stop_strings, i, self._shown_ids)
                for i, stream in enumerate(streams)
            ]
            if notify is not None:
                for stream, answer in zip(streams, answers, strict=True):
                    stream.on_event(partial(notify, answer))
            self._streams, self.answers = streams, answers
            self._session.submit(streams)
        except BaseException:
            self._streams, self.answers = [], []
            self._on_end(None)
            raise

    def cancel(self) -> None:
        """End every answer before the next step of the scheduler."""
        for answer in self.answers:
            answer.cancel()

    def end(self) -> None:
        """Cancel what is still under way and free the session."""
        if not self.answers:
            return
        self.cancel()
        with ExitStack() as last_first:  # all of it, also when one is interrupted
            last_first.callback(self._on_end, self.answers[0])
            for stream in self._streams[1:]:
                last_first.callback(stream.session.close)
            for answer in self.answers:
                last_first.callback(answer.close)
            self._streams = []

    def increments(self) -> Generator[str, None, None]:
        """Yield the text of the first answer as it comes; work starts with the first increment asked for."""
        self.begin()
        (answer,) = self.answers
        try:
            while not answer.is_done:
                if text := answer.advance():
                    yield text
        finally:
            self.end()

    def result(self) -> GenerationResult:
        """Return what the answers produced; all must be over."""
        first = self.answers[0].finished
        ended = [answer.finished for answer in self.answers]
        token_ids = tuple(answer.token_ids for answer in self.answers)
        return GenerationResult(
            texts=tuple(answer.text for answer in self.answers),
            token_ids=token_ids,
            finish_reasons=tuple(answer.finish_reason for answer in self.answers),
            num_prompt_tokens=first.num_prompt_tokens,
            num_cached_tokens=first.num_cached_tokens,
            num_output_tokens=sum(map(len, token_ids)),
            seed=self._samplers[0].seed,
            prefill_s=first.prefill_s,
            decode_s=max(finished.decode_s for finished in ended),
            logprobs=tuple(answer.logprobs for answer in self.answers) if self._num_logprobs else None,
        )


@dataclass(eq=False)
class _Place:
    """Keep the place of a call in the order of its batch until its outcome is asked for."""

    outcome: GenerationResult | Exception | None = None


def call_outcomes(
    calls: Iterable[Call | Exception], max_at_once: int, max_ahead: int | None = None
) -> Generator[GenerationResult | Exception, None, None]:
    """Run calls side by side, at most `max_at_once` of them, and yield what became of each in the order of the calls.

    A call that fails leaves its exception, and the others go on; an exception among `calls` is one that could not even
    be made. That the model was closed, or memory ran out, is raised. At most `max_ahead` calls (by default
    `max_at_once`) are taken from `calls` before the first of them is over: so many results can wait for a long one.
    """
    inbox: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    coming = iter(calls)
    places: deque[_Place] = deque()
    under_way: dict[Call, _Place] = {}
    call_of: dict[Answer, Call] = {}

    def outcome_of(step: Callable[[], GenerationResult | None]) -> GenerationResult | Exception | None:
        try:
            return step()
        except (EngineClosedError, MemoryError):  # no fault of a call: the next one would meet it as well
            raise
        except Exception as error:
            return error

    def begin(call: Call) -> None:
        call.begin(inbox.put)
        under_way[call] = places[-1]
        call_of.update(dict.fromkeys(call.answers, call))

    def advance(call: Call, answer: Answer) -> GenerationResult | None:
        answer.advance(block=False)
        return call.result() if all(answer.is_done for answer in call.answers) else None

    try:
        while True:
            while len(under_way) < max_at_once and len(places) < (max_ahead or max_at_once):
                coming_call = next(coming, None)
                if coming_call is None:
                    break
                places.append(_Place())
                if isinstance(coming_call, Exception):
                    places[-1].outcome = coming_call
                else:
                    places[-1].outcome = outcome_of(partial(begin, coming_call))
            if not places:
                return
            if (outcome := places[0].outcome) is not None:
                places.popleft()
                yield outcome
                continue
            answer = inbox.get()
            call = call_of.get(answer)
            if call is not None:  # None: the rest of what a call had made that failed
                outcome = outcome_of(partial(advance, call, answer))
                if outcome is not None:
                    call.end()
                    under_way.pop(call).outcome = outcome
                    for ended in call.answers:
                        del call_of[ended]
    finally:
        for call in under_way:
            call.cancel()
        for call in under_way:
            call.end()


def run_calls(calls: Iterable[Call], max_at_once: int) -> Iterator[GenerationResult]:
    """Do what `call_outcomes` does, but let the first error end all calls, and raise it."""
    with closing(call_outcomes(calls, max_at_once)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome


class Receiver(Protocol):
    """Get the answers of a call as they come, on the thread for callbacks."""

    def receive(self, answer: Answer, text: str) -> None:
        """Take what an event has added to an answer; raising ends the call."""

    def end(self, call: Call, error: BaseException | None) -> None:
        """Take the whole call, or what made it fail; the session is free by then."""


class FutureReceiver:
    """Pass an answer on to a future and to listeners."""

    def __init__(
        self, future: Future[str], listener: ResultListener | None, error_listener: ErrorListener | None
    ) -> None:
        self._future = future
        self._listener = listener
        self._error_listener = error_listener

    def receive(self, answer: Answer, text: str) -> None:
        if text and self._listener is not None:
            self._listener(text, False)

    def end(self, call: Call, error: BaseException | None) -> None:
        wanted = self._future.set_running_or_notify_cancel()
        if error is not None:
            if wanted:
                self._future.set_exception(error)
            if self._error_listener is not None and isinstance(error, Exception):
                self._error_listener(error)
            return
        if wanted:
            self._future.set_result(call.answers[0].text)
        if self._listener is not None:
            self._listener("", True)


class CallbackThread:
    """Call, in order, what waits for answers instead of a reader: one thread, which lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[tuple[Call, Receiver, Answer]] = queue.SimpleQueue()
        self._num_under_way = 0
        self._thread: threading.Thread | None = None

    def deliver(self, call: Call, receiver: Receiver) -> None:
        """Begin a call and have `receiver` get its answers; raises what keeps it from beginning."""

        def notify(answer: Answer) -> None:
            self._inbox.put((call, receiver, answer))

        # The lock is held until the thread runs: an answer that is over at once must not be the last one counted.
        with self._lock:
            call.begin(notify)
            self._num_under_way += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hearthlm-callbacks", daemon=True)
                self._thread.start()

    def join(self) -> None:
        """Wait until every answer has been delivered, unless called from a callback itself."""
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        errors: dict[Call, BaseException] = {}  # of calls that are being cancelled because an answer or receiver failed
        while True:
            call, receiver, answer = self._inbox.get()
            if answer.is_done:  # its other events were taken by who closed the session
                continue
            try:
                text = answer.advance(block=False)
                if call not in errors:
                    receiver.receive(answer, text)
            except BaseException as error:
                errors.setdefault(call, error)
                call.cancel()
            if not all(each.is_done for each in call.answers):
                continue
            try:
                call.end()
                receiver.end(call, errors.pop(call, None))
            except BaseException:
                _log.exception("a listener failed after its answer had ended")
            with self._lock:
                self._num_under_way -= 1
                if self._num_under_way == 0:
                    self._thread = None
                    return


def deliver_to_future(
    callbacks: CallbackThread, call: Call, listener: ResultListener | None, error_listener: ErrorListener | None
) -> Future[str]:
    """Begin a call and return the future of its text; cancelling the future ends the work."""
    future: Future[str] = Future()
    callbacks.deliver(call, FutureReceiver(future, listener, error_listener))
    future.add_done_callback(lambda done: call.cancel() if done.cancelled() else None)
    return future


async def deliver_to_asyncio(callbacks: CallbackThread, call: Call) -> AsyncGenerator[str, None]:
    """Begin a call of one answer and yield its text; leaving ends the work, and waits until the session is free."""
    async with contextlib.aclosing(deliver_increments(callbacks, call)) as items:
        async for item in items:
            if isinstance(item, ResponseIncrement) and item.text:
                yield item.text


async def deliver_increments(
    callbacks: CallbackThread, call: Call
) -> AsyncGenerator[ResponseIncrement | GenerationResult, None]:
    """Begin a call and yield what each step adds, last the result; leaving ends the work, as above."""
    import asyncio  # takes as long as a short answer of a small model, and who needs it has it already

    items: asyncio.Queue[ResponseIncrement | GenerationResult | BaseException] = asyncio.Queue()
    callbacks.deliver(call, _AsyncioReceiver(asyncio.get_running_loop(), items))
    is_over = False
    try:
        while not is_over:
            item = await items.get()
            is_over = not isinstance(item, ResponseIncrement)
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        call.cancel()
        while not is_over:
            is_over = not isinstance(await items.get(), ResponseIncrement)


class _AsyncioReceiver:
    """Pass answers on to a queue of an event loop, and last the result or what made them fail."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        items: asyncio.Queue[ResponseIncrement | GenerationResult | BaseException],
    ) -> None:
        self._loop = loop
        self._items = items

    def receive(self, answer: Answer, text: str) -> None:
        if not answer.is_cancelled:  # else nobody reads it
            self._loop.call_soon_threadsafe(self._items.put_nowait, answer.increment(text))

    def end(self, call: Call, error: BaseException | None) -> None:
        if not self._loop.is_closed():  # else nobody waits for it
            self._loop.call_soon_threadsafe(self._items.put_nowait, call.result() if error is None else error)
