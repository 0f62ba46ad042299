"""One way to ask for health through either gateway, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import httpx

from lbkit import asgi, wsgi
from lbkit.monitor import Health

BODY = b"the app"


class FakeClock:
    """A clock that a test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        """Unix seconds that move with it."""
        return 1767225600.0 + self.now


async def asgi_app(scope: Any, _: Any, send: Any) -> None:
    """Knows http alone: at a lifespan it raises, as many small ASGI apps do."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": BODY})


def wsgi_app(_: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [BODY]


class Gateway:
    """Sends requests to an app; safe to use from many threads at once."""

    def __init__(self, name: str, health: Health, send: Callable[[httpx.Request], httpx.Response]) -> None:
        self.name = name
        self.health = health
        self._send = send

    def __call__(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        return self._send(httpx.Request(method, f"http://10.1.2.3:8080{path}", headers=headers))


@contextmanager
def gateway(name: str, health: Health, app: Any = None) -> Iterator[Gateway]:
    with (
        through_asgi(app or asgi.HealthMiddleware(asgi_app, health))
        if name == "asgi"
        else through_wsgi(app or wsgi.HealthMiddleware(wsgi_app, health)) as send
    ):
        yield Gateway(name, health, send)
    health.stop()


@contextmanager
def through_wsgi(app: Any) -> Iterator[Callable[[httpx.Request], httpx.Response]]:
    with httpx.Client(transport=httpx.WSGITransport(app, remote_addr="192.0.2.7")) as client:
        yield lambda request: client.send(request)


@contextmanager
def through_asgi(app: Any) -> Iterator[Callable[[httpx.Request], httpx.Response]]:
    with running_loop() as loop:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("192.0.2.7", 999)))

        def send(request: httpx.Request) -> httpx.Response:
            return asyncio.run_coroutine_threadsafe(client.send(request), loop).result(timeout=30)

        yield send


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that turns on a thread, as a server's does, until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
