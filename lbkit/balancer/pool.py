"""The pool: the replicas of one app, and how busy each of them is.

`Pool` decides. It never sleeps, reads no clock and touches no socket: a carrier picks a replica,
brings it the request, and releases it when the last byte of the answer has left.
"""

from __future__ import annotations

from collections.abc import Iterable

from lbkit.balancer.policy import Policy, RoundRobin
from lbkit.balancer.replica import Replica, ReplicaState
from lbkit.errors import ConfigError

__all__ = ["Pool"]


class Pool:
    """Replicas in a fixed order, with a policy that picks among them. Safe to share between threads."""

    def __init__(self, replicas: Iterable[Replica], *, policy: Policy | None = None) -> None:
        self.replicas = tuple(replicas)
        self.policy = policy if policy is not None else RoundRobin()
        self.states = tuple(ReplicaState(replica) for replica in self.replicas)
        """In the order of `replicas`: how busy each one is."""

        self._refuse_nonsense()

    def pick(self) -> ReplicaState:
        """Choose the replica for a request and count it in. Pair every pick with one `release`."""
        state = self.policy.pick(self.states)
        state.enter()
        return state

    def release(self, state: ReplicaState) -> None:
        """The request has ended, however it ended."""
        state.leave()

    def _refuse_nonsense(self) -> None:
        if not self.replicas:
            raise ConfigError("need at least one replica, got none")
        names = [replica.name for replica in self.replicas]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(
                f"need a name of its own for each replica, got {', '.join(twice)} more than once"
            )
