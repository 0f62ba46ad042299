"""How ASGI requests reach the replicas of a cluster: `Door` before the balancer, `Upstream` behind it.

The replicas live on the cluster's own loop, whatever loop the client is on, and each request runs inside
its replica in a task of its own, from the context in which the replica was started. So:

==================================  ==========================================================
what happens                        and then
==================================  ==========================================================
the client is cancelled             the app's task is cancelled, and has ended before we return
the replica is killed               the app's task is cancelled; its client sees a failed connection, never a
                                    cancellation: failover, 502, or half a body
the replica times out               the app runs on as a zombie, whose client has left
its websocket's replica is killed   it is closed with 1012
==================================  ==========================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from lbkit.errors import ReplicaFault, ReplicaRefused, ReplicaReset, ReplicaTimeout
from lbkit.testkit.faults import Plan
from lbkit.testkit.retry import Again
from lbkit.testkit.trace import Attempt, Row
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster
    from lbkit.testkit.replica import ClusterReplica

__all__ = ["CLIENT", "MARKS", "PIN", "ROW", "Door", "Upstream"]

ROW, WATCH, CLIENT, PIN = MARKS = ("lbkit.row", "lbkit.watch", "lbkit.client", "lbkit.pin")
"""What we put into a scope or an environ, and take out again before an app sees it."""

MOST_KEPT = 64 * 1024
"""Bytes of a request's body that can be sent once more, to another replica."""

SERVICE_RESTART = 1012
STARTS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
BODIES = ("http.response.body", "websocket.http.response.body")
PIECES_A_SECOND = 10


class Door:
    """The cluster as an ASGI app, for clients on any loop."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif self._cluster.portal.here:
            await self._serve(scope, receive, send)
        else:
            await self._from_elsewhere(scope, receive, send)

    async def _from_elsewhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        there = asyncio.get_running_loop()

        async def fetch() -> Message:
            return await receive()

        async def give(message: Message) -> None:
            await send(message)

        async def receiving() -> Message:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(fetch(), there))

        async def sending(message: Message) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(give(message), there))

        await asyncio.wrap_future(self._cluster.portal.submit(self._serve(scope, receiving, sending)))

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
        scope = {**scope, ROW: row, WATCH: watch}
        try:
            while True:
                cluster.try_again()
                try:
                    await app(scope, watch.receive, watch.send)
                    return
                except Again:
                    watch.rewind()
        finally:
            row.done_at = cluster.clock()


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

    def __init__(self, replica: ClusterReplica) -> None:
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return  # the cluster runs it
        if ROW not in scope:  # a check of the balancer, and no client's request
            await self._serve(scope, receive, send, self._replica.unseen(scope["path"]))
            return
        row, watch = scope[ROW], scope[WATCH]
        try:
            await self._serve(scope, receive, send, row)
        except ReplicaFault:
            if PIN not in scope and self._replica.cluster.may_retry(row, repeatable=watch.repeatable):
                raise Again from None
            raise

    async def _serve(self, scope: Scope, receive: Receive, send: Send, row: Row) -> None:
        replica = self._replica
        attempt = replica.attempt(row)
        plan = replica.plan(attempt, row)
        if not replica.listens or (plan is not None and plan.refuse):
            raise replica.refused(attempt)
        inner = {key: value for key, value in scope.items() if key not in MARKS}
        if replica.state_of_lifespan:
            inner["state"] = {**inner.get("state", {}), **replica.state_of_lifespan}
        call = Call(replica, attempt, plan, receive, send)
        replica.enter(call)
        try:
            if plan is not None and plan.crash:
                replica.crash()
            await call.run(inner)
        finally:
            replica.leave(call)
            attempt.ended_at = replica.clock()


class Call:
    """One request inside one replica."""

    told = True

    def __init__(
        self, replica: ClusterReplica, attempt: Attempt, plan: Plan | None, receive: Receive, send: Send
    ) -> None:
        self._replica = replica
        self._attempt = attempt
        self._plan = plan
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._cut: asyncio.Future[OSError] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        """Done when the app's task is, or when the connection is cut: whatever comes first."""

        self._uploading = False
        self._taken_in = False
        self._left = plan.reset_after if plan is not None else None
        self._websocket = False
        self._complete = False
        self._moved_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._killed = False

    def kill(self, error: OSError) -> None:
        """The process is gone, and the connection with it. From any thread."""
        self._loop.call_soon_threadsafe(self._die, error)

    def _die(self, error: OSError) -> None:
        self._killed = True
        self._cut_now(error)

    def _cut_now(self, error: OSError) -> None:
        if not self._cut.done():
            self._cut.set_result(error)
            self._end()

    def _end(self, _: object = None) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def run(self, scope: Scope) -> None:
        self._websocket = scope["type"] == "websocket"
        if not self._websocket:
            self._timer = self._loop.call_later(self._replica.timeout, self._look)
        task: asyncio.Task[None] = self._replica.context.run(self._loop.create_task, self._serve(scope))
        task.add_done_callback(self._end)
        try:
            await self._over
        except asyncio.CancelledError:
            self._replica.forget(task)
            await asyncio.wait({task})
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
        if self._cut.done():
            await self._broken(task, self._cut.result())
        else:
            self._finished(task)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by the app's own doing: as good as an error
            raise RuntimeError("the app cancelled itself")
        if (error := task.exception()) is not None:
            self._attempt.fault = fault_of(error)
            raise error

    async def _broken(self, task: asyncio.Task[None], error: OSError) -> None:
        """The connection is lost, and the app with it if the replica was killed."""
        if self._killed:
            self._replica.forget(task)
        else:
            self._attempt.zombie = self._attempt.ran and not task.done()
            self._replica.abandon(task)
        if self._complete:
            return  # only a background task was lost
        self._attempt.fault = "timeout" if isinstance(error, ReplicaTimeout) else "reset"
        if self._websocket and self._attempt.status == 101:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": str(error)})
            return
        raise error

    def _look(self) -> None:
        """As nginx counts it: seconds since the replica last said or took something.

        A replica that waits for the client's upload is not silent.
        """
        now = self._loop.time()
        left = (now if self._uploading else self._moved_at) + self._replica.timeout - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif not self._cut.done() and not self._complete:
            seconds = f"{self._replica.timeout:g} s"
            self._cut_now(ReplicaTimeout(f"replica {self._replica.name} was silent for {seconds}"))

    async def _serve(self, scope: Scope) -> None:
        plan = self._plan
        if plan is not None:
            if plan.delay:
                await asyncio.sleep(plan.delay)
            if plan.hang == "before":
                await asyncio.shield(self._cut)
                return
            if plan.status is not None:
                await self._refuse(scope, plan.status)
                return
        self._attempt.ran = True
        await self._replica.asgi(scope, self.receive, self.send)

    async def _refuse(self, scope: Scope, status: int) -> None:
        if scope["type"] == "websocket":
            await self.send({"type": "websocket.close", "code": 1011})
            return
        body = f"{status} as injected into {self._replica.name}\n".encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    async def receive(self) -> Message:
        if self._cut.done():
            return (
                {"type": "websocket.disconnect", "code": 1006}
                if self._websocket
                else {"type": "http.disconnect"}
            )
        self._uploading = not self._taken_in
        message = await self._receive()
        self._uploading = False
        self._taken_in = not message.get("more_body", False)
        self._moved_at = self._loop.time()
        return message

    async def send(self, message: Message) -> None:
        if self._cut.done():
            raise OSError("the client left")  # as ASGI 2.4 has it
        self._moved_at = self._loop.time()
        if self._plan is not None:
            message = await self._harmed(message, self._plan)
        kind = message["type"]
        if kind in STARTS:
            self._attempt.status = message.get("status", 101)
        ends = kind in BODIES and not message.get("more_body")
        self._complete = self._complete or ends or kind == "websocket.close"
        await self._send(message)

    async def _harmed(self, message: Message, plan: Plan) -> Message:
        """What is left of the message, if it comes through at all."""
        kind = message["type"]
        if kind in STARTS:
            if plan.hang == "headers" or self._left == 0:
                await self._fall_silent(plan)
            return message
        if kind not in BODIES:
            return message
        if plan.hang == "body":
            await self._fall_silent(plan)
        if self._left is not None:
            message = await self._up_to_the_break(message, self._left, plan)
        if plan.bytes_per_second is not None:
            message = await self._dripped(message, plan.bytes_per_second)
        return message

    async def _up_to_the_break(self, message: Message, left: int, plan: Plan) -> Message:
        body = message.get("body", b"")
        if len(body) >= left:
            await self._part(message, body[:left])
            await self._fall_silent(plan)
        self._left = left - len(body)
        if not message.get("more_body"):  # shorter than the fault has patience for: it still breaks
            await self._part(message, body)
            await self._fall_silent(plan)
        return message

    async def _fall_silent(self, plan: Plan) -> None:
        """Nothing more comes from here: the connection breaks, or it hangs until somebody gives up."""
        if plan.hang is None:
            self._cut_now(ReplicaReset(f"replica {self._replica.name} broke the connection"))
        await asyncio.shield(self._cut)
        raise OSError("the client left")

    async def _part(self, message: Message, body: bytes) -> None:
        await self._send({**message, "body": body, "more_body": True})

    async def _dripped(self, message: Message, rate: float) -> Message:
        """Sends all of the body but its last piece, which goes with the message itself."""
        size = max(1, int(rate / PIECES_A_SECOND))
        body = message.get("body", b"")
        while len(body) > size:
            await self._part(message, body[:size])
            self._moved_at = self._loop.time()
            await asyncio.sleep(size / rate)
            body = body[size:]
        return {**message, "body": body}


def fault_of(error: BaseException) -> str:
    """A replica that is a process of its own tells by these errors how it has failed."""
    for kind, word in ((ReplicaRefused, "refused"), (ReplicaReset, "reset"), (ReplicaTimeout, "timeout")):
        if isinstance(error, kind):
            return word
    return f"raised {type(error).__name__}: {error}"


def _client(scope: Scope) -> str:
    if CLIENT in scope:
        return str(scope[CLIENT])
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "-"


def _method(scope: Scope) -> str:
    return str(scope["method"]) if scope["type"] == "http" else "WEBSOCKET"
