"""An operator's commands, over state files that a test holds in its hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lbkit.cli import main
from lbkit.drain import DrainTimings
from lbkit.statefile import Hook, StateFile

AT_ONCE = DrainTimings(pre_stop_delay=0.0, drain_timeout=0.1)


@pytest.fixture
def app(tmp_path: Path) -> StateFile:
    return StateFile.create(tmp_path / "lbkit" / "web1", hook=Hook.LAUNCHER, timings=AT_ONCE)


def run(app: StateFile, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--state", str(app.path)])


def test_waiting_fails_when_requests_are_still_in_flight_at_the_deadline(app: StateFile) -> None:
    app.publish(2)
    done = run(app, "drain", "--wait")
    assert (done.exit_code, done.output.splitlines()[-1]) == (1, "2 requests in flight")


def test_waiting_ends_well_when_nothing_is_in_flight(app: StateFile) -> None:
    app.publish(0)
    done = run(app, "drain", "--wait")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "0 requests in flight")


def test_status_tells_who_asked_for_the_drain(app: StateFile) -> None:
    app.publish(1)
    assert ": ready, 1 request in flight, 1 worker, armed by lbkit exec" in run(app, "status").output
    run(app, "drain")
    assert ": draining (operator), 1 request in flight" in run(app, "status").output
    app.signalled(1.0)
    assert ": draining (signal), 1 request in flight" in run(app, "status").output


def test_undrain_returns_an_app_to_the_pool_unless_a_signal_came(app: StateFile) -> None:
    run(app, "drain")
    assert run(app, "undrain").exit_code == 0
    assert app.orders.operator_at is None
    app.signalled(1.0)
    assert run(app, "undrain").exit_code != 0
