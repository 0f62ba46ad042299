"""One test of a run over replicas, one request of it, and who looks at them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lbkit.testkit.danger import Danger
from lbkit.testkit.findings import Report, Row
from lbkit.testkit.spaces import Space
from lbkit.testkit.trace import Trace

if TYPE_CHECKING:
    from lbkit.testkit.fleet import Fleet
    from lbkit.testkit.said import Said

__all__ = ["Served", "Turn", "Watcher"]


@dataclass(slots=True)
class Turn:
    """One test: where its round robin starts, and which replicas it has reached."""

    test: str = ""
    next: int = 0
    single: bool = False
    policy: str = ""
    replicas: int = 0
    """How many; 0: as many as the run has. So with `isolation`."""

    isolation: str = ""
    allow: tuple[str, ...] = ()
    cloned: bool = False
    """Whether it has asked an app whose replicas are other processes."""

    reached: set[str] = field(default_factory=set)
    rows: list[Row] = field(default_factory=list)
    danger: Danger | None = None
    """What may go wrong with its requests; None: nothing."""

    trace: Trace = field(default_factory=Trace)
    """Its requests while something may go wrong; else they are in `rows`."""

    chance: random.Random = field(default_factory=random.Random)


@dataclass(slots=True)
class Served:
    """One request, while it is served and after."""

    space: Space
    app: Any
    own: Any
    """The test process's own app, of which `app` is a replica."""

    method: str
    path: str
    turn: Turn
    began_at: float
    status: int | None = None
    headers: Iterable[Any] = ()
    replay: Callable[[int], Any] | None = None
    """Ask replica number N the same once more; None for what cannot be asked again."""

    @property
    def request(self) -> str:
        return f"{self.space.name} {self.method} {self.path}"

    def __str__(self) -> str:
        return f"{self.request} {'-' if self.status is None else self.status}"


class Watcher:
    """An oracle that looks at each request. The verbs do nothing here."""

    def before(self, served: Served, /) -> None: ...

    def during(self, served: Served, /) -> None: ...

    def after(self, served: Served, /) -> None: ...

    def made(self, own: Any, /) -> None: ...

    def making(self, own: Any, space: Space, /) -> None: ...

    def booted(self, fleet: Fleet, space: Space, app: Any, /) -> None: ...

    def died(self, space: Space, /) -> None: ...

    def heard(self, replica: str, said: Said, turn: Turn, /) -> None: ...

    def over(self, turn: Turn, /) -> None: ...

    def report(self, report: Report, /) -> None: ...
