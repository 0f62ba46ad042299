"""The breaker: when a store keeps failing, the answer is given without asking it.

=========  ==============================  =========================================================
state      `admits`                        becomes
=========  ==============================  =========================================================
closed     everybody                       open after so many failures in a row
open       nobody, until its time is over  half open then
half open  one, the others wait for it     closed when that one succeeds, else open for twice as long
=========  ==============================  =========================================================

It reads no clock: `now` is in seconds, from any fixed point.
"""

from __future__ import annotations

from threading import Lock

from lbkit.errors import ConfigError

__all__ = ["Breaker"]


class Breaker:
    """One for each store and process. Durations in seconds."""

    def __init__(self, *, failures: int = 3, first: float = 1.0, longest: float = 10.0) -> None:
        if not (failures >= 1 and 0 < first <= longest):
            got = f"failures={failures}, first={first}, longest={longest}"
            raise ConfigError(f"need failures >= 1 and 0 < first <= longest, got {got}")
        self.failures = failures
        self.first = first
        self.longest = longest
        self._failed = 0
        self._open_for = 0.0
        self._opened_at = 0.0
        self._probing = False
        self._lock = Lock()

    @property
    def closed(self) -> bool:
        return not self._open_for

    def admits(self, now: float) -> bool:
        """May the store be asked? Pair every True with `succeeded`, `failed` or `released`."""
        if not self._open_for:
            return True
        with self._lock:
            if self._probing or now < self._opened_at + self._open_for:
                return False
            self._probing = True
            return True

    def left(self, now: float) -> float:
        """Seconds until the store is asked again."""
        return max(0.0, self._opened_at + self._open_for - now) if self._open_for else 0.0

    def succeeded(self) -> None:
        if self._failed:
            with self._lock:
                self._failed, self._open_for, self._probing = 0, 0.0, False

    def failed(self, now: float) -> None:
        with self._lock:
            self._failed += 1
            if self._probing or (not self._open_for and self._failed >= self.failures):
                self._open_for = min(self.longest, self._open_for * 2 or self.first)
                self._opened_at, self._probing = now, False

    def released(self) -> None:
        """The question was never answered: its asker was cancelled. Somebody else may probe."""
        with self._lock:
            self._probing = False
