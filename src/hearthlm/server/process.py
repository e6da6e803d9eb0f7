"""A server as a process: uvicorn with this server's limits, and a stop that lets answers finish."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import msgspec
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from hearthlm.server.errors import ApiError
from hearthlm.server.options import ServerOptions
from hearthlm.server.service import Service

_log = logging.getLogger("hearthlm.server")


def open_socket(address: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is any free one. Raises OSError where it cannot."""
    family, _, _, _, where = socket.getaddrinfo(
        address.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise type(error)(error.errno, error.strerror, f"{address}:{port}") from None
    return listener


def run_server(
    app: Starlette, options: ServerOptions, listener: socket.socket, *, on_started: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, which is raised again at the end; raises what kept the models from loading.

    Told to stop, the server takes nothing new, and gives answers under way `grace_s` to finish.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=options.max_header_bytes,
    )
    if not _log.isEnabledFor(logging.INFO):
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # anybody can send what is no HTTP
    config.load()
    config.hearthlm_options = options  # type: ignore[attr-defined]
    service: Service = app.state.service
    server = _Server(config, service, options)
    loaded = service.models

    def on_loaded() -> None:
        if loaded.load_error is not None:
            server.should_exit = True
        elif on_started is not None:
            on_started()

    if loaded.is_loaded:
        on_loaded()
    loaded.on_loaded = on_loaded
    server.run(sockets=[listener])
    if loaded.load_error is not None:
        raise loaded.load_error


class _Server(uvicorn.Server):
    """Finish what is under way, for a while, when told to stop; told twice, stop at once."""

    def __init__(self, config: uvicorn.Config, service: Service, options: ServerOptions) -> None:
        super().__init__(config)
        self._service = service
        self._grace_s = options.grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.running.is_draining = True
        if self.should_exit:
            self._grace_s = 0.0
        super().handle_exit(sig, frame)
        self.force_exit = False  # the models still have to be closed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_after_grace())
        try:
            running = self._service.running
            while len(running) and not running.is_stopping:  # who comes meanwhile is told, not left without an answer
                await asyncio.sleep(0.05)
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_after_grace(self) -> None:
        waited_s = 0.0
        while waited_s < self._grace_s:
            await asyncio.sleep(0.05)
            waited_s += 0.05
        self._service.running.stop()
        await asyncio.sleep(1.0)
        for connection in list(self.server_state.connections):  # of clients that read nothing, or send nothing
            connection.transport.abort()


class _Protocol(H11Protocol):
    """Close connections that send their header too slowly, are too many, or speak no HTTP."""

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._options: ServerOptions = config.hearthlm_options  # type: ignore[attr-defined]
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._options.max_connections:
            error = ApiError(503, "too many connections", code="too_many_connections", headers={"Retry-After": "1"})
            self._refuse(error)
            return
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unset_deadline()
        elif self._deadline is None and self.conn.trailing_data[0]:
            self._await_header()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await_header()

    def _await_header(self) -> None:
        self._unset_deadline()
        self._deadline = self.loop.call_later(self._options.read_timeout_s, self._on_deadline)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        if self.conn.trailing_data[0]:
            seconds = self._options.read_timeout_s
            self._refuse(ApiError(408, f"the request was not complete within {seconds:g} s", code="read_timeout"))
        else:  # said nothing at all
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer to what is no HTTP, or a header beyond the limit, in the API's form."""
        data, _ = self.conn.trailing_data
        limit = self._options.max_header_bytes
        if len(data) > limit:
            error = ApiError(431, f"the header has more than {limit} bytes", code="header_too_large")
        else:
            error = ApiError(400, "this is not a valid HTTP request", code="invalid_http")
        self._refuse(error)

    def _refuse(self, error: ApiError) -> None:
        body = msgspec.json.encode(error.to_json())
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **error.headers,
        }
        try:
            for event in (
                h11.Response(status_code=error.status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:  # in the middle of an answer
            pass
        self.transport.close()
