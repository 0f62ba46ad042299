"""What a cluster's replicas keep to themselves: memory that requests have changed, files that one wrote and
another one read.

Each replica's memory is pictured when it starts, and looked at when an assertion asks. Files are told by
Python's audit events, as long as the cluster is up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lbkit.testkit.first_party import projects_own
from lbkit.testkit.interpreter import Interpreter
from lbkit.testkit.opened import hook_in, watching
from lbkit.testkit.oracles.memory import Change, Picture
from lbkit.testkit.oracles.source import file_of, where
from lbkit.testkit.row import Row
from lbkit.testkit.said import Changed
from lbkit.testkit.spaces import Space, current

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["FileWatch", "MemoryElsewhere", "MemoryWatch", "Seen"]


class MemoryWatch:
    """The memory of one replica, since it was started."""

    def __init__(self, space: Space, app: Any) -> None:
        self._space = space
        self._picture = Picture(space.first_party, self._modules, lambda: [app])
        self._picture.take()
        self._found: dict[str, Change] = {}

    def changes(self) -> list[Change]:
        """One for each name: the last one."""
        self._found |= {change.name: change for change in self._picture.changes()}
        return list(self._found.values())

    def where(self, change: Change) -> str | None:
        """`file:line` of where it begins."""
        return where(file_of(self._modules().get(change.module)), change.path)

    def _modules(self) -> dict[str, ModuleType]:
        return projects_own(self._space.modules)


class MemoryElsewhere:
    """The same of a replica that is a process of its own, and looks at itself when it is asked."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._interpreter.changed()
        self._found: dict[str, Changed] = {}

    def changes(self) -> list[Change]:
        if self._interpreter.alive:
            self._found |= {each.change.name: each for each in self._interpreter.changed()}
        return [each.change for each in self._found.values()]

    def where(self, change: Change) -> str | None:
        return where(self._found[change.name].file, change.path)


@dataclass(frozen=True, slots=True)
class Seen:
    """A file that crossed from one replica to another."""

    path: str
    writer: str
    reader: str
    rows: tuple[Row, ...]
    """The request that wrote, and the one that read."""


class FileWatch:
    """Who wrote which file, and who else read it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._written: dict[str, tuple[str, Row | None]] = {}
        self.found: dict[str, Seen] = {}

    def start(self) -> None:
        hook_in()
        watching.append(self)

    def stop(self) -> None:
        if self in watching:
            watching.remove(self)

    def opened(self, path: str, *, writes: bool) -> None:
        """An audit event. Only of this cluster: another one has a web1 as well."""
        replica = self._ours()
        if replica is None:
            return
        path = os.path.abspath(path)
        if writes:
            self._written[path] = (replica, self._row(replica))
            return
        writer, row = self._written.get(path, (replica, None))
        if writer != replica and path not in self.found:
            rows = tuple(each for each in (row, self._row(replica)) if each is not None)
            self.found[path] = Seen(path, writer, replica, rows)

    def _ours(self) -> str | None:
        space = current()
        ours = self._cluster.replicas.get(space.name) if space is not None else None
        return ours.name if ours is not None and ours.space is space else None

    def _row(self, replica: str) -> Row | None:
        """The request that it is busy with: the last one that was given to it."""
        return next((row for row in reversed(self._cluster.trace) if row.replica == replica), None)
