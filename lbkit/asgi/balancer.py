"""The mini balancer as an ASGI app: one door, several in-process replicas behind it.

It hands messages on and never collects them, so bodies stream both ways. A disconnect and a
cancellation reach the replica as the server raised them; a background task runs inside the
replica's own call. What it says itself:

==========================================  ==================================================
the replica                                 the client gets
==========================================  ==================================================
raises, or returns, before it answers       502 (a websocket: 502 or 403, as the server can)
raises in the middle of its answer          a cut answer: the error goes on to the server
==========================================  ==================================================
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

from lbkit.asgi.bridge import WSGIBridge
from lbkit.asgi.lifespan import Lifespan
from lbkit.asgi.sticky import cookies, with_cookie
from lbkit.balancer import Dispatch, KeyedPolicy, Policy, Pool, Replica, ReplicaState, Tried
from lbkit.balancer.affinity import choose
from lbkit.balancer.exchange import Fault, fault_of
from lbkit.balancer.hop import FORWARDED, WEB_SCHEMES, add_client, checked_header
from lbkit.balancer.members import Member, make, named
from lbkit.errors import ReplicaRefused, StartupError
from lbkit.interface import Interface, interface_of
from lbkit.sticky import Stick, Sticky
from lbkit.types import ASGIApp, Clock, Message, Receive, Scope, Send, WSGIApp

__all__ = ["Balancer"]

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


class Balancer:
    """Dispatches each request to one of several replicas of an app, ASGI or WSGI.

    `apps` is a sequence (the replicas are then web1, web2, ...) or a mapping from names to apps;
    `[app] * 3` is one object three times over, and such replicas share all their memory.
    `replica_header` is the response header that names the replica, None for none. `on_dispatch` is
    called at the end of each request and must not raise. With `sticky` a client stays with the replica that
    it landed on: the balancer issues and honours the signed cookie. A replica sees the client's own address
    in `scope["client"]`, and X-Forwarded-For, -Proto and -Host as a real balancer adds them.
    """

    def __init__(
        self,
        apps: Mapping[str, ASGIApp | WSGIApp] | Iterable[ASGIApp | WSGIApp],
        *,
        policy: Policy | KeyedPolicy | None = None,
        sticky: Sticky | None = None,
        replica_header: str | None = "x-lbkit-replica",
        on_dispatch: Callable[[Dispatch], object] | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        members, header = named(apps), checked_header(replica_header)
        self.pool = Pool(map(Replica, members), policy=policy)
        self.on_dispatch = on_dispatch
        self.clock = clock
        self.wall = wall
        self.stick = Stick(sticky, members) if sticky is not None else None
        """Who stays, and how many moved for which reason; None when clients are not sticky."""

        self.replicas = {
            state.replica.name: ASGIMember(state, members[state.replica.name], header)
            for state in self.pool.states
        }
        """A handle for each replica, by its name: `replicas["web1"].stop()`."""

        self._asks = self.stick is not None or self.pool.keyed

    @classmethod
    def from_factory(
        cls,
        factory: Callable[[], ASGIApp | WSGIApp],
        *,
        replicas: int = 3,
        policy: Policy | KeyedPolicy | None = None,
        sticky: Sticky | None = None,
        replica_header: str | None = "x-lbkit-replica",
        on_dispatch: Callable[[Dispatch], object] | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> Balancer:
        """A fresh app for each replica. When the factory raises: StartupError with the replica's name."""
        apps = make(factory, replicas=replicas)
        return cls(
            apps,
            policy=policy,
            sticky=sticky,
            replica_header=replica_header,
            on_dispatch=on_dispatch,
            clock=clock,
            wall=wall,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        began_at = self.clock() if self.on_dispatch is not None else 0.0
        state, cookie = self._choose(scope) if self._asks else (self.pool.pick(), None)
        if state is None:
            await unavailable(scope, send)
            if self.on_dispatch is not None:
                self.on_dispatch(untaken(scope))
            return
        member = self.replicas[state.replica.name]
        exchange = Exchange(receive, send, member)
        if self.stick is not None:
            exchange.cookie = Cookie(self.stick.sticky.cookie, scope, cookie)
        try:
            await member.app(_inner_scope(scope, member.lifespan.state), exchange.receive, exchange.send)
        except Exception as error:
            if exchange.status is not None:
                raise  # half an answer is out: only the server can cut the connection
            await exchange.bad_gateway(scope, error)
        else:
            if exchange.status is None:
                await exchange.bad_gateway(scope, None)
        finally:
            self.pool.release(state)
            if self.on_dispatch is not None:
                self.on_dispatch(exchange.summary(scope, self.clock() - began_at))

    def _choose(self, scope: Scope) -> tuple[ReplicaState | None, str | None]:
        return choose(self.pool, self.stick, ScopeKey(scope), self.wall())

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start_all(scope)
        except StartupError as error:
            logger.error("%s", error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        except BaseException:
            for member in self.replicas.values():
                member.lifespan.cancel()
            raise
        if failures := await self._stop_all():
            await send({"type": "lifespan.shutdown.failed", "message": "; ".join(failures)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _start_all(self, scope: Scope) -> None:
        """One after another, as a rolling start does. The ones before a failed one are stopped again."""
        try:
            for member in self.replicas.values():
                await member.lifespan.startup(scope)
        except BaseException:
            await self._stop_all()
            raise

    async def _stop_all(self) -> list[str]:
        results = [(name, await member.lifespan.shutdown()) for name, member in self.replicas.items()]
        return [f"replica {name} failed to shut down: {reason}" for name, reason in results if reason]


class ASGIMember(Member[ASGIApp]):
    """A replica as this carrier sees it: what to call, and how to name it to the client."""

    def __init__(self, state: ReplicaState, app: ASGIApp | WSGIApp, header: str | None) -> None:
        super().__init__(state, as_asgi(app), refuse=refused)
        self.lifespan = Lifespan(self.name, self.own)
        self.header = (header.lower().encode("ascii"), self.name.encode("ascii")) if header else None


async def refused(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    raise ReplicaRefused("the replica is stopped")


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
        what = f"{_method(scope)} {scope['path']}"
        logger.error("replica %s failed before it answered %s", self._member.name, what, exc_info=error)
        if scope["type"] == "http":
            await self._answer("http.response", 502)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await self._answer("websocket.http.response", 502)
        else:
            await self.send({"type": "websocket.close", "code": 1011, "reason": "bad gateway"})

    def summary(self, scope: Scope, seconds: float) -> Dispatch:
        client = scope.get("client")
        own = None if self.fault is not None or self.status == 499 else self.status
        tried = Tried(replica=self._member.name, status=own, fault=self.fault, seconds=seconds)
        return Dispatch(
            replica=self._member.name,
            client=client[0] if client else None,
            method=_method(scope),
            path=scope["path"],
            status=499 if self.status is None and self.gone else self.status,
            complete=self.complete or (self.gone and self.status == 101),
            seconds=seconds,
            attempts=(tried,),
        )

    async def _answer(self, kind: str, status: int) -> None:
        body = b"502 Bad Gateway: the replica failed before it answered\n"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        await self.send({"type": f"{kind}.start", "status": status, "headers": headers})
        await self.send({"type": f"{kind}.body", "body": body})


def untaken(scope: Scope) -> Dispatch:
    """The line of a request that no replica takes."""
    client = scope.get("client")
    return Dispatch(
        replica=None,
        client=client[0] if client else None,
        method=_method(scope),
        path=scope["path"],
        status=503,
        complete=True,
        seconds=0.0,
    )


async def unavailable(scope: Scope, send: Send) -> None:
    """Answer when no replica takes the request: each one drains or is out."""
    body = b"503 Service Unavailable: no replica takes new clients\n"
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1013, "reason": "no replica"})
        return
    kind = "http.response" if scope["type"] == "http" else "websocket.http.response"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"1"),
    ]
    await send({"type": f"{kind}.start", "status": 503, "headers": headers})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})


def as_asgi(app: ASGIApp | WSGIApp) -> ASGIApp:
    """The app itself, or a bridge to it. Raises ConfigError for what is no app."""
    if interface_of(app) is Interface.WSGI:
        return WSGIBridge(app)  # type: ignore[arg-type]
    return app  # type: ignore[return-value]


def _inner_scope(scope: Scope, state: dict[str, Any]) -> Scope:
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


def _method(scope: Scope) -> str:
    return scope["method"] if scope["type"] == "http" else "WEBSOCKET"
