"""A drain in a real process: its clock, its thread, its state file and its signal.

`Departure` carries what `Drain` decides. A thread looks twenty times a second what it is time for: it takes
the orders of the state file, tells how much is in flight, lets streams end, and hands over. The hot path
of a request touches none of this.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from lbkit import statefile
from lbkit.drain import Drain, DrainTimings, Phase, Reason, Reject, Step, over_budget
from lbkit.errors import ConfigError
from lbkit.health.lifecycle import LifecycleSource, State
from lbkit.monitor import Health
from lbkit.signals import Chain, chain, supervisor, worker_of
from lbkit.statefile import Hook, StateFile, StateFileError
from lbkit.types import Clock

__all__ = ["Departure", "DrainEvent", "Leaving", "stop_limit"]

logger = logging.getLogger("lbkit.drain")

TICK = 0.05

Leaving = Callable[[float], object]
"""Called from our thread, again and again while it is time: end the streams within so many seconds."""


_departures: weakref.WeakSet[Departure] = weakref.WeakSet()
"""All of this process: a fork copies no threads, so each of them must start again in the child."""


def _after_fork() -> None:
    for departure in tuple(_departures):
        departure.forked()


os.register_at_fork(after_in_child=_after_fork)


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
    """How this process leaves the pool. One for each app; give it to the carriers.

    Without `timings` they come from LBKIT_PRE_STOP_DELAY and LBKIT_DRAIN_TIMEOUT, else they are 5 and 20
    seconds. Without `reject`, LBKIT_REJECT_GET says which GETs are refused while draining: `marked` (the
    default), `always` or `never`. `token` opens POST /health/drain and /health/undrain to those who know it.
    """

    def __init__(
        self,
        timings: DrainTimings | None = None,
        *,
        reject: Reject | None = None,
        token: str | None = None,
        clock: Clock = time.monotonic,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.drain = Drain(DrainTimings.of(environ) if timings is None else timings, starting=True)
        self.reject = _reject(environ) if reject is None else reject
        self.token = _token(token if token is not None else environ.get("LBKIT_DRAIN_TOKEN"))
        self.event = DrainEvent()
        self.clock = clock
        self.file: StateFile | None = None
        self._environ = environ
        self._chain: Chain | None = None
        self.cold = True
        """Whether `start` is still to be called in this process; a forked worker is cold again."""

        self._streams: list[Leaving] = []
        self._cuts: list[Callable[[], object]] = []
        self._told = Phase.STARTING
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        _departures.add(self)

    # What an app uses.

    def is_draining(self) -> bool:
        return self.drain.draining

    def hold(self, job: str) -> AbstractContextManager[None]:
        """`with lbkit.drain.hold("job"):` work outside of requests that the process shall finish first."""
        return self.drain.hold(job)

    def view(self) -> dict[str, object]:
        """What `/health/ready` says about the drain. Durations are in seconds."""
        drain, now = self.drain, self.clock()
        began_at, left = drain.began_at, drain.left(now)
        hook = self.hook
        return {
            "state": drain.phase.value,
            "since": None if began_at is None else round(max(0.0, now - began_at), 1),
            "reason": None if drain.reason is None else drain.reason.value,
            "in_flight": self._all_in_flight(),
            "deadline_in": None if left is None else round(left, 1),
            "armed": hook is not Hook.NONE,
            "hook": hook.name.lower(),
        }

    @property
    def hook(self) -> Hook:
        """Who takes the operator's SIGTERM. Looked up each time: another library may have taken our place."""
        if self._chain is not None and self._chain.armed:
            return Hook.PROCESS
        file = self.file
        if file is None or file.hook not in (Hook.GUNICORN, Hook.LAUNCHER):
            return Hook.NONE
        return file.hook if file.owner_alive else Hook.NONE

    def speak_for(self, health: Health) -> None:
        """Have `health` answer as the drain has it, and show what is going on."""
        health.source = DrainedLifecycle(self.drain, health.lifecycle)
        health.drain_view = self.view

    # What a carrier uses.

    def arm(self) -> None:
        """Put us in front of SIGTERM's handler, where this process gets the signal. Twice is fine.

        To be called in the main thread, when the server has set its handler or before there is one.
        """
        if (self._chain is not None and self._chain.armed) or self._from_above() is not None:
            return
        self._chain = chain(self._on_term)

    def start(self) -> None:
        """This process serves from now on. Twice is fine."""
        with self._lock:
            if not self.cold:
                return
            self.cold = False
        self.arm()
        self._attach()
        self.drain.started()
        self._tell_hook()
        self._tick()
        self._stopped = threading.Event()
        watching = threading.Thread(
            target=self._watch, args=(self._stopped,), name="lbkit-drain", daemon=True
        )
        watching.start()

    def stop(self) -> None:
        """The app's life in this process is over; `start` begins another one."""
        self.cold = True
        self._stopped.set()
        if self._chain is not None:
            self._chain.remove()
            self._chain = None
        self._forget_file()

    def forked(self) -> None:
        """We are in the child of a fork: what was in flight is the parent's, and so is the state file."""
        self.cold = True
        self.file = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.drain.forget()

    def on_streams_end(self, listener: Leaving) -> None:
        """Have `listener` called when streams shall end, with the seconds over which to spread that."""
        self._streams.append(listener)

    def on_deadline(self, listener: Callable[[], object]) -> None:
        """Have `listener` called when the deadline is over and requests still run."""
        self._cuts.append(listener)

    def order(self, *, drain: bool) -> bool:
        """An operator's order, for all processes of this replica. False when it cannot be taken back."""
        file, now = self.file, self.clock()
        if drain:
            if file is not None:
                file.drain(now)
            self.drain.begin(now, Reason.OPERATOR)
            return True
        return (file is None or file.undrain()) and self.drain.undrain()

    def _on_term(self) -> bool:
        """In the signal's context, so no lock and no log. True: it is time for the old handler."""
        if not self.drain.begin(self.clock()) and self.drain.phase is not Phase.DRAINED:
            return False
        self.drain.hand_over()
        return True

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(TICK):
            try:
                self._tick()
            except Exception:  # whatever happens, the process must still be able to leave
                logger.exception("the drain could not look after itself")

    def _tick(self) -> None:
        now = self.clock()
        self._take_orders()
        self._tell_phase()
        drain = self.drain
        step = drain.step(now, in_flight=self._all_in_flight() if drain.draining else None)
        if step is not Step.WAIT:
            self._end_streams(now)
        if drain.late(now) and drain.in_flight:
            for cut in self._cuts:
                cut()
        if step is Step.HAND_OVER and drain.phase is Phase.DRAINING and self._chain is not None:
            drain.hand_over()
            self._forget_file()
            os.kill(os.getpid(), signal.SIGTERM)

    def _take_orders(self) -> None:
        file, drain = self.file, self.drain
        if file is None:
            return
        file.publish(drain.in_flight)
        orders = file.orders
        if orders.operator_at is not None:
            drain.begin(orders.operator_at, Reason.OPERATOR)
        elif drain.reason is Reason.OPERATOR:
            drain.undrain()
        if orders.signal_at is not None and drain.reason is not Reason.SIGNAL:
            drain.begin(orders.signal_at)
        elif drain.reason is Reason.SIGNAL and file.owner == os.getpid():
            file.signalled(drain.began_at or self.clock())
        if orders.handed_over and drain.phase is not Phase.DRAINED:
            drain.hand_over()

    def _end_streams(self, now: float) -> None:
        drain = self.drain
        if drain.began_at is None:
            return
        left = max(0.0, drain.began_at + drain.timings.pre_stop_delay - now)
        for end in self._streams:
            end(0.0 if drain.phase is Phase.DRAINED else left)

    def _all_in_flight(self) -> int:
        own = self.drain.in_flight
        return own if self.file is None else own + self.file.in_flight(but=os.getpid())

    # The state file, and what is said about it.

    def _from_above(self) -> Path | None:
        """The state file of a launcher or of gunicorn's master, which takes the signal for us."""
        path = self._environ.get(statefile.ENVIRONMENT)
        return Path(path) if path else None

    def _attach(self) -> None:
        try:
            self.file = self._above() or self._own()
        except StateFileError as error:
            logger.warning("%s: `lbkit drain` cannot reach this process", error)
            return
        if self.file.hook is not Hook.NONE:
            # Whoever takes the signal counts the time, so its durations hold.
            self.drain.timings = self.file.timings

    def _above(self) -> StateFile | None:
        path = self._from_above()
        return None if path is None else StateFile.open(path)

    def _own(self) -> StateFile:
        owner = supervisor()
        path = statefile.folder() / str(owner)
        hook = Hook.NONE if self._chain is None else Hook.PROCESS
        try:
            return StateFile.create(path, hook=hook, timings=self.drain.timings, owner=owner)
        except StateFileError:
            return StateFile.open(path)  # one of our siblings was first

    def _forget_file(self) -> None:
        file, self.file = self.file, None
        if file is not None and file.owner == os.getpid():
            file.remove()

    def _tell_hook(self) -> None:
        hook, timings = self.hook, self.drain.timings
        if hook is Hook.NONE:
            _advise()
            return
        delay, deadline = timings.pre_stop_delay, timings.deadline
        logger.info("drain armed by %s: delay %g s, deadline %g s", hook.name.lower(), delay, deadline)
        if hook is Hook.PROCESS:
            for warning in over_budget(timings, limit=stop_limit(self._environ)):
                logger.warning("%s", warning)

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


def stop_limit(environ: Mapping[str, str]) -> float | None:
    """Seconds from SIGTERM to SIGKILL: LBKIT_STOP_LIMIT, else 30 on Kubernetes and on ECS, else unknown."""
    if value := environ.get("LBKIT_STOP_LIMIT"):
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"need a number of seconds in LBKIT_STOP_LIMIT, got {value!r}") from None
    known = ("KUBERNETES_SERVICE_HOST", "ECS_CONTAINER_METADATA_URI_V4")
    return 30.0 if any(name in environ for name in known) else None


def _advise() -> None:
    worker = worker_of()
    if worker is None:  # no server that we know of: a test client, or a server with handlers of its own
        logger.debug("drain not armed in this process: SIGTERM goes to its own handler")
    elif worker == "gunicorn":
        logger.warning("drain not armed: start gunicorn with -c python:lbkit.gunicorn, or through lbkit exec")
    else:
        logger.warning("drain not armed in a worker of %s: start the server through lbkit exec", worker)


def _reject(environ: Mapping[str, str]) -> Reject:
    value = environ.get("LBKIT_REJECT_GET") or Reject.MARKED.value
    try:
        return Reject(value)
    except ValueError:
        words = ", ".join(reject.value for reject in Reject)
        raise ConfigError(f"need one of {words} in LBKIT_REJECT_GET, got {value!r}") from None


def _token(token: str | None) -> str | None:
    if token is not None and len(token) < 16:
        raise ConfigError(f"need a drain token of at least 16 characters, got {len(token)}")
    return token


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
