"""How one app leaves the pool, in a real process: what it is asked, what it tells, what it has others do."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from lbkit.drain import ACCEPT_FILTER, Drain, DrainTimings, Phase, Reject, Step, wants
from lbkit.errors import ConfigError
from lbkit.health.lifecycle import LifecycleSource, State
from lbkit.monitor import Health
from lbkit.operator import Operator
from lbkit.process import THIS_PROCESS, Process
from lbkit.statefile import Hook

__all__ = ["Departure", "DrainEvent", "StreamsEnd"]

logger = logging.getLogger("lbkit.drain")

IN_WORKERS = "LBKIT_IN_WORKERS"
EJECT = (("X-Envoy-Immediate-Health-Check-Fail", "true"),)

StreamsEnd = Callable[[float], object]
"""Called from our thread, again and again while it is time: end the streams within so many seconds."""


class DrainEvent:
    """Set while draining. A thread may `wait` for it, a coroutine may `await` it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._waiters: set[asyncio.Future[None]] = set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the drain begins, at most `timeout` seconds. Returns whether it has."""
        return self._event.wait(timeout)

    def __await__(self) -> Generator[object, None, None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(future)
        try:
            # Looked at after it was added: it cannot be missed in between.
            if not self._event.is_set():
                yield from future
        finally:
            self._waiters.discard(future)

    def set(self) -> None:
        self._event.set()
        for future in tuple(self._waiters):
            try:
                future.get_loop().call_soon_threadsafe(_finish, future)
            except RuntimeError:  # its loop is closed: nobody waits any more
                self._waiters.discard(future)

    def clear(self) -> None:
        self._event.clear()


class Departure:
    """How this app leaves the pool. One for each app; give it to the carriers.

    What is not given comes from the environment. Raises ConfigError for values that break a rule.

    =================  ==========================================  =========================================
    argument           environment                                 what it is
    =================  ==========================================  =========================================
    `timings`          LBKIT_PRE_STOP_DELAY, LBKIT_DRAIN_TIMEOUT   else 5 and 20 seconds
    `reject`           LBKIT_REJECT_GET                            `marked`, `always` or `never`: which GETs
                                                                   get a 503 while draining
    `operator`         LBKIT_DRAIN_TOKEN                           opens POST /health/drain and
                                                                   /health/undrain to those who know it
    `accept_filter`    LBKIT_ACCEPT_FILTER=1                       let nothing new in after the delay, for
                                                                   balancers that cannot see health
    `in_workers`       LBKIT_IN_WORKERS=1                          take the signal in each worker of
                                                                   hypercorn or granian: `lbkit.adapters`
    =================  ==========================================  =========================================
    """

    def __init__(
        self,
        timings: DrainTimings | None = None,
        *,
        reject: Reject | None = None,
        operator: Operator | None = None,
        accept_filter: bool | None = None,
        in_workers: bool | None = None,
        environ: Mapping[str, str] = os.environ,
        process: Process = THIS_PROCESS,
    ) -> None:
        self.drain = Drain(
            DrainTimings.of(environ) if timings is None else timings,
            starting=True,
            accept_filter=wants(environ, ACCEPT_FILTER) if accept_filter is None else accept_filter,
        )
        self.reject = _reject(environ) if reject is None else reject
        self.operator = _operator(environ) if operator is None else operator
        self.event = DrainEvent()
        self.process = process
        self.clock = process.clock
        self.cold = True
        """Whether `start` is still to be called in this process; a forked worker is cold again."""

        self.parting: tuple[tuple[str, str], ...] = ()
        """Headers of every answer while draining, besides what closes the connection."""

        self._streams: list[StreamsEnd] = []
        self._cuts: list[Callable[[], object]] = []
        self._told = Phase.STARTING
        if wants(environ, IN_WORKERS) if in_workers is None else in_workers:
            process.adapt(self)

    # What an app uses.

    def is_draining(self) -> bool:
        return self.drain.draining

    def hold(self, job: str) -> AbstractContextManager[None]:
        """`with lbkit.drain.hold("job"):` work outside of requests that the process shall finish first."""
        return self.drain.hold(job)

    def view(self) -> dict[str, object]:
        """What `/health/ready` says about the drain. Durations are in seconds."""
        drain, now = self.drain, self.clock()
        began_at, left, hook = drain.began_at, drain.left(now), self.process.hook
        return {
            "state": drain.phase.value,
            "since": None if began_at is None else round(max(0.0, now - began_at), 1),
            "reason": None if drain.reason is None else drain.reason.value,
            "in_flight": self.process.in_flight,
            "deadline_in": None if left is None else round(left, 1),
            "armed": hook is not Hook.NONE,
            "hook": hook.name.lower(),
        }

    # What a plugin uses.

    def speak_for(self, health: Health) -> None:
        """Have `health` answer as the drain has it, and show what is going on."""
        health.source = DrainedLifecycle(self.drain, health.lifecycle)
        health.drain_view = self.view
        self.parting = EJECT if health.envoy else ()
        health.accompany(self)  # a worker that has had nothing but probes must know that it drains
        if self.operator is not None:
            self.operator = replace(self.operator, path=health.service.health_path)

    # What a carrier uses.

    def arm(self) -> None:
        """Take SIGTERM, where this process is the one that gets it. See `Process.arm`."""
        self.process.arm(self)

    def start(self) -> None:
        """This process serves from now on. Twice is fine."""
        if self.cold:
            self.cold = False
            self.process.start(self)

    def stop(self) -> None:
        """The app's life in this process is over; `start` begins another one."""
        self.cold = True
        self.process.stop(self)

    def begin(self, _: Health, /) -> None:
        """The app's health begins: so do we."""
        self.start()

    def end(self) -> None:
        self.stop()

    def forked(self) -> None:
        self.cold = True

    def on_streams_end(self, listener: StreamsEnd) -> None:
        """Have `listener` called when streams shall end, with the seconds over which to spread that."""
        self._streams.append(listener)

    def on_deadline(self, listener: Callable[[], object]) -> None:
        """Have `listener` called when the deadline is over and requests still run."""
        self._cuts.append(listener)

    def look(self, step: Step, now: float) -> None:
        """What the process's thread does for this app."""
        drain = self.drain
        self._tell_phase()
        if step is not Step.WAIT and drain.began_at is not None:
            left = max(0.0, drain.began_at + drain.timings.pre_stop_delay - now)
            for end in self._streams:
                end(0.0 if step is Step.HAND_OVER else left)
        if drain.late(now) and drain.in_flight:
            for cut in self._cuts:
                cut()

    def _tell_phase(self) -> None:
        phase, drain = self.drain.phase, self.drain
        if phase is self._told:
            return
        if phase.leaving:
            self.event.set()
            why = "" if drain.reason is None else f" ({drain.reason.value})"
            logger.info("%s%s: %d in flight", phase.value, why, drain.in_flight)
        else:
            self.event.clear()
        self._told = phase


class DrainedLifecycle:
    """A `LifecycleSource`: the drain where there is one, else what the lifecycle says."""

    def __init__(self, drain: Drain, lifecycle: LifecycleSource) -> None:
        self._drain = drain
        self._lifecycle = lifecycle

    @property
    def state(self) -> State:
        return State.DRAINING if self._drain.draining else self._lifecycle.state


def _reject(environ: Mapping[str, str]) -> Reject:
    value = environ.get("LBKIT_REJECT_GET") or Reject.MARKED.value
    try:
        return Reject(value)
    except ValueError:
        words = ", ".join(reject.value for reject in Reject)
        raise ConfigError(f"need one of {words} in LBKIT_REJECT_GET, got {value!r}") from None


def _operator(environ: Mapping[str, str]) -> Operator | None:
    token = environ.get("LBKIT_DRAIN_TOKEN")
    return Operator(token=token) if token else None


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
