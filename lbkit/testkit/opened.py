"""Who opens which file, told by Python's audit events: any `open` counts, whoever calls it.

An audit hook cannot be taken out again; this one is put in once for a process, and does nothing when nobody
watches.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol

__all__ = ["hook_in", "watching"]

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
IGNORED_ENDS = (".pyc", ".pyo", ".log")
IGNORED_PLACES = ("/dev/", "/proc/")


class Watch(Protocol):
    """Who wants to know, and finds out for itself on whose behalf this thread is running."""

    def opened(self, path: str, *, writes: bool) -> None: ...


watching: list[Watch] = []
hooked: list[bool] = []


def hook_in() -> None:
    if not hooked:
        sys.addaudithook(hook)
        hooked.append(True)


def hook(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or not watching or not isinstance(args[0], (str, bytes)):
        return
    path, flags = os.fsdecode(args[0]), args[2]
    if not path.endswith(IGNORED_ENDS) and not path.startswith(IGNORED_PLACES):
        for each in watching:
            each.opened(path, writes=isinstance(flags, int) and bool(flags & WRITES))
