"""Where a request goes when clients are sticky or a policy looks at it, and what cookie comes back."""

from __future__ import annotations

from lbkit.balancer.key import RequestKey
from lbkit.balancer.pool import Pool
from lbkit.balancer.replica import ReplicaState
from lbkit.sticky import Keep, Stick

__all__ = ["choose"]


def choose(
    pool: Pool, stick: Stick | None, key: RequestKey, now: float
) -> tuple[ReplicaState | None, str | None]:
    """Pick for this request: the replica, None when there is none to take it, and the Set-Cookie or None.

    `now` is Unix time in seconds. Pair every replica with one `Pool.release`.
    """
    if stick is None:
        return pool.pick(key), None
    decision = stick.decide(key.header("cookie"), now, down=pool.down)
    state = pool.pick(key, stay=decision.replica if isinstance(decision, Keep) else None)
    if state is None or not stick.sticky.speaks_on(key.path):
        return state, None
    return state, stick.settle(decision, state.replica.name, now)
