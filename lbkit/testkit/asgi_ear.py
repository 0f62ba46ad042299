"""The client of one ASGI call, as its replica hears it: what it says, and that it leaves.

An app may ask for each message itself. Once it has taken the request in, or is in the midst of its answer, we
listen in its place: a server, too, notices that a client leaves while the app only talks.
"""

from __future__ import annotations

import asyncio

from lbkit.types import Message, Receive

__all__ = ["Ear"]

GOODBYES = ("http.disconnect", "websocket.disconnect")


class Ear:
    """Hears the client. A call that is never listened for costs no task."""

    def __init__(self, receive: Receive, *, websocket: bool) -> None:
        self.gone = False
        """The client has left before it had the whole answer."""

        self.answered = False
        """It has had it: whoever leaves now only leaves."""

        self._receive = receive
        self._websocket = websocket
        self._asking = False
        self._heard: asyncio.Queue[Message] = asyncio.Queue()
        self._listening: asyncio.Task[None] | None = None

    @property
    def goodbye(self) -> Message:
        if self._websocket:
            return {"type": "websocket.disconnect", "code": 1006}
        return {"type": "http.disconnect"}

    async def next(self) -> Message:
        if self._listening is not None:
            over = self._listening.done() and self._heard.empty()
            return self.goodbye if over else await self._heard.get()
        self._asking = True
        try:
            return self._noted(await self._receive())
        finally:
            self._asking = False

    def listen(self) -> None:
        """From now on, whether the app asks or not."""
        if self._listening is None and not self._asking:
            self._listening = asyncio.get_running_loop().create_task(self._listen())

    def cut(self) -> None:
        """The connection is lost: an app that waits for a message learns it."""
        self._heard.put_nowait(self.goodbye)

    def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    async def _listen(self) -> None:
        message: Message = {}
        while message.get("type") not in GOODBYES:
            try:
                message = self._noted(await self._receive())
            except OSError:
                message = self._noted(self.goodbye)
            self._heard.put_nowait(message)

    def _noted(self, message: Message) -> Message:
        self.gone = self.gone or (message["type"] in GOODBYES and not self.answered)
        return message
