"""The lifespan of one replica, driven by us instead of a server.

The protocol: asgi.readthedocs.io/en/latest/specs/lifespan.html. An app that knows no lifespan raises
or returns before it answers; that is no failure, as uvicorn's `--lifespan auto` has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from lbkit.errors import StartupError
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Lifespan", "Lifespans"]

logger = logging.getLogger("lbkit.balancer")

SILENT = "lbkit.silent"
"""Our own message: the app's call is over and there is no answer."""

LAST_WORDS = 1.0
"""Seconds that a replica whose startup failed has to return. Starlette raises at once."""


class Lifespan:
    """Starts and stops one replica. Both run in one task, as an anyio cancel scope needs."""

    def __init__(self, name: str, app: ASGIApp) -> None:
        self.name = name
        self.app = app
        self.state: dict[str, Any] = {}
        """What the app put into `scope["state"]`; each of its requests gets a copy."""

        self._task: asyncio.Task[None] | None = None

    async def startup(self, scope: Scope) -> None:
        """Raises StartupError when the app says that it failed."""
        self.state.clear()
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        inner = {**scope, "state": self.state}
        self._task = asyncio.create_task(self._run(inner), name=f"lbkit lifespan of {self.name}")
        try:
            answer = await self._ask("lifespan.startup")
        except asyncio.CancelledError:
            self.cancel()
            raise
        if answer["type"] == "lifespan.startup.failed":
            raise StartupError(self.name, await self._reason(self._task, answer))
        if answer["type"] == SILENT:
            await asyncio.wait({self._task})
            logger.debug(
                "replica %s knows no lifespan (%s)", self.name, self._error(self._task) or "it returned"
            )
            self._task = None

    async def shutdown(self) -> str | None:
        """Returns what went wrong, if anything did. Does nothing for an app that is not running."""
        if self._task is None:
            return None
        if self._task.done():
            return self._error(self._task)
        answer = await self._ask("lifespan.shutdown")
        if answer["type"] == "lifespan.shutdown.failed":
            return await self._reason(self._task, answer)
        await asyncio.wait({self._task})
        return self._error(self._task)

    def cancel(self) -> None:
        """Stop without a word, as the server that is stopped in this way itself."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, scope: Scope) -> None:
        try:
            await self.app(scope, self._to_app.get, self._from_app.put)
        finally:
            # Whoever waits for an answer learns that none will come.
            self._from_app.put_nowait({"type": SILENT})

    async def _ask(self, question: str) -> Message:
        self._to_app.put_nowait({"type": question})
        return await self._from_app.get()

    async def _reason(self, task: asyncio.Task[None], answer: Message) -> str:
        """The exception that the app raised, or else its own message; Starlette's is a whole traceback."""
        await asyncio.wait({task}, timeout=LAST_WORDS)
        task.cancel()
        return self._error(task) or str(answer.get("message", "")).strip() or "it gave no reason"

    @staticmethod
    def _error(task: asyncio.Task[None]) -> str | None:
        if not task.done() or task.cancelled():
            return None
        error = task.exception()
        return f"{type(error).__name__}: {error}" if error else None


class Lifespans:
    """One lifespan towards the server, made of several: those that `current` gives, by name.

    They are asked for each time, for a replica that was restarted has another one.
    """

    def __init__(self, current: Callable[[], Mapping[str, Lifespan]]) -> None:
        self._current = current

    async def live(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Answer the server's lifespan. `beside` runs between its startup and its shutdown."""
        await receive()
        try:
            await self._start_all(scope)
        except StartupError as error:
            logger.error("%s", error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        running = asyncio.create_task(beside()) if beside is not None else None
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        except BaseException:
            for lifespan in self._current().values():
                lifespan.cancel()
            raise
        finally:
            if running is not None:
                running.cancel()
        if failures := await self._stop_all():
            await send({"type": "lifespan.shutdown.failed", "message": "; ".join(failures)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _start_all(self, scope: Scope) -> None:
        """One after another, as a rolling start does. The ones before a failed one are stopped again."""
        try:
            for lifespan in self._current().values():
                await lifespan.startup(scope)
        except BaseException:
            await self._stop_all()
            raise

    async def _stop_all(self) -> list[str]:
        results = [(name, await lifespan.shutdown()) for name, lifespan in self._current().items()]
        return [f"replica {name} failed to shut down: {reason}" for name, reason in results if reason]
