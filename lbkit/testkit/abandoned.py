"""Apps that run on after their replica was given up. Nobody is left who would want to know how they end."""

from __future__ import annotations

import asyncio

__all__ = ["Abandoned"]


class Abandoned:
    """Keeps their tasks until they are done: a loop holds none itself."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def leave(self, task: asyncio.Task[None]) -> None:
        """Let it run on."""
        self.tasks.add(task)
        task.add_done_callback(self._gone)

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Its replica is dead, and so is it."""
        task.cancel()
        self.leave(task)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()
