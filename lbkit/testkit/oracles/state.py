"""State watch: memory of one replica that a request has changed, whether or not a test minds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lbkit.testkit.findings import Finding, Oracle, Report
from lbkit.testkit.first_party import projects_own
from lbkit.testkit.oracles.memory import Change, Picture
from lbkit.testkit.oracles.source import file_of, where
from lbkit.testkit.said import Changed, Said
from lbkit.testkit.spaces import SWITCH, Space
from lbkit.testkit.turn import Served, Turn, Watcher

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit

__all__ = ["StateWatch"]

REMEDIES = (
    (r"session|cart|basket|user|login|token", "a session in Redis (lbkit's sessions), or sticky clients"),
    (r"limit|fail|attempt|count|hits|quota|bucket|window", "a counter that all replicas share (Redis INCR)"),
    (r"cache|memo", "a shared cache (Redis), or a short ttl and `stateful_ok` if stale answers are fine"),
    (
        r"room|conn|socket|subscri|client|listener|channel|queue",
        "publish through Redis, so that each replica tells its own",
    ),
)
OTHERWISE = "a store that all replicas share (a database, Redis), or sticky clients if it is theirs alone"
MOST_TOLD = 3


class StateWatch(Watcher):
    """Looks at the memory of a replica before and after it serves."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.found: dict[str, Found] = {}
        self._written: dict[str, list[str]] = {}
        self._apps: dict[Space, list[Any]] = {}
        self._pictures: dict[Space, Picture] = {}
        self._fresh: set[Space] = set()

    def before(self, served: Served) -> None:
        # A test may have changed anything between two requests: only what happens from now on is the app's.
        if served.space not in self.kit.spaces:
            return  # a process of its own: it watches itself, or is out of sight
        if served.space not in self._pictures:
            self._add(served.space)
        self._chosen(served.space, served.app)
        picture = self._pictures[served.space]
        if served.space not in self._fresh:
            picture.take()
            self._fresh.add(served.space)
        else:
            picture.changes()

    def during(self, served: Served) -> None:
        self._look(served)

    def after(self, served: Served) -> None:
        self._look(served)

    def died(self, space: Space) -> None:
        self._fresh.discard(space)  # a request that its death has cut ends later, and has changed nothing

    def heard(self, replica: str, said: Said, turn: Turn) -> None:
        if isinstance(said, Changed):
            self._note(said.change, said.file, f"{replica} {said.request}", turn)

    def _add(self, space: Space) -> None:
        self._apps[space] = []
        self._pictures[space] = Picture(self.kit.first_party, self._modules(space), self._of(space))

    def _chosen(self, space: Space, app: Any) -> None:
        if not any(each is app for each in self._apps[space]):
            self._apps[space] = [app]
            self._fresh.discard(space)

    def written_in(self, test: str) -> list[str]:
        """What the requests of a test have changed, with the request."""
        return self._written.get(test, [])[:MOST_TOLD]

    def report(self, report: Report) -> None:
        report.findings += [found.finding() for found in self.found.values()]

    def _look(self, served: Served) -> None:
        picture = self._pictures.get(served.space) if served.space in self._fresh else None
        for change in picture.changes() if picture is not None else ():
            file = file_of(self._modules(served.space)().get(change.module))
            self._note(change, file, str(served), served.turn)

    def _note(self, change: Change, file: str | None, request: str, turn: Turn) -> None:
        if self.kit.allows(change.name, turn):
            return
        self.found.setdefault(change.name, Found(change, file)).add(request, turn.test)
        written = f"{change.name} ({change.how}), written by {request}"
        self._written.setdefault(turn.test, []).append(written)

    def _modules(self, space: Space) -> Callable[[], dict[str, ModuleType]]:
        def modules() -> dict[str, ModuleType]:
            found = SWITCH.own_modules(space.first_party) if space.own else space.modules
            return projects_own(found)

        return modules

    def _of(self, space: Space) -> Callable[[], Iterable[Any]]:
        return lambda: self._apps[space]


class Found:
    """One place, and the requests that have changed it."""

    def __init__(self, change: Change, file: str | None) -> None:
        self.change = change
        self.where = where(file, change.path)
        self.times = 0
        self.requests: list[str] = []
        self.tests: list[str] = []

    def add(self, request: str, test: str) -> None:
        self.times += 1
        for said, told in ((request, self.requests), (test, self.tests)):
            if said not in told and len(told) < MOST_TOLD:
                told.append(said)

    def finding(self) -> Finding:
        return Finding(
            oracle=Oracle.STATE,
            what=f"{self.change.name} ({self.change.how})",
            where=self.where,
            requests=tuple(self.requests),
            tests=tuple(self.tests),
            times=self.times,
            remedy=remedy(self.change.name),
        )


def remedy(name: str) -> str:
    last = name.rpartition(".")[2].lower()
    for pattern, told in REMEDIES:
        if re.search(pattern, last):
            return told
    return next((told for pattern, told in REMEDIES if re.search(pattern, name.lower())), OTHERWISE)
