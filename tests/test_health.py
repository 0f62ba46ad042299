"""What health decides, as tables and properties: no clock, no thread, no server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.errors import ConfigError
from lbkit.health import Lifecycle, Outcome, State, Status, Thresholds, Vitals
from lbkit.health.accept import Format, choose
from lbkit.health.check import Check, backoff
from lbkit.health.outcome import Result, error_class, outcome_of, outcome_of_error
from lbkit.health.report import Endpoint, Facts, report
from lbkit.health.routes import options
from lbkit.health.standing import Standing, advance, due, next_run, overdue, view
from lbkit.health.status import aggregate
from lbkit.service import Service

STATUSES = st.sampled_from(Status)
ENDED = (Status.HEALTHY, Status.DEGRADED, Status.UNHEALTHY)


def result(status: Status, at: float = 0.0, *, error: str | None = None) -> Result:
    return Result(outcome=Outcome(status, "", error), seconds=0.005, at=at, wall=1767225600.0)


# One status for many.


@pytest.mark.parametrize(
    ("checks", "whole"),
    [
        ([], "healthy"),
        ([("healthy", True)], "healthy"),
        ([("unhealthy", True), ("healthy", True)], "unhealthy"),
        ([("healthy", True), ("unhealthy", False)], "degraded"),
        ([("degraded", True)], "degraded"),
        ([("unknown", False)], "degraded"),
        ([("unknown", True)], "unhealthy"),
    ],
)
def test_the_whole_follows_from_its_parts(checks: list[tuple[str, bool]], whole: str) -> None:
    judged = [(Status(status), critical) for status, critical in checks]
    assert aggregate(judged, unknown=Status.UNHEALTHY) is Status(whole)


@given(
    st.lists(st.tuples(STATUSES, st.booleans()), min_size=1, max_size=6),
    st.data(),
    st.sampled_from([Status.DEGRADED, Status.UNHEALTHY]),
)
def test_the_whole_never_gets_better_when_a_check_gets_worse(
    checks: list[tuple[Status, bool]], data: st.DataObject, unknown: Status
) -> None:
    number = data.draw(st.integers(0, len(checks) - 1))
    status, critical = checks[number]
    worse = data.draw(st.sampled_from([other for other in Status if other.badness >= status.badness]))
    after = [*checks[:number], (worse, critical), *checks[number + 1 :]]
    assert aggregate(after, unknown=unknown).badness >= aggregate(checks, unknown=unknown).badness


@given(st.lists(st.tuples(STATUSES, st.booleans()), max_size=6), st.randoms())
def test_the_order_of_the_checks_does_not_matter(checks: list[tuple[Status, bool]], random: Any) -> None:
    mixed = list(checks)
    random.shuffle(mixed)
    assert aggregate(checks, unknown=Status.UNHEALTHY) is aggregate(mixed, unknown=Status.UNHEALTHY)


def codes(views: Any, **facts: Any) -> dict[Endpoint, int]:
    known = Facts(state=State.READY, views=tuple(views), **facts)
    return {endpoint: report(endpoint, known, Service()).code for endpoint in Endpoint}


@given(st.lists(st.tuples(STATUSES, st.booleans()), min_size=1, max_size=4), st.data())
def test_no_endpoint_gets_better_when_a_check_gets_worse(
    checks: list[tuple[Status, bool]], data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, len(checks) - 1))
    status, critical = checks[number]
    worse = data.draw(st.sampled_from([other for other in Status if other.badness >= status.badness]))
    views = [seen(each, is_critical, f"c{place}") for place, (each, is_critical) in enumerate(checks)]
    before = codes(views)
    after = codes([*views[:number], seen(worse, critical, f"c{number}"), *views[number + 1 :]])
    assert all(after[endpoint] >= before[endpoint] for endpoint in Endpoint)
    assert after[Endpoint.HEALTH] == after[Endpoint.LIVE] == 200


def seen(status: Status, critical: bool = True, name: str = "database", **options: Any) -> Any:
    check = Check(name=name, critical=critical, **options)
    if status is Status.UNKNOWN:
        standing = Standing(status=status)
    else:
        standing = advance(check, Standing(status=Status.UNKNOWN), result(status))
    return view(check, standing, run_started_at=None, now=1.0)


@pytest.mark.parametrize(
    ("state", "drain_status", "health", "ready", "live"),
    [
        (State.STARTING, 503, 503, 503, 200),
        (State.READY, 503, 200, 200, 200),
        (State.DRAINING, 503, 503, 503, 200),
        (State.DRAINING, 404, 404, 404, 200),
        (State.STOPPED, 503, 503, 503, 200),
    ],
)
def test_what_each_state_means_to_a_balancer(
    state: State, drain_status: Any, health: int, ready: int, live: int
) -> None:
    service = Service(drain_status=drain_status)
    facts = Facts(state=state)
    found = [report(each, facts, service).code for each in (Endpoint.HEALTH, Endpoint.READY, Endpoint.LIVE)]
    assert found == [health, ready, live]


def test_an_unknown_critical_check_keeps_traffic_away_and_restarts_nothing() -> None:
    found = codes([seen(Status.UNKNOWN)])
    assert found[Endpoint.READY] == 503
    assert found[Endpoint.LIVE] == 200
    assert found[Endpoint.DETAILED] == 200


def test_busy_figures_fail_the_details_and_not_readiness_unless_they_are_asked_to() -> None:
    busy = Vitals(cpu_percent=99.0, memory_percent=10.0, disk_percent=10.0)
    assert codes([], vitals=busy)[Endpoint.DETAILED] == 503
    assert codes([], vitals=busy)[Endpoint.READY] == 200
    assert codes([], vitals=busy, metrics_in_readiness=True)[Endpoint.READY] == 503
    lenient = Thresholds(breach=Status.DEGRADED)
    assert codes([], vitals=busy, thresholds=lenient)[Endpoint.DETAILED] == 200
    facts = Facts(state=State.READY, vitals=busy, thresholds=lenient)
    assert report(Endpoint.DETAILED, facts, Service()).status == "degraded"


def test_an_excluded_check_does_not_count_and_an_unknown_one_is_a_warning() -> None:
    facts = Facts(state=State.READY, views=(seen(Status.UNHEALTHY),))
    said = report(Endpoint.READY, facts, Service(), exclude=frozenset({"database", "databse"}))
    assert said.code == 200
    assert said.views == ()
    assert said.warnings == ("unknown check in exclude: databse",)


# One check.


def rise_and_fall(check: Check, answers: str) -> str:
    """What a reader sees after each answer: `+` a pass, `-` a failure."""
    standing = Standing(status=check.initial)
    shown = ""
    for number, answer in enumerate(answers):
        status = Status.HEALTHY if answer == "+" else Status.UNHEALTHY
        standing = advance(check, standing, result(status, at=float(number)))
        shown += "+" if standing.status is Status.HEALTHY else "-"
    return shown


@pytest.mark.parametrize(
    ("fails", "passes", "answers", "shown"),
    [
        (1, 1, "+-+--+", "+-+--+"),
        (3, 1, "+--+---+", "+++++" + "+-+"),
        (2, 2, "+--+-++-", "++----++"),
        (3, 2, "-+-++---", "----+++-"),
        (3, 3, "-", "-"),
        (3, 3, "+", "+"),
    ],
)
def test_rise_and_fall(fails: int, passes: int, answers: str, shown: str) -> None:
    assert rise_and_fall(Check(name="database", fails=fails, passes=passes), answers) == shown


@given(st.integers(1, 4), st.integers(1, 4), st.text("+-", min_size=2, max_size=30))
def test_a_status_changes_only_after_enough_answers_in_a_row(fails: int, passes: int, answers: str) -> None:
    shown = rise_and_fall(Check(name="database", fails=fails, passes=passes), answers)
    for place, (before, after) in enumerate(itertools.pairwise(shown), start=1):
        if before != after:
            enough = passes if after == "+" else fails
            assert answers[: place + 1].endswith(after * enough)


def test_a_green_that_is_too_old_is_red() -> None:
    check = Check(name="feed", ttl=5, max_stale=30)
    standing = advance(check, Standing(status=Status.UNKNOWN), result(Status.HEALTHY, at=100.0))
    fresh = view(check, standing, run_started_at=None, now=130.0)
    stale = view(check, standing, run_started_at=None, now=130.1)
    assert (fresh.status, fresh.error) == (Status.HEALTHY, None)
    assert (stale.status, stale.error, stale.stale) == (Status.UNHEALTHY, "stale", True)


def test_a_red_that_is_old_keeps_its_reason() -> None:
    check = Check(name="feed", ttl=5, max_stale=30)
    failed = result(Status.UNHEALTHY, at=100.0, error="timeout")
    standing = advance(check, Standing(status=Status.UNKNOWN), failed)
    stale = view(check, standing, run_started_at=None, now=200.0)
    assert (stale.error, stale.stale) == ("timeout", True)


def test_readiness_believes_a_shared_dependency_for_a_while_after_it_fails() -> None:
    check = Check(name="database", shared_grace=20.0)
    standing = advance(check, Standing(status=Status.UNKNOWN), result(Status.HEALTHY, at=100.0))
    standing = advance(check, standing, result(Status.UNHEALTHY, at=105.0))
    soon = view(check, standing, run_started_at=None, now=119.9)
    later = view(check, standing, run_started_at=None, now=120.0)
    assert (soon.status, soon.ready_status) == (Status.UNHEALTHY, Status.DEGRADED)
    assert later.ready_status is Status.UNHEALTHY
    never = Check(name="database", shared=False, shared_grace=20.0)
    assert view(never, standing, run_started_at=None, now=110).ready_status is Status.UNHEALTHY


@pytest.mark.parametrize(
    ("status", "after", "is_due"),
    [("healthy", 4.9, False), ("healthy", 5.0, True), ("unhealthy", 0.9, False), ("unhealthy", 1.0, True)],
)
def test_a_failure_is_looked_at_again_sooner_than_a_pass(status: str, after: float, is_due: bool) -> None:
    check = Check(name="database", ttl=5.0, fail_ttl=1.0)
    standing = advance(check, Standing(status=Status.UNKNOWN), result(Status(status), at=100.0))
    assert due(check, standing, 100.0 + after) is is_due


def test_a_late_run_is_a_timeout_once_and_then_once_each_period() -> None:
    check = Check(name="database", timeout=1.0, fail_ttl=2.0)
    standing = Standing(status=Status.UNKNOWN)
    counted = []
    for tenth in range(80):
        now = 100.0 + tenth / 10
        if overdue(check, standing, run_started_at=100.0, now=now):
            counted.append(now)
            standing = advance(check, standing, result(Status.UNHEALTHY, at=now))
    assert counted == [101.0, 103.0, 105.0, 107.0]


def test_background_runs_back_off_while_a_check_is_down() -> None:
    assert [backoff(2.0, failures) for failures in range(6)] == [2, 4, 8, 16, 30, 30]
    assert backoff(60.0, 5) == 60.0
    assert backoff(1.0, 10_000) == 30.0


@given(st.floats(-1, 1), st.floats(0.1, 20), st.integers(0, 8))
def test_jitter_is_a_tenth_of_the_interval(jitter: float, interval: float, failures: int) -> None:
    check = Check(name="feed", interval=interval)
    standing = Standing(status=Status.HEALTHY, result=result(Status.HEALTHY, at=0.0), failures=failures)
    planned = next_run(check, standing, jitter=jitter)
    assert 0.899 <= planned / backoff(interval, failures) <= 1.101


# What a check says.


@pytest.mark.parametrize(
    ("returned", "status", "error"),
    [
        (None, "healthy", None),
        (True, "healthy", None),
        (False, "unhealthy", "failed"),
        (Outcome.degraded("slow"), "degraded", None),
        (0, "unhealthy", "invalid"),
        ("ok", "unhealthy", "invalid"),
        ({"password": "hunter2"}, "unhealthy", "invalid"),
        (object(), "unhealthy", "invalid"),
    ],
)
def test_what_a_check_returns(returned: object, status: str, error: str | None) -> None:
    outcome = outcome_of(returned)
    assert (outcome.status, outcome.error) == (Status(status), error)
    assert "hunter2" not in outcome.output


class OperationalError(Exception):
    pass


class AuthenticationError(ConnectionError):
    pass


class ConnectTimeout(Exception):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), "timeout"),
        (asyncio.TimeoutError(), "timeout"),
        (concurrent.futures.TimeoutError(), "timeout"),
        (ConnectTimeout(), "timeout"),
        (ConnectionRefusedError(), "connection"),
        (BrokenPipeError(), "connection"),
        (socket.gaierror(), "connection"),
        (OperationalError(), "connection"),
        (AuthenticationError(), "auth"),
        (PermissionError(), "auth"),
        (ValueError("password=hunter2"), "error:ValueError"),
        (KeyError("x"), "error:KeyError"),
        (SystemExit(1), "error:SystemExit"),
        (KeyboardInterrupt(), "error:KeyboardInterrupt"),
        (GeneratorExit(), "error:GeneratorExit"),
        (Unprintable(), "error:Unprintable"),
        (type("<script>" * 30, (Exception,), {})(), "error:" + ("script" * 30)[:64]),
    ],
)
def test_the_class_of_an_error(error: BaseException, kind: str) -> None:
    assert outcome_of_error(error).error == error_class(error) == kind


# What is refused, and where it is given.


@pytest.mark.parametrize(
    "name", ["", "two words", "a/b", "a:b", "a?b", "a#b", "ü", "-a", ".a", "a" * 64, "a\n", "<b>", None, 7]
)
def test_a_name_that_cannot_stand_in_a_path_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="need a check name of"):
        Check(name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout > 0"),
        ({"timeout": float("nan")}, "timeout > 0"),
        ({"timeout": "1"}, "timeout > 0"),
        ({"ttl": -1}, "ttl >= 0"),
        ({"ttl": 60}, "< max_stale, got ttl=60"),
        ({"interval": 0}, "interval > 0"),
        ({"interval": 30}, "< max_stale"),
        ({"fails": 0}, "fails >= 1"),
        ({"passes": True}, "passes >= 1"),
        ({"passes": 1.5}, "passes >= 1"),
        ({"initial": Status.DEGRADED}, "initial"),
        ({"initial": "healthy"}, "initial"),
    ],
)
def test_times_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Check(name="database", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"health_path": "health"},
        {"health_path": "/health/"},
        {"health_path": "/"},
        {"health_path": "/a b"},
        {"version": ""},
        {"health_role": "live"},
        {"drain_status": 500},
    ],
)
def test_a_service_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Service(**options)


@pytest.mark.parametrize(
    "options", [{"cpu": 0}, {"memory": 102}, {"disk": "90"}, {"cpu": True}, {"breach": Status.HEALTHY}]
)
def test_thresholds_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Thresholds(**options)


# Which format.


@pytest.mark.parametrize(
    ("accept", "format_"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/*", "json"),
        ("application/json", "json"),
        ("application/health+json", "health+json"),
        ("text/plain", "text"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "html"),
        ("text/html;q=0.1, application/health+json;q=0.9", "health+json"),
        ("application/json, application/health+json", "json"),
        ("TEXT/HTML ; Q=0.5", "html"),
        ("text/html;q=0", "json"),
        ("text/html;q=nonsense", "json"),
        ("text/html;q=2", "json"),
        ("image/png", "json"),
        (",;=,q", "json"),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3", "openmetrics"),
        ("text/html," * 1100, "json"),
    ],
)
def test_the_format_follows_from_accept(accept: str, format_: str) -> None:
    assert choose(accept) is Format(format_)


@given(st.text(max_size=200))
def test_no_accept_header_is_refused(accept: str) -> None:
    assert choose(accept) in Format


@pytest.mark.parametrize(
    ("query", "format_"),
    [("format=text", "text"), ("format=health+json", "health+json"), ("format=health%2Bjson", "health+json")],
)
def test_the_query_wins_over_accept(query: str, format_: str) -> None:
    assert choose("text/html", options(query).format) is Format(format_)
    assert choose("text/html", options("format=nonsense").format) is Format.HTML


def test_the_query_is_read_with_care() -> None:
    asked = options("verbose&exclude=a&exclude=b&exclude=<script>&other=1")
    assert asked.verbose
    assert asked.exclude == {"a", "b", "(no name)"}
    assert not options("verbose=false").verbose
    assert options("&".join(f"exclude=a{number}" for number in range(1000))).exclude == frozenset()
    assert options("%ff%00=&;&&==").exclude == frozenset()


# The life of a process.


def test_an_app_is_starting_from_the_beginning_of_its_lifespan_to_the_end_of_its_tasks() -> None:
    lifecycle = Lifecycle()
    lifecycle.expect("warm-up")
    states = [lifecycle.state]
    lifecycle.begin()
    states.append(lifecycle.state)
    lifecycle.ready()
    states.append(lifecycle.state)
    lifecycle.done("warm-up")
    states.append(lifecycle.state)
    lifecycle.drain()
    states.append(lifecycle.state)
    lifecycle.end(was_up=True)
    states.append(lifecycle.state)
    assert [state.value for state in states] == [
        "starting",
        "starting",
        "starting",
        "ready",
        "draining",
        "draining",
    ]


def test_an_app_without_lifespan_is_ready() -> None:
    lifecycle = Lifecycle()
    assert lifecycle.state is State.READY
    lifecycle.begin()
    lifecycle.end(was_up=False)
    assert lifecycle.state is State.READY


def test_one_app_that_is_three_replicas_stops_with_the_last_of_them() -> None:
    lifecycle = Lifecycle()
    for _ in range(3):
        lifecycle.begin()
    assert lifecycle.state is State.STARTING
    for _ in range(3):
        lifecycle.ready()
    for _ in range(2):
        lifecycle.end(was_up=True)
    assert lifecycle.state is State.READY
    lifecycle.end(was_up=True)
    assert lifecycle.state is State.STOPPED
    lifecycle.begin()
    lifecycle.ready()
    assert lifecycle.state is State.READY
