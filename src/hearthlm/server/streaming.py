"""Server-sent events: pieces of an answer as they are made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hearthlm.server.errors import failure
from hearthlm.server.jobs import Running

PING_EVERY_S = 10.0  # of a stream that has nothing to say: while it waits in line, or its prompt is read
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Send each document of a generator as an event, and last [DONE]; an error becomes an event too.

    The generator is closed when the client goes.
    """

    media_type = "text/event-stream"

    def __init__(self, documents: AsyncGenerator[dict[str, Any], None], running: Running) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._documents = documents
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        waiting: list[bytes] = []
        more = asyncio.Event()

        async def make() -> None:
            try:
                async with contextlib.aclosing(self._documents) as documents:
                    async for document in documents:
                        waiting.append(b"data: " + msgspec.json.encode(document) + b"\n\n")
                        more.set()
            except Exception as error:
                waiting.append(b"data: " + msgspec.json.encode(failure(error).to_json()) + b"\n\n")
            else:
                waiting.append(b"data: [DONE]\n\n")

        async def pass_on() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            making = asyncio.create_task(make())
            making.add_done_callback(lambda _: more.set())
            try:
                while not making.done() or waiting:
                    try:
                        async with asyncio.timeout(PING_EVERY_S):
                            await more.wait()
                    except TimeoutError:
                        waiting.append(b": waiting\n\n")
                    more.clear()
                    body = b"".join(waiting)
                    waiting.clear()
                    if body:
                        await send({"type": "http.response.body", "body": body, "more_body": True})
            finally:
                making.cancel()
                await asyncio.wait({making})

        last = b""
        try:
            # What still comes goes out together: a client that has left is noticed by the first of these to end.
            if await self._running.until(_true(pass_on()), disconnected(receive)) is None:
                return
        except OSError:  # the client has gone while it was being written to
            return
        except Exception as error:
            last = b"data: " + msgspec.json.encode(failure(error).to_json()) + b"\n\n"
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": last, "more_body": False})


async def _true(work: Any) -> bool:
    await work
    return True
