"""One request's answers: admitted, made side by side, and ended when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

import hearthlm
from hearthlm.server.admission import Ticket
from hearthlm.server.errors import ApiError
from hearthlm.server.served_model import Target

Item = tuple[int, hearthlm.ResponseIncrement | hearthlm.GenerationResult]
_T = TypeVar("_T")


async def increments(
    target: Target,
    ticket: Ticket,
    prompts: Sequence[Sequence[int]],
    options: hearthlm.LlmInferenceSessionOptions,
    num_responses: int,
) -> AsyncGenerator[Item, None]:
    """Yield what each step adds to the answers of each prompt, with the prompt's index; of each last its result.

    Waits for the ticket first, and gives it back at the end. Closing the generator, or cancelling its task, ends the
    work within one step.
    """
    try:
        await ticket.admitted.wait()
        if len(prompts) == 1:
            stream = target.llm.astream_responses(prompts[0], options, num_responses=num_responses)
            async with contextlib.aclosing(stream):
                async for item in stream:
                    yield 0, item
            return
        at_once = asyncio.Semaphore(max(1, ticket.num_slots // num_responses))
        items: asyncio.Queue[Item | BaseException] = asyncio.Queue()

        async def answer(index: int) -> None:
            try:
                async with at_once:
                    stream = target.llm.astream_responses(prompts[index], options, num_responses=num_responses)
                    async with contextlib.aclosing(stream):
                        async for item in stream:
                            items.put_nowait((index, item))
            except Exception as error:
                items.put_nowait(error)

        tasks = [asyncio.create_task(answer(i)) for i in range(len(prompts))]
        try:
            num_left = len(prompts)
            while num_left:
                made = await items.get()
                if isinstance(made, BaseException):
                    raise made
                num_left -= isinstance(made[1], hearthlm.GenerationResult)
                yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        ticket.leave()


class ServerStopping(ApiError):
    """The time to finish is over: the server is being stopped."""

    def __init__(self) -> None:
        super().__init__(503, "the server is stopping", code="server_stopping", headers={"Retry-After": "5"})


class Running:
    """Know the work that is under way, so that stopping the server can end it; it belongs to one event loop."""

    def __init__(self) -> None:
        self.is_draining = False
        self._tasks: set[asyncio.Future[Any]] = set()
        self._stopping = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tasks)

    def stop(self) -> None:
        """End everything: who waits for it gets ServerStopping."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def until(self, work: Awaitable[_T], *ends: Awaitable[object]) -> _T | None:
        """Return what `work` does, or None where one of `ends` comes first, which cancels it.

        Raises ServerStopping where the server is stopped first.
        """
        task: asyncio.Future[_T] = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        others: list[asyncio.Future[Any]] = [stopping, *map(asyncio.ensure_future, ends)]
        self._tasks.add(task)
        try:
            await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait({task})
            if stopping.done():
                raise ServerStopping
            return None
        finally:
            self._tasks.discard(task)
            task.cancel()
            for other in others:
                other.cancel()
