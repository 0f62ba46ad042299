"""CPU, memory and disk of what we run in: the container's, when it has limits, else the host's.

`psutil.cpu_percent` keeps its baseline for each thread, so it says 0.0 on a fresh one. This sampler has one
baseline for the process, and a figure is always the use over at least a quarter of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import psutil

from lbkit.health.vitals import Source, Vitals
from lbkit.types import Clock

__all__ = ["Sampler"]

SHORTEST_WINDOW = 0.25


@dataclass(frozen=True, slots=True)
class CpuMark:
    """CPU seconds used up to an instant, and the seconds that could have been used."""

    at: float
    used: float
    available: float


class Sampler:
    """Takes a sample when asked. It may sleep for a quarter of a second, so ask it on a thread of its own."""

    def __init__(
        self,
        *,
        disk_path: str = "/",
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._disk_path = disk_path
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._mark = self._cpu_mark()

    def sample(self) -> Vitals:
        with self._lock:
            return Vitals(
                cpu_percent=self._cpu_percent(),
                memory_percent=psutil.virtual_memory().percent,
                disk_percent=psutil.disk_usage(self._disk_path).percent,
                source=Source(),
            )

    def _cpu_percent(self) -> float:
        early = SHORTEST_WINDOW - (self._clock() - self._mark.at)
        if early > 0:
            self._sleep(early)
        before, self._mark = self._mark, self._cpu_mark()
        available = self._mark.available - before.available
        used = self._mark.used - before.used
        return min(100.0, max(0.0, 100.0 * used / available)) if available > 0 else 0.0

    def _cpu_mark(self) -> CpuMark:
        times = psutil.cpu_times()
        # Linux counts guest time into user time, too.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        return CpuMark(self._clock(), total - idle, total)
