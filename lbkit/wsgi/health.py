"""Health endpoints in front of a WSGI app: no Host check, redirect or login stands before them."""

from __future__ import annotations

from collections.abc import Iterable
from os import getpid

from lbkit.health.access import Caller, Level
from lbkit.health.reply import Reply
from lbkit.monitor import Health
from lbkit.probes import wait
from lbkit.types import Environ, StartResponse, WSGIApp
from lbkit.wsgi.connection import close_after

__all__ = ["HealthMiddleware"]


class HealthMiddleware:
    """Answers the health endpoints; everything else goes to the app untouched."""

    def __init__(self, app: WSGIApp, health: Health) -> None:
        self.app = app
        self.health = health
        self._wall, self._recall = health.wall, health.recall
        self._asks_who = health.gate.asks
        self._prefixes = health.prefixes
        self._started_in: int | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # Each worker that a server forks starts its own checks.
        if self._started_in != getpid():
            self._start()
        path: str = environ.get("PATH_INFO", "")
        if path.startswith(self._prefixes):
            wall = self._wall()
            reply = self._kept(path, environ, wall)
            if reply is None:
                reply = self._made(path, environ)
                wall = self._wall()
            if reply is not None:
                closing = close_after(environ, start_response) if reply.draining else []
                start_response(reply.wsgi_status, [*reply.wsgi_headers, *closing])
                # Not an empty list: hypercorn sends the head with the first piece of a body, or never.
                return [b"" if environ["REQUEST_METHOD"] == "HEAD" else reply.body(wall)]
        return self.app(environ, start_response)

    def _kept(self, path: str, environ: Environ, wall: float) -> Reply | None:
        """What most probes get: a rendering that is less than a second old."""
        full = self._asks_who and self.health.level(_caller(environ)) is Level.FULL
        get = environ.get
        question = (path, get("REQUEST_METHOD"), get("QUERY_STRING", ""), get("HTTP_ACCEPT", ""), full)
        return self._recall(question, wall)

    def _made(self, path: str, environ: Environ) -> Reply | None:
        health = self.health
        route = health.route(path)
        if route is None:
            return None
        method = environ["REQUEST_METHOD"]
        query, accept = environ.get("QUERY_STRING", ""), environ.get("HTTP_ACCEPT", "")
        level = health.level(_caller(environ)) if self._asks_who else health.gate.unproven
        if method in ("GET", "HEAD") and (waits := health.awaited(route)):
            wait(waits, budget=health.budget)
        question = (path, method, query, accept, level is Level.FULL)
        return health.answer(route, method, query, accept, level, question=question)

    def _start(self) -> None:
        self._started_in = getpid()
        self.health.start()


def _caller(environ: Environ) -> Caller:
    headers = {
        key[5:].replace("_", "-").lower(): value for key, value in environ.items() if key.startswith("HTTP_")
    }
    return Caller(environ.get("REMOTE_ADDR"), headers)
