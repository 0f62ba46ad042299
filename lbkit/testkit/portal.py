"""An event loop in a thread of its own: where a cluster's ASGI replicas live, however they are called."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from lbkit.errors import ConfigError

__all__ = ["Portal"]

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that tasks have to end when the loop is closed."""


class Portal:
    def __init__(self, *, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    @property
    def here(self) -> bool:
        """Is the caller on this very loop?"""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait. Refused on the loop itself, which would wait for itself."""
        if self.here:
            work.close()
            raise ConfigError(
                "need `await` and the name with an a before it (akill, adrain, ...) inside the replicas' loop"
            )
        return self.submit(work).result()

    def close(self) -> None:
        """Cancel what still runs, wait for it, and end the thread."""
        if self.closed:
            return
        try:
            self.submit(self._settle()).result(PATIENCE * 2)
        except FutureTimeout:
            return  # a blocked thread cannot be ended: it is a daemon, and ends with the process
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        if not self._thread.is_alive():
            self.loop.close()

    async def _settle(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)
        await self.loop.shutdown_asyncgens()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
