"""One carrier for each event loop, because connections cannot leave theirs; closed before its loop is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["Carriers"]


class Closing(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=Closing)


class Carriers(Generic[C]):
    """`make` makes the carrier for a loop that has none."""

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._of: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[C, AsyncGenerator[None, None]]]
        self._of = WeakKeyDictionary()
        self._latest: tuple[asyncio.AbstractEventLoop | None, C | None] = None, None

    def known(self) -> C | None:
        """The carrier of this loop, if it has one already."""
        loop = asyncio.get_running_loop()
        latest, carrier = self._latest
        if loop is not latest:
            carrier, _ = self._of.get(loop, (None, None))
        return carrier

    async def here(self) -> C:
        loop = asyncio.get_running_loop()
        if (known := self.known()) is not None:
            return known
        carrier = self._make()
        tether = self._tether(loop, carrier)
        self._of[loop] = carrier, tether
        self._latest = loop, carrier
        await anext(tether)
        return carrier

    async def close(self) -> None:
        if (found := self._of.get(asyncio.get_running_loop())) is not None:
            await found[1].aclose()

    async def _tether(self, loop: asyncio.AbstractEventLoop, carrier: C) -> AsyncGenerator[None, None]:
        """A loop that ends closes the generators begun in it: whoever forgets us leaves no socket open."""
        try:
            yield
        finally:
            self._of.pop(loop, None)
            self._latest = None, None
            await carrier.close()
