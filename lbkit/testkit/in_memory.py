"""`sqlite3.connect(":memory:")`, as suites use it in place of the database that all replicas share.

The first such database of an app is the same one for each of its replicas, and so is the second: else every
test with an in-memory database would find "no such table" on two of three. One that a module connects to
while it is imported stays each replica's own, as it would in production.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lbkit.testkit.findings import Report
from lbkit.testkit.recipes import private_frames
from lbkit.testkit.spaces import Space, current
from lbkit.testkit.turn import Served, Watcher

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit

__all__ = ["InMemory"]


class InMemory(Watcher):
    """Gives replicas the in-memory databases of the test process's app."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.shared: set[str] = set()
        self.used_by: set[str] = set()
        """Tests that connected to one. Forked replicas have copies of it, and cannot agree."""

        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._latest = 0
        self._serves: dict[Space, int] = {}
        self._counts: Counter[tuple[int, str]] = Counter()
        for module in ("sqlite3", "sqlite3.dbapi2"):
            kit.patches.when_imported(module, self._put_under)

    def made(self, own: Any) -> None:
        """The test process has a new app."""
        self._latest += 1
        self._numbers[own] = self._latest

    def making(self, own: Any, space: Space) -> None:
        """A replica's app is being made, or asked."""
        self._serves[space] = self._numbers.get(own, 0)

    def died(self, space: Space) -> None:
        """It finds the databases of the app again: they were not in its memory."""
        for key in [key for key in self._counts if key[1] == space.name]:
            del self._counts[key]

    def before(self, served: Served) -> None:
        self.making(served.own, served.space)

    def report(self, report: Report) -> None:
        report.shared_databases = len(self.shared)

    def _put_under(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            def connect(database: Any, *args: Any, **kwargs: Any) -> Any:
                if database == ":memory:":
                    self.used_by.add(self.kit.turn.test)
                name = self._name(sys._getframe(1)) if database == ":memory:" else None
                if name is None:
                    return original(database, *args, **kwargs)
                connection = original(name, *args, **{**kwargs, "uri": True})
                # Else a cursor that one replica left open would lock a table for the others.
                connection.execute("PRAGMA read_uncommitted = 1").close()
                return connection

            return connect

        self.kit.patches.replace(module, "connect", make)

    def _name(self, frame: Any) -> str | None:
        """The shared name of the next in-memory database of whoever connects; None for one of its own."""
        space = current()
        frames = list(private_frames(frame, self.kit.first_party))
        if any(each.f_code.co_name == "<module>" for each in frames) or (space is None and not frames):
            return None
        number = self._latest if space is None else self._serves.get(space, 0)
        if not number:
            return None
        who = self.kit.spaces[0].name if space is None else space.name
        self._counts[number, who] += 1
        name = f"file:lbkit-{os.getpid()}-{number}-{self._counts[number, who]}?mode=memory&cache=shared"
        self.shared.add(name)
        return name
