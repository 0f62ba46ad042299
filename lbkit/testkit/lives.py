"""The lifespans of an app's replicas, under the one that its test client runs.

The first replica talks to the client itself, so that its lifespan is none of these. One that was killed has a
life of its own behind it: it hears no shutdown, and starts anew when it is asked again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lbkit.asgi.lifespan import Lifespan
from lbkit.testkit.fleet import AnyFleet
from lbkit.testkit.isolation import AsgiInside
from lbkit.types import Scope

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit

__all__ = ["Lifespans"]


class Lifespans:
    """Those that run now, by the number of the replica."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._scope: Scope = {}
        self._running: dict[int, Lifespan] = {}
        self._life: dict[int, int] = {}
        """Of each replica, which of its lives it was that began here."""

    def get(self, index: int) -> Lifespan | None:
        return self._running.get(index)

    async def start(self, fleet: AnyFleet, scope: Scope) -> None:
        """Start one after the other. When one fails, those before it are stopped again."""
        self._scope, self._reviving = scope, asyncio.Lock()
        try:
            for index in range(1, len(fleet.spaces)):
                await self._begin(fleet, index)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        self.bury()
        running, self._running = self._running, {}
        for index, lifespan in running.items():
            if not self._is_dead(index):
                await lifespan.shutdown()

    def bury(self) -> None:
        """Whose replica was killed ends without a word."""
        for index in filter(self._is_dead, self._running):
            self._running[index].cancel()

    async def revive(self, fleet: AnyFleet, index: int) -> None:
        """A replica that was killed is asked again: it needs a new lifespan, if it had one."""
        if self._is_dead(index):
            async with self._reviving:
                if self._is_dead(index):
                    await self._begin(fleet, index)

    def _is_dead(self, index: int) -> bool:
        return index in self._running and self._life[index] != self._kit.deaths.count[index]

    async def _begin(self, fleet: AnyFleet, index: int) -> None:
        space, life = fleet.spaces[index], self._kit.deaths.count[index]
        lifespan = Lifespan(space.name, AsgiInside(space, fleet.app(index)))
        await lifespan.startup(self._scope)
        self._running[index], self._life[index] = lifespan, life
