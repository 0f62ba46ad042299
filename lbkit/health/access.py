"""Who may read how much. The status code is the same for all: a wrong token must never look like an outage.

===============  =======================  ============================================
details          a caller without proof   an authorised caller
===============  =======================  ============================================
"public"         names, classes of error  the redacted text too
"authorized"     the status               names, classes of error, the redacted text
"never"          the status               the status
===============  =======================  ============================================
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from lbkit.errors import ConfigError
from lbkit.forwarded import TrustedProxies

__all__ = ["Auth", "Caller", "Details", "Gate", "Level"]


class Level(Enum):
    STATUS_ONLY = "status"
    PUBLIC = "public"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the socket's peer, and the request's headers under lower-case names."""

    peer: str | None
    headers: Mapping[str, str]


Details: TypeAlias = Literal["public", "authorized", "never"]
Auth: TypeAlias = Callable[[Caller], bool] | str | Sequence[str]
"""A function, a bearer token, or networks such as `["10.0.0.0/8", "100.64.0.0/10"]`."""

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

SHORTEST_TOKEN = 8


class Gate:
    """Decides the level of a caller: the peer, or whom `trusted_proxies` name when they are the peer."""

    def __init__(
        self,
        *,
        details: Details = "public",
        auth: Auth | None = None,
        trusted_proxies: TrustedProxies | None = None,
    ) -> None:
        if details not in ("public", "authorized", "never"):
            raise ConfigError(f"need details 'public', 'authorized' or 'never', got {details!r}")
        if details == "authorized" and auth is None:
            raise ConfigError(
                "details='authorized' needs auth: a function, a bearer token or a list of networks"
            )
        self.trusted_proxies = trusted_proxies
        self._ask = None if auth is None else self._authoriser(auth)
        if details == "never":
            self._ask = None
        self._unproven = Level.PUBLIC if details == "public" else Level.STATUS_ONLY

    @property
    def asks(self) -> bool:
        """Whether the level depends on who calls. If not, nobody need look at the headers."""
        return self._ask is not None

    @property
    def unproven(self) -> Level:
        """The level of a caller who proves nothing."""
        return self._unproven

    def level(self, caller: Caller) -> Level:
        try:
            proven = self._ask is not None and self._ask(caller) is True
        except Exception:
            proven = False
        return Level.FULL if proven else self._unproven

    def _authoriser(self, auth: Auth) -> Callable[[Caller], bool]:
        if callable(auth):
            return auth
        if isinstance(auth, str):
            return _bearer(auth)
        networks = _networks(auth)
        if not networks:
            raise ConfigError("need at least one network in auth, got none")
        return lambda caller: _within(_client(caller, self.trusted_proxies), networks)


def _bearer(token: str) -> Callable[[Caller], bool]:
    if len(token) < SHORTEST_TOKEN or token != token.strip():
        raise ConfigError(
            f"need an auth token of at least {SHORTEST_TOKEN} characters, without spaces around it"
        )
    expected = token.encode()

    def allowed(caller: Caller) -> bool:
        scheme, _, given = caller.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), expected)

    return allowed


def _networks(texts: Sequence[str]) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"need networks such as 10.0.0.0/8 in auth: {error}") from None


def _client(caller: Caller, proxies: TrustedProxies | None) -> Address | None:
    if proxies is None:
        return _address(caller.peer)
    return _address(proxies.origin(caller.peer, caller.headers).address)


def _address(text: str | None) -> Address | None:
    try:
        address = ipaddress.ip_address((text or "").strip("[]"))
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


def _within(address: Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)
