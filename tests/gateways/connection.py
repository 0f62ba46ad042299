"""An ASGI server's side of one connection, driven by hand, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from lbkit.types import ASGIApp, Message, Scope

T = TypeVar("T")

HUNG = 30.0
"""Seconds after which a step counts as hung. Nothing waits this long unless it is."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own. Fails when it leaves a task behind, or an error nobody looked at."""
    return asyncio.run(_strictly(work))


async def _strictly(work: Coroutine[Any, Any, T]) -> T:
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    result = await asyncio.wait_for(work, HUNG * 2)
    for _ in range(10):  # what was cancelled at the end may run to its own
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
    assert not unseen, f"errors nobody looked at: {unseen}"
    return result


Headers = Iterable[tuple[bytes, bytes]]

HOST = (b"host", b"shop.example")


def http_scope(path: str = "/", *, method: str = "GET", headers: Headers = (HOST,), **more: Any) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("192.0.2.7", 4711),
        "server": ("127.0.0.1", 8000),
        **more,
    }


def websocket_scope(path: str = "/", *, headers: Headers = (HOST,), **more: Any) -> Scope:
    scope = http_scope(path, headers=headers)
    del scope["method"]
    return {**scope, "type": "websocket", "scheme": "ws", "subprotocols": [], **more}


class Connection:
    """`put` is what the client sends, `get` what it receives, `end` waits for the app's call."""

    def __init__(self, app: ASGIApp, scope: Scope, *, window: int = 0) -> None:
        """`window`: `send` waits while the client has so many messages unread. 0 for no limit."""
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue(window)
        self.asked = 0
        """How often the app has called `receive`."""

        self.broken = False
        """The client is gone and `send` says so, as ASGI 2.4 has it."""

        call: Coroutine[Any, Any, None] = app(scope, self._receive, self._send)  # type: ignore[assignment]
        self.task = asyncio.create_task(call)

    def put(self, kind: str, **more: Any) -> None:
        self._to_app.put_nowait({"type": kind, **more})

    def body(self, data: bytes = b"", *, more: bool = False) -> None:
        self.put("http.request", body=data, more_body=more)

    async def get(self) -> Message:
        return await asyncio.wait_for(self._from_app.get(), HUNG)

    @property
    def silent(self) -> bool:
        """Nothing more has come from the app."""
        return self._from_app.empty()

    async def end(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.task), HUNG)

    async def messages(self) -> list[Message]:
        """Wait for the end of the call; all that has come."""
        await self.end()
        return [self._from_app.get_nowait() for _ in range(self._from_app.qsize())]

    async def _receive(self) -> Message:
        self.asked += 1
        return await self._to_app.get()

    async def _send(self, message: Message) -> None:
        await asyncio.sleep(0)  # a server's `send` lets others run, or an endless answer would hold the loop
        if self.broken:
            raise OSError("the client left")
        await self._from_app.put(message)


@asynccontextmanager
async def connected(app: ASGIApp, scope: Scope, *, window: int = 0) -> AsyncIterator[Connection]:
    connection = Connection(app, scope, window=window)
    try:
        yield connection
    finally:
        connection.task.cancel()
        await asyncio.gather(connection.task, return_exceptions=True)


async def exchange(app: ASGIApp, scope: Scope, *pieces: bytes) -> list[Message]:
    """Send a request in these pieces; every message of the answer."""
    async with connected(app, scope) as connection:
        for number, piece in enumerate(pieces or (b"",), start=1):
            connection.body(piece, more=number < len(pieces))
        return await connection.messages()


def body_of(messages: Iterable[Message]) -> bytes:
    return b"".join(each["body"] for each in messages if each["type"] == "http.response.body")
