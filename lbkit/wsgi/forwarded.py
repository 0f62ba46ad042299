"""The client's own address, scheme and host, in front of a WSGI app."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lbkit.forwarded import EVERY, Origin, TrustedProxies
from lbkit.types import Environ, StartResponse, WSGIApp

__all__ = ["ForwardedMiddleware", "Original"]

logger = logging.getLogger("lbkit.forwarded")

KEY = "lbkit.forwarded"


def _key(name: str) -> str:
    return f"HTTP_{name.upper().replace('-', '_')}"


def _keys(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_key, names))


EVERY_KEY = _keys(EVERY)
NO_PORT = ("0", 0)
KEPT_TOO = ("HTTP_HOST", *EVERY_KEY)


class Original(NamedTuple):
    """What the server itself saw: `environ["lbkit.forwarded"]`."""

    client: tuple[str, int] | None
    scheme: str
    headers: dict[str, str]
    """The host and the forwarding headers, under their keys in the environ."""


class ForwardedMiddleware:
    """Puts the client's address, scheme and host into the environ, as `TrustedProxies` decides.

    The app reads them where it always does, and so does the server's access log; what the server saw
    stays in `environ["lbkit.forwarded"]`. Put it outside of everything that asks who the client is.

    waitress removes the headers first unless it is told `clear_untrusted_proxy_headers=False`.

    A WSGI server may hand on `X_Forwarded_For` as the real header. gunicorn, Werkzeug and waitress drop
    it; in front of another server let the balancer drop headers with '_' in their names, as nginx does.
    """

    def __init__(self, app: WSGIApp, proxies: TrustedProxies) -> None:
        self.app = app
        self.proxies = proxies
        self._removed = {trusted: EVERY_KEY - _keys(names) for trusted, names in proxies.keeps.items()}
        self._warned = False

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # A second one further in sees the client as its peer: the first one's answer stands.
        if KEY not in environ:
            self._resolve(environ)
        return self.app(environ, start_response)

    def _resolve(self, environ: Environ) -> None:
        if not self._warned and _rewritten(environ):
            self._warn(environ)
        origin = self._asked(environ.get)
        original = environ[KEY] = _original(environ)
        for key in self._removed[origin.trusted].intersection(original.headers):
            del environ[key]
        _apply(origin, environ)

    def _asked(self, get: Callable[[str], str | None]) -> Origin:
        peer, judge = get("REMOTE_ADDR"), self.proxies.judge
        if self.proxies.family == "forwarded":
            return judge(peer, get("HTTP_FORWARDED"))
        chain = get("HTTP_X_FORWARDED_FOR")
        return judge(peer, chain, get("HTTP_X_FORWARDED_PROTO"), get("HTTP_X_FORWARDED_HOST"))

    def _warn(self, environ: Environ) -> None:
        self._warned = True
        logger.warning(
            "something has already replaced the peer's address (%s): TrustedProxies cannot see who the peer"
            " was. Remove ProxyFix, and start uvicorn with --no-proxy-headers",
            environ.get("REMOTE_ADDR"),
        )


def _rewritten(environ: Environ) -> bool:
    """ProxyFix leaves a note; uvicorn and hypercorn give the client port 0."""
    return environ.get("REMOTE_PORT") in NO_PORT or "werkzeug.proxy_fix.orig" in environ


def _original(environ: Environ) -> Original:
    address = environ.get("REMOTE_ADDR")
    port = str(environ.get("REMOTE_PORT", ""))
    client = (address, int(port) if port.isdecimal() else 0) if address else None
    headers = {key: environ[key] for key in KEPT_TOO if key in environ}
    return Original(client, environ["wsgi.url_scheme"], headers)


def _apply(origin: Origin, environ: Environ) -> None:
    _, address, port, scheme, host = origin
    if address is not None:
        environ["REMOTE_ADDR"] = address
    if port is not None:
        environ["REMOTE_PORT"] = str(port)
    if scheme is not None:
        environ["wsgi.url_scheme"] = scheme
    if host is not None:
        environ["HTTP_HOST"] = host
