"""The process that apps leave in: whose signal it is, and whose state file."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbkit import ConfigError, Departure, DrainTimings
from lbkit.process import Process, stop_limit
from lbkit.statefile import Hook, StateFile
from tests.health_gateways import FakeClock

LAUNCHERS = DrainTimings(pre_stop_delay=2.0, drain_timeout=9.0)
MAKE = (
    "import sys; from pathlib import Path; from lbkit import DrainTimings;"
    "from lbkit.statefile import Hook, StateFile;"
    "StateFile.create(Path(sys.argv[1]), hook=Hook.LAUNCHER, timings=DrainTimings());"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lbkit" / "web1"


@pytest.fixture
def departure(path: Path) -> Iterator[Departure]:
    """One whose process was told where its state file is."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # what a server would have there
    environ = {"LBKIT_STATE": str(path), "LBKIT_STOP_LIMIT": "60"}
    made = Departure(environ={}, process=Process(environ=environ, clock=FakeClock()))
    yield made
    made.stop()
    signal.signal(signal.SIGTERM, before)


def test_a_state_file_that_is_not_there_is_made_where_it_was_asked_for(
    departure: Departure, path: Path
) -> None:
    departure.start()
    assert departure.process.hook is Hook.PROCESS
    assert StateFile.open(path).owner == os.getpid()


def test_one_that_a_launcher_left_behind_takes_no_signal_and_is_replaced(
    departure: Departure, path: Path
) -> None:
    subprocess.run([sys.executable, "-c", MAKE, str(path)], check=True)
    departure.start()
    assert departure.process.hook is Hook.PROCESS
    assert StateFile.open(path).owner == os.getpid()


def test_one_that_others_may_write_to_is_left_alone_and_the_signal_is_taken_all_the_same(
    departure: Departure, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    StateFile.create(path, hook=Hook.LAUNCHER, timings=LAUNCHERS)
    path.chmod(0o666)
    with caplog.at_level(logging.WARNING, "lbkit.drain"):
        departure.start()
    assert departure.process.hook is Hook.PROCESS
    assert departure.process.file is None
    assert "with mode 0600: `lbkit drain` cannot reach this process" in caplog.text


def test_a_launcher_that_lives_takes_the_signal_and_its_durations_hold(
    departure: Departure, path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    StateFile.create(path, hook=Hook.LAUNCHER, timings=LAUNCHERS)
    departure.start()
    assert departure.process.hook is Hook.LAUNCHER
    assert departure.drain.timings == LAUNCHERS
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("environ", "docker", "limit"),
    [
        ({}, False, None),
        ({}, True, 10.0),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True, 30.0),
        ({"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2"}, True, 30.0),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "LBKIT_STOP_LIMIT": "90"}, False, 90.0),
    ],
)
def test_how_long_there_is_until_sigkill_is_asked_or_known(
    environ: dict[str, str], docker: bool, limit: float | None, tmp_path: Path
) -> None:
    mark = tmp_path / ".dockerenv"
    if docker:
        mark.touch()
    assert stop_limit(environ, docker=mark) == limit


def test_a_limit_that_is_no_number_is_named() -> None:
    with pytest.raises(ConfigError, match="need a number of seconds in LBKIT_STOP_LIMIT, got 'soon'"):
        stop_limit({"LBKIT_STOP_LIMIT": "soon"})
