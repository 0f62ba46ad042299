"""A replica as a balancer's configuration has it, whichever balancer that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbkit.errors import ConfigError

__all__ = ["FEATURES", "Options", "Place"]

HEAVIEST = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One line of the configuration. `address` is the text that rings and tables hash; 0: no limit.

    `max_fails` and `fail_timeout` (seconds) are nginx' words; for Envoy they are consecutive_5xx and
    base_ejection_time, for Caddy max_fails and fail_duration, Traefik's maxFailedAttempts and failureWindow.
    These hold for a whole pool: they have to be the same for all its replicas. None: as that balancer ships.
    """

    name: str
    address: str = ""
    weight: int = 1
    backup: bool = False
    down: bool = False
    max_conns: int = 0
    max_fails: int | None = None
    fail_timeout: float | None = None
    slow_start: float = 0.0
    """Seconds over which it gets its weight after it has come back."""

    def __post_init__(self) -> None:
        if not 1 <= self.weight <= HEAVIEST:
            got = f"weight={self.weight} for {self.name}"
            raise ConfigError(
                f"need 1 <= weight <= {HEAVIEST}, got {got}; to take a replica out, mark it down"
            )
        for rule in ("max_conns", "max_fails", "fail_timeout", "slow_start"):
            if (getattr(self, rule) or 0) < 0:
                raise ConfigError(f"need {rule} >= 0, got {rule}={getattr(self, rule)} for {self.name}")

    @property
    def hashed(self) -> str:
        return self.address or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a balancer's configuration says beside its servers; empty is that balancer's default."""

    sticky: str = ""
    """The name of a cookie, whose value and attributes are that balancer's own."""

    retry: str = ""
    """When a request is tried again, in that balancer's own words: see `lbkit.balancer.profile.retry`."""


FEATURES: dict[str, tuple[Callable[[Place], bool], str]] = {
    "weights": (lambda place: place.weight != 1, "weight=1"),
    "backups": (lambda place: place.backup, "backup=False"),
    "max_conns": (lambda place: place.max_conns > 0, "max_conns=0"),
    "max_fails": (lambda place: not (place.max_fails is place.fail_timeout is None), "max_fails=None"),
    "slow_start": (lambda place: place.slow_start > 0, "slow_start=0"),
}
"""What not every balancer has: who asks for it, and what to write where there is none."""
