"""What goes wrong with the requests of one test, in a suite that runs over replicas.

    pytest --replicas 3 --replica-chaos kill=.05,slow=.1
    @pytest.mark.replicas(faults=[error(503)])

It decides; `lbkit.testkit.mortal` makes it happen. The dice of each kind of fault are thrown for each
attempt, and come from the seed and the test's name: a test meets the same faults alone, in another order, in
a worker of xdist, and without the other kinds.

A replica that is killed dies as a request reaches it, before the app runs: that request goes to the next one,
others that are inside are cut. For the next few requests it is away. Then it is back, with an empty memory.
Chaos neither kills the last replica that a request can go to nor has it refuse: no request is lost by that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from random import Random

from lbkit.testkit.chaos import BACK_AFTER, KINDS, merciful
from lbkit.testkit.faults import Fault, Faults, Injection, Plan, crash

__all__ = ["SILENCE", "Danger"]

SILENCE = 0.5
"""Seconds after which a replica that hangs is given up. Only one that hangs: no other request has a limit."""


class Danger:
    """The faults of one test, and which of its replicas are away."""

    def __init__(
        self,
        test: str,
        *,
        replicas: int,
        rates: Mapping[str, float],
        seed: int = 0,
        faults: Iterable[Fault] = (),
        now: float = 0.0,
    ) -> None:
        self.replicas = replicas
        self._rng = Random(f"{test} {seed}")  # noqa: S311 (faults, not secrets)
        self._back_at: dict[int, int] = {}
        self._requests = 0
        self._others = 0
        self._faults = Faults()
        self._injections = [
            *(self._of_chaos(kind, rate, f"{test} {seed} {kind}", now) for kind, rate in rates.items()),
            *(Injection(self._spared(fault) if fault == crash() else fault, now) for fault in faults),
        ]
        for injection in self._injections:
            self._faults.add(injection)

    def _of_chaos(self, kind: str, rate: float, seed: str, now: float) -> Injection:
        fault = Fault(kind, KINDS[kind]().apply)
        rng = Random(seed)  # noqa: S311
        return Injection(self._spared(fault), now, rate=rate, rng=rng)

    def _spared(self, fault: Fault) -> Fault:
        return merciful(fault, lambda: self._others + 1)

    @property
    def hits(self) -> Counter[str]:
        """How often each fault has struck."""
        hits: Counter[str] = Counter()
        for injection in self._injections:
            hits[str(injection)] += injection.count
        return +hits

    def begin(self) -> None:
        """A request has come. Those who were away for long enough are back."""
        self._requests += 1
        self._back_at = {index: at for index, at in self._back_at.items() if at > self._requests}

    def up(self, first: int = 0) -> Iterator[int]:
        """Those who take connections, beginning with one of them."""
        order = ((first + step) % self.replicas for step in range(self.replicas))
        return (index for index in order if index not in self._back_at)

    def plan(self, index: int, method: str, path: str, now: float, *, others: int) -> Plan | None:
        """What happens to a request that has reached this replica, and could go to so many others.

        A replica that is killed is away from now on.
        """
        self._others = others
        plan = self._faults.decide(None, method, path, now, self._rng)
        if plan is not None and plan.crash:
            self.leave(index)
        return plan

    def leave(self, index: int) -> None:
        """It takes no connections for the next few requests."""
        self._back_at[index] = self._requests + 1 + BACK_AFTER
