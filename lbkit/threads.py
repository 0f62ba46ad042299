"""Daemon threads: blocking code runs beside the server and never keeps the process alive.

`concurrent.futures` joins its threads when the interpreter exits, so a single hung call there
holds the exit for as long as it hangs. These threads are daemons, made when they are needed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread

from lbkit.errors import ConfigError

__all__ = ["DaemonThreads"]


class DaemonThreads:
    """Up to `limit` daemon threads; a call that finds all of them busy waits in line.

    A call must not raise: its thread would end. The threads end with this object, once every call
    has run. Correct after `fork`, which copies no threads.
    """

    def __init__(self, *, limit: int, name: str) -> None:
        if limit < 1:
            raise ConfigError(f"need limit >= 1, got limit={limit}")
        self.limit = limit
        self.name = name
        self._hire()

    def submit(self, call: Callable[[], object]) -> None:
        """Run `call` on one of the threads, soon."""
        if self._pid != os.getpid():
            self._hire()
        self._crew.submit(call)

    def _hire(self) -> None:
        # After a fork all of it is new: the fork may have caught the lock held by a thread that is not here.
        self._pid = os.getpid()
        self._crew = Crew(self.limit, self.name)
        weakref.finalize(self, self._crew.dismiss).atexit = False


class Crew:
    """The threads and their queue. They know each other, and not the object that is given away."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = Lock()
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._started = self._idle = self._waiting = 0

    def submit(self, call: Callable[[], object]) -> None:
        with self._lock:
            self._waiting += 1
            if self._waiting > self._idle and self._started < self._limit:
                self._started += 1
                self._idle += 1
                Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        self._calls.put(call)

    def dismiss(self) -> None:
        """No lock: the garbage collector may call this in the middle of `submit`."""
        for _ in range(self._started):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._count(-1)
            call()
            del call  # an idle thread must not keep the last request alive
            self._count(+1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._idle += change
            if change < 0:
                self._waiting -= 1
