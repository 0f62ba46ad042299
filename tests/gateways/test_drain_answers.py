"""What a replica answers in each phase of its drain, through both gateways: the table of `lbkit.drain`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lbkit import Departure, DrainTimings, Health, Service, asgi, wsgi
from lbkit.drain import Phase
from lbkit.health.agent import agent_line
from lbkit.health.report import Endpoint
from lbkit.process import Process
from tests.health_gateways import FakeClock, Gateway, asgi_app, gateway, wsgi_app

TIMINGS = DrainTimings(pre_stop_delay=4.0, drain_timeout=20.0)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A place for the state file, and a handler such as a server has."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@contextmanager
def replica(name: str, service: Service, **options: Any) -> Iterator[tuple[Gateway, Departure]]:
    """One that nobody has asked anything yet."""
    health = Health(service, **options)
    departure = Departure(TIMINGS, environ={}, process=Process(environ={}, clock=FakeClock()))
    departure.speak_for(health)
    app = (
        asgi.HealthMiddleware(asgi.DrainMiddleware(asgi_app, departure), health)
        if name == "asgi"
        else wsgi.HealthMiddleware(wsgi.DrainMiddleware(wsgi_app, departure), health)
    )
    with gateway(name, health, app) as ask:
        yield ask, departure


def bring_to(phase: Phase, departure: Departure, ask: Gateway) -> None:
    if phase is Phase.STARTING:
        ask.health.lifecycle.expect("warm-up")
        return
    departure.start()
    if phase.leaving:
        departure.drain.begin(departure.clock())
    if phase is Phase.DRAINED:
        departure.drain.hand_over()


GATEWAYS = pytest.mark.parametrize("name", ["asgi", "wsgi"])


@GATEWAYS
@pytest.mark.parametrize(
    ("phase", "drain_status", "code", "status", "line"),
    [
        (Phase.STARTING, 503, 503, "starting", "down #starting\n"),
        (Phase.STARTING, 404, 503, "starting", "down #starting\n"),  # not there yet, which is no soft stop
        (Phase.READY, 503, 200, "healthy", "ready up 100%\n"),
        (Phase.DRAINING, 503, 503, "draining", "drain\n"),
        (Phase.DRAINING, 404, 404, "draining", "drain\n"),
        (Phase.DRAINED, 503, 503, "draining", "drain\n"),
        (Phase.DRAINED, 404, 404, "draining", "drain\n"),
    ],
)
def test_every_answer_of_every_phase(
    name: str, phase: Phase, drain_status: Any, code: int, status: str, line: str
) -> None:
    with replica(name, Service(version="1.0.0", drain_status=drain_status)) as (ask, departure):
        bring_to(phase, departure, ask)
        health = ask("/health")
        assert (health.status_code, health.json()["status"]) == (code, status)
        assert set(health.json()) == {"status", "timestamp", "version"}
        assert ask("/health/ready").status_code == code
        assert ask("/health/live").status_code == 200
        assert agent_line(ask.health.report(Endpoint.READY)) == line
        assert ask("/").status_code == 200


@GATEWAYS
def test_the_view_of_the_drain_is_complete_at_the_very_first_probe(name: str) -> None:
    with replica(name, Service()) as (ask, departure):
        ready = ask("/health/ready").json()["drain"]
        hook = (
            "process" if name == "wsgi" else "none"
        )  # an ASGI app without a lifespan has had no main thread
        assert ready == {
            "state": "ready", "since": None, "reason": None, "in_flight": 0, "deadline_in": None,
            "armed": hook != "none", "hook": hook,
        }  # fmt: skip
        assert "drain" in ask("/health/detailed").json()
        departure.drain.begin(departure.clock())
        leaving = ask("/health/ready")
        assert leaving.headers["cache-control"] == "no-store"
        assert (leaving.json()["drain"]["state"], leaving.json()["drain"]["deadline_in"]) == (
            "draining",
            20.0,
        )
        assert leaving.json()["drain"]["in_flight"] == 0  # probes do not count


@GATEWAYS
def test_envoy_is_told_by_every_answer_of_a_replica_that_drains(name: str) -> None:
    word = "x-envoy-immediate-health-check-fail"
    with replica(name, Service(), envoy=True) as (ask, departure):
        assert [word in ask(path).headers for path in ("/health", "/")] == [False, False]
        departure.drain.begin(departure.clock())
        assert [ask(path).headers.get(word) for path in ("/health", "/")] == ["true", "true"]


@GATEWAYS
def test_nobody_else_is_told_what_is_for_envoy(name: str) -> None:
    with replica(name, Service()) as (ask, departure):
        departure.start()
        departure.drain.begin(departure.clock())
        assert not any("envoy" in header for path in ("/health", "/") for header in ask(path).headers)
