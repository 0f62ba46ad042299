"""`lbkit drain`, `lbkit undrain` and `lbkit status`: an operator's orders, through the state file.

Who may write to the file may give orders, so there is no other door to guard. A drained app goes on
serving what still comes, and comes back with `undrain`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lbkit import statefile
from lbkit.drain import Drain, Step
from lbkit.errors import ConfigError, LbkitError
from lbkit.statefile import Hook, StateFile

__all__ = ["drain", "status", "undrain"]

TICK = 0.05
NOT_EMPTY = 1
HOOKS = {
    Hook.NONE: "not armed: SIGTERM goes to the server at once",
    Hook.PROCESS: "armed in the process",
    Hook.GUNICORN: "armed in gunicorn's master",
    Hook.LAUNCHER: "armed by lbkit exec",
}


def which(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name one app among several."""
    state = click.option(
        "--state", type=click.Path(path_type=Path), envvar=statefile.ENVIRONMENT, help="Its state file."
    )
    pid = click.option("--pid", type=int, help="The process that was started: the server's, or lbkit exec's.")
    return state(pid(command))


@click.command()
@which
@click.option("--wait", is_flag=True, help="Wait for the delay, and until nothing is in flight.")
def drain(state: Path | None, pid: int | None, wait: bool) -> None:
    """Take an app out of the pool: its health endpoints fail, and it goes on serving.

    With --wait, exit code 1 when requests are still in flight at the deadline. As a preStop hook, it needs no
    sleep: when SIGTERM comes, the time that has passed counts.
    """
    file = one(state, pid)
    file.drain(time.monotonic())
    click.echo(f"process {file.owner} drains: {_requests(file.in_flight())} in flight")
    if wait and not _wait(file):
        raise click.exceptions.Exit(NOT_EMPTY)


@click.command()
@which
def undrain(state: Path | None, pid: int | None) -> None:
    """Take `lbkit drain` back: the app returns to the pool."""
    file = one(state, pid)
    if not file.undrain():
        raise LbkitError(f"process {file.owner} got a signal to stop: that cannot be taken back")
    click.echo(f"process {file.owner} is back in the pool")


@click.command()
@which
def status(state: Path | None, pid: int | None) -> None:
    """Say how the apps of this user stand: in the pool, draining, and how much is in flight."""
    for file in every(state, pid):
        orders, workers = file.orders, len(file.processes)
        drains = orders.operator_at is not None or orders.signal_at is not None
        why = " (operator)" if orders.signal_at is None else " (signal)"
        click.echo(
            f"process {file.owner}: {f'draining{why}' if drains else 'ready'}, {_requests(file.in_flight())}"
            f" in flight, {workers} worker{'' if workers == 1 else 's'}, {HOOKS[file.hook]}"
        )


def every(state: Path | None, pid: int | None) -> list[StateFile]:
    """The state files that are meant. Raises LbkitError when there is none."""
    if pid is not None:
        state = statefile.folder() / str(pid)
    if state is not None:
        return [StateFile.open(state)]
    found = statefile.standing()
    if not found:
        raise LbkitError(f"no app is running that drains: there is no state file in {statefile.folder()}")
    return found


def one(state: Path | None, pid: int | None) -> StateFile:
    found = every(state, pid)
    if len(found) > 1:
        pids = ", ".join(str(file.owner) for file in found)
        raise ConfigError(f"need --pid, for several apps are running: {pids}")
    return found[0]


def _wait(file: StateFile) -> bool:
    """Whether all requests have ended before the deadline. Counts them down."""
    machine = Drain(file.timings)
    machine.begin(file.orders.operator_at or time.monotonic())
    inside = most = file.in_flight()
    with click.progressbar(
        length=max(most, 1), label="draining", show_eta=False, show_percent=False, item_show_func=_left
    ) as bar:
        while machine.step(time.monotonic(), in_flight=inside) is not Step.HAND_OVER:
            most = max(most, inside)  # what comes meanwhile is served, too
            bar.update(max(0, most - inside - bar.pos), inside)
            time.sleep(TICK)
            inside = file.in_flight()
        bar.update(0 if inside else (bar.length or 0) - bar.pos, inside)
    click.echo(f"{_requests(inside)} in flight")
    return not inside


def _left(count: int | None) -> str | None:
    return None if count is None else f"{_requests(count)} in flight"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"
