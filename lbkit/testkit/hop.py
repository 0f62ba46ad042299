"""An ASGI app that lives on one loop, for callers on another: each message goes from the one to the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
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

        async def receiving() -> Message:
            return await across(receive, here)

        async def sending(message: Message) -> None:
            await across(partial(send, message), here)

        async def call() -> None:
            await self._app(scope, receiving, sending)

        await asyncio.wrap_future(self._portal.submit(call()))


async def across(ask: Callable[[], Awaitable[T]], loop: asyncio.AbstractEventLoop) -> T:
    """Ask it on the client's loop. An OSError when that is closed: the client left without a word.

    The coroutine is made over there: one that is made here, and that a loop which ends never begins, would
    leave a warning behind, as with `asyncio.run_coroutine_threadsafe`.
    """
    result: Future[T] = Future()

    async def work() -> T:
        return await ask()

    def begin() -> None:
        if result.cancelled():
            return
        task = loop.create_task(work())
        task.add_done_callback(lambda done: _settle(result, done))
        result.add_done_callback(lambda _: _cancel(task) if result.cancelled() else None)

    try:
        loop.call_soon_threadsafe(begin)
    except RuntimeError:
        raise OSError("the client's loop is closed") from None
    return await asyncio.wrap_future(result)


def _settle(result: Future[T], done: asyncio.Task[T]) -> None:
    """On the client's loop."""
    if done.cancelled():
        result.cancel()
    if not result.set_running_or_notify_cancel():
        return
    if (error := done.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())


def _cancel(task: asyncio.Task[Any]) -> None:
    """On the app's loop, or on the client's. One that is closed has cancelled its tasks."""
    with suppress(RuntimeError):
        task.get_loop().call_soon_threadsafe(task.cancel)
