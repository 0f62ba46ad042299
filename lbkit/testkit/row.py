"""One request of a client, and each attempt to have a replica answer it.

A row is filled in by whoever carries the request. Instants are seconds of the cluster's clock; a row's own
times are counted from its beginning.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Attempt", "Row"]


class Attempt:
    """One replica that was asked. Either `status` or `fault` says how it went; both, if it was cut later."""

    # Class attributes, not assignments in __init__: there is one for each request.
    status: int | None = None
    fault: str | None = None
    """`refused`, `reset`, `timeout`, or `raised ...`: why there is no answer, or only half of one."""

    injected: str | None = None
    """The faults that were injected, as they print themselves."""

    ran: bool = False
    """Whether the app was called: whatever it did by then has happened."""

    zombie: bool = False
    """The app ran on after its replica was given up, and nobody read what it said."""

    ended_at: float | None = None

    def __init__(self, replica: str, began_at: float) -> None:
        self.replica = replica
        self.began_at = began_at

    def refuse(self, now: float) -> None:
        """It took no connection."""
        self.fault = "refused"
        self.ended_at = now

    @property
    def ms(self) -> float | None:
        return None if self.ended_at is None else (self.ended_at - self.began_at) * 1000

    def __str__(self) -> str:
        how = self.fault if self.status is None else str(self.status)
        if self.status is not None and self.fault is not None:
            how = f"{self.status}, then {self.fault}"
        notes = [*([self.injected] if self.injected else []), *(["zombie"] if self.zombie else [])]
        return f"{self.replica} {how or 'open'}" + (f" ({', '.join(notes)})" if notes else "")

    def as_dict(self) -> dict[str, Any]:
        return {
            "replica": self.replica,
            "status": self.status,
            "fault": self.fault,
            "injected": self.injected,
            "ran": self.ran,
            "zombie": self.zombie,
            "ms": _rounded(self.ms),
        }


class Row:
    """One request of a client."""

    status: int | None = None
    """What the client got; 101 for an accepted websocket, None when it got nothing."""

    bytes_in: int = 0
    bytes_out: int = 0
    first_byte_at: float | None = None
    last_byte_at: float | None = None
    done_at: float | None = None
    """When the app's call was over: its background tasks may outlast the last byte."""

    disconnected: bool = False
    """The client left before the answer was complete."""

    def __init__(self, number: int, began_at: float, client: str, method: str, path: str) -> None:
        self.id = number
        self.began_at = began_at
        self.client = client
        self.method = method
        self.path = path
        self.attempts: list[Attempt] = []

    @classmethod
    def unseen(cls, path: str, now: float) -> Row:
        """One that is in no trace: a check of the balancer's."""
        return cls(0, now, "check", "GET", path)

    def ask(self, replica: str, now: float) -> Attempt:
        """Note that this replica is asked."""
        attempt = Attempt(replica, now)
        self.attempts.append(attempt)
        return attempt

    @property
    def replica(self) -> str | None:
        """The replica whose answer the client got: the last one that was asked."""
        return self.attempts[-1].replica if self.attempts else None

    @property
    def complete(self) -> bool:
        """The client has the whole answer."""
        return self.last_byte_at is not None

    @property
    def lost(self) -> bool:
        """The client has no good answer, and it is not the client's own doing."""
        return not self.disconnected and (not self.complete or self.status is None or self.status >= 500)

    @property
    def retried(self) -> bool:
        """More than one replica was asked."""
        return len(self.attempts) > 1

    @property
    def failed(self) -> bool:
        """The last replica that was asked has given no answer, or half of one."""
        return bool(self.attempts) and self.attempts[-1].fault in ("refused", "reset", "timeout")

    @property
    def open(self) -> bool:
        """Nobody knows yet how it ends."""
        return self.done_at is None

    @property
    def ms(self) -> float | None:
        """Until the last byte; until the end of the call when there was none."""
        until = self.last_byte_at if self.last_byte_at is not None else self.done_at
        return self._since(until)

    def _since(self, instant: float | None) -> float | None:
        return None if instant is None else (instant - self.began_at) * 1000

    def cells(self) -> tuple[str, ...]:
        """As a line of `Trace.table`."""
        status = "-" if self.status is None else str(self.status)
        cut = " left" if self.disconnected else "" if self.complete or self.open else " cut"
        ms = "open" if self.ms is None else f"{self.ms:.1f}"
        attempts = ", ".join(map(str, self.attempts)) or "no replica"
        size = f"{self.bytes_in}/{self.bytes_out}"
        request = f"{self.method} {_printable(self.path)}"
        return str(self.id), self.client, request, self.replica or "-", status + cut, attempts, ms, size

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "at_ms": _rounded(self.began_at * 1000),
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "replica": self.replica,
            "attempts": [attempt.as_dict() for attempt in self.attempts],
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "first_byte_ms": _rounded(self._since(self.first_byte_at)),
            "last_byte_ms": _rounded(self._since(self.last_byte_at)),
            "app_done_ms": _rounded(self._since(self.done_at)),
            "disconnected": self.disconnected,
        }

    def __repr__(self) -> str:
        return f"<Row {' | '.join(self.cells())}>"


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)


def _printable(path: str) -> str:
    """A client may send a newline, or a terminal's escape code, as a part of the path."""
    return path if path.isprintable() else "".join(c if c.isprintable() else "?" for c in path)
