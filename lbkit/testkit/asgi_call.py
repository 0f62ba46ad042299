"""One request inside one ASGI replica, in a task of its own, from the context in which that was started.

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

from lbkit.errors import ReplicaRefused, ReplicaReset, ReplicaTimeout
from lbkit.testkit.asgi_ear import Ear
from lbkit.testkit.backend import Backend
from lbkit.testkit.faults import PIECES_A_SECOND, Plan
from lbkit.testkit.row import Attempt
from lbkit.testkit.server_profile import SERVER_PROFILES
from lbkit.types import Message, Receive, Scope, Send

__all__ = ["STARTS", "Call"]

SERVICE_RESTART = 1012
STARTS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
BODIES = ("http.response.body", "websocket.http.response.body")


class ClientLeft(OSError):
    """What a server that raises at all raises."""

    def __init__(self) -> None:
        super().__init__("the client left")


class Call:
    """One request inside one replica."""

    told = True

    def __init__(
        self,
        replica: Backend,
        attempt: Attempt,
        plan: Plan | None,
        receive: Receive,
        send: Send,
        *,
        websocket: bool,
    ) -> None:
        self._replica = replica
        self._attempt = attempt
        self._plan = plan
        self._websocket = websocket
        self._ear = Ear(receive, websocket=websocket)
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._cut: asyncio.Future[OSError] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()
        """Done when the app's task is, or when the connection is cut: whatever comes first."""

        self._server = replica.server_profile or SERVER_PROFILES["strict"]
        self._uploading = False
        self._taken_in = False
        self._left = plan.reset_after if plan is not None else None
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
            self._ear.cut()
            self._end()

    def _end(self, _: object = None) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def run(self, scope: Scope) -> None:
        self._look()
        task: asyncio.Task[None] = self._replica.context.run(self._loop.create_task, self._serve(scope))
        task.add_done_callback(self._end)
        try:
            await self._over
        except asyncio.CancelledError:
            self._replica.abandoned.cancel(task)
            await asyncio.wait({task})
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._ear.close()
        if self._cut.done():
            await self._broken(task, self._cut.result())
        else:
            self._finished(task)

    def _finished(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by the app's own doing: as good as an error
            raise RuntimeError("the app cancelled itself")
        if (error := task.exception()) is not None and not comes_from_leaving(error):
            self._attempt.fault = fault_of(error)
            raise error

    async def _broken(self, task: asyncio.Task[None], error: OSError) -> None:
        """The connection is lost, and the app with it if the replica was killed."""
        if self._killed:
            self._replica.abandoned.cancel(task)
        else:
            self._attempt.zombie = self._attempt.ran and not task.done()
            self._replica.abandoned.leave(task)
        if self._complete:
            return  # only a background task was lost
        self._attempt.fault = "timeout" if isinstance(error, ReplicaTimeout) else "reset"
        if self._websocket and self._attempt.status == 101:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": str(error)})
            return
        raise error

    def _look(self) -> None:
        """As nginx counts it: seconds since the replica last said or took something.

        A replica that waits for the client's upload is not silent, nor is a websocket that is open.
        """
        now, timeout = self._loop.time(), self._replica.timeout
        if timeout is None or (self._websocket and self._attempt.status is not None):
            return
        left = (now if self._uploading else self._moved_at) + timeout - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif not self._cut.done() and not self._complete:
            self._cut_now(ReplicaTimeout(f"replica {self._replica.name} was silent for {timeout:g} s"))

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
            return self._ear.goodbye
        if self._taken_in and (not self._websocket or self._attempt.status == 101):
            self._ear.listen()
        self._uploading = not self._taken_in
        message = await self._ear.next()
        self._uploading = False
        self._taken_in = not message.get("more_body", False)
        self._moved_at = self._loop.time()
        return message

    async def send(self, message: Message) -> None:
        try:
            if self._cut.done() or self._ear.gone:
                raise ClientLeft
            await self._say(message)
        except OSError as error:
            self._ear.gone = True
            await self._to_nobody(error)

    async def _say(self, message: Message) -> None:
        self._moved_at = self._loop.time()
        if self._plan is not None:
            message = await self._harmed(message, self._plan)
        kind = message["type"]
        if kind in STARTS:
            self._attempt.status = message.get("status", 101)
        ends = kind in BODIES and not message.get("more_body")
        self._complete = self._complete or ends or kind == "websocket.close"
        self._ear.answered = self._complete
        await self._send(message)
        if not self._complete and kind not in STARTS:
            self._ear.listen()

    async def _to_nobody(self, error: OSError) -> None:
        """The client has left, and servers take that in different ways."""
        if ("websocket" if self._websocket else "http") in self._server.raises:
            raise ClientLeft from error
        await asyncio.sleep(0)  # an app that says more and more to nobody must not block the others

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
        raise ClientLeft

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


def comes_from_leaving(error: BaseException | None) -> bool:
    """Whether it is our own word that the client has left, or Starlette's ...Disconnect in its place."""
    if not isinstance(error, OSError) and not type(error).__name__.endswith("Disconnect"):
        return False
    while error is not None and not isinstance(error, ClientLeft):
        error = error.__cause__ or error.__context__
    return error is not None


def fault_of(error: BaseException) -> str:
    """A replica that is a process of its own tells by these errors how it has failed."""
    for kind, word in ((ReplicaRefused, "refused"), (ReplicaReset, "reset"), (ReplicaTimeout, "timeout")):
        if isinstance(error, kind):
            return word
    return f"raised {type(error).__name__}: {error}"
