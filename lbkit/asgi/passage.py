"""A request on its way through the ASGI balancer under a profile: what the model decides, carried out.

How an attempt ends, in the words that a balancer knows:

=============================================  ============================================================
the replica                                    is told to the model as
=============================================  ============================================================
is stopped, or raises `ReplicaRefused`         refused: it has seen nothing of the request
raises, or returns, before it answers          reset, after the request was sent
begins no answer within `read_timeout`         timeout; what it still does is cancelled
begins an answer                               its status; busy until the last byte (a websocket: its close)
raises in the middle of its answer             nothing: the client's answer is cut, and never sent again
=============================================  ============================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from lbkit.asgi.exchange import ENDS, SET_COOKIE, STARTS, answer, inner_scope, method_of
from lbkit.asgi.limit import Limit
from lbkit.asgi.request import KEPT, KeptBody, joined, request_of, with_cookies
from lbkit.asgi.task import forgive
from lbkit.balancer import Dispatch, Tried
from lbkit.balancer.backend import Backend, Course, Step
from lbkit.balancer.exchange import Answer, Attempt, Fault, Model, Outcome, Relay, Wait, fault_of
from lbkit.balancer.lazy import LazyHeaders
from lbkit.balancer.operated import Served
from lbkit.errors import ConfigError, ReplicaReset, ReplicaTimeout
from lbkit.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from lbkit.asgi.replica import ASGIMember

__all__ = ["Carrier"]

logger = logging.getLogger("lbkit.balancer")


class Carrier:
    """Brings requests to a model, and the model's decisions to the replicas."""

    def __init__(self, balancer: Served[ASGIMember], model: Model, *, read_timeout: float | None) -> None:
        if read_timeout is not None and read_timeout <= 0:
            raise ConfigError(f"need read_timeout > 0, or None for no limit, got read_timeout={read_timeout}")
        self.balancer = balancer
        self.backend = Backend(model, balancer.replicas, ticket=Turn)
        self.read_timeout = read_timeout
        self._limit: Limit | None = None
        # Unix time, for cookies with dates; but it never jumps, as the timers of a balancer do not.
        self._epoch = balancer.wall() - balancer.clock()

    def now(self) -> float:
        return self._epoch + self.balancer.clock()

    def limit(self) -> Limit | None:
        """What ends the attempts of the running loop that take too long."""
        if self.read_timeout is None:
            return None
        if self._limit is None or self._limit.loop is not asyncio.get_running_loop():
            self._limit = Limit(self.read_timeout)
        return self._limit

    async def carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        passage = Passage(self, scope, receive, send)
        try:
            await passage.run()
        finally:
            passage.end()


class Turn:
    """A place in a queue. Another thread, or another loop, may say that its turn has come."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._come = asyncio.Event()

    def set(self) -> None:
        self._loop.call_soon_threadsafe(self._come.set)

    async def wait(self, seconds: float) -> bool:
        """Whether it came in time."""
        try:
            await asyncio.wait_for(self._come.wait(), max(0.0, seconds))
        except asyncio.TimeoutError:
            return False
        return True


class Passage:
    """One request: every attempt, and the answer of the one that the client gets."""

    status: int | None = None
    complete = False
    replica: str | None = None

    def __init__(self, carrier: Carrier, scope: Scope, receive: Receive, send: Send) -> None:
        self.carrier = carrier
        self.balancer = carrier.balancer
        self.scope = scope
        self.send = send
        self.body = KeptBody(receive)
        self.tried: list[Tried] = []
        self.began_at = self.balancer.clock()
        self.request = request_of(scope)
        self.course: Course = carrier.backend.begin(self.request, now=carrier.now())

    async def run(self) -> None:
        step: Step | None = self.course.step
        while step is not None:
            if isinstance(step, Attempt):
                step = await self._attempt(step)
            elif isinstance(step, Wait):
                step = await self._wait(step)
            elif isinstance(step, Answer):
                await self._say(step)
                return
            else:
                raise TypeError(f"an answer that is relayed has begun: {step}")

    def end(self) -> None:
        self.course.close()
        if self.balancer.on_dispatch is not None:
            self.balancer.on_dispatch(self._summary())

    async def _wait(self, wait: Wait) -> Step:
        seconds = wait.until - self.carrier.now()
        return self.course.resume() if await self.course.ticket.wait(seconds) else self.course.give_up()

    async def _attempt(self, asked: Attempt) -> Step | None:
        """None: the client has its answer, or is gone."""
        if self.tried and not await self._may_send_again():
            return None
        if asked.warning:
            logger.warning("%s", asked.warning)
        if asked.after:
            await asyncio.sleep(asked.after)
        member = self.balancer.replicas[asked.replica]
        self.replica = member.name
        attempt = Try(self, member, asked)
        member.state.enter()
        try:
            return await attempt.run()
        finally:
            member.state.leave()

    async def _may_send_again(self) -> bool:
        if self.body.rewind():
            return True
        last, why = (
            self.tried[-1],
            f"its body of more than {KEPT} bytes was not kept, so it cannot be sent again",
        )
        logger.warning("%s failed at %s (%s): %s", self._what(), last.replica, last.outcome, why)
        await self._answer(502, why)
        return False

    async def _say(self, said: Answer) -> None:
        """The answer of the balancer itself: no replica gave one."""
        if self.body.gone:
            self.status = 499
            return
        if not self.tried:
            self.replica = None
        why = "no replica takes the request" if not self.tried else "no replica answered"
        headers = [(SET_COOKIE, line.encode("latin-1")) for line in said.set_cookie]
        # 0: HAProxy closes the connection without a word. A server's connection is not ours to close.
        await self._answer(said.status or 502, why, headers=headers)

    async def _answer(self, status: int, why: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        named = self.balancer.replicas[self.replica].header if self.replica is not None else None
        own = [*(headers or []), *([named] if named is not None else [])]
        self.status = status
        await answer(self.scope, self.send, status, why, headers=own)
        self.complete = True

    def _what(self) -> str:
        return f"{method_of(self.scope)} {self.scope['path']}"

    def _summary(self) -> Dispatch:
        client = self.scope.get("client")
        return Dispatch(
            replica=self.replica,
            client=client[0] if client else None,
            method=method_of(self.scope),
            path=self.scope["path"],
            status=499 if self.status is None and self.body.gone else self.status,
            complete=self.complete or (self.body.gone and self.status == 101),
            seconds=self.balancer.clock() - self.began_at,
            attempts=tuple(self.tried),
        )


class Try:
    """One attempt: the request given to one replica."""

    relayed = False
    refused_answer = False
    step: Step | None = None
    _limit: Limit | None = None
    _late = False
    _trailers = False

    def __init__(self, passage: Passage, member: ASGIMember, asked: Attempt) -> None:
        self.passage = passage
        self.member = member
        self.asked = asked
        self.began_at = passage.balancer.clock()

    async def run(self) -> Step | None:
        try:
            if self.asked.body_lost and not self.member.stopped:
                raise ReplicaReset("the balancer has no body left to send")
            await self._call()
        except Exception as error:
            if self.relayed:
                raise  # half an answer is out: only the server can cut the connection
            return self.step if self.refused_answer else self._failed(error)
        if self.relayed:
            return None
        return self.step if self.refused_answer else self._failed(None)

    async def _call(self) -> None:
        scope = inner_scope(self.passage.scope, self.member.lifespan.state)
        if self.asked.request is not None and self.asked.request is not self.passage.request:
            scope["headers"] = with_cookies(scope["headers"], self.asked.request.header("cookie"))
        limit, task = self.passage.carrier.limit(), asyncio.current_task()
        if limit is None or task is None:
            await self.member.app(scope, self.receive, self.send)
            return
        self._limit, self._task = limit, task
        limit.begin(self, task)
        try:
            await self.member.app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._late or forgive(task):
                raise
            raise ReplicaTimeout(f"no answer within {limit.seconds:g} s") from None
        finally:
            limit.end(self)

    def too_late(self, task: asyncio.Task[Any]) -> None:
        self._late = True
        task.cancel()

    def _failed(self, error: Exception | None) -> Step | None:
        """Tell the model of an attempt that gave no answer. None when the client did not wait for it."""
        passage, member = self.passage, self.member
        seconds = passage.balancer.clock() - self.began_at
        if passage.body.gone:
            passage.tried.append(Tried(replica=member.name, seconds=seconds))
            passage.status = 499
            return None
        fault = fault_of(error)
        passage.tried.append(Tried(replica=member.name, fault=fault, seconds=seconds))
        what = passage._what()
        if fault is Fault.RESET:
            logger.error("replica %s failed before it answered %s", member.name, what, exc_info=error)
        else:
            logger.warning("replica %s did not answer %s: %s", member.name, what, fault.value)
        return passage.course.resume(Outcome(at=passage.carrier.now(), fault=fault, seconds=seconds))

    # -- what the replica's app calls

    async def receive(self) -> Message:
        body, limit = self.passage.body, self._limit
        if self.refused_answer:
            return {"type": "http.disconnect"}
        if limit is None or self.relayed or body.over:
            return await body.receive()
        # A client that is slow to send its request is no fault of the replica.
        limit.end(self)
        try:
            return await body.receive()
        finally:
            limit.begin(self, self._task)

    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind in STARTS and not self.relayed:
            return self._started(message)
        if self.refused_answer:
            return self._unwanted(message)
        if kind in ENDS:
            more = message.get("more_body") or message.get("more_trailers")
            if not more and (not self._trailers or kind == "http.response.trailers"):
                return self._last(message)
        elif kind == "websocket.close":
            return self._closed(message)
        return self.passage.send(message)

    async def _started(self, message: Message) -> None:
        headers: list[tuple[bytes, bytes]] = [*message.get("headers", ())]
        own = tuple(value.decode("latin-1") for name, value in headers if name.lower() == SET_COOKIE)
        judged = self._judged(message.get("status", 101), headers, own)
        if judged is None:
            return
        self.passage.body.forget()
        self._trailers = message.get("trailers", False)
        if judged.set_cookie != own:
            headers = [header for header in headers if header[0].lower() != SET_COOKIE]
            headers += [(SET_COOKIE, line.encode("latin-1")) for line in judged.set_cookie]
        if judged.headers:
            headers += [(name.encode(), value.encode("latin-1")) for name, value in judged.headers.items()]
        if self.member.header is not None:
            headers.append(self.member.header)
        await self.passage.send({**message, "headers": headers})

    def _judged(self, status: int, headers: list[tuple[bytes, bytes]], own: tuple[str, ...]) -> Answer | None:
        """An answer has begun: what the model makes of it. None: the client does not get it."""
        passage = self.passage
        seconds = passage.balancer.clock() - self.began_at
        passage.tried.append(Tried(replica=self.member.name, status=status, seconds=seconds))
        step = passage.course.resume(
            Outcome(
                at=passage.carrier.now(),
                status=status,
                seconds=seconds,
                set_cookie=own,
                headers=LazyHeaders(lambda: joined(headers)),
                open=True,
            )
        )
        if self._limit is not None:
            self._limit.end(self)
        judged = step.answer if isinstance(step, Relay) else step
        if not isinstance(judged, Answer) or judged.replica is None:
            self.refused_answer, self.step = True, step
            return None
        self.relayed = True
        passage.status = status
        return judged

    async def _unwanted(self, message: Message) -> None:
        """The rest of an answer that another replica gives. A stream of it has no end to wait for."""
        if message.get("more_body"):
            raise ReplicaReset("the balancer has sent the request to another replica")

    async def _last(self, message: Message) -> None:
        await self.passage.send(message)
        self.passage.complete = True
        self._over()

    async def _closed(self, message: Message) -> None:
        """The end of a websocket, or of a handshake that the app refuses: a 403 to the client."""
        if self.relayed or self._judged(403, [], ()) is not None:
            await self._last(message)

    def _over(self) -> None:
        """The last byte has left: the replica is free again, whatever its app still does."""
        if isinstance(self.passage.course.step, Relay):
            self.passage.course.resume()
