"""The process that apps leave in: its SIGTERM, its state file and its thread, shared by all apps inside.

The thread looks twenty times a second what it is time for: it takes the orders of the state file, tells how
much is in flight, and has each app end its streams. When all of them are done, the signal is repeated and
the server's own handler gets it, in the main thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from lbkit import statefile
from lbkit.adapters import adapted
from lbkit.drain import Drain, Phase, Reason, Step, over_budget
from lbkit.errors import ConfigError
from lbkit.listeners import Listeners
from lbkit.signals import Chain, chain, supervisor, worker_of
from lbkit.statefile import Hook, StateFile, StateFileError
from lbkit.types import Clock

__all__ = ["THIS_PROCESS", "Leaver", "Process", "stop_limit"]

logger = logging.getLogger("lbkit.drain")

SERVERS = ("uvicorn.error", "gunicorn.error", "hypercorn.error", "_granian", "waitress")
"""The loggers of servers: what is said there at the start is seen, also where nobody has set ours up."""

STOP_LIMITS = {"KUBERNETES_SERVICE_HOST": 30.0, "ECS_CONTAINER_METADATA_URI_V4": 30.0}
DOCKER, DOCKER_LIMIT = Path("/.dockerenv"), 10.0

TICK = 0.05
PATIENCE = 1.0
"""Seconds that we wait with what we have to say for a log: hypercorn makes its own after the app is up."""


class Leaver(Protocol):
    """An app that leaves, as the process sees it."""

    drain: Drain

    def look(self, step: Step, now: float) -> None:
        """Act on what it is time for. Called again and again, on the process's own thread."""

    def forked(self) -> None:
        """We are in the child of a fork now."""


class Process:
    """One for each process. Nothing of it is done before an app is armed or started."""

    def __init__(self, *, environ: Mapping[str, str] = os.environ, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.file: StateFile | None = None
        self._environ = environ
        self._leavers: weakref.WeakSet[Leaver] = weakref.WeakSet()
        self._chain: Chain | None = None
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._watching_since: float | None = None
        self._repeated = False
        self._told = False
        self._listeners: Listeners | None = None
        os.register_at_fork(after_in_child=self._forked)

    @property
    def hook(self) -> Hook:
        """Who takes the operator's SIGTERM. Looked up each time: another library may have taken our place."""
        if self._chain is not None and self._chain.armed:
            return Hook.PROCESS
        file = self.file
        if file is None or file.hook not in (Hook.GUNICORN, Hook.LAUNCHER):
            return Hook.NONE
        return file.hook if file.owner_alive else Hook.NONE

    @property
    def in_flight(self) -> int:
        """Of all apps of all processes of this replica."""
        own = self._own_in_flight()
        return own if self.file is None else own + self.file.in_flight(but=os.getpid())

    def arm(self, leaver: Leaver) -> None:
        """Put us in front of SIGTERM's handler, where this process gets the signal. Twice is fine.

        To be called in the main thread, when the server has set its handler or before there is one.
        """
        self._leavers.add(leaver)
        if (self._chain is None or not self._chain.armed) and not self._launched():
            self._chain = chain(self._on_term) or self._chain
            if self._chain is not None:
                self._tell_hook()

    def adapt(self, leaver: Leaver) -> None:
        """Take the signal in a worker of hypercorn or granian. See `lbkit.adapters`."""
        self._leavers.add(leaver)
        if self._chain is None and not self._launched():
            self._chain = adapted(self._on_term)

    def start(self, leaver: Leaver) -> None:
        """That app serves here from now on."""
        self.arm(leaver)
        with self._lock:
            if self.file is None:
                self._attach()
            if self.file is not None and self.file.hook in (Hook.GUNICORN, Hook.LAUNCHER):
                # Whoever takes the signal counts the time, so its durations hold.
                leaver.drain.timings = self.file.timings
            leaver.drain.started()
            self._watch()
        self.tick()

    def stop(self, leaver: Leaver) -> None:
        """That app's life here is over; the last one takes everything back."""
        self._leavers.discard(leaver)
        with self._lock:
            if not self._leavers:
                self._stopped.set()
                self._watching_since = None
                self._forget_file()
                self._forget_listeners()
                if self._chain is not None:
                    self._chain.remove()

    def tick(self) -> None:
        """Look once. The thread does it again and again."""
        with self._lock:
            now, leavers = self.clock(), list(self._leavers)
            if not self._told and leavers:
                self._tell_hook()
            self._share(leavers)
            total = self.in_flight if any(each.drain.draining for each in leavers) else None
            for leaver in leavers:
                step = leaver.drain.step(now, in_flight=total)
                leaver.look(step, now)
                if step is Step.STOP_LISTENING and leaver.drain.accept_filter:
                    self._stop_listening()
                if step is Step.HAND_OVER and self._chain is not None:
                    leaver.drain.hand_over()
            if _all_gone(leavers):
                self._forget_listeners()
            if self._chain is not None and _all_gone(leavers) and not self._repeated:
                self._repeated = True
                self._forget_file()
                self._chain.repeat()

    def order(self, *, drain: bool) -> bool:
        """An operator's order, for all processes of this replica. False when it cannot be taken back."""
        with self._lock:
            now, leavers = self.clock(), list(self._leavers)
            if drain:
                if self.file is not None:
                    self.file.drain(now)
                for leaver in leavers:
                    leaver.drain.begin(now, Reason.OPERATOR)
                return True
            if self.file is not None and not self.file.undrain():
                return False
            taken_back = [leaver.drain.undrain() for leaver in leavers]
            return all(taken_back)

    def _on_term(self) -> bool:
        """In the signal's context, so no lock and no log. True: it is time for the old handler."""
        now, leavers = self.clock(), list(self._leavers)
        gone = _all_gone(leavers)
        at_once = [
            leaver.drain.begin(now) for leaver in leavers
        ]  # each must be told, whatever the others say
        if not (gone or all(at_once)):
            return False
        for leaver in leavers:
            leaver.drain.hand_over()
        self._repeated = True
        return True

    @property
    def _overdue(self) -> bool:
        """Whether a server that sets its log up late would have done so by now."""
        return self._watching_since is not None and self.clock() >= self._watching_since + PATIENCE

    def _watch(self) -> None:
        if self._watching_since is not None:
            return
        self._watching_since = self.clock()
        self._stopped = threading.Event()
        work = threading.Thread(target=self._look_on, args=(self._stopped,), name="lbkit-drain", daemon=True)
        work.start()

    def _look_on(self, stopped: threading.Event) -> None:
        while not stopped.wait(TICK):
            try:
                self.tick()
            except Exception:  # whatever happens, the process must still be able to leave
                logger.exception("the drain could not look after itself")

    def _share(self, leavers: list[Leaver]) -> None:
        """Tell the others what we know, and take what they say as an order."""
        file = self.file
        if file is None:
            return
        file.publish(self._own_in_flight())
        ours = file.owner == os.getpid()
        for leaver in leavers:
            drain = leaver.drain
            if ours and drain.signal_at is not None:
                file.signalled(drain.signal_at)
            orders = file.orders
            if orders.operator_at is not None:
                drain.begin(orders.operator_at, Reason.OPERATOR)
            elif drain.reason is Reason.OPERATOR:
                drain.undrain()
            if orders.signal_at is not None and drain.signal_at is None:
                drain.begin(orders.signal_at)
            if orders.handed_over:
                drain.hand_over()

    def _own_in_flight(self) -> int:
        waiting = 0 if self._listeners is None else self._listeners.waiting
        return waiting + sum(leaver.drain.in_flight for leaver in list(self._leavers))

    def _stop_listening(self) -> None:
        """Let nothing new in. Where that cannot be done we go on without it, and say so."""
        if self._listeners is not None:
            return
        self._listeners = Listeners()
        try:
            self._listeners.shut()
        except OSError as error:
            why = "what the kernel accepts from now on may be lost"
            _say(logging.WARNING, "lbkit: no accept filter (%s): %s", error.strerror or error, why)

    def _forget_listeners(self) -> None:
        """Our copies would keep the sockets open that the server closes."""
        if self._listeners is not None:
            self._listeners.close()

    @property
    def _asked(self) -> Path | None:
        """The state file that the environment names, be it there or to be made."""
        path = self._environ.get(statefile.ENVIRONMENT)
        return Path(path) if path else None

    def _launched(self) -> bool:
        """Whether a launcher or gunicorn's master takes the signal for us. One that is gone does not."""
        try:
            file = None if self._asked is None else StateFile.open(self._asked)
        except StateFileError:
            return False
        if file is None:
            return False
        hook = file.hook
        file.close()
        return hook in (Hook.GUNICORN, Hook.LAUNCHER)

    def _attach(self) -> None:
        try:
            self.file = StateFile.open(self._asked) if self._asked and self._launched() else self._own()
        except StateFileError as error:
            logger.warning("%s: `lbkit drain` cannot reach this process", error)

    def _own(self) -> StateFile:
        leaver = next(iter(self._leavers))
        hook = Hook.NONE if self._chain is None else Hook.PROCESS
        owner = supervisor()
        path = self._asked or statefile.folder() / str(owner)
        try:
            return StateFile.create(path, hook=hook, timings=leaver.drain.timings, owner=owner)
        except StateFileError:
            return StateFile.open(path)  # one of our siblings was first

    def _forget_file(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            file.remove()

    def _tell_hook(self) -> None:
        """Say once who takes the signal, and what does not fit: as soon as anybody can hear it."""
        if self._told or not (self._overdue or _voice(logging.WARNING)):
            return
        self._told, hook = True, self.hook
        if hook is Hook.NONE:
            _advise()
            return
        timings = next(iter(self._leavers)).drain.timings
        words = "lbkit: drain armed by %s, delay %g s, deadline %g s"
        _say(logging.INFO, words, hook.name.lower(), timings.pre_stop_delay, timings.deadline)
        if hook is Hook.PROCESS:  # the others have told it for all their workers
            for warning in over_budget(timings, limit=stop_limit(self._environ)):
                _say(logging.WARNING, "lbkit: %s", warning)

    def _forked(self) -> None:
        """A fork copies no threads and no locks to rely on; what was in flight is the parent's."""
        self._lock = threading.RLock()
        self._watching_since = None
        self._repeated = self._told = False
        self.file = self._listeners = None
        for leaver in list(self._leavers):
            leaver.drain.forget()
            leaver.forked()


def _all_gone(leavers: list[Leaver]) -> bool:
    """Each has handed over, or has never begun to serve."""
    gone = [each.drain.phase is Phase.DRAINED for each in leavers]
    return any(gone) and all(done or each.drain.starting for done, each in zip(gone, leavers, strict=True))


def stop_limit(environ: Mapping[str, str], *, docker: Path = DOCKER) -> float | None:
    """Seconds from SIGTERM to SIGKILL: LBKIT_STOP_LIMIT, else the orchestrator's default, else unknown.

    That is 30 on Kubernetes and on ECS, and 10 in Docker.
    """
    if value := environ.get("LBKIT_STOP_LIMIT"):
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"need a number of seconds in LBKIT_STOP_LIMIT, got {value!r}") from None
    known = [limit for name, limit in STOP_LIMITS.items() if name in environ]
    return known[0] if known else DOCKER_LIMIT if docker.exists() else None


def _voice(level: int) -> logging.Logger | None:
    """Our logger if somebody listens to it, else the server's."""
    named = [logger, *map(logging.getLogger, SERVERS)]
    return next((each for each in named if each.isEnabledFor(level) and each.hasHandlers()), None)


def _say(level: int, words: str, *facts: object) -> None:
    (_voice(level) or logger).log(level, words, *facts)


def _advise() -> None:
    worker = worker_of()
    if worker is None:  # no server that we know of: a test client, or a server with handlers of its own
        logger.debug("drain not armed in this process: SIGTERM goes to its own handler")
        return
    way = "start the server through lbkit exec"
    if worker == "gunicorn":
        way = f"start gunicorn with -c python:lbkit.gunicorn, or {way}"
    _say(logging.WARNING, "lbkit: drain not armed in a worker of %s: %s", worker, way)


THIS_PROCESS = Process()
"""The signal and the file belong to the process, so there is one of this. Tests bring their own."""
