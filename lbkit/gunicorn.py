"""Drain gunicorn from its master: `gunicorn -c python:lbkit.gunicorn`, or in your own configuration

    from lbkit.gunicorn import when_ready

The master is who gets the operator's SIGTERM. There the delay is outside of graceful_timeout, it works with
every worker class and with --preload, and a reload (SIGHUP), which sends workers the same signal, drains
nothing. The workers read the state file that the master writes.

gunicorn takes every name of this module that is one of its settings, so there is no other such name here.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lbkit import statefile
from lbkit.drain import ACCEPT_FILTER, Drain, DrainTimings, Phase, Reason, Step, over_budget, wants
from lbkit.process import stop_limit
from lbkit.statefile import Hook, StateFile, StateFileError

__all__ = ["when_ready"]

logger = logging.getLogger("lbkit.drain")

TICK = 0.05


def when_ready(server: Any) -> None:
    """gunicorn's own hook: it has set its signal handlers, and the workers are still to be made."""
    if _launched():
        return
    timings = DrainTimings.of(os.environ)
    path = statefile.folder(server.cfg.uid) / str(os.getpid())
    try:
        file = StateFile.create(path, hook=Hook.GUNICORN, timings=timings, uid=server.cfg.uid)
    except StateFileError as error:
        server.log.warning("lbkit: drain not armed: %s", error)
        return
    os.environ[statefile.ENVIRONMENT] = str(path)
    MasterDrain(file, timings).arm()
    for warning in over_budget(timings, graceful=server.cfg.graceful_timeout, limit=stop_limit(os.environ)):
        server.log.warning("lbkit: %s", warning)
    words = "lbkit: drain armed in the master, delay %g s, deadline %g s"
    server.log.info(words, timings.pre_stop_delay, timings.deadline)


class MasterDrain:
    """The drain in gunicorn's master: no thread, for the master forks; a timer's signal instead."""

    def __init__(self, file: StateFile, timings: DrainTimings) -> None:
        self.file = file
        self.drain = Drain(timings, accept_filter=wants(os.environ, ACCEPT_FILTER))
        self._pid = os.getpid()

    def arm(self) -> None:
        self._old: Any = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGALRM, self._on_tick)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid or self.drain.phase is Phase.DRAINED:
            self._old(number, frame)
            return
        now = time.monotonic()
        if (at := self.file.orders.operator_at) is not None:
            self.drain.begin(at, Reason.OPERATOR)
        again = self.drain.begin(now)
        self.file.signalled(now)
        if again:
            self._hand_over()
        else:
            signal.setitimer(signal.ITIMER_REAL, TICK, TICK)

    def _on_tick(self, *_: object) -> None:
        if os.getpid() != self._pid:
            return
        if self.drain.step(time.monotonic(), in_flight=self.file.in_flight()) is Step.HAND_OVER:
            self._hand_over()

    def _hand_over(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.drain.hand_over()
        self.file.handed_over()
        self.file.path.unlink(missing_ok=True)  # the workers have it mapped, and nobody else shall come
        os.kill(self._pid, signal.SIGTERM)


def _launched() -> bool:
    """Whether `lbkit exec` has started us: it holds the signal back already."""
    path = os.environ.get(statefile.ENVIRONMENT)
    try:
        return path is not None and StateFile.open(Path(path)).hook is Hook.LAUNCHER
    except StateFileError:
        return False
