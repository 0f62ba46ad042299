"""A real port in front of a cluster: uvicorn, on the cluster's own loop."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lbkit.errors import ConfigError, MissingExtra
from lbkit.testkit.portal import Portal
from lbkit.types import ASGIApp

try:
    import uvicorn
except ModuleNotFoundError as error:
    raise MissingExtra("uvicorn", extra="serve") from error

__all__ = ["served"]

LIMIT = 10.0
"""Seconds in which the server is up, or will never be."""


@contextmanager
def served(app: ASGIApp, portal: Portal) -> Iterator[str]:
    """The URL under which the app answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        running = portal.submit(server.serve(sockets=[listener]))
        deadline = time.monotonic() + LIMIT
        while not server.started:
            if running.done() or time.monotonic() > deadline:
                raise ConfigError(f"uvicorn did not start in {LIMIT:g} s")
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            running.result(LIMIT)
