"""What is fixed about a check: its name, how much it matters, and its times.

===========  =============================================================================
timeout      the longest an answer waits for a run; a run that takes longer failed
ttl          how long a pass is believed before the check is run again
fail_ttl     the same for a failure: short, so that a recovery shows soon
max_stale    the longest that a result may be shown while it is being renewed
interval     run in the background this often, instead of when somebody asks
===========  =============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lbkit.errors import ConfigError
from lbkit.health.status import Status

__all__ = ["DETAILED", "READY", "Check", "CheckFunction", "ComponentType", "backoff"]

CheckFunction: TypeAlias = Callable[[], object]
"""A function or coroutine function without parameters. Returns None, a bool or an Outcome; raises to fail."""

ComponentType: TypeAlias = Literal["component", "datastore", "system"]

READY = "ready"
DETAILED = "detailed"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
LONGEST_BACKOFF = 30.0
"""Seconds between two background runs of a check that is down, at most (Dropwizard's downtime interval)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """All times are in seconds. Raises ConfigError for values that cannot work together."""

    name: str
    critical: bool = True
    groups: frozenset[str] = frozenset({READY, DETAILED})
    timeout: float = 1.0
    ttl: float = 5.0
    fail_ttl: float = 1.0
    interval: float | None = None
    max_stale: float = 30.0
    fails: int = 1
    """Failures in a row that make a healthy check unhealthy."""

    passes: int = 1
    """Passes in a row that make an unhealthy check healthy."""

    initial: Status = Status.UNKNOWN
    slow_ms: float = 250.0
    shared: bool = True
    """Other replicas depend on it too: when it fails, it fails for all of them."""

    shared_grace: float = 0.0
    """While a shared check fails, readiness believes the last pass this long. 0: not at all."""

    flight_key: Hashable | None = None
    """Checks with the same key, in any replica of this process, share their runs."""

    component_type: ComponentType = "datastore"

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and NAME.fullmatch(self.name)):
            rule = "1 to 63 letters, digits, '_', '-' or '.', the first a letter or digit"
            raise ConfigError(f"need a check name of {rule}, got {self.name!r}")
        self._positive("timeout", self.timeout)
        self._positive("max_stale", self.max_stale)
        for name in ("ttl", "fail_ttl", "slow_ms", "shared_grace"):
            self._not_negative(name, getattr(self, name))
        for name in ("fails", "passes"):
            self._at_least_one(name, getattr(self, name))
        if self.initial is Status.DEGRADED or not isinstance(self.initial, Status):
            raise ConfigError(
                f"{self.name}: need initial UNKNOWN, HEALTHY or UNHEALTHY, got {self.initial!r}"
            )
        if self.interval is not None:
            self._positive("interval", self.interval)
        if not self.renewal < self.max_stale:
            got = f"ttl={self.ttl}, interval={self.interval}, max_stale={self.max_stale}"
            raise ConfigError(f"{self.name}: need ttl, or interval, < max_stale, got {got}")

    @property
    def renewal(self) -> float:
        """Seconds after which a pass is renewed."""
        return self.ttl if self.interval is None else self.interval

    def _positive(self, name: str, value: float) -> None:
        if not (_is_number(value) and value > 0):
            raise ConfigError(f"{self.name}: need {name} > 0 seconds, got {name}={value!r}")

    def _not_negative(self, name: str, value: float) -> None:
        if not (_is_number(value) and value >= 0):
            raise ConfigError(f"{self.name}: need {name} >= 0, got {name}={value!r}")

    def _at_least_one(self, name: str, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.name}: need {name} >= 1, got {name}={value!r}")


def backoff(interval: float, failures: int) -> float:
    """Seconds until the next background run: doubled with each failure in a row, to 30 (or the interval)."""
    return min(interval * 2.0 ** min(failures, 16), max(LONGEST_BACKOFF, interval))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
