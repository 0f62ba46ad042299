"""What proxies and clients send, and who the client really is: the table that lbkit and its peers answer.

Our proxies are in 10.0.0.0/8 and write X-Forwarded-*. The app is https only where a proxy of ours says so,
and its host is shop.example.com.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lbkit.asgi import ForwardedMiddleware as ASGIForwarded
from lbkit.forwarded import TrustedProxies
from lbkit.wsgi import ForwardedMiddleware as WSGIForwarded

__all__ = ["CASES", "PEERS", "Answer", "Case", "Headers", "ask_asgi", "ask_wsgi", "lbkit_asgi", "lbkit_wsgi"]

Headers = tuple[tuple[str, str], ...]
Answer = tuple[str, str, str]
"""Address, scheme, host: as an app reads them."""

PROXY, CLIENT, SPOOF, HOST = "10.0.0.1", "203.0.113.7", "6.6.6.6", "shop.example.com"


@dataclass(frozen=True)
class Case:
    name: str
    headers: Headers
    address: str = CLIENT
    scheme: str = "http"
    peer: str = PROXY
    host: str = field(default=HOST)

    @property
    def right(self) -> Answer:
        return (self.address, self.scheme, self.host)


def _for(*lines: str) -> Headers:
    return tuple(("X-Forwarded-For", line) for line in lines)


CASES = (
    Case("an honest proxy", (*_for(CLIENT), ("X-Forwarded-Proto", "https")), scheme="https"),
    Case("a client without a proxy claims an address", _for("10.1.1.1"), peer=CLIENT),
    Case(
        "a client without a proxy claims a scheme and a host",
        (("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "evil.example")),
        peer=CLIENT,
    ),
    Case("a client writes an address in front", _for(f"{SPOOF}, {CLIENT}")),
    Case("a client's address on a line of its own, as HAProxy leaves it", _for(SPOOF, CLIENT)),
    Case("two proxies of ours", _for(f"{CLIENT}, 10.0.0.2")),
    Case("two proxies of ours and a claim in front", _for(f"{SPOOF}, {CLIENT}, 10.0.0.2")),
    Case("an address with a port", _for(f"{CLIENT}:51234")),
    Case("the nearest hop is markup", _for(f"{CLIENT}, <script>"), address=PROXY),
    Case("the nearest hop is unknown", _for("unknown"), address=PROXY),
    Case("a proxy of ours on an IPv6 socket", _for(CLIENT), peer="::ffff:10.0.0.1"),
    Case("an IPv6 client with a port", _for("[2001:db8::7]:443"), address="2001:db8::7"),
    Case(
        "a client's Forwarded, which a proxy that writes X-Forwarded-* hands on",
        (("Forwarded", f"for={SPOOF};proto=https;host=evil.example"), *_for(CLIENT)),
    ),
    Case("a scheme that is none", (*_for(CLIENT), ("X-Forwarded-Proto", "javascript"))),
    Case("a host that the proxy hands on", (*_for(CLIENT), ("X-Forwarded-Host", "evil.example"))),
)

Wrap = Callable[[Any], Any]


def ask_asgi(wrap: Wrap, peer: str | None, headers: Headers, *, kind: str = "http") -> dict[str, Any]:
    """The scope that the app gets."""
    seen: dict[str, Any] = {}

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.update(scope)

    lines = [(b"host", HOST.encode()), *((name.lower().encode(), text.encode()) for name, text in headers)]
    client = (peer, 51000) if peer is not None else None
    scheme = "http" if kind == "http" else "ws"
    scope = {"type": kind, "method": "GET", "path": "/", "scheme": scheme, "client": client, "headers": lines}
    asyncio.run(wrap(app)(scope, None, None))
    return seen


def ask_wsgi(wrap: Wrap, peer: str | None, headers: Headers) -> dict[str, Any]:
    """The environ that the app gets. Several lines are joined with a comma, as gunicorn does."""
    environ = {
        "REQUEST_METHOD": "GET", "SERVER_NAME": "app", "SERVER_PORT": "80", "HTTP_HOST": HOST,
        "REMOTE_ADDR": peer or "", "REMOTE_PORT": "51000", "wsgi.url_scheme": "http",
    }  # fmt: skip
    for name, text in headers:
        key = f"HTTP_{name.upper().replace('-', '_')}"
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    seen: dict[str, Any] = {}

    def app(inner: dict[str, Any], _start_response: object) -> Iterable[bytes]:
        seen.update(inner)
        return []

    wrap(app)(environ, lambda _status, _headers, _exc_info=None: lambda _data: None)
    return seen


def answered_asgi(wrap: Wrap, case: Case) -> Answer:
    seen = ask_asgi(wrap, case.peer, case.headers)
    host = dict(seen["headers"])[b"host"].decode()
    return (seen["client"][0], seen["scheme"], host)


def answered_wsgi(wrap: Wrap, case: Case) -> Answer:
    seen = ask_wsgi(wrap, case.peer, case.headers)
    return (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["HTTP_HOST"])


TRUSTED = TrustedProxies(["10.0.0.0/8"], hosts=[HOST])


def lbkit_asgi(app: Any) -> Any:
    return ASGIForwarded(app, TRUSTED)


def lbkit_wsgi(app: Any) -> Any:
    return WSGIForwarded(app, TRUSTED)


def proxy_fix(hops: int) -> Wrap:
    def wrap(app: Any) -> Any:
        from werkzeug.middleware.proxy_fix import ProxyFix

        return ProxyFix(app, x_for=hops, x_proto=hops)

    return wrap


def uvicorn(trusted: str) -> Wrap:
    def wrap(app: Any) -> Any:
        from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

        return ProxyHeadersMiddleware(app, trusted_hosts=trusted)

    return wrap


def hypercorn(app: Any) -> Any:
    from hypercorn.middleware import ProxyFixMiddleware

    return ProxyFixMiddleware(app, mode="legacy", trusted_hops=1)


def _score(answered: Callable[[Wrap, Case], Answer], wrap: Wrap) -> Callable[[Case], bool]:
    return lambda case: answered(wrap, case) == case.right


PEERS = {
    "lbkit, ASGI": _score(answered_asgi, lbkit_asgi),
    "lbkit, WSGI": _score(answered_wsgi, lbkit_wsgi),
    "uvicorn, the proxies' network": _score(answered_asgi, uvicorn("10.0.0.0/8")),
    "uvicorn, '*'": _score(answered_asgi, uvicorn("*")),
    "werkzeug ProxyFix, one hop": _score(answered_wsgi, proxy_fix(1)),
    "werkzeug ProxyFix, two hops": _score(answered_wsgi, proxy_fix(2)),
    "hypercorn ProxyFix, one hop": _score(answered_asgi, hypercorn),
}
"""Does it answer a case rightly?"""
