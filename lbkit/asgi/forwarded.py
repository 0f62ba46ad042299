"""The client's own address, scheme and host, in front of an ASGI app."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from lbkit.forwarded import EVERY, TrustedProxies, spellings
from lbkit.types import ASGIApp, Receive, Scope, Send

__all__ = ["ForwardedMiddleware", "Original"]

logger = logging.getLogger("lbkit.forwarded")

KEY = "lbkit.forwarded"


def _encoded(names: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.encode() for name in names)


# With '_' too: a bridge to WSGI takes `x_forwarded_for` for the same header.
EVERY_SPELLING = _encoded(spelling for name in EVERY for spelling in spellings(name))

# What stands for a header that we do not read.
KEPT, REMOVED = "kept", "removed"

WEBSOCKET = {"http": "ws", "https": "wss"}


class Original(NamedTuple):
    """What the server itself saw: `scope["lbkit.forwarded"]`."""

    client: tuple[str, int] | None
    scheme: str
    headers: list[tuple[bytes, bytes]]


class ForwardedMiddleware:
    """Puts the client's address, scheme and host into the scope, as `TrustedProxies` decides.

    The app reads them where it always does; what the server saw stays in `scope["lbkit.forwarded"]`.
    Put it outside of everything that asks who the client is. The server must not do the same work
    first: start uvicorn with `--no-proxy-headers`.
    """

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self.app = app
        self.proxies = proxies
        self._removed = {
            trusted: EVERY_SPELLING - _encoded(names) for trusted, names in proxies.keeps.items()
        }
        self._fields_of = {
            **dict.fromkeys(EVERY_SPELLING, KEPT),
            **dict.fromkeys(self._removed[True], REMOVED),
            **{name.encode(): name for name in proxies.reads},
        }
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A second one further in sees the client as its peer: the first one's answer stands.
        if scope["type"] in ("http", "websocket") and KEY not in scope:
            scope = self._resolved(scope)
        await self.app(scope, receive, send)

    def _resolved(self, scope: Scope) -> Scope:
        client, scheme, headers = scope.get("client"), scope.get("scheme", "http"), scope["headers"]
        peer, peer_port = client or (None, 0)
        if client and peer_port == 0 and not self._warned:
            self._warn(client)
        fields = self._fields(headers)
        trusted, address, port, told, host = self.proxies.origin(peer, fields)
        inner = {**scope, KEY: Original(client, scheme, headers)}
        if address is not None:
            inner["client"] = (address, peer_port if port is None else port)
        if told is not None:
            inner["scheme"] = WEBSOCKET[told] if scope["type"] == "websocket" else told
        if REMOVED in fields or (fields and not trusted):
            removed = self._removed[trusted]
            inner["headers"] = headers = [header for header in headers if header[0] not in removed]
        if host is not None:
            others = [header for header in headers if header[0] != b"host"]
            inner["headers"] = [(b"host", host.encode("latin-1")), *others]
        return inner

    def _fields(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        """The forwarding headers. Those that we do not read are there, and say nothing."""
        fields: dict[str, str] = {}
        fields_of = self._fields_of
        for name, value in headers:
            if name in fields_of:
                key = fields_of[name]
                text = value.decode("latin-1")
                fields[key] = f"{fields[key]},{text}" if key in fields else text
        return fields

    def _warn(self, client: tuple[str, int]) -> None:
        self._warned = True
        logger.warning(
            "the server has already replaced the peer's address (%s, port 0): TrustedProxies cannot see"
            " who the peer was. Start uvicorn with --no-proxy-headers",
            client[0],
        )
