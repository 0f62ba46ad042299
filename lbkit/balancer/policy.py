"""Policies: which of the replicas gets the next request. One method, no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Protocol, runtime_checkable

from lbkit.balancer.key import RequestKey
from lbkit.balancer.replica import ReplicaState

__all__ = ["KeyedPolicy", "Policy", "RoundRobin"]


class Policy(Protocol):
    """How a pool chooses. Write one of your own with this method, and give it to a `Pool` or a `Balancer`."""

    def pick(self, candidates: Sequence[ReplicaState], /) -> ReplicaState:
        """Choose one of `candidates`, which are in the pool's order and never empty.

        Threads of a WSGI server call this at the same time.
        """
        ...


@runtime_checkable
class KeyedPolicy(Protocol):
    """How a pool chooses when it depends on who asks for what: a policy with this method instead."""

    def pick_for(self, key: RequestKey, candidates: Sequence[ReplicaState], /) -> ReplicaState:
        """Choose one of `candidates`, as `Policy.pick` does, for the request that `key` tells about."""
        ...


class RoundRobin:
    """Each replica in turn, in the order of the pool, the first one first.

    Over equal weights this is the sequence of nginx' upstream module (`ngx_http_upstream_round_robin.c`).
    """

    def __init__(self) -> None:
        self._turns = count()  # next() on it is atomic: no two threads get the same turn

    def pick(self, candidates: Sequence[ReplicaState], /) -> ReplicaState:
        return candidates[next(self._turns) % len(candidates)]
