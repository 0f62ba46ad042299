"""Active checks: what is asked of a replica, when, and what its answers make of it.

Rise, fall and the three intervals are HAProxy's machine (`lbkit.balancer.haproxy.health`): one failure of a
replica that was never asked takes it down, later it needs `fall` in a row, and `rise` passes to come back.
An answer may lower the replica's weight as well, step by step:

==============================================  =====================
the answer                                      share of its weight
==============================================  =====================
text with agent-check's words, `up 60%`         0.6
JSON with a number `"score"`, in percent        that
JSON with `"status": "degraded"`                0.8, as lbkit's agent
anything else that passes                       1
==============================================  =====================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from lbkit.balancer.haproxy.health import Health, HealthRules
from lbkit.errors import ConfigError

__all__ = ["ActiveCheck", "Checked", "Reply", "SlowStart"]

STEP = 0.25
"""The most that one answer changes a replica's share: a weight that jumps moves the load in one blow."""

LEAST = 0.01
DEGRADED = 0.8
WORDS = re.compile(r"^(?:(?:ready|up|drain|maint)\s+)*(\d{1,3})%", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveCheck:
    """Ask each replica for `path`. Durations in seconds; `fastinter` and `downinter` 0: as `inter`."""

    path: str = "/health"
    inter: float = 2.0
    fastinter: float = 0.0
    downinter: float = 0.0
    rise: int = 2
    fall: int = 3
    timeout: float = 1.0
    status: Container[int] = range(200, 400)
    """The statuses that pass: HAProxy's, unless given."""

    body: str = ""
    """A text that must be in the body."""

    rules: HealthRules = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ConfigError(f"need a path such as /health to check, got {self.path!r}")
        for name in ("inter", "timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"need {name} > 0 in a check, got {name}={getattr(self, name)}")
        for name in ("fastinter", "downinter"):
            if getattr(self, name) < 0:
                raise ConfigError(f"need {name} >= 0 in a check, got {name}={getattr(self, name)}")
        rules = HealthRules(
            rise=self.rise,
            fall=self.fall,
            inter=self.inter,
            fastinter=self.fastinter,
            downinter=self.downinter,
        )
        object.__setattr__(self, "rules", rules)

    def passes(self, reply: Reply | None) -> bool:
        return reply is not None and reply.status in self.status and self.body in reply.text


@dataclass(frozen=True, slots=True)
class Reply:
    """What a replica answered to a check."""

    status: int
    text: str = ""


class Checked:
    """What the checks have made of one replica."""

    def __init__(self, check: ActiveCheck) -> None:
        self.check = check
        self.score = 1.0
        """The share of its weight that it deserves by its own word."""

        self._health = Health(check.rules)

    @property
    def up(self) -> bool:
        return self._health.up

    @property
    def next_after(self) -> float:
        """Seconds until it is asked again."""
        return self._health.next_after

    def heard(self, reply: Reply | None) -> None:
        """Take its answer; None when there was none in time."""
        passed = self.check.passes(reply)
        self._health.check(passed=passed)
        if passed and reply is not None:
            wanted = score_of(reply.text)
            self.score += min(STEP, max(-STEP, wanted - self.score))


def score_of(text: str) -> float:
    """The share that an answer asks for, never nothing: that would be a failure, and has a status."""
    if words := WORDS.match(text):
        return _share(int(words[1]))
    if not text.startswith("{"):
        return 1.0
    try:
        told = json.loads(text)
    except ValueError:
        return 1.0
    score = told.get("score")
    if isinstance(score, (int, float)) and not isinstance(score, bool):
        return _share(score)
    return DEGRADED if told.get("status") == "degraded" else 1.0


def _share(percent: float) -> float:
    return min(1.0, max(LEAST, percent / 100))


class SlowStart:
    """Replicas that came back a moment ago and get less than their weight. `window` in seconds, 0 for none.

    `ramp` gives the share after some seconds of the window, as the balancer in question does.
    """

    def __init__(self, window: float, ramp: Callable[[float, float], float]) -> None:
        if window < 0:
            raise ConfigError(f"need slow_start >= 0, got slow_start={window}")
        self._window = window
        self._ramp = ramp
        self.rising: dict[str, float] = {}
        """When each of them came back."""

    def begin(self, name: str, now: float) -> None:
        if self._window:
            self.rising[name] = now

    def share(self, name: str, now: float) -> float:
        """Its share now. From the end of the window on it rises no more."""
        since = self.rising.get(name)
        if since is None:
            return 1.0
        if now - since >= self._window:
            del self.rising[name]
            return 1.0
        return self._ramp(max(0.0, now - since), self._window)
