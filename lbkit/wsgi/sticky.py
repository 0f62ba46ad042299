"""Sticky sessions in front of a WSGI app: its answers name the replica that gave them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from lbkit.sticky import Stick, Sticky, kept_private, own_replica_id
from lbkit.types import Clock, Environ, ExcInfo, StartResponse, WSGIApp

__all__ = ["StickyMiddleware"]

Headers = list[tuple[str, str]]


class StickyMiddleware:
    """Sets the cookie on the first answer, and again when it is old or names another replica.

    `replica_id` is what this process is called in the balancer's configuration; by default
    LBKIT_REPLICA_ID, else the host name. A client that has its cookie costs one signature.
    """

    def __init__(
        self, app: WSGIApp, sticky: Sticky, *, replica_id: str | None = None, wall: Clock = time.time
    ) -> None:
        self.app = app
        self.replica_id = own_replica_id(replica_id)
        self.stick = Stick(sticky, [self.replica_id])
        self.wall = wall

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        now = self.wall()
        decision = self.stick.decide(environ.get("HTTP_COOKIE", ""), now)
        set_cookie = self.stick.settle(decision, self.replica_id, now)
        if set_cookie is not None and self.stick.sticky.speaks_on(path(environ)):
            start_response = CookieStart(start_response, environ["REQUEST_METHOD"], set_cookie)
        return self.app(environ, start_response)


class CookieStart:
    """The server's `start_response`, with a cookie among the headers."""

    def __init__(self, start_response: StartResponse, method: str, set_cookie: str) -> None:
        self._start_response = start_response
        self._method = method
        self._set_cookie = set_cookie

    def __call__(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        headers = with_cookie(status, headers, self._method, self._set_cookie)
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)


def path(environ: Environ) -> str:
    return f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"


def with_cookie(status: str, headers: Headers, method: str, set_cookie: str) -> Headers:
    """The headers of an answer, with the cookie, and out of reach of a shared cache."""
    named = [(name.lower(), value) for name, value in headers]
    found = ", ".join(value for name, value in named if name == "cache-control")
    expires = any(name == "expires" for name, _ in named)
    cache_control = kept_private(method, int(status[:3]), found, expires=expires)
    if cache_control is not None:
        headers = [header for header in headers if header[0].lower() != "cache-control"]
        headers = [*headers, ("Cache-Control", cache_control)]
    return [*headers, ("Set-Cookie", set_cookie)]
