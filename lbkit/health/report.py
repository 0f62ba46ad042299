"""What each endpoint says: from the facts of one instant to a status, and to the code that a balancer reads.

=========  ==================================  =========================================
endpoint   asks                                503 when
=========  ==================================  =========================================
HEALTH     may this replica get traffic?       starting, draining; no dependency counts
LIVE       must it be restarted?               the app declared itself broken
READY      may it, and can it?                 as HEALTH, or a critical check fails
STARTUP    has it started?                     a startup task is on, or has failed
DETAILED   how is everything?                  a critical check or a threshold fails
CHECK      how is this one thing?              it fails, or has not answered yet
=========  ==================================  =========================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from lbkit.health.check import DETAILED, READY
from lbkit.health.lifecycle import State
from lbkit.health.standing import CheckView
from lbkit.health.status import Status, aggregate, worst
from lbkit.health.vitals import Thresholds, Vitals, breaches
from lbkit.service import Service

__all__ = ["Endpoint", "Facts", "Report", "report"]


DEFAULT_THRESHOLDS = Thresholds()


class Endpoint(Enum):
    HEALTH = "health"
    LIVE = "live"
    READY = "ready"
    STARTUP = "startup"
    DETAILED = "detailed"
    CHECK = "check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that an answer depends on, at one instant."""

    state: State
    views: tuple[CheckView, ...] = ()
    vitals: Vitals | None = None
    thresholds: Thresholds = DEFAULT_THRESHOLDS
    started: bool = True
    start_failure: str | None = None
    """The class of the error that a startup task ended with."""

    broken: str | None = None
    metrics_in_readiness: bool = False
    uptime: float = 0.0
    drain: Mapping[str, object] | None = None
    """What whoever drains this process says about it."""

    session_events: Mapping[str, int] | None = None
    """How often what has happened to sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    endpoint: Endpoint
    service: Service
    status: str
    """`healthy`, `degraded`, `unhealthy`, `starting` or `draining`."""

    code: int
    """The HTTP status."""

    state: State
    views: tuple[CheckView, ...] = ()
    vitals: Vitals | None = None
    thresholds: Thresholds = DEFAULT_THRESHOLDS
    error: str | None = None
    warnings: tuple[str, ...] = ()
    uptime: float = 0.0
    verbose: bool = False
    drain: Mapping[str, object] | None = None
    session_events: Mapping[str, int] | None = None
    hidden: int = 0
    """Checks that are left out because the answer would be too long."""

    @property
    def passing(self) -> bool:
        return self.status in ("healthy", "degraded")


def report(
    endpoint: Endpoint,
    facts: Facts,
    service: Service,
    *,
    exclude: frozenset[str] = frozenset(),
    verbose: bool = False,
) -> Report:
    """The answer of one endpoint. `exclude` names checks that shall not count."""
    known = {view.check.name for view in facts.views}
    bare = Report(
        endpoint=endpoint,
        service=service,
        status=Status.HEALTHY.value,
        code=200,
        state=facts.state,
        warnings=tuple(f"unknown check in exclude: {name}" for name in sorted(exclude - known)),
        uptime=facts.uptime,
        drain=facts.drain if endpoint in (Endpoint.READY, Endpoint.DETAILED) else None,
        session_events=facts.session_events if endpoint is Endpoint.DETAILED else None,
        verbose=verbose,
    )
    if exclude & known:
        facts = replace(facts, views=tuple(view for view in facts.views if view.check.name not in exclude))
    if endpoint is Endpoint.HEALTH:
        endpoint = Endpoint.READY if service.health_role == "ready" else Endpoint.HEALTH
    return _ANSWERS[endpoint](bare, facts)


def _health(bare: Report, facts: Facts) -> Report:
    if facts.state is State.READY:
        return bare
    if facts.state is State.STARTING:
        return replace(bare, status="starting", code=503)
    # Stopped is the end of draining: nobody who polls needs to tell them apart.
    return replace(bare, status="draining", code=bare.service.drain_status)


def _live(bare: Report, facts: Facts) -> Report:
    if facts.broken is None:
        return bare
    return replace(bare, status="unhealthy", code=503, error=facts.broken)


def _ready(bare: Report, facts: Facts) -> Report:
    views = tuple(
        replace(view, status=view.ready_status) for view in facts.views if READY in view.check.groups
    )
    lifecycle = replace(_health(bare, facts), views=views)
    if not lifecycle.passing:
        return lifecycle
    status = aggregate(_judged(views), unknown=Status.UNHEALTHY)
    if facts.metrics_in_readiness:
        status = worst((status, _of_vitals(facts)))
    return _with(lifecycle, status)


def _startup(bare: Report, facts: Facts) -> Report:
    if facts.started:
        return bare
    if facts.start_failure is None:
        return replace(bare, status="starting", code=503)
    return replace(bare, status="unhealthy", code=503, error=facts.start_failure)


def _detailed(bare: Report, facts: Facts) -> Report:
    views = tuple(view for view in facts.views if DETAILED in view.check.groups)
    status = worst((aggregate(_judged(views), unknown=Status.DEGRADED), _of_vitals(facts)))
    return replace(_with(bare, status), views=views, vitals=facts.vitals, thresholds=facts.thresholds)


def _check(bare: Report, facts: Facts) -> Report:
    status = worst(view.status for view in facts.views)
    shown = Status.UNHEALTHY if status is Status.UNKNOWN else status
    return replace(_with(bare, shown), views=facts.views)


def _with(answer: Report, status: Status) -> Report:
    return replace(answer, status=status.value, code=200 if status.passing else 503)


def _judged(views: tuple[CheckView, ...]) -> list[tuple[Status, bool]]:
    return [(view.status, view.check.critical) for view in views]


def _of_vitals(facts: Facts) -> Status:
    if facts.vitals is None or not breaches(facts.vitals, facts.thresholds):
        return Status.HEALTHY
    return facts.thresholds.breach


_ANSWERS = {
    Endpoint.HEALTH: _health,
    Endpoint.LIVE: _live,
    Endpoint.READY: _ready,
    Endpoint.STARTUP: _startup,
    Endpoint.DETAILED: _detailed,
    Endpoint.CHECK: _check,
}
