"""A model of a balancer at work: many requests at once, and what is told about replicas.

`Backend` decides and never waits. A carrier begins a `Course` for each request, does what its step says and
resumes it with what came of that; one lock keeps the model to one caller at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any, Protocol, TypeAlias

from lbkit.balancer.exchange import Answer, Attempt, Flow, Model, Outcome, Relay, Request, Standing, Wait

__all__ = ["Backend", "Course", "Step", "Ticket"]

Step: TypeAlias = "Attempt | Wait | Relay | Answer"


class Ticket(Protocol):
    """Whose turn comes is told by `set`: a threading.Event, or an asyncio one that other threads may set."""

    def set(self) -> object: ...


class Backend:
    """A model, shared by all requests. `names` are its replicas'."""

    def __init__(
        self,
        model: Model,
        names: Iterable[str],
        *,
        ticket: Callable[[], Ticket],
    ) -> None:
        self.model = model
        self._standings = {name: Standing() for name in names}
        self.ticket = ticket
        self.lock = Lock()
        self.waiting: dict[int, Ticket] = {}

    def begin(self, request: Request, *, now: float) -> Course:
        """The course of one request, at its first step. `now` is Unix time in seconds."""
        return Course(self, self.model.serve(request, now=now))

    def standing(self, name: str) -> Standing:
        return self._standings[name]

    def tell(self, name: str, *, now: float, **changes: Any) -> None:
        """Change what is known about a replica: its `mode`, whether it is `up`, its `share` of its weight."""
        with self.lock:
            changed = replace(self._standings[name], **changes)
            if changed != self._standings[name]:
                self._standings[name] = changed
                self.model.tell(name, changed)
                self.model.tick(now)
                self._woken()

    def explain(self, now: float) -> dict[str, str]:
        """For each replica that gets no new client, the rule that skips it."""
        with self.lock:
            return self.model.explain(now)

    def _woken(self) -> None:
        for wait in self.model.woken():
            if (ticket := self.waiting.pop(id(wait), None)) is not None:
                ticket.set()


class Course:
    """One request's way through a backend. Whoever does not come to an `Answer` must `close` it."""

    __slots__ = ("_backend", "_flow", "step", "ticket")

    def __init__(self, backend: Backend, flow: Flow) -> None:
        self._backend = backend
        self._flow = flow
        self.ticket: Any = None
        """With a step that waits: it is set when the turn has come."""

        self.step: Step
        """What is to be done now."""

        self.resume()

    def resume(self, outcome: Outcome | None = None) -> Step:
        """Go on with what came of the step."""
        with self._backend.lock:
            return self._went(partial(self._flow.send, outcome))

    def give_up(self) -> Step:
        """Go on after a wait that took until its end; unless the turn came a moment ago."""
        with self._backend.lock:
            if self._backend.waiting.pop(id(self.step), None) is None:
                return self._went(partial(self._flow.send, None))
            return self._went(partial(self._flow.throw, TimeoutError()))

    def close(self) -> None:
        """Give back what it holds. Does nothing at its end."""
        if isinstance(self.step, Answer):
            return
        with self._backend.lock:
            self._backend.waiting.pop(id(self.step), None)
            self._flow.close()
            self._backend._woken()

    def _went(self, move: Callable[[], Step]) -> Step:
        backend = self._backend
        try:
            self.step = move()
        except StopIteration as stop:
            self.step = stop.value
        if type(self.step) is Wait:
            # Before anybody can be woken: a slot may become free before its carrier has begun to wait.
            self.ticket = backend.waiting[id(self.step)] = backend.ticket()
        if backend.waiting:
            backend._woken()
        return self.step
