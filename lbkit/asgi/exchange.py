"""One request and its answer on their way through the ASGI balancer, and what it says itself."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from http import HTTPStatus
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from lbkit.asgi.sticky import cookies, with_cookie
from lbkit.balancer import Dispatch, Tried
from lbkit.balancer.exchange import Fault, fault_of
from lbkit.balancer.hop import FORWARDED, WEB_SCHEMES, add_client
from lbkit.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from lbkit.asgi.replica import ASGIMember

__all__ = [
    "ENDS",
    "LEFT",
    "STARTS",
    "Cookie",
    "Exchange",
    "ScopeKey",
    "answer",
    "inner_scope",
    "method_of",
    "unavailable",
    "untaken",
]

logger = logging.getLogger("lbkit.balancer")

FOR, PROTO_NAME, HOST = DROPPED_NAMES = tuple(name.encode() for name in FORWARDED)
DROPPED = frozenset(DROPPED_NAMES)
PROTO = {scheme: (PROTO_NAME, web.encode()) for scheme, web in WEB_SCHEMES.items()}
NAME = itemgetter(0)
SET_COOKIE = b"set-cookie"

STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
ENDS = frozenset(
    {
        "http.response.body",
        "http.response.pathsend",
        "http.response.trailers",
        "http.response.zerocopysend",
        "websocket.http.response.body",
    }
)
LEFT = frozenset({"http.disconnect", "websocket.disconnect"})


class ScopeKey:
    """A request's `RequestKey`."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def client(self) -> str | None:
        client = self._scope.get("client")
        return client[0] if client else None

    @property
    def path(self) -> str:
        path: str = self._scope["path"]
        return path

    def header(self, name: str, /) -> str:
        if name == "cookie":
            return cookies(self._scope["headers"])
        wanted = name.encode("latin-1")
        lines = [value for key, value in self._scope["headers"] if key == wanted]
        return b", ".join(lines).decode("latin-1")


class Cookie:
    """The route cookie of one answer. The balancer's word is the last: a replica's own one is taken out."""

    __slots__ = ("_method", "_own", "_set")

    def __init__(self, name: str, scope: Scope, set_cookie: str | None) -> None:
        self._own = f"{name}=".encode()
        self._method = scope.get("method", "GET")
        self._set = set_cookie

    def on(self, message: Message) -> Message:
        if any(
            key == SET_COOKIE and value.startswith(self._own) for key, value in message.get("headers", ())
        ):
            message = {**message, "headers": [each for each in message["headers"] if not self._is_own(each)]}
        return message if self._set is None else with_cookie(message, self._method, self._set)

    def _is_own(self, header: tuple[bytes, bytes]) -> bool:
        return header[0] == SET_COOKIE and header[1].startswith(self._own)


class Exchange:
    """One request and its answer on their way through: hands on each message, remembers how far it got."""

    # Class attributes, not assignments in __init__: this runs for every request.
    status: int | None = None
    complete = False
    gone = False
    cookie: Cookie | None = None
    fault: Fault | None = None
    _trailers = False

    def __init__(self, receive: Receive, send: Send, member: ASGIMember) -> None:
        self._receive = receive
        self._send = send
        self._member = member

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] in LEFT:
            self.gone = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Not a coroutine: it has nothing to do after the server's own `send`, and saves a frame."""
        kind = message["type"]
        if kind in STARTS:
            return self._send(self._started(message))
        if kind in ENDS:
            # With trailers promised, the last body message is not the last message.
            more = message.get("more_body") or message.get("more_trailers")
            self.complete = not more and (not self._trailers or kind == "http.response.trailers")
        elif kind == "websocket.close":
            self.complete = True
            self.status = self.status or 403
        return self._send(message)

    def _started(self, message: Message) -> Message:
        self.status = message.get("status", 101)
        self._trailers = message.get("trailers", False)
        if self.cookie is not None:
            message = self.cookie.on(message)
        if self._member.header is None:
            return message
        return {**message, "headers": [*message.get("headers", ()), self._member.header]}

    async def bad_gateway(self, scope: Scope, error: Exception | None) -> None:
        """Answer for a replica that did not. Nobody is told when the client has left already."""
        if self.gone:
            self.status = 499
            return
        self.cookie = None  # nobody is bound to a replica by an answer that it did not give
        self.fault = fault_of(error)
        what = f"{method_of(scope)} {scope['path']}"
        logger.error("replica %s failed before it answered %s", self._member.name, what, exc_info=error)
        await answer(scope, self.send, 502, "the replica failed before it answered")

    def summary(self, scope: Scope, seconds: float) -> Dispatch:
        client = scope.get("client")
        own = None if self.fault is not None or self.status == 499 else self.status
        tried = Tried(replica=self._member.name, status=own, fault=self.fault, seconds=seconds)
        return Dispatch(
            replica=self._member.name,
            client=client[0] if client else None,
            method=method_of(scope),
            path=scope["path"],
            status=499 if self.status is None and self.gone else self.status,
            complete=self.complete or (self.gone and self.status == 101),
            seconds=seconds,
            attempts=(tried,),
        )


def untaken(scope: Scope) -> Dispatch:
    """The line of a request that no replica takes."""
    client = scope.get("client")
    return Dispatch(
        replica=None,
        client=client[0] if client else None,
        method=method_of(scope),
        path=scope["path"],
        status=503,
        complete=True,
        seconds=0.0,
    )


async def unavailable(scope: Scope, send: Send) -> None:
    """Answer when no replica takes the request: each one drains or is out."""
    await answer(scope, send, 503, "no replica takes new clients", headers=[(b"retry-after", b"1")])


async def answer(
    scope: Scope, send: Send, status: int, why: str, *, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """What the balancer says itself; a websocket's handshake is refused as the server can."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        code, reason = (1013, "no replica") if status == 503 else (1011, "bad gateway")
        await send({"type": "websocket.close", "code": code, "reason": reason})
        return
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    body = f"{status} {HTTPStatus(status).phrase}: {why}\n".encode()
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": f"{kind}.start", "status": status, "headers": [*own, *headers]})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})


def inner_scope(scope: Scope, state: dict[str, Any]) -> Scope:
    inner = {**scope, "headers": _forwarded_headers(scope)}
    if state:
        inner["state"] = {**scope.get("state", {}), **state}
    return inner


def _forwarded_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    headers = scope["headers"]
    earlier = ""
    if not DROPPED.isdisjoint(map(NAME, headers)):
        earlier = b", ".join(value for name, value in headers if name == FOR).decode("latin-1")
        headers = [header for header in headers if header[0] not in DROPPED]
    client = scope.get("client")
    chain = add_client(earlier, client[0] if client else None)
    added = [(FOR, chain.encode("latin-1")), PROTO[scope.get("scheme", "http")]]
    for name, value in headers:
        if name == b"host":
            added.append((HOST, value))
            break
    return [*headers, *added]


def method_of(scope: Scope) -> str:
    return scope["method"] if scope["type"] == "http" else "WEBSOCKET"
