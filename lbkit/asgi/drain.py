"""Graceful drain in front of an ASGI app: counts what is in flight, and lets streams end well.

A request is inside until the app's call is over, so its background tasks count. While draining, answers
over HTTP/1 say `connection: close`. Near the end of the delay an event stream gets a last event and the
end of its body, and a websocket is closed with 1012 (service restart). What still runs at the deadline
is cancelled, for most servers would wait for it without an end.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from lbkit.asgi.connection import close_after, close_now
from lbkit.asgi.operator import OperatorMiddleware
from lbkit.asgi.task import forgive, running_task
from lbkit.departure import Departure
from lbkit.drain import rejects, spread
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["DrainMiddleware"]

logger = logging.getLogger("lbkit.drain")

RESTART = {"type": "websocket.disconnect", "code": 1012, "reason": "service restart"}
CLOSE = (b"connection", b"close")
MARK = (b"x-lb-retry-503", b"1")
LAST_EVENT = b"event: shutdown\nretry: 1000\ndata:\n\n"
PATIENCE = 0.3
"""Seconds that the app of a websocket has to return, once its connection is closed."""

REFUSAL = b"503 Service Unavailable: this replica is leaving the pool\n"
REFUSAL_HEADERS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"%d" % len(REFUSAL)),
    (b"retry-after", b"1"),
    (b"cache-control", b"no-store"),
]


class DrainMiddleware:
    """Put it around the whole app, and the health endpoints around it: probes must not count."""

    def __init__(self, app: ASGIApp, departure: Departure) -> None:
        operator = departure.operator
        self.app = app if operator is None else OperatorMiddleware(app, departure, operator)
        self.departure = departure
        self._drain = departure.drain
        self._lives = 0
        # What was said to those in flight; they are too many to carry what few of them need.
        self._told: set[Exchange] = set()
        self._late: set[Exchange] = set()
        departure.on_streams_end(self._end_streams)
        departure.on_deadline(self._cut)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(scope, receive, send)
            return
        departure, drain = self.departure, self._drain
        if departure.cold:  # a server without lifespan, or a worker after its fork
            departure.start()
        if kind == "http":
            if drain.draining and self._rejects(scope):
                await self._refuse(scope, receive, send)
                return
            exchange = Exchange(departure, scope, receive, send, running_task())
            receiving = receive
        elif kind == "websocket":
            exchange = socket = Socket(departure, scope, receive, send, running_task())
            receiving = socket.receive
        else:
            await self.app(scope, receive, send)
            return
        drain.inside[exchange] = scope
        try:
            await self.app(scope, receiving, exchange.send)
        except BaseException:
            # Told to end, an app may raise whatever it likes; the client still gets its end.
            if not exchange.ended:
                raise
        finally:
            drain.inside.pop(exchange, None)
        if exchange.ended:
            await exchange.finish()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server has set its handlers and waits for the startup: the moment to come before them."""

        async def watching(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self.departure.start()
            await send(message)

        self.departure.arm()
        self._lives += 1
        try:
            await self.app(scope, receive, watching)
        finally:
            self._lives -= 1
            if not self._lives:
                self.departure.stop()

    def _rejects(self, scope: Scope) -> bool:
        reject = self.departure.reject
        return rejects(reject, method=scope["method"], marked=MARK in map(tuple, scope["headers"]))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        close_after(receive)
        headers = [*REFUSAL_HEADERS, *_parting(self.departure, scope)]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL})

    def _end_streams(self, seconds: float) -> None:
        """On the drain's thread. Streams that have been told already are left alone."""
        streams = [each for each in self._exchanges(but=self._told) if each.endless]
        self._told.update(streams)
        for index, stream in enumerate(streams):
            chance = random.random()  # noqa: S311
            stream.soon(stream.end, after=spread(index, len(streams), seconds=seconds, chance=chance))

    def _cut(self) -> None:
        """On the drain's thread, after the deadline."""
        for exchange in self._exchanges(but=self._late):
            self._late.add(exchange)
            logger.warning("cut at the deadline of the drain: %s", exchange.scope.get("path"))
            exchange.soon(exchange.cancel)

    def _exchanges(self, *, but: set[Exchange]) -> list[Exchange]:
        """Those in flight. What is over is taken out of the set."""
        inside = [ticket for ticket in self._drain.tickets() if isinstance(ticket, Exchange)]
        but.intersection_update(inside)
        return [exchange for exchange in inside if exchange not in but]


class Exchange:
    """One request on its way: what its answer began with, and whether we ended it."""

    __slots__ = ("_departure", "_receive", "_send", "ended", "last", "scope", "started", "task")

    def __init__(
        self,
        departure: Departure,
        scope: Scope,
        receive: Receive,
        send: Send,
        task: asyncio.Task[object] | None,
    ) -> None:
        self._departure = departure
        self.scope = scope
        self._receive = receive
        self._send = send
        self.task = task
        self.started: Message | None = None
        self.last: Message | None = None
        self.ended = False

    def send(self, message: Message) -> Awaitable[None]:
        """Not a coroutine: it has nothing to do after the server's own `send`, and saves a frame."""
        if self.ended:
            return _nowhere()
        if self.started is None:
            self.started = message
            if self._departure.drain.draining:
                message = self._parting(message)
        self.last = message
        return self._send(message)

    @property
    def endless(self) -> bool:
        """Whether the answer is an event stream that goes on."""
        started, last = self.started, self.last
        if started is None or started["type"] != "http.response.start" or last is None:
            return False
        if last is not started and not last.get("more_body"):
            return False
        return any(
            name.lower() == b"content-type" and value.lstrip().lower().startswith(b"text/event-stream")
            for name, value in started.get("headers", ())
        )

    def soon(self, call: Callable[[], object], *, after: float = 0.0) -> None:
        """Have `call` made in the request's own event loop. Does nothing where there is no asyncio task."""
        if self.task is not None:
            loop = self.task.get_loop()
            loop.call_soon_threadsafe(lambda: loop.call_later(after, call))

    def end(self) -> None:
        """In the request's loop. The app is cancelled, and then `finish` sends the end."""
        if self.endless and not self.ended:
            self.ended = True
            self.cancel()

    def cancel(self) -> None:
        if self.task is not None and not self.task.done():
            self.task.cancel()

    async def finish(self) -> None:
        """After the app: what the client needs for a clean end."""
        forgive(self.task)
        await self._send({"type": "http.response.body", "body": LAST_EVENT, "more_body": False})
        close_now(self._receive)

    def _parting(self, message: Message) -> Message:
        close_after(self._receive)
        headers = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
        return {**message, "headers": [*headers, *_parting(self._departure, self.scope)]}


class Socket(Exchange):
    """A websocket. It is closed before its app knows, and the app is told that it is."""

    __slots__ = ("_closing_task", "_deaf", "_listener", "_over")

    def __init__(
        self,
        departure: Departure,
        scope: Scope,
        receive: Receive,
        send: Send,
        task: asyncio.Task[object] | None,
    ) -> None:
        super().__init__(departure, scope, receive, send, task)
        self._over = asyncio.Event()
        self._listener: asyncio.Task[object] | None = None
        self._deaf = False
        self._closing_task: asyncio.Task[None] | None = None

    @property
    def endless(self) -> bool:
        started, last = self.started, self.last
        return (
            started is not None
            and started["type"] == "websocket.accept"
            and last is not None
            and last["type"] != "websocket.close"
        )

    async def receive(self) -> Message:
        self._listener = listener = running_task()
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if self._listener is listener or forgive(listener):  # it was not us who cancelled, or not alone
                raise
            return dict(RESTART)
        finally:
            self._listener = None
        if self.ended and message["type"] == "websocket.disconnect":
            return {**message, **RESTART}
        return message

    def send(self, message: Message) -> Awaitable[None]:
        if self.ended:
            # What the specification asks of a server whose client is gone.
            raise ConnectionResetError("the websocket is closed: this replica is leaving the pool")
        if self.started is None:
            self.started = message
        self.last = message
        return self._send(message)

    def end(self) -> None:
        if not self.endless or self.ended or self.task is None:
            return
        self.ended = True
        self._wake()
        self._closing_task = self.task.get_loop().create_task(self._close())

    def _wake(self) -> None:
        """End the app's wait for a message: granian closes nothing while somebody waits."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()

    async def _close(self) -> None:
        await self._send({**RESTART, "type": "websocket.close"})
        try:
            await asyncio.wait_for(self._over.wait(), PATIENCE)
        except asyncio.TimeoutError:  # it listens to nobody
            self._deaf = True
            self.cancel()

    async def finish(self) -> None:
        self._over.set()
        if self._deaf:
            forgive(self.task)
        if self._closing_task is not None:
            # A client that has left meanwhile needs no end.
            await asyncio.gather(self._closing_task, return_exceptions=True)


async def _nowhere() -> None:
    """Where an app's messages go when the answer has ended."""


def _parting(departure: Departure, scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of an answer while draining. From HTTP/2 on the server says it, and has no such header."""
    more = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in departure.parting]
    return [*more, CLOSE] if scope.get("http_version", "1.1").startswith("1") else more
