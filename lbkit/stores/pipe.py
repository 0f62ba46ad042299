"""One connection to one Redis server, which all requests of an event loop share.

What is asked in one turn of the loop leaves in one write, and replies come in the order of the questions.
That order is all there is to know which reply is whose, so it is never disturbed: a request that is cancelled
leaves its place in the queue, where its reply is thrown away; and when a reply does not come in time, or is
no Redis protocol, the connection ends with everything that is on it. The next question opens another one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any

from lbkit.errors import StoreUnavailable
from lbkit.stores.dialogue import Broken, Call, arun, refused, scanned
from lbkit.stores.location import Location
from lbkit.stores.wire import PROTOCOL_3, failure, greeting, hiredis, keep_alive

__all__ = ["Pipe"]


class Pipe:
    """Carries calls over one connection, opened by the first. `timeout` bounds each answer, in seconds."""

    def __init__(self, place: Location, *, timeout: float) -> None:
        self.name = str(place)
        self._place = place
        self._timeout = timeout
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._asking: set[asyncio.Future[Any]] = set()

    def ask(self, call: Call) -> Awaitable[Any]:
        """Sent before it is awaited, if there is a connection."""
        link = self._link
        return self._ask_first(call) if link is None or link.lost else link.send(call.commands)

    def _ask_first(self, call: Call) -> Awaitable[Any]:
        """Whoever leaves while we connect has asked all the same, as whoever leaves later has."""
        asking = asyncio.ensure_future(self._connect_and_ask(call))
        self._asking.add(asking)
        asking.add_done_callback(self._note_asked)
        return asyncio.shield(asking)

    async def _connect_and_ask(self, call: Call) -> Any:
        return await (await self._opened()).send(call.commands)

    def _note_asked(self, asking: asyncio.Future[Any]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # there may be nobody left to raise it to

    async def scan(self, pattern: str, limit: int) -> list[bytes]:
        return await arun(scanned(pattern, limit), self.ask)

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _opened(self) -> Link:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(self._note_opened)
        # Who is cancelled here must not take the connection from the others that wait for it.
        return await asyncio.shield(self._opening)

    def _note_opened(self, opening: asyncio.Task[Link]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._link = opening.result()

    async def _open(self) -> Link:
        link = Link(self.name, self._timeout)
        try:
            await asyncio.wait_for(self._connected(link), self._timeout)
            for command in greeting(self._place):
                await link.send((command,))
            await self._prefer_protocol_3(link)
        except BaseException as error:
            await link.close()
            # Before 3.11 asyncio's TimeoutError is no OSError.
            if isinstance(error, asyncio.TimeoutError):
                raise StoreUnavailable(f"{self.name}: no connection within {self._timeout:g} s") from error
            if isinstance(error, OSError):
                raise Broken(f"{self.name}: {error}") from error
            raise
        return link

    async def _connected(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        if self._place.kind == "socket":
            await loop.create_unix_connection(lambda: link, self._place.path)
        else:
            host, port = self._place.hosts[0]
            await loop.create_connection(lambda: link, host, port)

    async def _prefer_protocol_3(self, link: Link) -> None:
        try:
            await link.send((PROTOCOL_3,))
        except Broken:
            raise
        except StoreUnavailable:
            if link.lost:
                raise


class Link(asyncio.Protocol):
    """One connection, from its making to its loss."""

    def __init__(self, name: str, timeout: float) -> None:
        library = hiredis()
        self.lost = False
        self._name = name
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._pack = library.pack_command
        self._reader = library.Reader()
        self._error: type[Exception] = library.ReplyError
        self._protocol_error: type[Exception] = library.ProtocolError
        self._transport: Any = None
        self._unsent: list[bytes] = []
        self._waiting: deque[Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()

    def send(self, commands: Any) -> asyncio.Future[Any]:
        """The reply, in time. Written at once if nothing is on its way, else with what comes in this turn."""
        waiter = Waiter(self._loop.create_future(), len(commands), self._loop.time() + self._timeout)
        if self.lost:
            waiter.future.set_exception(Broken(f"{self._name}: the connection is closed"))
            return waiter.future
        packed = [self._pack(command) for command in commands]
        if not (self._waiting or self._unsent):
            self._write(packed)
        else:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent += packed
        self._waiting.append(waiter)
        if self._timer is None:
            self._timer = self._loop.call_at(waiter.deadline, self._check)
        return waiter.future

    async def close(self) -> None:
        if self._transport is None:
            self._end(Broken(f"{self._name}: the connection is closed"))
            return
        self._fail(Broken(f"{self._name}: the connection is closed"))
        await asyncio.shield(self._closed)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self.lost:  # given up while it was made
            self._transport.abort()
            return
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._hand_out(reply)
        except self._protocol_error as error:
            self._fail(StoreUnavailable(f"{self._name}: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(Broken(f"{self._name}: {error or 'the server closed the connection'}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def _hand_out(self, reply: Any) -> None:
        if not self._waiting:
            return self._fail(StoreUnavailable(f"{self._name}: it said what nobody had asked for"))
        waiter = self._waiting[0]
        if isinstance(reply, self._error):
            reply = refused(str(reply), self._name)
        if waiter.takes(reply):
            self._waiting.popleft()
        return None

    def _check(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        if self._waiting[0].deadline <= self._loop.time():
            self._fail(StoreUnavailable(f"{self._name}: no answer within {self._timeout:g} s"))
        else:
            self._timer = self._loop.call_at(self._waiting[0].deadline, self._check)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self.lost:
            self._write(unsent)

    def _write(self, packed: list[bytes]) -> None:
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))

    def _fail(self, error: Exception) -> None:
        """Nobody knows any more which reply is whose: end it all."""
        self._end(error)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: Exception) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            waiter.fail(type(error)(*error.args))  # each raises one of its own, with its own traceback


class Waiter:
    """A place in the queue. It stays there when whoever waited is gone."""

    __slots__ = ("_count", "_replies", "deadline", "future")

    def __init__(self, future: asyncio.Future[Any], count: int, deadline: float) -> None:
        self.future = future
        self.deadline = deadline
        self._count = count
        self._replies: list[Any] = []

    def takes(self, reply: Any) -> bool:
        """Whether this was the last reply that belongs here."""
        if self._count > 1 or self._replies:
            self._replies.append(reply)
            self._count -= 1
            if self._count:
                return False
            reply = failure(self._replies) or self._replies
        if not self.future.done():
            if isinstance(reply, Exception):
                self.future.set_exception(reply)
            else:
                self.future.set_result(reply)
        return True

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
