"""A replica of a suite's run that can go wrong, and what its client is told when none answers.

==================================  ======================================================
the replica                         and the client
==================================  ======================================================
took no connection, or was killed   is answered by the next one
failed before it answered           the same, if the request may be repeated; else 502, and
                                    504 for silence
broke off in its answer             has a broken transfer; a websocket, 1012
==================================  ======================================================

Which requests may be repeated says `lbkit.testkit.retry`; what goes wrong, `lbkit.testkit.danger`. What an
app raises itself is no fault of its replica: the test's own client gets it, as it would without replicas.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from lbkit.asgi.exchange import answer
from lbkit.errors import ReplicaFault, ReplicaRefused, ReplicaTimeout
from lbkit.testkit.asgi import Upstream
from lbkit.testkit.asgi_call import Call
from lbkit.testkit.asgi_direct import Direct
from lbkit.testkit.backend import Carried, Ongoing
from lbkit.testkit.danger import SILENCE, Danger
from lbkit.testkit.faults import Plan
from lbkit.testkit.marks import ROW
from lbkit.testkit.retry import Again, may_retry
from lbkit.testkit.row import Attempt, Row
from lbkit.testkit.wsgi import Upstream as WSGIUpstream
from lbkit.testkit.wsgi import Watch as WSGIWatch
from lbkit.testkit.wsgi import unread
from lbkit.types import ASGIApp, Clock, Environ, Receive, Scope, Send, StartResponse, WSGIApp

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit

__all__ = ["Mortal", "Transfer", "asgi_gateway", "torn", "wsgi_gateway"]

WHY = "the replica failed before it answered"


class Here:
    """The caller's own context: an app under a test client runs in the test's."""

    def run(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    def copy(self) -> Here:
        return self


class Mortal:
    """One replica, for one attempt. `app` is what it would be if nothing went wrong."""

    asgi: ASGIApp
    wsgi: WSGIApp
    context = Here()
    listens = True
    timeout: float | None = None
    server_profile = None
    state_of_lifespan: dict[str, Any] = {}  # noqa: RUF012 (nobody writes to it)

    def __init__(self, kit: Kit, danger: Danger, index: int, app: Any) -> None:
        self.name = kit.spaces[index].name
        self.asgi = self.wsgi = app
        self._kit = kit
        self._danger = danger
        self._index = index
        self.abandoned = kit.deaths.abandoned

    @property
    def clock(self) -> Clock:
        return self._kit.clock

    def plan(self, attempt: Attempt, row: Row) -> Plan | None:
        others = self._others(row)
        plan = self._danger.plan(self._index, row.method, row.path, attempt.began_at, others=others)
        if plan is None:
            return None
        attempt.injected = str(plan)
        self.timeout = SILENCE if plan.hang is not None else None
        if plan.crash:
            self.crash()
        return plan

    def refused(self, attempt: Attempt) -> ReplicaRefused:
        attempt.refuse(self.clock())
        return ReplicaRefused(f"replica {self.name} refused the connection")

    def may_retry(self, row: Row, *, repeatable: bool) -> bool:
        return may_retry(row, replicas=len(row.attempts) + self._others(row), repeatable=repeatable)

    def _others(self, row: Row) -> int:
        """How many replicas are left that this request could go to."""
        return len(self._kit.left(row, self._danger.up()))

    def crash(self) -> None:
        """It dies before the request is inside."""
        self.listens = False
        self._kit.deaths.kill(self._index)

    def call(
        self, attempt: Attempt, plan: Plan | None, receive: Receive, send: Send, *, websocket: bool
    ) -> Carried:
        if plan is not None and plan.harms(websocket=websocket):
            return Call(self, attempt, plan, receive, send, websocket=websocket)
        delay = 0.0 if plan is None else plan.delay
        return Direct(self, attempt, receive, send, websocket=websocket, delay=delay)

    def enter(self, call: Ongoing) -> None:
        self._kit.deaths.inside[self._index].add(call)

    def leave(self, call: Ongoing) -> None:
        self._kit.deaths.inside[self._index].discard(call)


def torn(client: object, error: ReplicaFault) -> Exception:
    """A transfer that broke, as the client knows it: httpx has an exception of its own for that."""
    for kind in type(client).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in ("httpx", "httpx2"):
            broken: Exception = sys.modules[library].RemoteProtocolError(str(error))
            return broken
    return error


class Transfer:
    """The body of an answer, as far as its client gets it."""

    def __init__(self, client: object, body: WSGIWatch) -> None:
        self._client = client
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except ReplicaFault as error:
            raise torn(self._client, error) from None

    def close(self) -> None:
        self._body.close()


def status_of(error: ReplicaFault) -> int:
    return 504 if isinstance(error, ReplicaTimeout) else 502


def asgi_gateway(mortal: Mortal) -> ASGIApp:
    """The replica, behind a balancer that answers for it when it has failed."""
    upstream = Upstream(mortal)

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await upstream(scope, receive, send)
        except ReplicaFault as error:
            if scope[ROW].status is not None:
                raise
            await answer(scope, send, status_of(error), WHY)

    return gateway


def wsgi_gateway(mortal: Mortal) -> WSGIApp:
    upstream = WSGIUpstream(mortal)

    def gateway(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        row: Row = environ[ROW]
        try:
            body = upstream(environ, start_response)
        except ReplicaFault as error:
            if row.status is not None:
                raise
            return refusal(environ, start_response, status_of(error))
        return body if row.status is not None else late(body, mortal, environ, start_response)

    return gateway


def late(
    body: Iterable[bytes], mortal: Mortal, environ: Environ, start_response: StartResponse
) -> Iterator[bytes]:
    """The body of an app that begins its answer when the body is read, as a generator does."""
    row: Row = environ[ROW]
    try:
        yield from body
    except ReplicaFault as error:
        if row.status is not None:
            raise
        if mortal.may_retry(row, repeatable=unread(environ, row)):
            raise Again from None
        yield from refusal(environ, start_response, status_of(error))
    finally:
        if close := getattr(body, "close", None):
            close()


def refusal(environ: Environ, start_response: StartResponse, status: int) -> list[bytes]:
    head = f"{status} {HTTPStatus(status).phrase}"
    body = f"{head}: {WHY}\n".encode()
    start_response(head, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
