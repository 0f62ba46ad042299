"""Daemon threads: blocking code runs beside the server and never keeps the process alive.

`concurrent.futures` joins its threads when the interpreter exits, so a single hung call there
holds the exit for as long as it hangs. These threads are daemons, made when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread

from lbkit.errors import ConfigError

__all__ = ["DaemonThreads"]


class DaemonThreads:
    """Up to `limit` daemon threads; a call that finds all of them busy waits in line.

    A call must not raise: its thread would end. Correct after `fork`, which copies no threads.
    """

    def __init__(self, *, limit: int, name: str) -> None:
        if limit < 1:
            raise ConfigError(f"need limit >= 1, got limit={limit}")
        self.limit = limit
        self.name = name
        self._reset()

    def submit(self, call: Callable[[], object]) -> None:
        """Run `call` on one of the threads, soon."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            self._waiting += 1
            if self._waiting > self._idle and self._started < self.limit:
                self._started += 1
                self._idle += 1
                name = f"{self.name}-{self._started}"
                Thread(target=self._work, args=(self._calls,), name=name, daemon=True).start()
        self._calls.put(call)

    def _reset(self) -> None:
        self._pid = os.getpid()
        # A new lock: the fork may have caught the old one held by a thread that is not here.
        self._lock = Lock()
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._started = self._idle = self._waiting = 0

    def _work(self, calls: SimpleQueue[Callable[[], object]]) -> None:
        while True:
            call = calls.get()
            self._count(-1)
            call()
            del call  # an idle thread must not keep the last request alive
            self._count(+1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._idle += change
            if change < 0:
                self._waiting -= 1
