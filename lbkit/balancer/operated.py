"""What an operator, and the checks, do to the replicas of a balancer: the same in both gateways."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from lbkit.balancer.backend import Backend
from lbkit.balancer.check import CheckRules
from lbkit.balancer.dispatch import Dispatch
from lbkit.balancer.pool import Pool
from lbkit.balancer.replica import Mode
from lbkit.types import Clock

__all__ = ["Operated", "Served"]

logger = logging.getLogger("lbkit.balancer")


class Carries(Protocol):
    backend: Backend

    def now(self) -> float: ...


C = TypeVar("C", bound=Carries)
M_co = TypeVar("M_co", covariant=True)


class Served(Protocol[M_co]):
    """A balancer, as those see it who carry its requests and check its replicas."""

    @property
    def replicas(self) -> Mapping[str, M_co]: ...
    @property
    def on_dispatch(self) -> Callable[[Dispatch], object] | None: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def wall(self) -> Clock: ...
    def judge(self, name: str, *, up: bool, share: float = 1.0) -> None: ...


class Operated(Generic[C]):
    """A balancer, as far as its replicas can be taken out and put back."""

    pool: Pool
    _carrier: C | None
    _rules: CheckRules | None = None
    """How its replicas are checked, None when they are not."""

    def drain(self, name: str) -> None:
        """The replica keeps the clients that are bound to it, and gets no new ones."""
        self._set_mode(name, Mode.DRAIN)

    def maintain(self, name: str) -> None:
        """The replica gets nothing. What is inside may finish."""
        self._set_mode(name, Mode.MAINT)

    def ready(self, name: str) -> None:
        """The replica takes part again. After maintenance it is as new to its checks, and asked soon."""
        life = self.pool.life(name)
        self._set_mode(name, Mode.READY)
        if self._rules is not None and self.pool.life(name) != life:
            self.judge(name, up=self._rules.begins_up)

    def _set_mode(self, name: str, mode: Mode) -> None:
        self.pool.set_mode(name, mode)
        if self._carrier is not None:
            self._carrier.backend.tell(name, now=self._carrier.now(), mode=mode)

    def judge(self, name: str, *, up: bool, share: float = 1.0) -> None:
        """What checks have found: whether the replica is up, and how much of its weight it gets."""
        if self.pool.set_up(name, up=up):
            logger.warning("replica %s is %s: so say the checks", name, "up" if up else "down")
        if self._carrier is not None:
            self._carrier.backend.tell(name, now=self._carrier.now(), up=up, share=share)

    def explain(self) -> dict[str, str]:
        """For each replica that gets no new client now, the rule that skips it."""
        if self._carrier is not None:
            return self._carrier.backend.explain(self._carrier.now())
        closed = (state for state in self.pool.states if not state.open)
        return {each.replica.name: each.mode.value if each.up else "down" for each in closed}
