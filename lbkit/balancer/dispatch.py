"""What became of one request: the line of the access log, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.balancer.exchange import Fault

__all__ = ["Dispatch", "Tried"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One attempt: the request was given to a replica."""

    replica: str
    status: int | None = None
    """What the replica answered; None when it gave no answer."""

    fault: Fault | None = None
    """How the attempt failed before there was an answer; None with neither: the client left first."""

    seconds: float = 0.0
    """Until the header of its answer, or until it failed."""

    @property
    def outcome(self) -> str:
        """`200`, `refused`, `reset`, `timeout`, or `left` when the client did not wait for it."""
        if self.fault is not None:
            return self.fault.value
        return "left" if self.status is None else str(self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    replica: str | None
    """Who gave the answer, or failed to; None when no replica took the request."""

    client: str | None
    """The peer's address; None when it has none (a unix socket)."""

    method: str
    """`GET`, `POST`, ... or `WEBSOCKET`."""

    path: str
    """Decoded, without the query string."""

    status: int | None
    """What the client got. 101 for an accepted websocket, 499 (nginx' number) when the client left
    before there was an answer, None when the replica was stopped first."""

    complete: bool
    """False when the answer was cut: the replica failed in the middle of it, or the client left."""

    seconds: float
    """From the pick to the end of the app's work, which may outlast the last byte (background tasks)."""

    attempts: tuple[Tried, ...] = ()
    """Every replica that the request was given to, in order. Empty when there was none to take it."""
