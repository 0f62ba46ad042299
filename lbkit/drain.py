"""Graceful drain: how a process leaves the pool without dropping a request.

`Drain` decides. It never sleeps, reads no clock and touches no socket: the carriers tell it the
time, do the waiting, and hand the process over to its server's own shutdown.

========  ===================  ==========  ========================  ================================
phase     /health, /ready      /live       agent-check               a request
========  ===================  ==========  ========================  ================================
STARTING  503                  200         down#starting             is served
READY     200                  200         ready up 100%             is served
DRAINING  503 (or 404)         200         drain                     is served; its connection closes
DRAINED   503 (or 404)         200         drain                     is one of the last
========  ===================  ==========  ========================  ================================

An operator's drain can be taken back. A signal's cannot: it ends in DRAINED, the moment at which the
server's own shutdown begins. Both durations count from the beginning of the drain, also when an operator
began it and the signal came later: the balancer has noticed by then, and nobody waits twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from lbkit.errors import ConfigError

__all__ = [
    "ACCEPT_FILTER",
    "Drain",
    "DrainTimings",
    "Phase",
    "Reason",
    "Reject",
    "Step",
    "over_budget",
    "rejects",
    "spread",
    "wants",
]

ROOM = 15.0
"""Seconds that requests get after the delay, unless told otherwise."""

ACCEPT_FILTER = "LBKIT_ACCEPT_FILTER"
"""The switch that all processes of a replica look at."""

LONGEST_LEAD = 1.0
QUIET = 0.25
"""Seconds without anything in flight before the hand-over: what a balancer sent a moment ago may still be
on its way, the other processes tell what they have 20 times a second, and a server writes on after us."""

MOST_SECONDS = 86_400.0


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"

    @property
    def leaving(self) -> bool:
        return self in (Phase.DRAINING, Phase.DRAINED)


class Reason(Enum):
    """Who asked. What an operator began, an operator can take back."""

    OPERATOR = "operator"
    SIGNAL = "signal"


class Step(Enum):
    """What it is time for."""

    WAIT = "wait"
    END_STREAMS = "end streams"
    STOP_LISTENING = "stop listening"
    HAND_OVER = "hand over"


class Reject(Enum):
    """Which GET and HEAD requests get a 503 while draining, before they are executed.

    It is for balancers that cannot see a health check but send such a request to the next replica,
    as nginx does with `proxy_next_upstream error timeout http_503`.
    """

    MARKED = "marked"
    """Those that carry `X-LB-Retry-503: 1`, which the balancer adds."""

    ALWAYS = "always"
    """All of them: every way to this replica leads through such a balancer."""

    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainTimings:
    """Seconds, all counted from the beginning of the drain."""

    pre_stop_delay: float = 5.0
    """Keep serving this long: the balancer's check interval x its fall count, its timeout, half a second."""

    drain_timeout: float | None = None
    """Hand over at the latest, whatever is still running; None for 15 seconds after the delay."""

    def __post_init__(self) -> None:
        delay, timeout = self.pre_stop_delay, self.deadline
        if not (_is_number(delay) and _is_number(timeout) and 0 <= delay <= timeout <= MOST_SECONDS):
            got = f"pre_stop_delay={delay!r}, drain_timeout={self.drain_timeout!r}"
            raise ConfigError(f"need 0 <= pre_stop_delay <= drain_timeout <= {MOST_SECONDS:.0f}, got {got}")

    @classmethod
    def of(
        cls, environ: Mapping[str, str], *, delay: float | None = None, timeout: float | None = None
    ) -> DrainTimings:
        """What is given; else LBKIT_PRE_STOP_DELAY and LBKIT_DRAIN_TIMEOUT; else the defaults."""
        delay = _seconds(environ, "LBKIT_PRE_STOP_DELAY") if delay is None else delay
        timeout = _seconds(environ, "LBKIT_DRAIN_TIMEOUT") if timeout is None else timeout
        return (
            cls(drain_timeout=timeout) if delay is None else cls(pre_stop_delay=delay, drain_timeout=timeout)
        )

    @property
    def deadline(self) -> float:
        return self.pre_stop_delay + ROOM if self.drain_timeout is None else self.drain_timeout

    @property
    def lead(self) -> float:
        """Streams end so long before the delay does: their clients come back while the others are up."""
        return min(LONGEST_LEAD, self.pre_stop_delay / 2)


class Drain:
    """One process's way out of the pool.

    The phase is computed from facts, so it cannot go stale: whether we have started, when an operator
    or a signal asked us to leave, and whether the server has taken over. Each is one attribute that is
    assigned once for its purpose: a signal handler may call `begin`, and no lock is ever held.
    """

    def __init__(
        self, timings: DrainTimings | None = None, *, starting: bool = False, accept_filter: bool = False
    ) -> None:
        self.timings = timings if timings is not None else DrainTimings()
        self.accept_filter = accept_filter
        """Nothing new gets in after the delay, and what waits to be accepted counts as in flight."""

        self.draining = False
        """The one thing that every request asks. Kept in step by `_note`."""

        self.starting = starting
        """Nothing has been served yet."""

        self._operator_at: float | None = None
        self.signal_at: float | None = None
        """When the signal came, if it has."""

        self._handed_over = False
        self._idle_since: float | None = None
        self.inside: dict[object, object] = {}
        """What is in flight: `inside[ticket] = what` counts it in, and `inside.pop(ticket, None)` out, once.

        Each of the two is atomic, and a seventh of what a lock costs twice in every request.
        """

    @property
    def phase(self) -> Phase:
        if self._handed_over:
            return Phase.DRAINED
        if self.draining:
            return Phase.DRAINING
        return Phase.STARTING if self.starting else Phase.READY

    @property
    def in_flight(self) -> int:
        """Requests and jobs that have begun and not ended, to the last byte."""
        return len(self.inside)

    @property
    def reason(self) -> Reason | None:
        if self.signal_at is not None:
            return Reason.SIGNAL
        return Reason.OPERATOR if self._operator_at is not None else None

    @property
    def began_at(self) -> float | None:
        """The instant of the first request to leave that still holds."""
        instants = [at for at in (self._operator_at, self.signal_at) if at is not None]
        return min(instants, default=None)

    def started(self) -> None:
        self.starting = False

    def forget(self) -> None:
        """We are a copy of the process that counted: nothing of what is inside is ours."""
        self.inside.clear()

    def tickets(self) -> list[object]:
        """Those of what is in flight now."""
        while True:
            try:
                return list(self.inside)
            except RuntimeError:  # another thread changed it meanwhile
                continue

    @contextmanager
    def hold(self, job: str) -> Iterator[None]:
        """Count a job outside of requests as in flight: the process waits for it, up to the deadline."""
        ticket = object()
        self.inside[ticket] = job
        try:
            yield
        finally:
            self.inside.pop(ticket, None)

    def begin(self, now: float, reason: Reason = Reason.SIGNAL) -> bool:
        """Start to leave. True: hand over now, for it is the second signal, or nothing has started yet.

        A second request does not restart the clock.
        """
        if reason is Reason.OPERATOR:
            self._operator_at = now if self._operator_at is None else self._operator_at
            self._note()
            return False
        again = self.signal_at is not None
        self.signal_at = now if self.signal_at is None else self.signal_at
        self._note()
        return again or self.starting

    def undrain(self) -> bool:
        """Take an operator's drain back. False: a signal came, and there is no way back."""
        if self.signal_at is not None or self._handed_over:
            return False
        self._operator_at = None
        self._note()
        return True

    def step(self, now: float, *, in_flight: int | None = None) -> Step:
        """What it is time for. `in_flight`: of all processes together, where there are several."""
        began_at = self.began_at
        busy = self.in_flight if in_flight is None else in_flight
        # An order that is taken back and given again begins anew, so this is asked before anything else.
        self._idle_since = None if busy else self._idle_since if self._idle_since is not None else now
        if began_at is None:
            return Step.WAIT
        elapsed, delay = now - began_at, self.timings.pre_stop_delay
        if self._handed_over or (self.signal_at is not None and self._may_go(now, elapsed)):
            return Step.HAND_OVER
        if self.signal_at is not None and elapsed >= delay:
            return Step.STOP_LISTENING
        return Step.END_STREAMS if elapsed >= delay - self.timings.lead else Step.WAIT

    def _may_go(self, now: float, elapsed: float) -> bool:
        quiet = self._idle_since is not None and now - self._idle_since >= QUIET
        # The filter is set after the delay, so only what is quiet from then on is empty.
        delay = self.timings.pre_stop_delay + (QUIET if self.accept_filter else 0.0)
        return elapsed >= self.timings.deadline or (elapsed >= delay and quiet)

    def late(self, now: float) -> bool:
        """Whether the deadline is over: what still runs has had its time."""
        return self.signal_at is not None and self.left(now) == 0

    def left(self, now: float) -> float | None:
        """Seconds to the deadline; None while no signal has set one."""
        if self.signal_at is None or self.began_at is None:
            return None
        return max(0.0, self.began_at + self.timings.deadline - now)

    def hand_over(self) -> None:
        """The server's own shutdown begins."""
        self._handed_over = True
        self._note()

    def _note(self) -> None:
        # Once more if a signal came in between: the last to assign must not have looked first.
        while self.draining is not (draining := self._handed_over or self.reason is not None):
            self.draining = draining


def rejects(reject: Reject, *, method: str, marked: bool) -> bool:
    """Whether a draining replica answers 503 before it executes the request. Never what is not safe twice."""
    if method not in ("GET", "HEAD"):
        return False
    return reject is Reject.ALWAYS or (reject is Reject.MARKED and marked)


def wants(environ: Mapping[str, str], name: str) -> bool:
    """What a switch says: 1 or 0, and 0 when it is not set."""
    value = environ.get(name, "") or "0"
    if value not in ("0", "1"):
        raise ConfigError(f"need 0 or 1 in {name}, got {value!r}")
    return value == "1"


def spread(index: int, count: int, *, seconds: float, chance: float) -> float:
    """When, from now, stream `index` of `count` shall end: one after another, moved by `chance` (0..1)."""
    # Rounding alone can lead past the end.
    return min(seconds, seconds * (index + chance) / max(count, 1))


def over_budget(
    timings: DrainTimings, *, graceful: float | None = None, limit: float | None = None
) -> list[str]:
    """What does not fit, in words.

    `graceful`: seconds that the server itself gives its requests after the hand-over. `limit`: seconds
    from SIGTERM to SIGKILL, as the orchestrator has it.
    """
    if limit is None:
        return []
    whole = timings.deadline + (graceful or 0.0)
    yours = "(set LBKIT_STOP_LIMIT where it comes later)"
    if timings.pre_stop_delay >= limit:
        delay = f"pre_stop_delay={timings.pre_stop_delay:g}"
        return [f"{delay} does not fit into the {limit:g} s before SIGKILL {yours}"]
    if whole > limit:
        parts = f"drain_timeout={timings.deadline:g}" + (
            f" and graceful_timeout={graceful:g}" if graceful else ""
        )
        late = f"SIGKILL comes after {limit:g} s {yours}: requests could be cut"
        return [f"{parts} may take {whole:g} s, and {late}"]
    return []


def _seconds(environ: Mapping[str, str], name: str) -> float | None:
    value = environ.get(name, "").strip()
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"need a number of seconds in {name}, got {value!r}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
