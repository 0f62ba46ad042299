"""HAProxy's health: checks with rise and fall, observed traffic, slow start, and the agent's word.

Source: src/check.c and src/server.c of 2.6. A server starts UP with one life: its health is `rise`, and the
first failed check takes it down.

==========  ==============================================================================
a check     health (0 .. rise + fall - 1; UP from `rise` on)
==========  ==============================================================================
passes      one up; at `rise` all the way to the top
fails       one down; below `rise` all the way to 0
==========  ==============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.balancer.haproxy.node import SCALE, Admin
from lbkit.errors import ConfigError

__all__ = ["Agent", "Health", "HealthRules", "slow_start"]

ON_ERROR = ("fastinter", "fail-check", "sudden-death", "mark-down")
NOT_ERRORS = (501, 505)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """The check options of a server line. Intervals in seconds; 0 means "as inter"."""

    rise: int = 2
    fall: int = 3
    inter: float = 2.0
    fastinter: float = 0.0
    downinter: float = 0.0
    error_limit: int = 10
    on_error: str = "fail-check"

    def __post_init__(self) -> None:
        if self.rise < 1 or self.fall < 1:
            raise ConfigError(f"need rise >= 1 and fall >= 1, got rise={self.rise}, fall={self.fall}")
        if self.on_error not in ON_ERROR:
            raise ConfigError(f"need on_error to be one of {', '.join(ON_ERROR)}, got {self.on_error!r}")


class Health:
    """The health of one server."""

    def __init__(self, rules: HealthRules | None = None) -> None:
        self.rules = rules or HealthRules()
        self.health = self.rules.rise
        self._errors = 0

    @property
    def up(self) -> bool:
        return self.health >= self.rules.rise

    @property
    def full(self) -> int:
        return self.rules.rise + self.rules.fall - 1

    @property
    def next_after(self) -> float:
        """Seconds until the next check: fast while it is in transition, slow while it is down for good."""
        rules = self.rules
        if self.health == self.full:
            return rules.inter
        if self.health == 0:
            return rules.downinter or rules.inter
        return rules.fastinter or rules.inter

    def check(self, *, passed: bool) -> None:
        if passed:
            self.health = min(self.health + 1, self.full)
            if self.up:
                self.health = self.full
        elif self.health > self.rules.rise:
            self.health -= 1
        else:
            self.health = 0

    def observe(self, status: int) -> None:
        """A response that traffic got (0: none). Any response that is no error forgives all errors."""
        if status and not (status >= 500 and status not in NOT_ERRORS):
            self._errors = 0
            return
        self._errors += 1
        if self._errors >= self.rules.error_limit:
            self._errors = 0
            self._punish()

    def _punish(self) -> None:
        if self.rules.on_error == "fastinter":
            return
        if self.rules.on_error == "sudden-death":
            self.health = min(self.health, self.rules.rise + 1)
        elif self.rules.on_error == "mark-down":
            self.health = min(self.health, self.rules.rise)
        self.check(passed=False)


def slow_start(seconds: float, slowstart: int) -> int:
    """The sixteenths of its weight that a server has, `seconds` after it came up."""
    whole = int(seconds)
    return SCALE if whole >= slowstart else (SCALE * whole + slowstart) // slowstart


class Agent:
    """What an agent's replies have made of a server. Each reply is a line of words, in any order."""

    def __init__(self, *, weight: int) -> None:
        self.initial = weight
        self.weight = weight
        self.maxconn = 0
        self.admin = Admin.READY
        self.up = True

    @property
    def usable(self) -> bool:
        return self.up and self.admin is Admin.READY and self.weight > 0

    def reply(self, line: str) -> None:
        """Unknown words are ignored, and so is what follows a `#`."""
        for word in line.partition("#")[0].replace(",", " ").split():
            self._word(word.lower())

    def _word(self, word: str) -> None:
        if word in ("up", "down", "fail", "stopped"):
            self.up = word == "up"
        elif word in ("ready", "drain", "maint"):
            self.admin = Admin(word)
        elif word.startswith("maxconn:") and word[8:].isdigit():
            self.maxconn = int(word[8:])
        elif word.endswith("%") and word[:-1].isdigit():
            self.weight = self.initial * int(word[:-1]) // 100
