"""CPU, memory and disk as percentages, and the thresholds that they must stay under."""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.errors import ConfigError
from lbkit.health.status import Status

__all__ = ["Source", "Thresholds", "Vitals", "breaches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose figures they are: `cgroup2` or `cgroup1` for a container that has a limit, else `host`."""

    cpu: str = "host"
    memory: str = "host"
    cpu_limit: float | None = None
    """CPUs that the process may use at once; None for all of the host's."""

    memory_limit_bytes: int | None = None
    throttled_percent: float | None = None
    """Share of the scheduler's periods in which the quota ran out."""


HOST = Source()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """Percentages from 0 to 100; None when a figure could not be had."""

    cpu_percent: float | None = None
    memory_percent: float | None = None
    disk_percent: float | None = None
    source: Source = HOST

    def percentages(self) -> dict[str, float | None]:
        return {"cpu": self.cpu_percent, "memory": self.memory_percent, "disk": self.disk_percent}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """A percentage is well while it is less than its threshold. 101 switches one off."""

    cpu: float = 80.0
    memory: float = 85.0
    disk: float = 90.0
    breach: Status = Status.UNHEALTHY
    """What a breach makes of the detailed report: UNHEALTHY (503) or DEGRADED (200)."""

    def __post_init__(self) -> None:
        for name in ("cpu", "memory", "disk"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 101:
                raise ConfigError(f"need 0 < {name} <= 101 percent, got {name}={value!r}")
        if self.breach not in (Status.UNHEALTHY, Status.DEGRADED):
            raise ConfigError(f"need breach UNHEALTHY or DEGRADED, got {self.breach!r}")


def breaches(vitals: Vitals, thresholds: Thresholds) -> tuple[str, ...]:
    """The names of the figures that are at or above their thresholds."""
    limits = {"cpu": thresholds.cpu, "memory": thresholds.memory, "disk": thresholds.disk}
    figures = vitals.percentages()
    return tuple(
        name for name, limit in limits.items() if (figure := figures[name]) is not None and figure >= limit
    )
