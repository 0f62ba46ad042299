"""A limit of time that many requests share, for the price of one timer.

All of them have the same number of seconds, so that they are due in the order in which they began: only the
first one is waited for.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

__all__ = ["Limit"]


class Limited(Protocol):
    def too_late(self, task: asyncio.Task[Any]) -> None:
        """The time is over."""


class Limit:
    """Of one event loop. `seconds` from `begin` to `end`, or it is too late."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.loop = asyncio.get_running_loop()
        self._due: dict[Limited, tuple[float, asyncio.Task[Any]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, limited: Limited, task: asyncio.Task[Any]) -> None:
        """Its time begins, or begins anew. It runs in that task."""
        at = self.loop.time() + self.seconds
        self._due[limited] = (at, task)
        if self._timer is None:
            self._timer = self.loop.call_at(at, self._look)

    def end(self, limited: Limited) -> None:
        """It was in time, or is no longer asked. Twice does no harm."""
        self._due.pop(limited, None)

    def _look(self) -> None:
        self._timer = None
        now = self.loop.time()
        for limited, (at, task) in list(self._due.items()):
            if at > now:
                self._timer = self.loop.call_at(at, self._look)
                return
            del self._due[limited]
            limited.too_late(task)
