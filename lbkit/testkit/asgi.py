"""How ASGI requests reach the replicas of a cluster: `Door` before the balancer, `Upstream` behind it.

The replicas live on the cluster's own loop, whatever loop the client is on. What happens inside a replica is
in `lbkit.testkit.asgi_call`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lbkit.errors import ReplicaFault
from lbkit.testkit.asgi_call import STARTS
from lbkit.testkit.backend import Backend
from lbkit.testkit.hop import Hop
from lbkit.testkit.marks import CLIENT, MARKS, PIN, ROW, WATCH
from lbkit.testkit.retry import Again
from lbkit.testkit.row import Row
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["Door", "Upstream", "Watch", "asked"]

MOST_KEPT = 64 * 1024
"""Bytes of a request's body that can be sent once more, to another replica."""


class Door:
    """The cluster as an ASGI app, for clients on any loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._hop = Hop(self._serve, cluster.portal)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await self._hop(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        cluster = self._cluster
        row = cluster.trace.begin(
            cluster.clock(), client=_client(scope), method=_method(scope), path=scope["path"]
        )
        if cluster.hooks:
            await cluster.before(row)
        watch = Watch(row, receive, send, cluster.clock)
        pin = scope.get(PIN)
        app: ASGIApp = cluster.balancer if pin is None else cluster[pin].upstream

        def pick() -> ASGIApp:
            cluster.try_again()
            return app

        try:
            await asked(watch, {**scope, ROW: row, WATCH: watch}, pick)
        finally:
            row.done_at = cluster.clock()


async def asked(watch: Watch, scope: Scope, pick: Callable[[], ASGIApp]) -> None:
    """Give a request to what `pick` returns; to the next one, too, when that fails and may be replaced."""
    while True:
        try:
            await pick()(scope, watch.receive, watch.send)
            return
        except Again:
            watch.rewind()


async def _live(receive: Receive, send: Send) -> None:
    """The replicas have lifespans of their own, which the cluster runs."""
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


class Watch:
    """Notes in the row what passes between the client and the balancer."""

    __slots__ = ("_clock", "_receive", "_row", "_send", "_taken", "_to_come", "_trailers")

    def __init__(self, row: Row, receive: Receive, send: Send, clock: Callable[[], float]) -> None:
        self._row = row
        self._receive = receive
        self._send = send
        self._clock = clock
        self._trailers = False
        self._taken: list[Message] = []
        self._to_come: list[Message] = []

    @property
    def repeatable(self) -> bool:
        """Whether a request can be given to another replica, with what was read of its body."""
        return self._row.bytes_in <= MOST_KEPT

    def rewind(self) -> None:
        self._to_come = [*self._taken, *self._to_come]
        self._taken = []

    async def receive(self) -> Message:
        if self._to_come:
            self._taken.append(self._to_come.pop(0))
            return self._taken[-1]
        message = await self._receive()
        if message["type"] in ("http.request", "websocket.connect") and self.repeatable:
            self._taken.append(message)
        kind = message["type"]
        if kind == "http.request":
            self._row.bytes_in += len(message.get("body", b""))
        elif kind == "websocket.receive":
            self._row.bytes_in += len(message.get("bytes") or message.get("text") or "")
        elif kind in ("http.disconnect", "websocket.disconnect") and not self._row.complete:
            self._left(message)
        return message

    def _left(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect" and message.get("code") in (1000, 1001, 1005):
            self._row.last_byte_at = self._clock()  # a goodbye, not a lost connection
        else:
            self._row.disconnected = True

    async def send(self, message: Message) -> None:
        self._note(message, message["type"])
        try:
            await self._send(message)
        except OSError:
            self._row.disconnected = True
            raise

    def _note(self, message: Message, kind: str) -> None:
        """Before it is sent: the client may be on another loop, and look at the trace the moment it comes."""
        row = self._row
        if kind in STARTS:
            row.status = message.get("status", 101)
            row.first_byte_at = self._clock()
            self._trailers = message.get("trailers", False)
        elif kind == "websocket.close":
            row.status = row.status or 403
            row.last_byte_at = self._clock()
        elif kind == "websocket.send":
            row.bytes_out += len(message.get("bytes") or message.get("text") or "")
        else:
            self._body(message, kind)

    def _body(self, message: Message, kind: str) -> None:
        self._row.bytes_out += len(message.get("body", b""))
        if kind == "http.response.trailers" or not (message.get("more_body") or self._trailers):
            self._row.last_byte_at = self._clock()


class Upstream:
    """A replica as the balancer sees it: an app that can refuse, break and hang like a process."""

    def __init__(self, replica: Backend) -> None:
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return  # the cluster runs it
        if ROW not in scope:  # a check of the balancer, and no client's request
            await self._serve(scope, receive, send, Row.unseen(scope["path"], self._replica.clock()))
            return
        row, watch = scope[ROW], scope[WATCH]
        try:
            await self._serve(scope, receive, send, row)
        except ReplicaFault:
            if PIN not in scope and self._replica.may_retry(row, repeatable=watch.repeatable):
                raise Again from None
            raise

    async def _serve(self, scope: Scope, receive: Receive, send: Send, row: Row) -> None:
        replica = self._replica
        attempt = row.ask(replica.name, replica.clock())
        plan = replica.plan(attempt, row)
        if not replica.listens or (plan is not None and plan.refuse):
            raise replica.refused(attempt)
        inner = {key: value for key, value in scope.items() if key not in MARKS}
        if replica.state_of_lifespan:
            inner["state"] = {**inner.get("state", {}), **replica.state_of_lifespan}
        if (server := replica.server_profile) is not None:
            inner["asgi"] = server.asgi(scope["type"])
        call = replica.call(attempt, plan, receive, send, websocket=scope["type"] == "websocket")
        replica.enter(call)
        try:
            if plan is not None and plan.crash:
                replica.crash()
            await call.run(inner)
        finally:
            replica.leave(call)
            attempt.ended_at = replica.clock()


def _client(scope: Scope) -> str:
    if CLIENT in scope:
        return str(scope[CLIENT])
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "-"


def _method(scope: Scope) -> str:
    return str(scope["method"]) if scope["type"] == "http" else "WEBSOCKET"
