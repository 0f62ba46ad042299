"""What HAProxy's agent-check wants to read: one line of words that set the state and the weight of a server.

==============================  ==========================================================
the replica                     the line
==============================  ==========================================================
is starting                     down #starting
is ready                        ready up 100%
is ready, but degraded          ready up 80%
has a critical failure          down #database,queue
drains, or has stopped          drain
==============================  ==========================================================

`ready` takes back a `drain` of an earlier life: only the agent may revert what the agent has said.
"""

from __future__ import annotations

from lbkit.health.lifecycle import State
from lbkit.health.report import Report
from lbkit.health.status import Status

__all__ = ["agent_line"]

MOST_NAMED = 3


def agent_line(ready: Report, *, degraded_percent: int = 80) -> str:
    """The line for a report of readiness, with its line feed."""
    return f"{_words(ready, degraded_percent)}\n"


def _words(ready: Report, degraded_percent: int) -> str:
    if ready.state in (State.DRAINING, State.STOPPED):
        return "drain"
    if ready.state is State.STARTING:
        return "down #starting"
    if ready.passing:
        return f"ready up {100 if ready.status == 'healthy' else degraded_percent}%"
    bad = (Status.UNHEALTHY, Status.UNKNOWN)
    names = [view.check.name for view in ready.views if view.check.critical and view.status in bad]
    return f"down #{','.join(names[:MOST_NAMED]) or ready.status}"
