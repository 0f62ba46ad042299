"""The servers that lbkit is promised to work under, started with an app of the tests."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from tests.e2e.serving import LIMIT, Process, started

__all__ = ["ASGI", "WSGI", "answers", "free_port", "serving", "until"]

SITES = "tests.e2e.health_sites"

ASGI = {
    "uvicorn": ["uvicorn", "{app}", "--port={port}"],
    "hypercorn": ["hypercorn", "{app}", "--bind=127.0.0.1:{port}", "--access-logfile=-"],
    "granian-asgi": ["granian", "--interface=asgi", "{app}", "--port={port}", "--access-log"],
    "gunicorn-asgi": ["gunicorn", "{app}", "-k", "asgi", "-b127.0.0.1:{port}", "--access-logfile=-"],
}
WSGI = {
    "gunicorn-sync": ["gunicorn", "{app}", "-b127.0.0.1:{port}", "--access-logfile=-"],
    "gunicorn-gthread": ["gunicorn", "{app}", "-k", "gthread", "--threads=8", "-b127.0.0.1:{port}"],
    "gunicorn-preload": ["gunicorn", "{app}", "--preload", "-w2", "-b127.0.0.1:{port}"],
    "hypercorn-wsgi": ["hypercorn", "wsgi:{app}", "--bind=127.0.0.1:{port}"],
    "uvicorn-wsgi": ["uvicorn", "--interface=wsgi", "{app}", "--port={port}"],
    "granian-wsgi": ["granian", "--interface=wsgi", "{app}", "--port={port}"],
    # It removes forwarding headers that it does not believe itself, and it believes none.
    "waitress": ["waitress", "--listen=127.0.0.1:{port}", "--no-clear-untrusted-proxy-headers", "{app}"],
}
SERVERS = ASGI | WSGI


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(server: str, app: str, *more: str, **environment: str) -> Iterator[tuple[Process, httpx.Client]]:
    port = free_port()
    words = [word.format(app=app if ":" in app else f"{SITES}:{app}", port=port) for word in SERVERS[server]]
    settings = [f"{name}={value}" for name, value in environment.items()]
    command = ["env", *settings, sys.executable, "-m", *words, *more]
    with (
        started(command) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as client,
    ):
        until(lambda: answers(client), of=process)
        yield process, client


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def until(happens: Callable[[], object], *, of: Process) -> None:
    deadline = time.monotonic() + LIMIT
    while not happens():
        assert time.monotonic() < deadline, f"it did not happen in time: {of}"
        time.sleep(0.02)
