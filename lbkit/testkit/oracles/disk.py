"""Disk watch: a file that one replica wrote and another one read. On two machines it is not there.

Told by Python's audit events, so that any `open` counts, whoever calls it. An audit hook cannot be taken out
again; this one is put in once for a process, and does nothing when nobody watches.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol

from lbkit.testkit.findings import Finding, Oracle, Report
from lbkit.testkit.kit import Kit
from lbkit.testkit.spaces import current
from lbkit.testkit.turn import Served, Turn, Watcher

__all__ = ["IGNORED", "WRITES", "DiskWatch", "hook_in", "watching"]

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
REMEDY = "storage that all replicas share (an object store, a database, a shared volume)"
IGNORED = (".pyc", ".pyo", ".log")


class Opened(Protocol):
    """Who wants to know which replica opens what."""

    def opened(self, replica: str, path: str, flags: Any) -> None: ...


watching: list[Opened] = []
hooked: list[bool] = []


def hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and watching and isinstance(args[0], (str, bytes)):
        space = current()
        if space is not None:
            for each in watching:
                each.opened(space.name, os.fsdecode(args[0]), args[2])


def hook_in() -> None:
    """Once for a process: it cannot be taken out again."""
    if not hooked:
        sys.addaudithook(hook)
        hooked.append(True)


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

    def opened(self, replica: str, path: str, flags: Any) -> None:
        served = self._serving
        if served is None or path.endswith(IGNORED) or path.startswith(("/dev/", "/proc/")):
            return
        path = os.path.abspath(path)
        if isinstance(flags, int) and flags & WRITES:
            self._written[path] = (replica, served.request)
        elif path in self._written and self._written[path][0] != replica:
            self._read(replica, path, served)

    def report(self, report: Report) -> None:
        report.findings += self.found.values()

    def _read(self, replica: str, path: str, served: Served) -> None:
        writer, request = self._written[path]
        folder, name = os.path.split(path)
        if self.kit.allows(name, served.turn):
            return
        self.found.setdefault(
            folder,
            Finding(
                oracle=Oracle.DISK,
                what=f"{replica} read {short(path)}, which {writer} wrote",
                requests=(request, served.request),
                tests=(served.turn.test,),
                remedy=REMEDY,
            ),
        )


def short(path: str) -> str:
    relative = os.path.relpath(path)
    return os.path.join(*path.split(os.sep)[-2:]) if relative.startswith("..") else relative
