"""The pool: the replicas of one app, and how busy each of them is.

`Pool` decides. It never sleeps, reads no clock and touches no socket: a carrier picks a replica,
brings it the request, and releases it when the last byte of the answer has left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lbkit.balancer.key import RequestKey
from lbkit.balancer.policy import KeyedPolicy, Policy, RoundRobin
from lbkit.balancer.replica import Mode, Replica, ReplicaState
from lbkit.errors import ConfigError

__all__ = ["Pool"]


class Pool:
    """Replicas in a fixed order, with a policy that picks among them. Safe to share between threads."""

    def __init__(self, replicas: Iterable[Replica], *, policy: Policy | KeyedPolicy | None = None) -> None:
        self.replicas = tuple(replicas)
        self.policy: Policy | KeyedPolicy = policy if policy is not None else RoundRobin()
        self._keyed = self.policy if isinstance(self.policy, KeyedPolicy) else None
        self._plain = self.policy if not isinstance(self.policy, KeyedPolicy) else RoundRobin()
        self.states = tuple(ReplicaState(replica) for replica in self.replicas)
        """In the order of `replicas`: how busy each one is."""

        self.keyed = self._keyed is not None
        """Does the policy look at the request? If not, a carrier need not make a key of it."""

        self._refuse_nonsense()
        self._sort()

    def pick(self, key: RequestKey | None = None, *, stay: str | None = None) -> ReplicaState | None:
        """Choose the replica for a request and count it in. Pair every pick with one `release`.

        `stay` names the replica that the client is bound to, as its cookie says. None: no replica takes this
        request.
        """
        if stay is not None and (state := self._bound.get(stay)) is not None:
            state.enter()
            return state
        if not (candidates := self._open):
            return None
        state = self._plain.pick(candidates) if self._keyed is None else self._pick_for(key, candidates)
        state.enter()
        return state

    def _pick_for(self, key: RequestKey | None, candidates: Sequence[ReplicaState]) -> ReplicaState:
        if self._keyed is None or key is None:
            raise ConfigError(f"need the request's key for {self.policy!r}, got None")
        return self._keyed.pick_for(key, candidates)

    def set_mode(self, name: str, mode: Mode) -> None:
        """Drain a replica, take it out, or put it back: from the next request on."""
        state = self._named(name)
        state.life += state.mode is Mode.MAINT and mode is not Mode.MAINT
        state.mode = mode
        self._sort()

    def life(self, name: str) -> int:
        """How often that replica has come back from maintenance."""
        return self._named(name).life

    def set_up(self, name: str, *, up: bool) -> bool:
        """What active checks say: who is down gets nothing. Whether that is news."""
        state = self._named(name)
        if state.up is up:
            return False
        state.up = up
        self._sort()
        return True

    def _named(self, name: str) -> ReplicaState:
        for state in self.states:
            if state.replica.name == name:
                return state
        names = ", ".join(replica.name for replica in self.replicas)
        raise ConfigError(f"need the name of a replica ({names}), got {name!r}")

    @property
    def down(self) -> frozenset[str]:
        """The replicas that get nothing: whoever was bound to one has to move."""
        return self._down

    def _sort(self) -> None:
        """Whole new collections, so that a thread in the middle of a pick sees the old or the new ones."""
        self._open = tuple(state for state in self.states if state.open)
        serving = (state for state in self.states if state.mode is not Mode.MAINT and state.up)
        self._bound = {state.replica.name: state for state in serving}
        self._down = frozenset(replica.name for replica in self.replicas) - self._bound.keys()

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
