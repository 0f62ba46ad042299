"""A sample as its user meets it: behind a real server, on a real port."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import httpx
import uvicorn

from lbkit.types import ASGIApp

__all__ = ["LIMIT", "Server", "replica", "served", "token"]

LIMIT = 20.0
"""Seconds after which a step counts as hung. Nothing takes this long."""


class Server(uvicorn.Server):
    """Says when it is up, or has failed to come up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.decided = Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.decided.set()


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The URL of the app under uvicorn, in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert server.decided.wait(LIMIT), "did not start"
            assert server.started, "failed to start"
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(LIMIT)
    assert not thread.is_alive(), "did not stop"


def replica(answer: httpx.Response) -> str:
    return answer.headers["x-lbkit-replica"]


def token(page: httpx.Response) -> str:
    """The CSRF token of the first form in the page."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert found, page.text
    return found[1]
