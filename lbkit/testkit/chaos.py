"""Chaos: requests hit at random, and the same way again with the same seed.

Each request draws its lot when it reaches a replica, so one client gives one sequence; concurrent clients
draw in the order in which they come. `Chaos` is that of a cluster; that of a whole suite over replicas,
`pytest --replica-chaos`, is decided in `lbkit.testkit.danger`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING

from lbkit.errors import ConfigError
from lbkit.testkit.faults import Fault, Injection, Plan, crash, drip, error, hang, refuse, reset, slow
from lbkit.testkit.row import Row

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["BACK_AFTER", "CALM", "KINDS", "Chaos", "merciful", "rates_of", "told"]

KINDS: dict[str, Callable[[], Fault]] = {
    "kill": crash,
    "hang": hang,
    "slow": lambda: slow(0.05, jitter=0.05),
    "error": error,
    "refuse": refuse,
    "reset": reset,
    "drip": lambda: drip(10_000),
}
CALM = "none"
"""In place of rates: nothing goes wrong, whatever anybody asks for."""

BACK_AFTER = 5
"""Requests after which a killed replica is back."""


def rates_of(text: str) -> dict[str, float]:
    """`kill=.05,slow=.1` as rates. Raises ConfigError for anything else."""
    rates: dict[str, float] = {}
    for part in text.split(","):
        kind, _, rate = (each.strip() for each in part.partition("="))
        if kind not in KINDS or kind in rates or not is_rate(rate):
            rule = f"need KIND=RATE[,KIND=RATE], each of {', '.join(KINDS)} once, with 0 <= RATE <= 1"
            raise ConfigError(f"{rule}, got {part.strip()!r}")
        rates[kind] = float(rate)
    return rates


def is_rate(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def told(rates: Mapping[str, float]) -> str:
    """The rates as they are given on a command line."""
    return ",".join(f"{kind}={str(rate).removesuffix('.0')}" for kind, rate in rates.items())


def merciful(fault: Fault, living: Callable[[], int]) -> Fault:
    """The same fault, but it neither kills the last one that lives nor has it refuse."""

    def apply(plan: Plan, path: str, since: float, rng: Random) -> bool:
        if not fault.apply(plan, path, since, rng):
            return False
        if plan.over and living() <= 1:
            plan.crash = plan.refuse = False
            return False
        return True

    return Fault(fault.text, apply)


class Chaos:
    """Use as a context manager. `rates`: for each kind of fault the share of requests that it hits."""

    def __init__(self, cluster: Cluster, *, rates: Mapping[str, float], seed: int | None = None) -> None:
        unknown = sorted(rates.keys() - KINDS.keys())
        if unknown or not rates:
            raise ConfigError(f"need rates of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}")
        self.seed = secrets.randbelow(1_000_000) if seed is None else seed
        self._cluster = cluster
        self._rates = rates
        self._injections: list[Injection] = []
        self._back_at: dict[str, int] = {}

    def __enter__(self) -> Chaos:
        self._cluster.rng = Random(self.seed)  # noqa: S311 (faults, not secrets)
        for kind, rate in self._rates.items():
            fault = KINDS[kind]() if kind != "kill" else merciful(crash(), self._living)
            injection = Injection(fault, self._cluster.clock(), rate=rate)
            self._injections.append(self._cluster.faults.add(injection))
        self._cluster.hooks.append(self._revive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._cluster.hooks.remove(self._revive)
        for injection in self._injections:
            injection.stop()
        for name in self._back_at:
            self._cluster[name].start()
        if error is not None:
            self._say(error)

    def _living(self) -> int:
        return sum(replica.listens for replica in self._cluster)

    async def _revive(self, row: Row) -> None:
        for replica in self._cluster:
            if not replica.listens and replica.name not in self._back_at:
                self._back_at[replica.name] = row.id + BACK_AFTER
        for name in [name for name, at in self._back_at.items() if row.id >= at]:
            del self._back_at[name]
            await self._cluster[name].astart()

    def _say(self, error: BaseException) -> None:
        rates = ", ".join(f"{kind}={rate:g}" for kind, rate in self._rates.items())
        note = f"chaos({rates}, seed={self.seed}) does the same again"
        if sys.version_info >= (3, 11):
            error.add_note(note)
        print(note)
