"""What every request must get past: who asks, from where, how much, and how slowly.

A web page of anybody's can make a browser send requests to this machine, also under a name that the page's owner points
at it (DNS rebinding). So the Host has to be one of ours, an Origin has to be one of ours or an allowed one, and a
request with a body has to be JSON, which a page cannot send without asking first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hearthlm.server.errors import ApiError, error_response
from hearthlm.server.options import LOOPBACK_NAMES, ServerOptions

DRAIN_BYTES = 1 << 20
DRAIN_S = 2.0
OPEN_PATHS = frozenset(("/", "/health"))  # need no key: they tell nothing and do nothing


class Protection:
    """Refuse a request before anything else sees it; what gets through has its whole body read."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app = app
        self._options = options
        names = (*LOOPBACK_NAMES, *options.allowed_hosts, options.address)
        self._hosts = frozenset(name.lower() for name in names)
        self._origins = frozenset(options.allowed_origins)
        self._key = None if options.api_key is None else _digest(options.api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets: there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        send = self._bounded(scope, send, origin if origin in self._origins else None)
        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and origin in self._origins:
                await _preflight()(scope, receive, send)
                return
            self._check_key(scope, headers)
            if scope["method"] == "POST":
                body = await self._body(headers, receive)
                receive = _replayed(body, receive)
        except ApiError as error:
            await self._drain(receive)
            await error_response(error)(scope, receive, send)
            return
        except _ClientGone:
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self._options.max_header_bytes:
            raise ApiError(431, f"the header has {size} bytes: expected at most {self._options.max_header_bytes}")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            got = repr(hosts[0][:100]) if len(hosts) == 1 else f"{len(hosts)} of them"
            raise ApiError(
                403, f"Host: expected this server's address or an allowed name, got {got}", code="host_not_allowed"
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and not _is_same(origin, scope, hosts[0]):
            raise ApiError(403, f"Origin: {origin[:100]!r} may not use this server", code="origin_not_allowed")

    def _is_ours(self, host: str) -> bool:
        """Tell whether a Host names this server: exactly one of the names, or an address, which cannot be rebound."""
        name = _without_port(host)
        if name is None:
            return False
        if name in self._hosts:
            return True
        return not self._options.is_loopback and _is_address(name)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Of two hashes, so that not even the key's length shows in the time that it takes.
        matches = hmac.compare_digest(_digest(key.strip().encode("latin-1", "replace")), self._key)
        if scheme.lower() != "bearer" or not matches:
            raise ApiError(
                401,
                "Authorization: expected Bearer and this server's API key",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self._options.max_body_bytes
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise ApiError(415, f"Content-Type: expected application/json, got {media_type[:100]!r}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "Content-Encoding: expected none")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > limit:
            raise ApiError(413, f"the body has {length[:20]} bytes: expected at most {limit}", code="body_too_large")
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._options.read_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise ApiError(413, f"the body has more than {limit} bytes", code="body_too_large")
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise ApiError(
                408, f"the request was not complete within {self._options.read_timeout_s:g} s", code="read_timeout"
            ) from None

    async def _drain(self, receive: Receive) -> None:
        """Take the rest of a body that is refused, if it is short and comes at once.

        To close a connection with something unread resets it, and the client may then not see the answer.
        """
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(DRAIN_S, self._options.read_timeout_s)):
                while size < DRAIN_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _bounded(self, scope: Scope, send: Send, origin: str | None) -> Send:
        """Return a `send` that adds headers, and gives up on a client who takes nothing for too long."""
        is_head = scope["method"] == "HEAD"

        async def bounded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
                if origin is not None:
                    headers += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
                # A body that was not read would be taken for the next request.
                if message["status"] in (408, 413, 415, 431) or (message["status"] in (401, 403) and not is_head):
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            try:
                async with asyncio.timeout(self._options.write_timeout_s):
                    await send(message)
            except TimeoutError:
                raise OSError("the client took nothing for too long") from None

        return bounded


class _ClientGone(Exception):
    """The client left before its request was complete."""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _without_port(host: str) -> str | None:
    """Return the name of a Host header in lower case; None for what is none."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, "0"
    if not (port.isascii() and port.isdigit()) or not name or not name.isascii():
        return None
    return name.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name[:1] == "[" and name[-1:] == "]" else name)
    except ValueError:
        return False
    return True


def _is_same(origin: str, scope: Scope, host: str) -> bool:
    """Tell whether an Origin is the one that this request is for."""
    parts = urlsplit(origin)
    return parts.scheme == scope.get("scheme", "http") and parts.netloc.lower() == host.lower()


def _preflight() -> Response:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=headers)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first and then what still comes: that the client has gone."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
