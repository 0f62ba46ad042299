"""What became of one request: the line of the access log, as a value."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Dispatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    replica: str
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
