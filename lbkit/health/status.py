"""How well something is, and how several answers become one.

=========  ========================================================
status     of a check
=========  ========================================================
HEALTHY    it passed
DEGRADED   it passed and has something to say
UNKNOWN    it has not answered yet
UNHEALTHY  it failed, or its last good answer is too old to believe
=========  ========================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

__all__ = ["Status", "aggregate", "worst"]


class Status(Enum):
    """How well one thing, or the whole app, is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    UNHEALTHY = "unhealthy"

    @property
    def badness(self) -> int:
        """0 for HEALTHY, rising in the order of the table."""
        return _BADNESS[self]

    @property
    def passing(self) -> bool:
        return self in (Status.HEALTHY, Status.DEGRADED)


_BADNESS = {status: badness for badness, status in enumerate(Status)}


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of them; HEALTHY when there is none."""
    return max(statuses, key=lambda status: status.badness, default=Status.HEALTHY)


def aggregate(checks: Iterable[tuple[Status, bool]], *, unknown: Status) -> Status:
    """One status for many checks, each given with whether it is critical.

    A critical failure is UNHEALTHY. `unknown` is what a critical check without an answer makes of the whole:
    UNHEALTHY for readiness, DEGRADED for a report. Anything else that is not well is DEGRADED.
    """
    return worst(_share(status, critical, unknown) for status, critical in checks)


def _share(status: Status, critical: bool, unknown: Status) -> Status:
    if status is Status.HEALTHY:
        return status
    if critical and status is Status.UNHEALTHY:
        return Status.UNHEALTHY
    if critical and status is Status.UNKNOWN:
        return unknown
    return Status.DEGRADED
