"""CPU, memory and disk of what we run in: the container's, when it has limits, else the host's.

Memory in use is the working set: a file cache that the kernel can drop at once is not in use. Of all the
limits over a process, its own and its ancestors', the one that is nearest to being reached counts.

`psutil.cpu_percent` keeps a baseline for each thread, so it says 0.0 on a fresh one. This sampler has one
baseline for the process, and a figure is always the use over at least a quarter of a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import psutil

from lbkit.health.cgroup import Hierarchy, figures, hierarchies, memory_limit, quota_v1, quota_v2
from lbkit.health.vitals import Source, Vitals
from lbkit.types import Clock

__all__ = ["Sampler"]

SHORTEST_WINDOW = 0.25
NONE = Hierarchy(0, ())


@dataclass(frozen=True, slots=True)
class CpuMark:
    """What had been used at an instant: seconds of CPU in each limited cgroup, and on the host."""

    at: float
    used: dict[str, float]
    host_busy: float
    host_total: float
    periods: int = 0
    throttled: int = 0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    percent: float
    limit_bytes: int | None


class Sampler:
    """Takes a sample when asked. It may sleep for a quarter of a second, so ask it on a thread of its own.

    `root` stands for `/` when the files of the kernel are looked for.
    """

    def __init__(
        self,
        *,
        disk_path: str = "/",
        root: str | Path = "/",
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._disk_path = disk_path
        self._root = Path(root)
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._pid = os.getpid()
        found = hierarchies(self._read("/proc/self/cgroup"), self._read("/proc/self/mountinfo"))
        self._cpu, self._memory = found.get("cpu", NONE), found.get("memory", NONE)
        self._accounting = found.get("cpuacct", NONE)
        self._mark = self._cpu_mark()

    def sample(self) -> Vitals:
        """Each figure is None where it cannot be had; the others are there all the same."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), Lock()
        with self._lock:
            quotas = self._quotas()
            before, after = self._cpu_window()
            memory = self._memory_use()
            return Vitals(
                cpu_percent=self._cpu_percent(before, after, quotas),
                memory_percent=memory.percent,
                disk_percent=self._disk_percent(),
                source=Source(
                    cpu=f"cgroup{self._cpu.version}" if quotas else "host",
                    memory="host" if memory.limit_bytes is None else f"cgroup{self._memory.version}",
                    cpu_limit=min(quotas.values()) if quotas else None,
                    memory_limit_bytes=memory.limit_bytes,
                    throttled_percent=_throttled(before, after) if quotas else None,
                ),
            )

    # CPU

    def _cpu_window(self) -> tuple[CpuMark, CpuMark]:
        early = SHORTEST_WINDOW - (self._clock() - self._mark.at)
        if early > 0:
            self._sleep(early)
        before, self._mark = self._mark, self._cpu_mark()
        return before, self._mark

    def _cpu_percent(self, before: CpuMark, after: CpuMark, quotas: dict[str, float]) -> float:
        elapsed = after.at - before.at
        if quotas and elapsed > 0:
            # A limit that has come since the last sample counts from the next one on.
            shares = [
                (after.used[folder] - before.used[folder]) / (elapsed * cpus)
                for folder, cpus in quotas.items()
                if folder in before.used and folder in after.used
            ]
            return _percent(max(shares, default=0.0))
        total = after.host_total - before.host_total
        return _percent((after.host_busy - before.host_busy) / total) if total > 0 else 0.0

    def _quotas(self) -> dict[str, float]:
        """CPUs that may be used, by the folder that limits them; no more than we may be scheduled on."""
        allowed = float(len(_affinity()))
        found: dict[str, float] = {}
        for folder in self._cpu.folders:
            if self._cpu.version == 2:
                quota = quota_v2(self._read(f"{folder}/cpu.max"))
            else:
                quota = quota_v1(
                    self._read(f"{folder}/cpu.cfs_quota_us"), self._read(f"{folder}/cpu.cfs_period_us")
                )
            if quota is not None:
                found[folder] = min(quota, allowed)
        return found

    def _cpu_mark(self) -> CpuMark:
        stats = {folder: figures(self._read(f"{folder}/cpu.stat")) for folder in self._cpu.folders}
        used = {folder: self._cpu_used(folder, stat) for folder, stat in stats.items()}
        busy, total = _host_cpu()
        return CpuMark(
            at=self._clock(),
            used={folder: seconds for folder, seconds in used.items() if seconds is not None},
            host_busy=busy,
            host_total=total,
            periods=sum(stat.get("nr_periods", 0) for stat in stats.values()),
            throttled=sum(stat.get("nr_throttled", 0) for stat in stats.values()),
        )

    def _cpu_used(self, folder: str, stat: dict[str, int]) -> float | None:
        if self._cpu.version == 2:
            usage = stat.get("usage_usec")
            return None if usage is None else usage / 1e6
        nanos = self._number(f"{self._accounted(folder)}/cpuacct.usage")
        return None if nanos is None else nanos / 1e9

    def _accounted(self, folder: str) -> str:
        """Version 1 may count CPU time in another hierarchy than it limits it in, with the same levels."""
        depth = len(self._cpu.folders) - self._cpu.folders.index(folder)
        levels = self._accounting.folders
        return levels[max(0, len(levels) - depth)] if levels else folder

    # Memory

    def _memory_use(self) -> MemoryUse:
        host = psutil.virtual_memory()
        found = [self._memory_of(folder, host.total) for folder in self._memory.folders]
        limited = [use for use in found if use is not None]
        return max(limited, key=lambda use: use.percent, default=MemoryUse(host.percent, None))

    def _memory_of(self, folder: str, host_total: int) -> MemoryUse | None:
        second = self._memory.version == 2
        limit = memory_limit(self._read(f"{folder}/{'memory.max' if second else 'memory.limit_in_bytes'}"))
        usage = self._number(f"{folder}/{'memory.current' if second else 'memory.usage_in_bytes'}")
        if limit is None or usage is None or limit >= host_total:
            return None
        stat = figures(self._read(f"{folder}/memory.stat"))
        droppable = stat.get("inactive_file" if second else "total_inactive_file", 0)
        return MemoryUse(_percent(max(0, usage - droppable) / limit), limit)

    def _disk_percent(self) -> float | None:
        try:
            return float(psutil.disk_usage(self._disk_path).percent)
        except OSError:
            return None

    def _number(self, path: str) -> int | None:
        text = self._read(path).strip()
        return int(text) if text.isdecimal() else None

    def _read(self, path: str) -> str:
        try:
            return (self._root / path.lstrip("/")).read_text(errors="replace")
        except OSError:
            return ""


def _host_cpu() -> tuple[float, float]:
    """Busy and total seconds, of the CPUs that we may run on."""
    every = psutil.cpu_times(percpu=True)
    mine = [times for number, times in enumerate(every) if number in _affinity()] or every
    busy = total = 0.0
    for times in mine:
        # Linux counts guest time into user time, too.
        all_of_it = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        total += all_of_it
        busy += all_of_it - times.idle - getattr(times, "iowait", 0.0)
    return busy, total


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):  # not Linux
        return set(range(os.cpu_count() or 1))


def _throttled(before: CpuMark, after: CpuMark) -> float | None:
    periods = after.periods - before.periods
    return _percent((after.throttled - before.throttled) / periods) if periods > 0 else None


def _percent(share: float) -> float:
    return min(100.0, max(0.0, 100.0 * share))
