"""The life of one process as a balancer should see it: starting, ready, draining, stopped.

=========  ==================  =======================  ==========================================
state      may get traffic     must be restarted        because
=========  ==================  =======================  ==========================================
STARTING   no                  no                       lifespan startup or a startup task is on
READY      yes                 no
DRAINING   no                  no                       it was asked to leave; it still serves
STOPPED    no                  no                       its lifespan has ended
=========  ==================  =======================  ==========================================

Health asks one question of whoever owns the life of the process: `state`. `Lifecycle` is the owner
unless somebody else, such as the drain machine, is put in its place.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

__all__ = ["Lifecycle", "LifecycleSource", "State"]


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class LifecycleSource(Protocol):
    """What health needs to know. Read at each answer, from any thread: be cheap, never raise."""

    @property
    def state(self) -> State: ...


class Lifecycle:
    """The state follows from a few facts, and is worked out when one of them changes: probes read it often.

    One app object may be several replicas: it is starting while any of their lifespans is, and has
    stopped when the last of them has ended.
    """

    def __init__(self) -> None:
        self._starting = 0
        self._running = 0
        self._ended = 0
        self._draining = False
        self._tasks: set[str] = set()
        self.state = State.READY

    @property
    def started(self) -> bool:
        return not (self._starting or self._tasks)

    def begin(self) -> None:
        """A lifespan begins. After the end of all others this is a new life."""
        if not (self._starting or self._running):
            self._draining = False
            self._ended = 0
        self._starting += 1
        self._settle()

    def ready(self) -> None:
        """A lifespan that had begun is up."""
        self._starting -= 1
        self._running += 1
        self._settle()

    def end(self, *, was_up: bool) -> None:
        """A lifespan that had begun is over. One that never came up says nothing: the app may know none."""
        if was_up:
            self._running -= 1
            self._ended += 1
        else:
            self._starting -= 1
        self._settle()

    def drain(self) -> None:
        """Leave the pool: readiness fails from the next probe on, requests are still served."""
        self._draining = True
        self._settle()

    def resume(self) -> None:
        """Take an operator's `drain` back."""
        self._draining = False
        self._settle()

    def expect(self, task: str) -> None:
        """Stay STARTING until that task is `done`."""
        self._tasks.add(task)
        self._settle()

    def done(self, task: str) -> None:
        self._tasks.discard(task)
        self._settle()

    def _settle(self) -> None:
        if self._draining:
            self.state = State.DRAINING
        elif not self.started:
            self.state = State.STARTING
        elif self._ended and not self._running:
            self.state = State.STOPPED
        else:
            self.state = State.READY
