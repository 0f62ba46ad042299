"""Persistence by the client's address, for clients that keep no cookies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address

from lbkit.balancer.key import RequestKey
from lbkit.balancer.policy import RoundRobin
from lbkit.balancer.replica import ReplicaState
from lbkit.forwarded import address_of

__all__ = ["SourceAddress"]

LONGEST = 80
"""No address is longer, and what is longer must not fill the cache."""


class SourceAddress:
    """The same replica for the same client address, for as long as that replica is there.

    IPv4 counts by the whole address, also inside IPv6, and IPv6 by its /64, because one household has a whole
    one. A client without an address (a unix socket) gets each replica in turn. A replica that leaves moves
    its own clients alone: each has a score for each client, and the highest wins (rendezvous hashing).
    """

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def pick_for(self, key: RequestKey, candidates: Sequence[ReplicaState], /) -> ReplicaState:
        client = key.client
        origin = network_of(client) if client and len(client) <= LONGEST else None
        if origin is None:
            return self._turns.pick(candidates)
        return max(candidates, key=lambda state: score(origin, state.replica.name))


@lru_cache(4096)
def network_of(client: str) -> bytes | None:
    """What counts of an address, None for what is none."""
    address = address_of(client.partition("%")[0])
    if address is None:
        return None
    return address.packed[:8] if isinstance(address, IPv6Address) else address.packed


def score(origin: bytes, replica: str) -> bytes:
    return blake2b(replica.encode(), key=origin, digest_size=8).digest()
