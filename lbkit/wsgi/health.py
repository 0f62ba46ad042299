"""Health endpoints in front of a WSGI app: no Host check, redirect or login stands before them."""

from __future__ import annotations

from collections.abc import Iterable

from lbkit.health.access import Caller
from lbkit.health.lifecycle import State
from lbkit.health.routes import Route
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

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self.health.cold:
            self.health.start()
        route = self.health.route(environ.get("PATH_INFO", ""))
        if route is not None:
            return self._answer(route, environ, start_response)
        return self.app(environ, start_response)

    def _answer(self, route: Route, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        health = self.health
        method = environ["REQUEST_METHOD"]
        query = environ.get("QUERY_STRING", "")
        accept = environ.get("HTTP_ACCEPT", "")
        level = health.level(_caller(environ)) if health.gate.asks else health.gate.unproven
        if method in ("GET", "HEAD") and (waits := health.awaited(route, query, accept, level)):
            wait(waits, budget=health.budget)
        reply = health.answer(route, method, query, accept, level)
        closing = close_after(environ, start_response) if health.source.state is State.DRAINING else []
        start_response(reply.wsgi_status, [*reply.wsgi_headers, *closing])
        return [] if method == "HEAD" else [reply.body(health.wall())]


def _caller(environ: Environ) -> Caller:
    headers = {
        key[5:].replace("_", "-").lower(): value for key, value in environ.items() if key.startswith("HTTP_")
    }
    return Caller(environ.get("REMOTE_ADDR"), headers)
