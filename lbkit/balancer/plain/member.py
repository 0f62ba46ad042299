"""A replica of the plain balancer: what is configured, what is in flight, and how quick it was."""

from __future__ import annotations

from hashlib import blake2b
from math import exp

from lbkit.balancer.exchange import Attempt
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["HEAVIEST", "Member", "PeakEwma", "hashed"]

HEAVIEST = 65535
DECAY = 10.0
PENALTY = 1e300


def hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class PeakEwma:
    """A latency that jumps to a peak at once and decays from it, over `decay` seconds.

    Finagle's `PeakEwma.scala`. One that has no history and a request inside is not asked again until that one
    is back: an average of 0 would flood it.
    """

    __slots__ = ("cost", "decay", "stamp")

    def __init__(self, *, decay: float = DECAY) -> None:
        self.decay = decay
        self.cost = 0.0
        self.stamp = 0.0

    def observe(self, seconds: float, now: float) -> None:
        kept = exp(-max(now - self.stamp, 0.0) / self.decay)
        self.cost = seconds if seconds > self.cost else self.cost * kept + seconds * (1 - kept)
        self.stamp = now

    def load(self, active: int, now: float) -> float:
        self.observe(0.0, now)
        return PENALTY + active if active and not self.cost else self.cost * (active + 1)


class Member:
    """The state of one replica. `address` is the text that is hashed."""

    __slots__ = (
        "active",
        "address",
        "attempt",
        "backup",
        "cw",
        "latency",
        "limit",
        "mode",
        "name",
        "seed",
        "share",
        "up",
        "weight",
        "whole",
    )

    def __init__(
        self, name: str, address: str = "", *, weight: int = 1, limit: int = 0, backup: bool = False
    ) -> None:
        if not 1 <= weight <= HEAVIEST:
            raise ConfigError(f"need 1 <= weight <= {HEAVIEST}, got weight={weight} for {name}")
        if limit < 0:
            raise ConfigError(f"need a limit of requests >= 0, got {limit} for {name}")
        self.name = name
        self.address = address or name
        self.attempt = Attempt(name)
        self.weight = self.whole = weight
        self.share = 1.0
        self.limit = limit
        self.backup = backup
        self.seed = hashed(self.address)
        self.latency = PeakEwma()
        self.up = True
        self.mode = Mode.READY
        self.active = self.cw = 0

    @property
    def open(self) -> bool:
        return self.up and self.mode is Mode.READY

    def skipped(self) -> str:
        """Why it gets no new client now; empty when it may."""
        if not self.up:
            return "down"
        if self.mode is not Mode.READY:
            return f"mode {self.mode.value}"
        full = 0 < self.limit <= self.active
        return f"full: {self.active} of {self.limit} requests" if full else ""
