"""The faults that can be injected into a replica, as its verbs."""

from __future__ import annotations

from typing import Any, Protocol

from lbkit.errors import ConfigError
from lbkit.testkit import faults as kinds
from lbkit.testkit.faults import Fault, Faults, Injection, Moment
from lbkit.testkit.partition import Partition, Place
from lbkit.testkit.skew import Skew, WallClock
from lbkit.testkit.spaces import Space
from lbkit.types import Clock

__all__ = ["Breakable"]


class Breakable(Protocol):
    """What has `faults` and a `clock`, and goes wrong as it is told to."""

    name: str
    faults: Faults
    wall: WallClock | None

    @property
    def clock(self) -> Clock: ...

    @property
    def space(self) -> Space | None: ...

    def inject(
        self,
        fault: Fault,
        *,
        path: str | None = None,
        method: str | None = None,
        rate: float = 1.0,
        times: int | None = None,
    ) -> Injection:
        """Have it go wrong from now on, until `stop()` or the end of the `with` block.

        `path` may have wildcards; `rate` is the share of requests that it hits; `times` the most of them.
        """
        return self.faults.add(
            Injection(fault, self.clock(), path=path, method=method, rate=rate, times=times)
        )

    def hang(self, *, at: Moment = "before", **which: Any) -> Injection:
        return self.inject(kinds.hang(at=at), **which)

    def slow(self, seconds: float, *, jitter: float = 0.0, **which: Any) -> Injection:
        return self.inject(kinds.slow(seconds, jitter=jitter), **which)

    def error(self, status: int = 500, **which: Any) -> Injection:
        return self.inject(kinds.error(status), **which)

    def refuse(self, **which: Any) -> Injection:
        return self.inject(kinds.refuse(), **which)

    def reset(self, *, after_bytes: int = 0, **which: Any) -> Injection:
        return self.inject(kinds.reset(after_bytes=after_bytes), **which)

    def drip(self, bytes_per_second: float, **which: Any) -> Injection:
        return self.inject(kinds.drip(bytes_per_second), **which)

    def flap(self, *, up: float, down: float, **which: Any) -> Injection:
        return self.inject(kinds.flap(up=up, down=down), **which)

    def unready(self, **which: Any) -> Injection:
        return self.inject(kinds.unready(), **which)

    def partition(self, service: str) -> Partition:
        """Cut it off from a service such as "redis://redis:6379", until `stop()` or the end of the `with`.

        Its connections there break, and new ones are refused. For a replica with modules of its own.
        """
        if self.space is None or self.space.own:
            raise ConfigError(f"need a recipe, in module isolation, to know the connections of {self.name}")
        return Partition(self.space, Place.parse(service))

    def skew(self, seconds: float) -> Skew:
        """Set its clock off by so many seconds, until `stop()`, a restart or the end of the `with`.

        For a process of its own: replicas in one process have one clock.
        """
        if self.wall is None:
            raise ConfigError(
                f"need isolation='process' to set the clock of {self.name} off: others share it"
            )
        return Skew(self.wall, seconds)
