"""A model of a balancer at work: many requests at once, and what is told about replicas.

`Backend` decides and never waits. A carrier begins a `Course` for each request, does what its step says and
resumes it with what came of that; one lock keeps the model to one caller at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
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
        self._ticket = ticket
        self._lock = Lock()
        self._waiting: dict[int, Ticket] = {}

    def begin(self, request: Request, *, now: float) -> Course:
        """The course of one request, at its first step. `now` is Unix time in seconds."""
        return Course(self, self.model.serve(request, now=now))

    def standing(self, name: str) -> Standing:
        return self._standings[name]

    def tell(self, name: str, *, now: float, **changes: Any) -> None:
        """Change what is known about a replica: its `mode`, whether it is `up`, its `share` of its weight."""
        with self._lock:
            changed = replace(self._standings[name], **changes)
            if changed != self._standings[name]:
                self._standings[name] = changed
                self.model.tell(name, changed)
                self.model.tick(now)
                self._wake()

    def explain(self, now: float) -> dict[str, str]:
        """For each replica that gets no new client, the rule that skips it."""
        with self._lock:
            return self.model.explain(now)

    def _advance(self, course: Course, move: Callable[[], Step]) -> Step:
        with self._lock:
            try:
                step = move()
            except StopIteration as stop:
                step = stop.value
            if isinstance(step, Wait):
                # Before anybody can be woken: a slot may become free before its carrier has begun to wait.
                course.ticket = self._waiting[id(step)] = self._ticket()
            self._wake()
        return step

    def _give_up(self, course: Course, wait: Wait) -> Step:
        """Nobody came in time; unless somebody did, a moment ago."""
        flow = course.flow

        def move() -> Step:
            late = self._waiting.pop(id(wait), None) is not None
            return flow.throw(TimeoutError()) if late else flow.send(None)

        return self._advance(course, move)

    def _close(self, course: Course, step: Step) -> None:
        with self._lock:
            self._waiting.pop(id(step), None)
            course.flow.close()
            self._wake()

    def _wake(self) -> None:
        for wait in self.model.woken():
            if (ticket := self._waiting.pop(id(wait), None)) is not None:
                ticket.set()


class Course:
    """One request's way through a backend. Whoever does not come to an `Answer` must `close` it."""

    __slots__ = ("_backend", "flow", "step", "ticket")

    def __init__(self, backend: Backend, flow: Flow) -> None:
        self._backend = backend
        self.flow = flow
        self.ticket: Any = None
        """With a step that waits: it is set when the turn has come."""

        self.step = backend._advance(self, lambda: flow.send(None))
        """What is to be done now."""

    def resume(self, outcome: Outcome | None = None) -> Step:
        """Go on with what came of the step."""
        flow = self.flow
        self.step = self._backend._advance(self, lambda: flow.send(outcome))
        return self.step

    def give_up(self) -> Step:
        """Go on after a wait that took until its end."""
        if not isinstance(self.step, Wait):
            raise TypeError(f"need a step that waits, got {self.step}")
        self.step = self._backend._give_up(self, self.step)
        return self.step

    def close(self) -> None:
        """Give back what it holds. Does nothing at its end."""
        if not isinstance(self.step, Answer):
            self._backend._close(self, self.step)
