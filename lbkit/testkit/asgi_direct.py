"""A request that nothing goes wrong with, in a suite's run: it stays in the task of its client.

So nothing is different for it from a run in which nothing can go wrong: not its context, nor when it is
cancelled. If its replica dies meanwhile, that task is cancelled, and no further than here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lbkit.asgi.task import forgive
from lbkit.testkit.asgi_call import BODIES, SERVICE_RESTART, STARTS, fault_of
from lbkit.testkit.row import Attempt
from lbkit.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from lbkit.testkit.backend import Backend

__all__ = ["Direct"]


class Direct:
    told = True

    def __init__(
        self,
        replica: Backend,
        attempt: Attempt,
        receive: Receive,
        send: Send,
        *,
        websocket: bool,
        delay: float = 0.0,
    ) -> None:
        self._replica = replica
        self._attempt = attempt
        self._receive = receive
        self._send = send
        self._websocket = websocket
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._complete = False
        self._error: OSError | None = None

    def kill(self, error: OSError) -> None:
        """The process is gone, and the connection with it. From any thread."""
        self._loop.call_soon_threadsafe(self._die, error)

    def _die(self, error: OSError) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._error = error
            task.cancel()

    async def run(self, scope: Scope) -> None:
        try:
            if self._delay:
                await asyncio.sleep(self._delay)
            self._attempt.ran = True
            await self._replica.asgi(scope, self._receive, self.send)
        except asyncio.CancelledError:
            if self._error is None:
                raise
        except Exception as error:
            if self._error is None:
                self._attempt.fault = fault_of(error)
                raise
        finally:
            self._task = None
        if self._error is not None:
            forgive(asyncio.current_task())
            await self._broken(self._error)

    async def _broken(self, error: OSError) -> None:
        if self._complete:
            return  # only a background task was lost
        self._attempt.fault = "reset"
        if self._websocket and self._attempt.status == 101:
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": str(error)})
            return
        raise error

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in STARTS:
            self._attempt.status = message.get("status", 101)
        ends = kind in BODIES and not message.get("more_body")
        self._complete = self._complete or ends or kind == "websocket.close"
        await self._send(message)
