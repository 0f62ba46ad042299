"""A small HTTP/1.1 load client: each of its connections asks again as soon as it is answered."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from time import perf_counter

__all__ = ["Load", "load"]

LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


@dataclass
class Load:
    seconds: float
    answers: int = 0
    failures: int = 0

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


class Connection(asyncio.Protocol):
    """Reads no more of an answer than where it ends: a slow client would measure itself."""

    def __init__(self, request: bytes, seen: Load, until: float) -> None:
        self.request, self.seen, self.until = request, seen, until
        self.left = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if perf_counter() >= self.until:
            self.transport.close()
            return
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        answer = self.left + data if self.left else data
        head = answer.find(b"\r\n\r\n") + 4
        length = LENGTH.search(answer)
        if head < 4 or length is None or len(answer) < head + int(length.group(1)):
            self.left = answer
            return
        self.left = b""
        self.seen.answers += 1
        self.seen.failures += answer[:10] != b"HTTP/1.1 2"
        self.ask()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def load(port: int, path: str, *, connections: int = 64, seconds: float = 2.0) -> Load:
    """Ask for `path` on 127.0.0.1 as fast as the answers come."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 10.1.2.3:{port}\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n".encode()
    )
    seen = Load(seconds)
    until = perf_counter() + seconds
    asked = [Connection(request, seen, until) for _ in range(connections)]
    loop = asyncio.get_running_loop()
    for connection in asked:
        await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(connection.over for connection in asked))
    return seen
