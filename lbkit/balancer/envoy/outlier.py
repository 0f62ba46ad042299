"""Envoy's outlier detection: hosts that fail in a row are ejected for a while.

Source: source/common/upstream/outlier_detection_impl.cc. Ejected at once when the share of ejected hosts
allows it; taken back on the interval timer only. The balancer hears of the first change at once, and of those
within `update_merge_window` after it together, when that window is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbkit.balancer.envoy.host import Host
from lbkit.balancer.exchange import Outcome

__all__ = ["Outlier", "OutlierRules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierRules:
    """Durations in seconds."""

    consecutive_5xx: int = 5
    interval: float = 10.0
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejection_percent: int = 10
    merge_window: float = 1.0


@dataclass(slots=True)
class Record:
    errors: int = 0
    ejected: bool = False
    ejected_at: float = 0.0
    times: int = 0


class Outlier:
    """`phase`: when the interval timer first fires; `lag`: how long a merged change takes to the balancer.

    Both in seconds.
    """

    def __init__(
        self, hosts: Sequence[Host], rules: OutlierRules, *, phase: float = 0.0, lag: float = 0.0
    ) -> None:
        self.rules = rules
        self._lag = lag
        self._hosts = hosts
        self._records = {host.name: Record() for host in hosts}
        self._next_sweep = phase
        self._told_at = float("-inf")
        self._tell_at: float | None = None

    def observe(self, host: Host, outcome: Outcome) -> bool:
        """Count an outcome. Has the balancer heard of a change at once?"""
        told = self._told_at
        self._count(host, outcome)
        return self._told_at != told

    def _count(self, host: Host, outcome: Outcome) -> None:
        record = self._records[host.name]
        if outcome.fault is None and outcome.status < 500:
            record.errors = 0
            return
        record.errors += 1
        if record.errors >= self.rules.consecutive_5xx:
            record.errors = 0
            self._eject(record, outcome.at)

    def tick(self, now: float) -> bool:
        """Let the timers that are due by `now` fire, in their order. Has the balancer heard of a change?"""
        told = self._told_at
        self._fire(now)
        return self._told_at != told

    def _fire(self, now: float) -> None:
        while True:
            due = min(self._next_sweep, self._tell_at if self._tell_at is not None else self._next_sweep)
            if due > now:
                return
            if due == self._tell_at:
                self._tell(due)
            else:
                self._sweep(due)
                self._next_sweep += self.rules.interval

    def _eject(self, record: Record, now: float) -> None:
        ejected = sum(each.ejected for each in self._records.values())
        allowed = 100 * (ejected + 1) / len(self._hosts) <= self.rules.max_ejection_percent
        if record.ejected or not allowed:
            return
        record.ejected, record.ejected_at = True, now
        record.times += 1
        self._changed(now)

    def _sweep(self, now: float) -> None:
        for record in self._records.values():
            limit = min(self.rules.base_ejection_time * record.times, self.rules.max_ejection_time)
            if record.ejected and now - record.ejected_at >= limit:
                record.ejected, record.errors = False, 0
                self._changed(now)
            elif not record.ejected and record.times:
                record.times -= 1

    def _changed(self, now: float) -> None:
        if now - self._told_at >= self.rules.merge_window:
            self._tell(now)
        elif self._tell_at is None:
            self._tell_at = now + self.rules.merge_window + self._lag

    def _tell(self, now: float) -> None:
        self._told_at, self._tell_at = now, None
        for host in self._hosts:
            host.ejected = self._records[host.name].ejected
