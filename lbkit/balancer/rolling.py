"""A rolling restart: one replica after another leaves, is replaced and comes back, and no request is lost.

A flow, so that one text serves both gateways: it yields the seconds to sleep, or the name of the replica to
replace, and returns what became of each. A replica leaves by the machine of `lbkit.drain`: for `delay`
seconds it keeps the clients that are bound to it; then it gets nothing, and is replaced when nothing has been
inside for a moment, or when `timeout` is over.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from lbkit.balancer.members import Member
from lbkit.balancer.pool import Pool
from lbkit.drain import Drain, DrainTimings, Step
from lbkit.errors import ConfigError, StartupError
from lbkit.types import Clock

__all__ = ["Moves", "Restarted", "rolling"]

TICK = 0.05
"""Seconds between two looks at what is inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """One replica of a rolling restart."""

    replica: str
    seconds: float
    """From its leave to its return."""

    left: int
    """Requests that were still inside when its time was over."""


class Rolls(Protocol):
    """A balancer, as far as it can be restarted."""

    pool: Pool
    clock: Clock

    @property
    def replicas(self) -> Mapping[str, Member[Any]]: ...

    def drain(self, name: str) -> None: ...
    def maintain(self, name: str) -> None: ...
    def ready(self, name: str) -> None: ...


Moves: TypeAlias = Generator["float | str", None, "tuple[Restarted, ...]"]
"""Sleep so many seconds, or replace the replica of this name."""


def rolling(balancer: Rolls, *, delay: float, timeout: float) -> Moves:
    """Raises ConfigError, before anything is touched, when the last replica would have to leave."""
    timings = DrainTimings(pre_stop_delay=delay, drain_timeout=delay + timeout)
    done = []
    for name in list(balancer.replicas):
        _refuse_the_last(balancer.pool, name)
        began_at = balancer.clock()
        left = yield from _leave(balancer, name, timings)
        yield name
        balancer.ready(name)
        yield from _return(balancer, name, timeout)
        done.append(Restarted(replica=name, seconds=balancer.clock() - began_at, left=left))
    return tuple(done)


def _leave(balancer: Rolls, name: str, timings: DrainTimings) -> Generator[float, None, int]:
    member, machine = balancer.replicas[name], Drain(timings)
    machine.begin(began_at := balancer.clock())
    balancer.drain(name)
    while balancer.clock() - began_at < timings.pre_stop_delay:
        yield TICK
    balancer.maintain(name)
    # What was picked a moment ago may not have been counted in yet: the quiet begins anew.
    machine.step(balancer.clock(), in_flight=1)
    while machine.step(balancer.clock(), in_flight=member.active) is not Step.HAND_OVER:
        yield TICK
    return member.active


def _return(balancer: Rolls, name: str, timeout: float) -> Generator[float, None, None]:
    """Where replicas are checked, the next one leaves when this one has passed. Else it would be the last."""
    began_at, state = balancer.clock(), balancer.replicas[name].state
    while not state.open:
        if balancer.clock() - began_at > timeout:
            raise StartupError(name, f"it has not passed its checks within {timeout:g} s")
        yield TICK


def _refuse_the_last(pool: Pool, name: str) -> None:
    others = [state.replica.name for state in pool.states if state.open and state.replica.name != name]
    if not others:
        raise ConfigError(f"need another replica that takes requests while {name} restarts, got none")
