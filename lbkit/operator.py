"""An operator's order over HTTP: who may drain a replica, and what they are told.

Off unless there is a token. An order is a POST with `Authorization: Bearer TOKEN` from a peer of the list,
and the peer is who holds the connection: X-Forwarded-For is anybody's to write. Everything else, be it a
wrong token, none, another method or another peer, is no order at all: it goes to the app like any other
request, which answers 404 to a path that it does not know, and gives no hint.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from lbkit.errors import ConfigError

__all__ = ["Answer", "Operator", "Order", "answer"]

SHORTEST_TOKEN = 16
LOOPBACK = ("127.0.0.1", "::1")


class Order(Enum):
    DRAIN = "drain"
    UNDRAIN = "undrain"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    phrase: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who may give orders, and where. `peers`: the addresses that they come from."""

    token: str = field(repr=False)
    peers: Collection[str] = LOOPBACK
    path: str = "/health"

    def __post_init__(self) -> None:
        if len(self.token) < SHORTEST_TOKEN:
            raise ConfigError(f"need a token of at least {SHORTEST_TOKEN} characters, got {len(self.token)}")
        if isinstance(self.peers, str):
            raise ConfigError(f"need a collection of addresses as peers, got {self.peers!r}")

    def order(self, *, method: str, path: str, authorization: str, peer: str | None) -> Order | None:
        """The order that this request is; None when it is none."""
        if method != "POST" or peer not in self.peers:
            return None
        order = {f"{self.path}/{each.value}": each for each in Order}.get(path)
        given = authorization.encode("utf-8", "surrogateescape")
        # The time of the comparison tells nothing about how much of the token is right.
        known = hmac.compare_digest(given, f"Bearer {self.token}".encode())
        return order if known else None


def answer(order: Order, *, done: bool) -> Answer:
    """What the operator is told. A drain that a signal began cannot be taken back."""
    if not done:
        return Answer(409, "Conflict", _body("draining", error="a signal has begun this drain"))
    state = "draining" if order is Order.DRAIN else "ready"
    return Answer(200, "OK", _body(state))


def _body(state: str, **more: str) -> bytes:
    return json.dumps({"state": state, **more}).encode() + b"\n"
