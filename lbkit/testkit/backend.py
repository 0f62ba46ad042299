"""A replica as its carriers ask it, whoever it belongs to: a cluster, or a suite that runs over replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lbkit.errors import ReplicaRefused
from lbkit.testkit.abandoned import Abandoned
from lbkit.testkit.faults import Plan
from lbkit.testkit.row import Attempt, Row
from lbkit.testkit.server_profile import ServerProfile
from lbkit.types import ASGIApp, Clock, Receive, Scope, Send, WSGIApp

__all__ = ["Backend", "Carried", "Context", "Ongoing"]


class Ongoing(Protocol):
    """A request that is inside."""

    told: bool
    """Whether its client learns at once that the connection is lost: a thread that is blocked cannot."""

    def kill(self, error: OSError) -> None: ...


class Carried(Ongoing, Protocol):
    """One that has yet to run."""

    async def run(self, scope: Scope) -> None: ...


class Context(Protocol):
    """Where the app runs: a `contextvars.Context`, or what stands for the caller's own."""

    def run(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any: ...

    def copy(self) -> Context: ...


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def asgi(self) -> ASGIApp: ...

    @property
    def wsgi(self) -> WSGIApp: ...

    @property
    def context(self) -> Context: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def timeout(self) -> float | None:
        """Seconds of silence after which it is given up; None: never."""

    @property
    def server_profile(self) -> ServerProfile | None:
        """The server that an ASGI app meets; None: what its client says of that."""

    @property
    def listens(self) -> bool: ...

    @property
    def abandoned(self) -> Abandoned: ...

    @property
    def state_of_lifespan(self) -> Mapping[str, Any]: ...

    def plan(self, attempt: Attempt, row: Row) -> Plan | None:
        """What is to go wrong."""

    def refused(self, attempt: Attempt) -> ReplicaRefused:
        """It takes no connection."""

    def may_retry(self, row: Row, *, repeatable: bool) -> bool:
        """Whether another one is asked. `repeatable`: the request's body can be sent once more."""

    def call(
        self, attempt: Attempt, plan: Plan | None, receive: Receive, send: Send, *, websocket: bool
    ) -> Carried:
        """What carries an ASGI request to it."""

    def enter(self, call: Ongoing) -> None: ...

    def leave(self, call: Ongoing) -> None: ...

    def crash(self) -> None: ...
