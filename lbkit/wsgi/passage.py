"""A request on its way through the WSGI balancer under a profile: what the model decides, carried out.

An attempt ends as it does in `lbkit.asgi.passage`. Here an answer begins with the first byte of its body, or
with its end; and an app that begins none within `read_timeout` cannot be cancelled: its thread is left alone,
and what comes of it is dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import copy_context
from http import HTTPStatus
from queue import Empty, SimpleQueue
from threading import Event
from typing import Protocol

from lbkit.balancer import Dispatch, Tried
from lbkit.balancer.backend import Backend, Course, Step
from lbkit.balancer.exchange import Answer, Attempt, Model, Outcome, Relay, Wait, fault_of
from lbkit.balancer.exchange import Fault as Failed
from lbkit.balancer.lazy import LazyHeaders
from lbkit.balancer.members import Member
from lbkit.balancer.operated import Served
from lbkit.errors import ConfigError, ReplicaReset, ReplicaTimeout
from lbkit.threads import DaemonThreads
from lbkit.types import Environ, ExcInfo, StartResponse, WSGIApp
from lbkit.wsgi.environ import inner_environ, path_of
from lbkit.wsgi.request import KEPT, KeptBody, put_cookies, request_of

__all__ = ["Carrier"]

logger = logging.getLogger("lbkit.balancer")

THREADS = 200
"""Calls that may run at the same time under a `read_timeout`; more wait in line."""

Headers = list[tuple[str, str]]


class Named(Served[Member[WSGIApp]], Protocol):
    """A balancer that names its replicas to the client."""

    @property
    def named(self) -> Mapping[str, Headers]: ...


class Carrier:
    """Brings requests to a model, and the model's decisions to the replicas."""

    def __init__(self, balancer: Named, model: Model, *, read_timeout: float | None) -> None:
        if read_timeout is not None and read_timeout <= 0:
            raise ConfigError(f"need read_timeout > 0, or None for no limit, got read_timeout={read_timeout}")
        self.balancer = balancer
        self.backend = Backend(model, balancer.replicas, ticket=Event)
        self.read_timeout = read_timeout
        self._threads = DaemonThreads(limit=THREADS, name="lbkit-timed") if read_timeout is not None else None
        # Unix time, for cookies with dates; but it never jumps, as the timers of a balancer do not.
        self._epoch = balancer.wall() - balancer.clock()

    def now(self) -> float:
        return self._epoch + self.balancer.clock()

    def carry(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        passage = Passage(self, environ, start_response)
        try:
            return passage.run()
        except BaseException:
            passage.end()
            raise

    def within(self, call: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Run the call, on a thread of its own where there is a limit for it. Raises what it raises."""
        if self._threads is None or self.read_timeout is None:
            call()
            return
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        context = copy_context()

        def run() -> None:
            try:
                context.run(call)
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

        self._threads.submit(run)
        try:
            error = done.get(timeout=self.read_timeout)
        except Empty:
            give_up()
            raise ReplicaTimeout(f"no answer within {self.read_timeout:g} s") from None
        if error is not None:
            raise error


class Passage:
    """One request: every attempt, and the answer of the one that the client gets."""

    status: int | None = None
    complete = False
    replica: str | None = None
    _ended = False

    def __init__(self, carrier: Carrier, environ: Environ, start_response: StartResponse) -> None:
        self.carrier = carrier
        self.balancer = carrier.balancer
        self.environ = environ
        self.start_response = start_response
        self.body = KeptBody(environ)
        self.tried: list[Tried] = []
        self.began_at = self.balancer.clock()
        self.request = request_of(environ)
        self.course: Course = carrier.backend.begin(self.request, now=carrier.now())

    def run(self) -> Iterable[bytes]:
        step: Step = self.course.step
        while True:
            if isinstance(step, Attempt):
                if self.tried and (why := self._unsendable()):
                    return self._own(502, why, [])
                if step.warning:
                    logger.warning("%s", step.warning)
                attempt = Try(self, self.balancer.replicas[step.replica], step)
                done = attempt.run()
                if done is None:
                    return attempt
                step = done
            elif isinstance(step, Wait):
                step = self._wait(step)
            elif isinstance(step, Answer):
                return self._say(step)
            else:
                raise TypeError(f"an answer that is relayed has begun: {step}")

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.course.close()
        if self.balancer.on_dispatch is not None:
            self.balancer.on_dispatch(self._summary())

    def _wait(self, wait: Wait) -> Step:
        seconds = max(0.0, wait.until - self.carrier.now())
        return self.course.resume() if self.course.ticket.wait(seconds) else self.course.give_up()

    def _unsendable(self) -> str:
        """Why the request cannot be sent once more; empty when it can."""
        sent = [each for each in self.tried if each.fault is None or each.fault.sent]
        if not sent:
            return ""
        last = sent[-1]
        if not self.body.kept:
            why = f"its body of more than {KEPT} bytes was not kept, so it cannot be sent again"
            logger.warning("%s failed at %s (%s): %s", self.what(), last.replica, last.outcome, why)
            return why
        return ""

    def _say(self, said: Answer) -> Iterable[bytes]:
        """The answer of the balancer itself: no replica gave one."""
        if not self.tried:
            self.replica = None
        why = "no replica takes the request" if not self.tried else "no replica answered"
        # 0: HAProxy closes the connection without a word. A server's connection is not ours to close.
        return self._own(said.status or 502, why, [("Set-Cookie", line) for line in said.set_cookie])

    def _own(self, status: int, why: str, headers: Headers) -> Iterable[bytes]:
        phrase = HTTPStatus(status).phrase
        body = f"{status} {phrase}: {why}\n".encode()
        own = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        named = self.balancer.named[self.replica] if self.replica is not None else []
        self.status = status
        self.start_response(f"{status} {phrase}", [*own, *headers, *named])
        self.complete = True
        self.end()
        return [b"" if self.request.method == "HEAD" else body]

    def what(self) -> str:
        return f"{self.request.method} {path_of(self.environ)}"

    def _summary(self) -> Dispatch:
        return Dispatch(
            replica=self.replica,
            client=self.environ.get("REMOTE_ADDR"),
            method=self.request.method,
            path=path_of(self.environ),
            status=self.status,
            complete=self.complete,
            seconds=self.balancer.clock() - self.began_at,
            attempts=tuple(self.tried),
        )


class Try:
    """One attempt: the request given to one replica. As an iterable: the body of its answer."""

    relayed = False
    dropped = False
    step: Step | None = None
    _body: Iterable[bytes] = ()
    _chunks: Iterator[bytes] = iter(())
    _first = b""
    _started: tuple[str, Headers] | None = None
    _server_write: Callable[[bytes], object] | None = None
    _left = False

    def __init__(self, passage: Passage, member: Member[WSGIApp], asked: Attempt) -> None:
        self.passage = passage
        self.member = member
        self.asked = asked
        self.began_at = passage.balancer.clock()

    def run(self) -> Step | None:
        """The next step; None: the client gets this answer."""
        passage = self.passage
        if self.asked.after:
            time.sleep(self.asked.after)
        passage.replica = self.member.name
        self.member.state.enter()
        try:
            if self.asked.body_lost and not self.member.stopped:
                raise ReplicaReset("the balancer has no body left to send")
            passage.carrier.within(self._begin, self._drop)
            self._judge()
        except Exception as error:
            if self.relayed:
                self._leave()
                raise  # a first byte is out, by write(): only the server can cut the connection
            if self.step is None:
                self.step = self._failed(error)
        except BaseException:
            self._leave()
            raise
        if self.relayed:
            return None
        self._close_body()
        self._leave()
        return self.step

    def _begin(self) -> None:
        """Call the app, up to the first byte of its answer."""
        app, environ = self.member.app, inner_environ(self.passage.environ)
        environ["wsgi.input"] = self.passage.body.stream()
        if self.asked.request is not None and self.asked.request is not self.passage.request:
            put_cookies(environ, self.asked.request.header("cookie"))
        self._body = app(environ, self._start)
        self._chunks = iter(self._body)
        self._first = next(filter(None, self._chunks), b"")
        self._close_if_dropped()

    def _close_if_dropped(self) -> None:
        if self.dropped:
            self._close_body()

    def _drop(self) -> None:
        """It took too long. Its thread goes on, and what comes of it is dropped."""
        self.dropped = True

    def _start(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        error = exc_info[1] if exc_info is not None else None
        if error is None and self._started is not None:
            raise RuntimeError("start_response was called a second time without exc_info")
        if error is not None and self._server_write is not None:
            raise error
        self._started = (status, headers)
        return self._write

    def _write(self, data: bytes) -> None:
        if self.dropped:
            raise ReplicaReset("the balancer has given up this attempt")
        if self._server_write is None:
            self._judge()
        if self._server_write is None:
            raise ReplicaReset("the balancer has sent the request to another replica")
        self._server_write(data)

    def _judge(self) -> None:
        """An answer has begun: the model says whether the client gets it."""
        if self.relayed:
            return
        if self._started is None:
            raise RuntimeError("the app gave a body and never called start_response")
        passage, (text, headers) = self.passage, self._started
        status, seconds = int(text[:3]), passage.balancer.clock() - self.began_at
        own = tuple(value for name, value in headers if name.lower() == "set-cookie")
        passage.tried.append(Tried(replica=self.member.name, status=status, seconds=seconds))
        step = passage.course.resume(
            Outcome(
                at=passage.carrier.now(),
                status=status,
                seconds=seconds,
                set_cookie=own,
                headers=LazyHeaders(lambda: {name.lower(): value for name, value in headers}),
                open=True,
            )
        )
        judged = step.answer if isinstance(step, Relay) else step
        if not isinstance(judged, Answer) or judged.replica is None:
            self.step = step
            return
        self.relayed = True
        passage.status = status
        if judged.set_cookie != own:
            headers = [each for each in headers if each[0].lower() != "set-cookie"]
            headers += [("Set-Cookie", line) for line in judged.set_cookie]
        headers = [*headers, *judged.headers.items(), *passage.balancer.named[self.member.name]]
        self._server_write = passage.start_response(text, headers)

    def _failed(self, error: Exception) -> Step:
        """Tell the model of an attempt that gave no answer."""
        passage, name = self.passage, self.member.name
        seconds, fault = passage.balancer.clock() - self.began_at, fault_of(error)
        passage.tried.append(Tried(replica=name, fault=fault, seconds=seconds))
        if fault is Failed.RESET:
            logger.error("replica %s failed before it answered %s", name, passage.what(), exc_info=error)
        else:
            logger.warning("replica %s did not answer %s: %s", name, passage.what(), fault.value)
        return passage.course.resume(Outcome(at=passage.carrier.now(), fault=fault, seconds=seconds))

    # -- the answer, as the server reads it

    def __iter__(self) -> Iterator[bytes]:
        try:
            if self._first:
                yield self._first
            yield from self._chunks
            self.passage.complete = True
        finally:
            self._end()

    def close(self) -> None:
        """Called by the server at the end, whether the body was read or not."""
        try:
            self._close_body()
        finally:
            self._end()

    def _close_body(self) -> None:
        body, self._body = self._body, ()
        if close := getattr(body, "close", None):
            close()

    def _end(self) -> None:
        self._leave()
        if isinstance(self.passage.course.step, Relay) and self.passage.complete:
            self.passage.course.resume()
        self.passage.end()

    def _leave(self) -> None:
        if not self._left:
            self._left = True
            self.member.state.leave()
