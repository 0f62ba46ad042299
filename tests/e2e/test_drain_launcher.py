"""SIGTERM where nobody serves: a launcher's command, an app that starts, a fork of one that is armed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.replicas import LONG, PYTHON, UVICORN, Replica, free_ports, lbkit, until


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
    ],
)
def test_the_launcher_ends_as_its_command_does(script: str, code: int, tmp_path: Path) -> None:
    replica = Replica([PYTHON, "-m", "lbkit", "exec", "--", PYTHON, "-c", script], 0, tmp_path)
    assert replica.end() == code, replica
    assert list((tmp_path / "lbkit").iterdir()) == []


WAITS = (
    "import signal, sys; signal.signal({0}, lambda *_: sys.exit(5)); print('up', flush=True); signal.pause()"
)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1"])
def test_the_launcher_hands_signals_on_and_a_command_that_serves_nothing_needs_no_delay(
    name: str, tmp_path: Path
) -> None:
    number = getattr(signal, name)
    command = [
        PYTHON,
        "-m",
        "lbkit",
        "exec",
        "--delay",
        LONG,
        "--",
        PYTHON,
        "-c",
        WAITS.replace("{0}", str(int(number))),
    ]
    replica = Replica(command, 0, tmp_path)
    try:
        until(lambda: "up" in replica.log.read_text(), replica)
        replica.send(number)
        assert replica.end() == 5
    finally:
        replica.kill()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["exec"], "Error: need the server's command after --"),
        (
            ["exec", "--delay", "9", "--timeout", "3", "--", "true"],
            "Error: need 0 <= pre_stop_delay <= drain_timeout",
        ),
        (["exec", "--", "no-such-server"], "Error: cannot start no-such-server"),
    ],
)
def test_a_mistake_on_the_launchers_line_is_told_in_one(
    arguments: list[str], line: str, tmp_path: Path
) -> None:
    refused = lbkit(tmp_path, *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith(line)
    assert len(refused.stderr.splitlines()) == 1


STARTS = """
import asyncio, contextlib, os
from pathlib import Path
from starlette.applications import Starlette
from lbkit_starlette import LBKit

@contextlib.asynccontextmanager
async def lifespan(app):
    print("starting", flush=True)
    while not Path(os.environ["GATE"]).exists():
        await asyncio.sleep(0.02)
    yield

app = Starlette(lifespan=lifespan)
LBKit(app)
"""


def test_sigterm_during_the_start_is_not_held_back(tmp_path: Path) -> None:
    (tmp_path / "slow_start.py").write_text(STARTS)
    command = [*UVICORN[:3], "slow_start:app", f"--app-dir={tmp_path}", "--port={port}"]
    replica = Replica(command, free_ports(1)[0], tmp_path, LBKIT_PRE_STOP_DELAY=LONG)
    try:
        until(lambda: "starting" in replica.log.read_text(), replica)
        replica.send(signal.SIGTERM)
        (tmp_path / "gate").touch()
        assert replica.end() in (0, -signal.SIGTERM), replica
    finally:
        replica.kill()


FORKS = """
import os, signal, sys, time
from lbkit import Departure
departure = Departure()
departure.arm()
departure.start()
out, into = os.pipe()
child = os.fork()
if not child:
    os.write(into, b"up")
    time.sleep(3600)
os.read(out, 2)  # before that, CPython forgets the signals of a child
os.kill(child, signal.SIGTERM)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), departure.is_draining(), flush=True)
"""


def test_a_fork_of_an_armed_process_dies_of_its_own_sigterm(tmp_path: Path) -> None:
    replica = Replica([PYTHON, "-c", FORKS], 0, tmp_path, LBKIT_PRE_STOP_DELAY=LONG)
    try:
        assert replica.end() == 0, replica
        assert "child -15 False" in replica.log.read_text()
    finally:
        replica.kill()
