"""Disk watch: a file that one replica wrote and another one read. On two machines it is not there."""

from __future__ import annotations

import os

from lbkit.testkit.findings import Finding, Oracle, Report
from lbkit.testkit.kit import Kit
from lbkit.testkit.opened import hook_in, watching
from lbkit.testkit.said import Opened, Said
from lbkit.testkit.spaces import current
from lbkit.testkit.turn import Served, Turn, Watcher

__all__ = ["DiskWatch"]

REMEDY = "storage that all replicas share (an object store, a database, a shared volume)"


class DiskWatch(Watcher):
    """Remembers who wrote which file, for the time of a test."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.found: dict[str, Finding] = {}
        self._written: dict[str, tuple[str, str]] = {}
        self._serving: Served | None = None

    def start(self) -> None:
        hook_in()
        watching.append(self)

    def stop(self) -> None:
        if self in watching:
            watching.remove(self)

    def before(self, served: Served) -> None:
        self._serving = served

    def after(self, _: Served) -> None:
        self._serving = None

    def over(self, _turn: Turn) -> None:
        self._written.clear()

    def opened(self, path: str, *, writes: bool) -> None:
        space, served = current(), self._serving
        if space is not None and served is not None:
            self._note(space.name, os.path.abspath(path), writes, served.request, served.turn)

    def heard(self, replica: str, said: Said, turn: Turn) -> None:
        if isinstance(said, Opened):
            self._note(replica, said.path, said.writes, f"{replica} {said.request}", turn)

    def _note(self, replica: str, path: str, writes: bool, request: str, turn: Turn) -> None:
        if writes:
            self._written[path] = (replica, request)
        elif path in self._written and self._written[path][0] != replica:
            self._read(replica, path, request, turn)

    def report(self, report: Report) -> None:
        report.findings += self.found.values()

    def _read(self, replica: str, path: str, request: str, turn: Turn) -> None:
        writer, written = self._written[path]
        folder, name = os.path.split(path)
        if self.kit.allows(name, turn):
            return
        self.found.setdefault(
            folder,
            Finding(
                oracle=Oracle.DISK,
                what=f"{replica} read {short(path)}, which {writer} wrote",
                requests=(written, request),
                tests=(turn.test,),
                remedy=REMEDY,
            ),
        )


def short(path: str) -> str:
    relative = os.path.relpath(path)
    return os.path.join(*path.split(os.sep)[-2:]) if relative.startswith("..") else relative
