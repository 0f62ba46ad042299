"""`lbkit exec`: a launcher in front of any server. It holds SIGTERM back until nobody needs the replica.

It waits in `sigtimedwait`, so no signal is lost and nothing happens in a handler. Everything but the first
SIGTERM goes to the server as it comes. The exit status is the server's own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import psutil

from lbkit import statefile
from lbkit.drain import ACCEPT_FILTER, Drain, DrainTimings, Phase, Reason, Step, over_budget, wants
from lbkit.errors import ConfigError
from lbkit.process import stop_limit
from lbkit.statefile import Hook, StateFile

__all__ = ["exec_"]

TICK = 0.05
FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
    }
)
WATCHED = FORWARDED | {signal.SIGTERM, signal.SIGCHLD}


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.option(
    "--delay", type=float, help="Seconds to serve on after SIGTERM; else LBKIT_PRE_STOP_DELAY, or 5."
)
@click.option("--timeout", type=float, help="Seconds until the server gets its SIGTERM at the latest.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def exec_(delay: float | None, timeout: float | None, command: tuple[str, ...]) -> None:
    """Start a server, and drain it before SIGTERM reaches it.

    lbkit exec --delay 5 -- uvicorn shop.web:app --workers 4

    The first SIGTERM makes the health endpoints fail while the server goes on serving. After the delay, and
    when nothing is in flight, the server gets its SIGTERM; a second one reaches it at once. As the entry
    point of a container, write it in the exec form: a shell in between never hands a signal on.
    """
    if not command:
        raise ConfigError(
            "need the server's command after --, as in: lbkit exec --delay 5 -- uvicorn shop.web:app"
        )
    timings = DrainTimings.of(os.environ, delay=delay, timeout=timeout)
    status = Launcher(timings).run(command)
    if status < 0:
        _die_of(-status)
    sys.exit(status)


class Launcher:
    """One server and its drain."""

    def __init__(self, timings: DrainTimings) -> None:
        self.drain = Drain(timings, accept_filter=wants(os.environ, ACCEPT_FILTER))
        self.file = StateFile.create(_path(), hook=Hook.LAUNCHER, timings=timings)

    def run(self, command: Sequence[str]) -> int:
        """Start the server and stay until it has ended. Returns its exit status, negative for a signal."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        # A server reads LBKIT_STATE, and so does all that it starts.
        environ = {**os.environ, statefile.ENVIRONMENT: str(self.file.path)}
        try:
            server = subprocess.Popen(  # noqa: S603 (it is the user's own command)
                list(command),
                env=environ,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
            )
        except OSError as error:
            self.file.remove()
            raise ConfigError(f"cannot start {command[0]}: {error.strerror}") from error
        self._tell()
        try:
            return self._watch(server)
        finally:
            self.file.remove()

    def _tell(self) -> None:
        timings = self.drain.timings
        armed = f"drain armed, delay {timings.pre_stop_delay:g} s, deadline {timings.deadline:g} s"
        for words in (armed, *over_budget(timings, limit=stop_limit(os.environ))):
            click.echo(f"lbkit exec: {words}", err=True)

    def _watch(self, server: subprocess.Popen[bytes]) -> int:
        while True:
            # In a drain we look twenty times a second; else a signal is all that can happen.
            waiting = self.drain.phase is Phase.DRAINING
            came = signal.sigtimedwait(WATCHED, TICK if waiting else 3600.0)
            if came is not None:
                self._take(came.si_signo, server)
            if (status := _reaped(server)) is not None:
                return status
            if self._step() is Step.HAND_OVER and self.drain.phase is Phase.DRAINING:
                self._hand_over(server)

    def _take(self, number: int, server: subprocess.Popen[bytes]) -> None:
        if number == signal.SIGTERM:
            self._begin(server)
        elif number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            return  # a terminal has sent it to the server, too
        elif number in FORWARDED:
            server.send_signal(number)

    def _begin(self, server: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        self._take_orders()
        again = self.drain.begin(now)
        self.file.signalled(now)
        # Nobody has come up to serve yet, so nobody needs the delay.
        if again or self.drain.phase is Phase.DRAINED or not self._serving(server):
            self._hand_over(server)

    def _serving(self, server: subprocess.Popen[bytes]) -> bool:
        return bool(self.file.processes) or _listens(server.pid)

    def _take_orders(self) -> None:
        if (at := self.file.orders.operator_at) is not None:
            self.drain.begin(at, Reason.OPERATOR)

    def _step(self) -> Step:
        if self.drain.phase is not Phase.DRAINING:
            return Step.WAIT
        return self.drain.step(time.monotonic(), in_flight=self.file.in_flight())

    def _hand_over(self, server: subprocess.Popen[bytes]) -> None:
        self.drain.hand_over()
        self.file.handed_over()
        server.send_signal(signal.SIGTERM)


def _listens(pid: int) -> bool:
    """Whether a process below us has a listening socket: it serves, also without lbkit inside."""
    try:
        server = psutil.Process(pid)
        family = [server, *server.children(recursive=True)]
        found = [c for process in family for c in process.net_connections(kind="inet")]
    except psutil.Error:
        return False
    return any(connection.status == psutil.CONN_LISTEN for connection in found)


def _path() -> Path:
    asked = os.environ.get(statefile.ENVIRONMENT)
    return Path(asked) if asked else statefile.folder() / str(os.getpid())


def _reaped(server: subprocess.Popen[bytes]) -> int | None:
    """The server's status once it has ended. As process 1 of a container we are everybody's parent."""
    status = server.poll()
    if status is None and os.getpid() == 1:
        _reap_orphans(server.pid)
    return status


def _reap_orphans(server: int) -> None:
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == server:
            return
        os.waitpid(found.si_pid, 0)


def _die_of(number: int) -> None:
    """End as the server did, so that whoever started us sees what they would have seen."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):  # these have no handler to reset
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    sys.exit(128 + number)  # process 1 of a container does not die of its own signals
