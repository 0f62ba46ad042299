"""A replica whose clock is off: what it calls now is so many seconds from what the others do.

Only an interpreter of its own can have a clock of its own. There time-machine sets all of Python's wall
clocks off, in C, so that `from time import time` is, too; they go on at their pace. The monotonic clock stays
true, and with it timeouts, `sleep` and asyncio. What does not ask Python is not deceived: SQLite's
`datetime('now')`, a database's clock.
"""

from __future__ import annotations

import importlib.util
import math
from types import TracebackType

from lbkit.errors import ConfigError, MissingExtra
from lbkit.testkit.interpreter import Interpreter

__all__ = ["Skew", "WallClock"]


class WallClock:
    """The clock of one interpreter, and what sets it off."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._skews: list[Skew] = []

    def add(self, skew: Skew) -> None:
        self._interpreter.set_clock(skew.seconds)
        self._skews.append(skew)

    def remove(self, *skews: Skew) -> None:
        left = [each for each in self._skews if each not in skews]
        if left != self._skews and self._interpreter.alive:
            self._interpreter.set_clock(left[-1].seconds if left else 0.0)
        self._skews = left

    def clear(self) -> None:
        self.remove(*self._skews)


class Skew:
    """At work from the beginning. Ends with `stop()`, or with the block when it is used as a context manager.

    Of several the last one counts, as long as it lasts.
    """

    def __init__(self, clock: WallClock, seconds: float) -> None:
        if not (isinstance(seconds, (int, float)) and math.isfinite(seconds)):
            raise ConfigError(f"need a number of seconds to set a clock off by, got {seconds!r}")
        if importlib.util.find_spec("time_machine") is None:
            raise MissingExtra("time_machine", extra="skew")
        self.seconds = seconds
        self._clock = clock
        clock.add(self)

    def stop(self) -> None:
        self._clock.remove(self)

    def __enter__(self) -> Skew:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()
