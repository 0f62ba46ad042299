"""Policies: which of the replicas gets the next request. One method, no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lbkit.balancer.replica import ReplicaState

__all__ = ["Policy", "RoundRobin"]


class Policy(Protocol):
    def pick(self, candidates: Sequence[ReplicaState], /) -> ReplicaState:
        """Choose one of `candidates`, which are in the pool's order and never empty.

        The pool calls this under its lock, so a policy may keep state of its own without one.
        """
        ...


class RoundRobin:
    """Each replica in turn, in the order of the pool, the first one first.

    Over equal weights this is the sequence of nginx' upstream module (`ngx_http_upstream_round_robin.c`).
    """

    def __init__(self) -> None:
        self._turn = 0

    def pick(self, candidates: Sequence[ReplicaState], /) -> ReplicaState:
        chosen = candidates[self._turn % len(candidates)]
        self._turn += 1
        return chosen
