"""A host of an Envoy cluster, and what outlier detection has made of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lbkit.balancer.exchange import Attempt
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["Host", "SlowStart"]

HEAVIEST = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart:
    """How a host that has come back gets its weight: from `least` percent on, over `window` seconds."""

    window: float
    aggression: float = 1.0
    least: float = 10.0

    def factor(self, seconds: float) -> float:
        if seconds >= self.window:
            return 1.0
        share: float = max(seconds / self.window, 0.0) ** (1 / self.aggression)
        return max(self.least / 100, share)


@dataclass(slots=True, eq=False)
class Host:
    name: str
    address: str
    """`ip:port`: the text that rings and tables hash."""

    weight: int = 1
    priority: int = 0
    healthy: bool = True
    """What health checks (or the control plane) say."""

    ejected: bool = False
    """What outlier detection says, and the balancer has heard."""

    active: int = 0
    mode: Mode = Mode.READY
    factor: float = 1.0
    """Below 1 while slow start holds it back."""

    up_at: float | None = None
    """The first instant that is known after it came back: slow start begins there."""

    share: float = 1.0
    """How much of its weight it gets."""

    whole: int = 0
    """The configured weight, of which `weight` is what it gets now."""

    attempt: Attempt = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.attempt = Attempt(self.name)
        self.whole = self.weight
        if not 1 <= self.weight <= HEAVIEST:
            raise ConfigError(f"need 1 <= weight <= {HEAVIEST}, got weight={self.weight} for {self.name}")

    @property
    def usable(self) -> bool:
        return self.healthy and not self.ejected and self.mode is Mode.READY

    @property
    def serves(self) -> bool:
        """Those whom a session cookie binds to it, also while it drains."""
        return self.healthy and not self.ejected and self.mode is not Mode.MAINT
