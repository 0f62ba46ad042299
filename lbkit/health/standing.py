"""Where a check stands: its last result, seen through rise and fall, and how old that is.

`advance` is the machine, `view` is what a reader sees of it at an instant, `due` says when to run again.

============================================  ==========================================================
when                                          a reader sees
============================================  ==========================================================
no result yet                                 `initial`
the last result is younger than max_stale     the status after rise and fall
it passed, and is older than max_stale        UNHEALTHY, error "stale": green must not be for ever
it failed, and is older than max_stale        the failure, marked stale
============================================  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.health.check import Check, backoff
from lbkit.health.outcome import Outcome, Result
from lbkit.health.status import Status

__all__ = [
    "TIMEOUT",
    "CheckView",
    "Standing",
    "advance",
    "due",
    "first_wanted",
    "next_run",
    "overdue",
    "settled_until",
    "view",
]

TIMEOUT = Outcome(Status.UNHEALTHY, "", "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    status: Status
    result: Result | None = None
    failures: int = 0
    """In a row, up to now."""

    passes: int = 0
    good_at: float | None = None
    """When it last passed, on the monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """A check as one answer shows it. Times are milliseconds, `wall` is Unix seconds."""

    check: Check
    status: Status
    ready_status: Status
    """What readiness counts: `status`, or DEGRADED within the grace of a shared dependency."""

    error: str | None = None
    output: str = ""
    response_ms: float | None = None
    age_ms: float | None = None
    wall: float | None = None
    failures: int = 0
    stale: bool = False
    hung_ms: float | None = None
    """How long a run that should have ended by now has been going."""


def advance(check: Check, standing: Standing, result: Result) -> Standing:
    """The next standing. The first result of all decides at once; then `fails` and `passes` in a row do."""
    passed = result.outcome.status.passing
    failures = 0 if passed else standing.failures + 1
    passes = standing.passes + 1 if passed else 0
    enough = passes >= check.passes if passed else failures >= check.fails
    first = standing.status is Status.UNKNOWN
    same_side = passed == standing.status.passing
    return Standing(
        status=result.outcome.status if first or enough or (passed and same_side) else standing.status,
        result=result,
        failures=failures,
        passes=passes,
        good_at=result.at if passed else standing.good_at,
    )


def due(check: Check, standing: Standing, now: float) -> bool:
    """Whether a reader should start a run. In the background mode only when the background has failed to."""
    if standing.result is None:
        return True
    return now >= standing.result.at + _believed(check, standing) * (1 if check.interval is None else 2)


def next_run(check: Check, standing: Standing, *, jitter: float = 0.0) -> float:
    """When the background runs the check again. `jitter`, from -1 to 1, is worth a tenth of the interval."""
    if standing.result is None:
        return float("-inf")
    return standing.result.at + _believed(check, standing) * (1 + 0.1 * jitter)


def overdue(check: Check, standing: Standing, *, run_started_at: float, now: float) -> bool:
    """Whether the run that is going on counts as a timeout now: when it is late, then once each fail_ttl."""
    if now - run_started_at < check.timeout:
        return False
    counted = standing.result is not None and standing.result.at >= run_started_at
    if not counted or standing.result is None:
        return True
    return now - standing.result.at >= _counted_again(check)


def first_wanted(check: Check, standing: Standing, now: float) -> bool:
    """Whether an answer should wait for the run: there is nothing to show, or nothing that may be shown."""
    return standing.result is None or now - standing.result.at > check.max_stale


def settled_until(check: Check, standing: Standing, *, run_started_at: float | None, now: float) -> float:
    """Until when a rendered answer stays true, if no result comes in: the next change that time brings."""
    if standing.result is None:
        return now
    ends = [standing.result.at + check.max_stale]
    if run_started_at is None:
        ends.append(standing.result.at + _believed(check, standing))
    else:
        ends += [run_started_at + check.timeout, standing.result.at + _counted_again(check)]
    if check.shared_grace and standing.good_at is not None:
        ends.append(standing.good_at + check.shared_grace)
    return min((end for end in ends if end > now), default=now)


def view(check: Check, standing: Standing, *, run_started_at: float | None, now: float) -> CheckView:
    result = standing.result
    running = None if run_started_at is None else now - run_started_at
    hung_ms = None if running is None or running < check.timeout else running * 1000
    if result is None:
        return CheckView(check=check, status=standing.status, ready_status=standing.status, hung_ms=hung_ms)
    stale = now - result.at > check.max_stale
    expired = stale and standing.status.passing
    status = Status.UNHEALTHY if expired else standing.status
    return CheckView(
        check=check,
        status=status,
        ready_status=_in_grace(check, standing, status, now),
        error="stale" if expired else result.outcome.error,
        output=result.outcome.output,
        response_ms=result.seconds * 1000,
        age_ms=(now - result.at) * 1000,
        wall=result.wall,
        failures=standing.failures,
        stale=stale,
        hung_ms=hung_ms,
    )


def _counted_again(check: Check) -> float:
    """Seconds between two timeouts that are counted for one run."""
    return max(check.fail_ttl, check.timeout)


def _in_grace(check: Check, standing: Standing, status: Status, now: float) -> Status:
    if status is not Status.UNHEALTHY or not check.shared or standing.good_at is None:
        return status
    return Status.DEGRADED if now - standing.good_at < check.shared_grace else status


def _believed(check: Check, standing: Standing) -> float:
    """Seconds that the last result is believed before the check is run again."""
    if check.interval is not None:
        return backoff(check.interval, standing.failures)
    return check.fail_ttl if standing.failures else check.ttl
