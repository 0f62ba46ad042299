"""What passes between a model of a balancer and whoever carries it: request, attempt, outcome, answer.

A model is a flow: `flow = model.serve(request, now=...)` yields what it needs done and is sent what came
of it, so that one text drives a recording in virtual time and real apps in real time.

=====================  ===================================================================
the flow yields        and is sent
=====================  ===================================================================
`Attempt(replica)`     the `Outcome` of giving the request to that replica
`Wait(queue)`          None, once `model.woken()` has named this flow's ticket
`Relay(answer)`        None, when the last byte has left; only after an outcome that is `open`
returns `Answer`       what the client gets, and every replica that was tried
=====================  ===================================================================

A flow that is closed has lost its client: what it holds of the model is given back, and no failure counted.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError, ReplicaRefused, ReplicaTimeout

__all__ = [
    "Answer",
    "Attempt",
    "Fault",
    "Flow",
    "Model",
    "Outcome",
    "Relay",
    "Request",
    "Standing",
    "Wait",
    "fault_of",
    "named",
    "received",
]


class Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True, slots=True)
class Request:
    """What a balancer looks at. Header names are lower case; lines of one name are joined by a newline."""

    method: str = "GET"
    target: str = "/"
    """Path and query string, as sent."""

    client: str = "127.0.0.1"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bool = False
    first: bool = True
    """Whether it is the first one of its connection: HAProxy closes that of others when a reply breaks."""

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    def cookies(self) -> list[tuple[str, str]]:
        parts = (part.strip().partition("=") for part in self.header("cookie").split(";"))
        return [(name, value) for name, equals, value in parts if equals]

    def cookie(self, name: str) -> str:
        """The first cookie of that name; empty when there is none."""
        return next((value for key, value in self.cookies() if key == name), "")

    def argument(self, name: str) -> str | None:
        """The first query parameter of that name, as sent: no balancer decodes it. None for none."""
        for part in self.target.partition("?")[2].split("&"):
            key, equals, value = part.partition("=")
            if equals and key == name:
                return value
        return None


class Fault(Enum):
    """How an attempt fails without an answer. Its `sent`: whether the replica may have run the request."""

    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"

    @property
    def sent(self) -> bool:
        return self is not Fault.REFUSED


def fault_of(error: Exception | None) -> Fault:
    """How an attempt failed whose replica raised this, or returned (None), before it answered.

    An app's own ConnectionRefusedError is about something else, such as its database.
    """
    if isinstance(error, ReplicaRefused):
        return Fault.REFUSED
    return Fault.TIMEOUT if isinstance(error, ReplicaTimeout) else Fault.RESET


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one attempt: a status, or a fault and no status."""

    at: float
    """The instant at which the attempt ended, in seconds."""

    status: int = 0
    fault: Fault | None = None
    seconds: float = 0.0
    """How long the replica took until the header of its answer."""

    set_cookie: tuple[str, ...] = ()
    """The Set-Cookie lines of the replica itself."""

    headers: Mapping[str, str] = field(default_factory=dict)

    open: bool = False
    """Only the header is here: the replica is busy until the flow's `Relay` is resumed."""

    @property
    def sent(self) -> bool:
        """Whether the replica may have run the request."""
        return self.fault is None or self.fault.sent


@dataclass(frozen=True, slots=True)
class Attempt:
    replica: str
    request: Request | None = None
    """What to send when it is not what came in: a cookie was taken out."""

    after: float = 0.0
    """Seconds to wait before."""

    body_lost: bool = False
    """Only the connection is tried: the balancer has no body left to send, so that it fails even then."""

    warning: str = ""
    """Not empty when this may run a request a second time that must not be: log it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Queued: resume the flow when `woken` returns this very object."""

    until: float
    """Give up at this instant, in seconds: throw TimeoutError into the flow."""

    at: str = ""
    """Which replica's queue; empty: the pool's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    replica: str | None
    attempts: tuple[str, ...]
    """Every replica that was tried, in order; `-` stands for "no replica was left to try"."""

    set_cookie: tuple[str, ...] = ()
    log: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that the balancer adds of its own."""


@dataclass(frozen=True, slots=True)
class Relay:
    """This answer goes to the client: its header now, the rest as it comes."""

    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known about a replica beside its traffic."""

    mode: Mode = Mode.READY
    """What the operator wants."""

    up: bool = True
    """What active checks say."""

    share: float = 1.0
    """How much of its weight it gets, above 0 and up to 1: slow start, or its own health score."""


Flow = Generator["Attempt | Wait | Relay", "Outcome | None", Answer]


class Model(Protocol):
    """A balancer, as far as it decides. Not to be used by two threads at the same time.

    Every instant is in seconds on one clock; a model never reads one itself.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Its replicas, in the order of the configuration."""
        ...

    def serve(self, request: Request, *, now: float) -> Flow: ...

    def tell(self, name: str, standing: Standing) -> None:
        """From the next pick on, this is how that replica stands. Raises ConfigError for an unknown one."""
        ...

    def tick(self, now: float) -> None:
        """Let what is due by `now` happen: slow starts, ejections. `serve` does so by itself."""
        ...

    def woken(self) -> list[Wait]:
        """Whose wait is over since the last call: resume these flows."""
        ...

    def explain(self, now: float) -> dict[str, str]:
        """For each replica that gets no new client at the instant `now`, the rule that skips it."""
        ...


def received(outcome: Outcome | None) -> Outcome:
    """What was sent into a flow for its attempt. Raises TypeError when the driver sent none."""
    if outcome is None:
        raise TypeError("need the outcome of the attempt, got None")
    return outcome


def named(things: Iterable[N], name: str) -> N:
    """The one of that name. Raises ConfigError with the names that there are."""
    things = list(things)
    for thing in things:
        if thing.name == name:
            return thing
    raise ConfigError(f"need the name of a replica ({', '.join(t.name for t in things)}), got {name!r}")
