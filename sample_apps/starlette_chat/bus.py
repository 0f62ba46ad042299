"""The bus: everybody in a room hears everybody, whichever replica holds their connection.

Each replica tails the shared file: one task looks at the newest id, and wakes the local listeners
when it has moved. A listener is nothing but the id of the last event it has seen. Live, resumed
after a break, or slow on a bad line are one and the same: read what comes after my id. So there is
no queue that could overflow, and none that a lost connection could leave behind.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.to_thread import run_sync

from .store import Event, Store

__all__ = ["Bus"]

logger = logging.getLogger("starlette_chat")


class Bus:
    """`poll` and `beat` are seconds: how often to look for news, and to say that this replica lives."""

    def __init__(self, store: Store, *, poll: float = 0.05, beat: float = 5.0) -> None:
        self.store = store
        self.poll = poll
        self.beat = beat
        self.seats = 0
        self.closed = False
        self._head = -1
        self._news = anyio.Event()
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Tail the file until cancelled. A file that is away for a while is tried again."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._every, self.poll, self._look)
            tasks.start_soon(self._every, self.beat, self._beat)

    async def close(self, *, grace: float = 2.0) -> None:
        """End every `follow`, and wait up to `grace` seconds until the seats are empty."""
        self.closed = True
        self._wake()
        with anyio.move_on_after(grace):
            while self.seats:
                await self._changed.wait()

    async def say(self, room: str, author: str, text: str) -> Event:
        return await run_sync(self.store.say, room, author, text)

    async def people(self, room: str) -> list[tuple[str, str]]:
        return await run_sync(self.store.people, room)

    @asynccontextmanager
    async def seat(self, room: str, name: str) -> AsyncIterator[None]:
        """Be in the room, and listen, for as long as the block lasts, however it ends."""
        seat = secrets.token_hex(8)
        self._count(+1)
        try:
            await run_sync(self.store.join, seat, room, name)
            yield
        finally:
            # A client that hung up cancels us, and a cancelled task may not wait for anything: but for this.
            with anyio.CancelScope(shield=True):
                await run_sync(self._leave, seat)
            self._count(-1)

    async def follow(self, room: str, *, last: int | None, idle: float) -> AsyncIterator[list[Event]]:
        """From inside a `seat`: events after the id `last`, in batches; for None, the latest and then on.

        An empty batch after `idle` seconds without news, so that the caller can see who has hung up.
        """
        if last is None or last > await run_sync(self.store.head):  # or the file was begun anew
            events = await run_sync(self.store.latest, room)
            last = events[-1].id if events else 0
            yield events
        while not self.closed:
            news = self._news  # taken before the read: what comes after it wakes us
            events = await run_sync(self.store.after, room, last)
            if not events:
                with anyio.move_on_after(idle):
                    await news.wait()
                    continue
            last = events[-1].id if events else last
            yield events

    def _count(self, change: int) -> None:
        self.seats += change
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _leave(self, seat: str) -> None:
        try:
            self.store.leave(seat)
        except sqlite3.Error as error:
            logger.warning("a seat stays until it expires: %s", error)

    async def _beat(self) -> None:
        await run_sync(self.store.beat)

    async def _look(self) -> None:
        while not self.seats:  # nobody listens: nothing to look for
            await self._changed.wait()
        head = await run_sync(self.store.head)
        if head != self._head:
            self._head = head
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await act()
            except sqlite3.Error as error:
                logger.warning("cannot use %s: %s", self.store.path.name, error)
                await anyio.sleep(1.0)
            await anyio.sleep(seconds)
