"""Take the operator's signal inside a worker of hypercorn or granian, where no launcher can start them.

Both hide it from an app. hypercorn's worker has no handler and polls an event of its parent's; granian's sets
its handlers after the app was imported. So one function of theirs is replaced in the worker, by a private
name that our tests hold on to, and only for who asks: `Departure(in_workers=True)`.

A server that recycles a worker sends it the same signal, so health fails then, too, and hypercorn's parent
tells of a second signal nobody. `lbkit exec` has none of this.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from lbkit.signals import Chain

__all__ = ["adapted"]


def adapted(wants_old: Callable[[], bool]) -> Chain | None:
    """Come before what this worker's server does at a signal. None where neither of them runs."""
    if (granian := sys.modules.get("granian._signals")) is not None:
        return GranianChain(wants_old, granian)
    if (hypercorn := sys.modules.get("hypercorn.asyncio.run")) is not None:
        return HypercornChain(wants_old, hypercorn)
    return None


class GranianChain(Chain):
    """Granian sets a handler that sets its event; ours takes the handler's place and sets it later."""

    def __init__(self, wants_old: Callable[[], bool], granian: Any) -> None:
        super().__init__(wants_old)
        self._granian = granian
        self._of_loop, self._of_thread = granian.set_loop_signals, granian.set_sync_signals
        self._event: Any = None
        self._granian.set_loop_signals = self._set_loop_signals
        self._granian.set_sync_signals = self._set_sync_signals

    def remove(self) -> None:
        self._granian.set_loop_signals, self._granian.set_sync_signals = self._of_loop, self._of_thread

    def _set_loop_signals(self, loop: asyncio.AbstractEventLoop) -> Any:
        self._event = self._of_loop(loop)
        loop.add_signal_handler(signal.SIGTERM, self._handle)
        return self._event

    def _set_sync_signals(self) -> Any:
        self._event = self._of_thread()
        signal.signal(signal.SIGTERM, self._handle)
        return self._event

    def _handle(self, *_: object) -> None:
        if not self._is_for_us():
            self._event.set()


class HypercornChain(Chain):
    """Hypercorn waits in a coroutine until its parent has got the signal; ours waits on until it is time."""

    def __init__(self, wants_old: Callable[[], bool], hypercorn: Any) -> None:
        super().__init__(wants_old)
        self._hypercorn = hypercorn
        self._old = hypercorn.check_multiprocess_shutdown_event
        self._gone = False
        self._hypercorn.check_multiprocess_shutdown_event = self._wait

    def remove(self) -> None:
        self._hypercorn.check_multiprocess_shutdown_event = self._old

    def repeat(self) -> None:
        self._gone = True

    async def _wait(self, event: Any, sleep: Callable[[float], Awaitable[Any]]) -> None:
        await self._old(event, sleep)
        if self._is_for_us():
            while not self._gone:
                await sleep(0.05)
