"""Faults: what goes wrong in a replica, for which requests, and how often.

They decide: `Faults.decide` says what happens to one request, from rules, a clock's reading and a random
generator. The carriers in `lbkit.testkit.asgi` and `lbkit.testkit.wsgi` make it happen.

==================  ==========================================  ======================
fault               what the balancer sees of the replica       did the app run?
==================  ==========================================  ======================
`refuse()`          no connection                               no
`flap(up, down)`    no connection, for a part of the time       no, while it is down
`slow(seconds)`     the answer, later                           yes, later
`hang()`            silence, until its timeout                  at "before": no; else yes
`error(status)`     that status                                 no
`reset()`           a connection that breaks, after some bytes  yes
`drip(rate)`        the answer, so many bytes a second          yes
`unready()`         health endpoints that answer 503            for other paths
`crash()`           a connection that breaks; then nothing      it is cut off
==================  ==========================================  ======================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from types import TracebackType
from typing import Literal, TypeAlias

from lbkit.errors import ConfigError

__all__ = [
    "PIECES_A_SECOND",
    "Fault",
    "Faults",
    "Injection",
    "Plan",
    "crash",
    "drip",
    "error",
    "flap",
    "hang",
    "refuse",
    "reset",
    "slow",
    "unready",
]

PIECES_A_SECOND = 10
"""How a body drips."""

HEALTH = ("/health", "/health/ready", "/readyz", "/ready", "/healthz")

Moment: TypeAlias = Literal["before", "headers", "body"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong. Made by `hang()`, `slow(0.3)` and the others; prints as that call."""

    text: str
    apply: Callable[[Plan, str, float, Random], bool] = field(repr=False, compare=False)
    """Write it into the plan: (plan, path, seconds since it was injected, rng). False: not this time."""

    def __str__(self) -> str:
        return self.text


class Plan:
    """What is to happen to one request. All that is not set stays as it is."""

    refuse: bool = False
    crash: bool = False
    delay: float = 0.0
    hang: Moment | None = None
    status: int | None = None
    reset_after: int | None = None
    """Bytes of the body that come through; 0: not even the headers."""

    bytes_per_second: float | None = None

    def __init__(self) -> None:
        self.names: list[str] = []

    @property
    def over(self) -> bool:
        """Whether it gets no further than the door, so that nothing else can go wrong with it."""
        return self.refuse or self.crash

    def harms(self, *, websocket: bool) -> bool:
        """Whether it is not simply answered by its app, at once or later: what drips is a body."""
        drips = self.bytes_per_second is not None and not websocket
        return drips or any(each is not None for each in (self.hang, self.status, self.reset_after))

    def __str__(self) -> str:
        return ", ".join(self.names)


def refuse() -> Fault:
    """Connections are refused, as after a crash; the app lives."""
    return Fault("refuse()", _always("refuse", True))


def crash() -> Fault:
    """The replica dies with this request, and with everything else that is in it."""
    return Fault("crash()", _always("crash", True))


def hang(*, at: Moment = "before") -> Fault:
    """The connection is accepted and the answer never comes: the app is not called, or its headers or its
    body get lost."""
    if at not in ("before", "headers", "body"):
        raise ConfigError(f"need at to be 'before', 'headers' or 'body', got {at!r}")
    return Fault("hang()" if at == "before" else f"hang(at={at!r})", _always("hang", at))


def slow(seconds: float, *, jitter: float = 0.0) -> Fault:
    """The app is called `seconds` later, give or take `jitter` seconds."""
    _positive("seconds", seconds, or_zero=True)
    if not 0 <= jitter <= seconds:
        raise ConfigError(f"need 0 <= jitter <= seconds, got jitter={jitter!r}, seconds={seconds!r}")

    def apply(plan: Plan, _: str, __: float, rng: Random) -> bool:
        plan.delay += seconds + rng.uniform(-jitter, jitter)
        return True

    return Fault(f"slow({seconds:g}{f', jitter={jitter:g}' if jitter else ''})", apply)


def error(status: int = 500) -> Fault:
    """The replica answers with this status, without asking the app."""
    if not (isinstance(status, int) and 400 <= status <= 599):
        raise ConfigError(f"need 400 <= status <= 599, got {status!r}")
    return Fault(f"error({status})", _always("status", status))


def reset(*, after_bytes: int = 0) -> Fault:
    """The app runs, and the connection breaks after so many bytes of its body; with 0 before the headers."""
    if not (isinstance(after_bytes, int) and after_bytes >= 0):
        raise ConfigError(f"need after_bytes >= 0, got {after_bytes!r}")
    text = f"reset(after_bytes={after_bytes})" if after_bytes else "reset()"
    return Fault(text, _always("reset_after", after_bytes))


def drip(bytes_per_second: float) -> Fault:
    """The body comes at this rate."""
    _positive("bytes_per_second", bytes_per_second)
    return Fault(f"drip({bytes_per_second:g})", _always("bytes_per_second", bytes_per_second))


def unready() -> Fault:
    """The health endpoints answer 503; everything else is served."""

    def apply(plan: Plan, path: str, _: float, __: Random) -> bool:
        if path not in HEALTH:
            return False
        plan.status = 503
        return True

    return Fault("unready()", apply)


def flap(*, up: float, down: float) -> Fault:
    """Connections are refused for `down` seconds after each `up` seconds."""
    _positive("up", up)
    _positive("down", down)

    def apply(plan: Plan, _: str, since: float, __: Random) -> bool:
        plan.refuse = plan.refuse or since % (up + down) >= up
        return plan.refuse

    return Fault(f"flap(up={up:g}, down={down:g})", apply)


def _always(name: str, value: object) -> Callable[[Plan, str, float, Random], bool]:
    def apply(plan: Plan, _: str, __: float, ___: Random) -> bool:
        setattr(plan, name, value)
        return True

    return apply


def _positive(name: str, value: float, *, or_zero: bool = False) -> None:
    if not (
        isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or (or_zero and value == 0))
    ):
        raise ConfigError(f"need {name} {'>=' if or_zero else '>'} 0, got {value!r}")


class Injection:
    """A fault at work. Ends with `stop()`, or with the block when it is used as a context manager."""

    def __init__(
        self,
        fault: Fault,
        now: float,
        *,
        path: str | None = None,
        method: str | None = None,
        rate: float = 1.0,
        times: int | None = None,
        rng: Random | None = None,
    ) -> None:
        if not isinstance(fault, Fault):
            raise ConfigError(f"need a fault such as hang() or error(503), got {fault!r}")
        if not 0 <= rate <= 1:
            raise ConfigError(f"need 0 <= rate <= 1, got {rate!r}")
        if times is not None and times < 1:
            raise ConfigError(f"need times >= 1, got {times!r}")
        self.fault = fault
        self.path = path
        self.method = method.upper() if method is not None else None
        self.rate = rate
        self.rng = rng
        """Its own dice; None: those of whoever decides."""

        self.left = times
        self.count = 0
        """How many requests it has hit."""

        self._began_at = now
        self.active = True

    def stop(self) -> None:
        self.active = False

    def __enter__(self) -> Injection:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def hit(self, plan: Plan, method: str, path: str, now: float, rng: Random) -> None:
        rng = self.rng or rng
        if not self._wants(method, path) or (self.rate < 1 and rng.random() >= self.rate):
            return
        if plan.over or not self.fault.apply(plan, path, now - self._began_at, rng):
            return
        plan.names.append(str(self.fault))
        self.count += 1
        if self.left is not None:
            self.left -= 1
            self.active = self.left > 0

    def _wants(self, method: str, path: str) -> bool:
        return (
            self.active
            and (self.method is None or self.method == method)
            and (self.path is None or fnmatchcase(path, self.path))
        )

    def __str__(self) -> str:
        return str(self.fault)


class Faults:
    """The faults of one replica, or of all of them."""

    def __init__(self) -> None:
        self._active: list[Injection] = []

    def add(self, injection: Injection) -> Injection:
        self._active = [*(each for each in self._active if each.active), injection]
        return injection

    def clear(self) -> None:
        for each in self._active:
            each.stop()
        self._active = []

    def decide(self, plan: Plan | None, method: str, path: str, now: float, rng: Random) -> Plan | None:
        """Add what happens to this request to the plan. None stays None when nothing does."""
        if not self._active:
            return plan
        changed = plan or Plan()
        for injection in self._active:
            injection.hit(changed, method, path, now, rng)
        return changed if changed.names else None
