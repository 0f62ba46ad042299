"""A rolling restart of three replicas behind HAProxy, under a load whose every request is accounted for."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.e2e.replicas import SERVERS, Replica, balancer, free_ports, until

__all__ = ["KINDS", "Tally", "rolling"]

KINDS = ("uvicorn", "hypercorn", "gunicorn gthread")
"""One replica each: a server that we are inside of, one behind the launcher, one with a master."""

CONNECTIONS = 16
SETTINGS = {"LBKIT_PRE_STOP_DELAY": "1.5", "LBKIT_STOP_LIMIT": "60", "SLOW": "1"}
LENGTH = re.compile(rb"content-length: *(\d+)", re.I)
SLOW_EVERY = 40
LIMIT = 30.0


@dataclass
class Tally:
    """What became of the requests. `answered` and `lost` add up to what was sent."""

    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    """How many came to their end: the new process has answered through the balancer."""

    pids: set[bytes] = field(default_factory=set)

    @property
    def sent(self) -> int:
        return self.answered + self.lost.total()


class Client:
    """One connection that is kept, and made anew when it is closed. Nothing is sent twice."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port = port
        self._tally = tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, number: int) -> None:
        path = b"/slow" if number % SLOW_EVERY == 0 else b"/fast"
        method, body = ((b"GET", b""), (b"POST", b"x"))[number % 2]
        head = b"%b %b?id=%d HTTP/1.1\r\nhost: shop\r\ncontent-length: %d\r\n\r\n"
        try:
            request = head % (method, path, number, len(body)) + body
            answer = await asyncio.wait_for(self._exchange(request), LIMIT)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            self._tally.lost[type(error).__name__] += 1
            self.close()
            return
        if not answer.startswith(b"ok %d " % number):
            self._tally.lost[answer[:40].decode("latin-1")] += 1
            return
        self._tally.answered += 1
        self._tally.pids.add(answer.split()[2])

    async def _exchange(self, request: bytes) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await (reader.readexactly(int(length[1])) if length else reader.read())
        if not length or b"connection: close" in head.lower():
            self.close()
        return body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def rolling(folder: Path, *, requests: int, restarts: int, rate: float) -> Tally:
    """Send so many requests at that rate, and restart one replica after another meanwhile."""
    ports, tally = free_ports(3), Tally()
    with ExitStack() as stack:
        replicas = [_started(stack, kind, port, folder) for kind, port in zip(KINDS, ports, strict=True)]
        front = stack.enter_context(balancer("haproxy", ports, folder))
        numbers, pause = iter(range(requests)), CONNECTIONS / rate
        load = asyncio.gather(*(_work(front, tally, numbers, pause) for _ in range(CONNECTIONS)))
        for index in range(restarts):
            # One after another over the whole of the load, and never two at once.
            await asyncio.to_thread(until, partial(_due, tally, index * requests // restarts), tally)
            place = index % len(replicas)
            replicas[place] = await asyncio.to_thread(
                _restarted, stack, replicas[place], KINDS[place], folder, tally
            )
        await load
    return tally


def _due(tally: Tally, sent: int) -> bool:
    return tally.sent >= sent


async def _work(port: int, tally: Tally, numbers: Iterator[int], pause: float) -> None:
    client, loop = Client(port, tally), asyncio.get_running_loop()
    for number in numbers:
        began = loop.time()
        await client.ask(number)
        await asyncio.sleep(max(0.0, began + pause - loop.time()))
    client.close()


def _started(stack: ExitStack, kind: str, port: int, folder: Path) -> Replica:
    replica = Replica(SERVERS[kind], port, folder, **SETTINGS)
    stack.callback(replica.kill)
    replica.wait_until_ready()
    return replica


def _restarted(stack: ExitStack, old: Replica, kind: str, folder: Path, tally: Tally) -> Replica:
    known = set(tally.pids)
    old.send(signal.SIGTERM)
    old.end()
    new = _started(stack, kind, old.port, folder)
    until(lambda: bool(tally.pids - known), new)  # the balancer has it back
    tally.restarts += 1
    return new
