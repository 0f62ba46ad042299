"""An ASGI app that lives on one loop, for callers on another: each message goes from the one to the other."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any, TypeVar

from lbkit.testkit.portal import Portal
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Hop"]

T = TypeVar("T")


class Hop:
    """Whoever is cancelled here cancels the app there, and does not wait for it to end."""

    def __init__(self, app: ASGIApp, portal: Portal) -> None:
        self._app = app
        self._portal = portal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._portal.here:
            await self._app(scope, receive, send)
            return
        here = asyncio.get_running_loop()

        async def fetch() -> Message:
            return await receive()

        async def give(message: Message) -> None:
            await send(message)

        async def receiving() -> Message:
            return await across(fetch(), here)

        async def sending(message: Message) -> None:
            await across(give(message), here)

        async def call() -> None:
            await self._app(scope, receiving, sending)

        await asyncio.wrap_future(self._portal.submit(call()))


async def across(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run it on the client's loop. An OSError when that is closed: the client left without a word."""
    try:
        result = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise OSError("the client's loop is closed") from None
    try:
        return await asyncio.wrap_future(result)
    finally:
        if loop.is_closed() and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
            work.close()
