"""Sticky sessions in front of an ASGI app: its answers name the replica that gave them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable

from lbkit.sticky import Stick, Sticky, kept_private, own_replica_id
from lbkit.types import ASGIApp, Clock, Message, Receive, Scope, Send

__all__ = ["StickyMiddleware"]

STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class StickyMiddleware:
    """Sets the cookie on the first answer, and again when it is old or names another replica.

    `replica_id` is what this process is called in the balancer's configuration; by default
    LBKIT_REPLICA_ID, else the host name. A client that has its cookie costs one signature.
    """

    def __init__(
        self, app: ASGIApp, sticky: Sticky, *, replica_id: str | None = None, wall: Clock = time.time
    ) -> None:
        self.app = app
        self.replica_id = own_replica_id(replica_id)
        self.stick = Stick(sticky, [self.replica_id])
        self.wall = wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            now = self.wall()
            decision = self.stick.decide(cookies(scope["headers"]), now)
            set_cookie = self.stick.settle(decision, self.replica_id, now)
            if set_cookie is not None and self.stick.sticky.speaks_on(scope["path"]):
                send = CookieSend(send, scope.get("method", "GET"), set_cookie)
        await self.app(scope, receive, send)


class CookieSend:
    """The server's `send`, with a cookie on the message that begins the answer."""

    def __init__(self, send: Send, method: str, set_cookie: str) -> None:
        self._send = send
        self._method = method
        self._set_cookie = set_cookie

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] in STARTS:
            message = with_cookie(message, self._method, self._set_cookie)
        return self._send(message)


def cookies(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The Cookie header; HTTP/2 splits it into several lines (RFC 9113, section 8.2.3)."""
    values = [value for name, value in headers if name == b"cookie"]
    return b"; ".join(values).decode("latin-1") if values else ""


def with_cookie(message: Message, method: str, set_cookie: str) -> Message:
    """The message that begins an answer, with the cookie, and out of reach of a shared cache."""
    headers = [*message.get("headers", ())]
    named = [(name.lower(), value) for name, value in headers]
    found = b", ".join(value for name, value in named if name == b"cache-control").decode("latin-1")
    expires = any(name == b"expires" for name, _ in named)
    cache_control = kept_private(method, message.get("status", 101), found, expires=expires)
    if cache_control is not None:
        headers = [header for header in headers if header[0].lower() != b"cache-control"]
        headers.append((b"cache-control", cache_control.encode("latin-1")))
    headers.append((b"set-cookie", set_cookie.encode("ascii")))
    return {**message, "headers": headers}
