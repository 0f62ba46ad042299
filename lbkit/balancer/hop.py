"""What a balancer tells its replicas about the client: the X-Forwarded-* headers.

=================  ==========================================================================
X-Forwarded-For    what came in, then the peer's address: `$proxy_add_x_forwarded_for` of nginx,
                   `forwardfor` of HAProxy. A replica that trusts one hop reads the last entry,
                   and a client can forge only those before it
X-Forwarded-Proto  `http` or `https` as this hop saw it; what came in is dropped
X-Forwarded-Host   the Host that the client asked for; what came in is dropped
=================  ==========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from lbkit.errors import ConfigError

__all__ = [
    "FORWARDED",
    "HOP_BY_HOP",
    "SERVERS_OWN",
    "WEB_SCHEMES",
    "add_client",
    "checked_header",
    "named_by_connection",
    "peer_address",
]

FORWARDED = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")

HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",  # the server in front of us has answered it
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110, section 7.6.1: what is about one connection, and goes no further than its other end."""

SERVERS_OWN = frozenset({"date", "server"})
"""Of an answer: the server in front of us writes its own, as nginx does. Two dates are none."""

TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""RFC 9110, section 5.6.2: what a header's name is made of."""

UNKNOWN = "unknown"
"""RFC 7239, section 6.2: the peer has no address (a unix socket). With nothing added, what the
client wrote itself would stand last, and a replica that trusts one hop would believe it."""


WEB_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
"""A websocket travels over http or https, and that is what a proxy calls it."""


def add_client(earlier: str, client: str | None) -> str:
    """X-Forwarded-For, given what came in (several lines joined by a comma) and the peer's address."""
    peer = client or UNKNOWN
    return f"{earlier}, {peer}" if earlier else peer


@lru_cache(4096)
def peer_address(client: str | None) -> str:
    """The address that is hashed: nginx' pseudo address for a peer that has none."""
    try:
        return str(ip_address(client or ""))
    except ValueError:
        return "0.0.0.0"  # noqa: S104 - hashed, not bound


def checked_header(name: str | None) -> str | None:
    """The name of the header that tells the replica. Raises ConfigError for what is no header name."""
    if name is not None and not TOKEN.fullmatch(name):
        raise ConfigError(f"need a header name such as 'x-served-by', or None for no header, got {name!r}")
    return name


def named_by_connection(values: Iterable[str]) -> frozenset[str]:
    """Every header that goes no further, given the lines of `Connection`: it may name more of them."""
    named = (name.strip().lower() for value in values for name in value.split(","))
    return HOP_BY_HOP.union(filter(None, named))
