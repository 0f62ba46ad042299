"""A replica at a URL or a unix socket, as an ASGI app: http and websockets go through, streamed both ways.

It speaks through httpcore, the engine of httpx: path, headers and bytes arrive as they were sent, where a
client would make them nice. What fails before the answer is told as the balancer understands it:

=========================================  =================
no connection, or none in time             `ReplicaRefused`
the connection broke before an answer      `ReplicaReset`
=========================================  =================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import quote

from lbkit.asgi.tunnel import tunnel
from lbkit.balancer.address import Address
from lbkit.balancer.hop import SERVERS_OWN, named_by_connection
from lbkit.errors import MissingExtra, ReplicaRefused, ReplicaReset
from lbkit.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    import httpcore

__all__ = ["Upstream"]

IDLE = 4.0
"""Seconds that an idle connection is kept. Servers close theirs after 5 (uvicorn, Node), and a request that
crosses such a close is lost, so it must be us who closes first."""

CONNECT = 5.0
"""Seconds to connect in."""

Headers = list[tuple[bytes, bytes]]


class Upstream:
    """An ASGI app that hands each request to the server at `url`, and its answer back."""

    def __init__(self, url: str, *, idle: float = IDLE, connect: float = CONNECT) -> None:
        self.address = Address.parse(url)
        self.url = url
        self._idle = idle
        self._timeout = {"connect": connect}
        self._pools: dict[asyncio.AbstractEventLoop, httpcore.AsyncConnectionPool] = {}
        _library()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._hand_on(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            target = _target(scope).decode("latin-1")
            await tunnel(
                scope, receive, send, address=self.address, target=target, connect=self._timeout["connect"]
            )

    async def aclose(self) -> None:
        """Close the idle connections of the running loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The exchange, and beside it somebody who notices that the client leaves."""
        body = Body(receive, scope["headers"])
        exchange = asyncio.create_task(self._exchange(scope, body, send))
        watch = asyncio.create_task(body.watch())
        try:
            await asyncio.wait({exchange, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not exchange.done():
                exchange.cancel()
        except asyncio.CancelledError:
            exchange.cancel()
            raise
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await exchange

    async def _exchange(self, scope: Scope, body: Body, send: Send) -> None:
        response = await self._asked(scope, body)
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status,
                    "headers": _answered(response.headers),
                }
            )
            async for chunk in _chunks(response):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            await response.aclose()

    async def _asked(self, scope: Scope, body: Body) -> httpcore.Response:
        library = _library()
        request = library.Request(
            scope["method"].encode(),
            library.URL(
                scheme=self.address.scheme,
                host=self.address.host,
                port=self.address.port,
                target=_target(scope),
            ),
            headers=_asked_headers(scope["headers"], body),
            content=body,
            extensions={"timeout": self._timeout},
        )
        try:
            return await self._pool().handle_async_request(request)
        except (library.ConnectError, library.ConnectTimeout) as error:
            raise ReplicaRefused(f"{self.url}: {error or type(error).__name__}") from error
        except (library.NetworkError, library.ProtocolError) as error:
            raise ReplicaReset(f"{self.url}: {error or type(error).__name__}") from error

    def _pool(self) -> httpcore.AsyncConnectionPool:
        """The connections of this loop: they cannot be shared between two."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            self._pools = {each: kept for each, kept in self._pools.items() if not each.is_closed()}
            pool = self._pools[loop] = _library().AsyncConnectionPool(
                max_connections=None,  # who gets how many requests is the balancer's to say
                keepalive_expiry=self._idle,
                uds=self.address.path or None,
            )
        return pool


class Body:
    """The body of the request, as it comes in."""

    def __init__(self, receive: Receive, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._receive = receive
        names = {name for name, _ in headers}
        self.chunked = b"transfer-encoding" in names
        self.expected = self.chunked or b"content-length" in names
        self._read = asyncio.Event()
        if not self.expected:
            self._read.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.expected and not self._read.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ReplicaReset("the client left before its request was complete")
            if not message.get("more_body", False):
                self._read.set()
            if chunk := message.get("body", b""):
                yield chunk

    async def watch(self) -> None:
        """Return when the client has left. Not before its whole request is here: that is read elsewhere."""
        await self._read.wait()
        message: Message = {}
        while message.get("type") != "http.disconnect":
            message = await self._receive()


async def _chunks(response: httpcore.Response) -> AsyncIterator[bytes]:
    library = _library()
    try:
        async for chunk in response.aiter_stream():
            yield chunk
    except (library.NetworkError, library.ProtocolError) as error:
        raise ReplicaReset(f"the answer was cut: {error or type(error).__name__}") from error


def _asked_headers(headers: Headers, body: Body) -> Headers:
    kept = _end_to_end(headers)
    if b"host" not in {name for name, _ in kept}:
        kept.insert(0, (b"host", b""))  # HTTP/1.1 demands one, HTTP/1.0 and a bare client may have none
    if body.chunked:
        # A length beside it is not to be believed (RFC 9112, section 6.1): it would cut the body elsewhere.
        kept = [header for header in kept if header[0] != b"content-length"]
        kept.append((b"transfer-encoding", b"chunked"))
    return kept


def _answered(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    lower = ((name.lower(), value) for name, value in _end_to_end(list(headers)))
    return [(name, value) for name, value in lower if name.decode("latin-1") not in SERVERS_OWN]


def _end_to_end(headers: Headers) -> Headers:
    connection = [value.decode("latin-1") for name, value in headers if name.lower() == b"connection"]
    dropped = {name.encode("latin-1") for name in named_by_connection(connection)}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _target(scope: Scope) -> bytes:
    """The path as it was sent, where the server tells it, and the query string."""
    path: bytes = scope.get("raw_path") or _quoted(scope["path"])
    query: bytes = scope.get("query_string", b"")
    return path + b"?" + query if query else path


def _quoted(path: str) -> bytes:
    return quote(path, safe="/:@!$&'()*+,;=~").encode()


def _library() -> ModuleType:
    try:
        import httpcore
    except ModuleNotFoundError as error:
        raise MissingExtra("httpcore", extra="upstream") from error
    return httpcore
