"""HAProxy's health: checks with rise and fall, observed traffic, slow start, and the agent's word.

Source: src/check.c and src/server.c of 2.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.balancer import check
from lbkit.balancer.haproxy.node import SCALE
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["Agent", "Health", "HealthRules", "slow_start"]

ON_ERROR = ("fastinter", "fail-check", "sudden-death", "mark-down")
OBSERVED = ("", "layer4", "layer7")
NOT_ERRORS = (501, 505)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules(check.CheckRules):
    """The check options of a server line. `observe`: what of its traffic counts beside the checks."""

    observe: str = ""
    error_limit: int = 10
    on_error: str = "fail-check"

    def __post_init__(self) -> None:
        super(HealthRules, self).__post_init__()
        if self.on_error not in ON_ERROR:
            raise ConfigError(f"need on_error to be one of {', '.join(ON_ERROR)}, got {self.on_error!r}")
        if self.observe not in OBSERVED or self.error_limit < 1:
            got = f"observe={self.observe!r}, error_limit={self.error_limit}"
            raise ConfigError(f"need observe to be layer4 or layer7 and error_limit >= 1, got {got}")


class Health(check.Health):
    """The health of one server, which its traffic may change as well."""

    def __init__(self, rules: HealthRules | None = None) -> None:
        self.observed = rules or HealthRules()
        super().__init__(self.observed)
        self._errors = 0

    def observe(self, status: int) -> None:
        """A response that traffic got (0: none). Any response that is no error forgives all errors."""
        if status and not (status >= 500 and status not in NOT_ERRORS):
            self._errors = 0
            return
        self._errors += 1
        if self._errors >= self.observed.error_limit:
            self._errors = 0
            self._punish()

    def _punish(self) -> None:
        rules = self.observed
        if rules.on_error == "fastinter":
            return
        if rules.on_error == "sudden-death":
            self.health = min(self.health, rules.rise + 1)
        elif rules.on_error == "mark-down":
            self.health = min(self.health, rules.rise)
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
        self.mode = Mode.READY
        self.up = True

    @property
    def usable(self) -> bool:
        return self.up and self.mode is Mode.READY and self.weight > 0

    def reply(self, line: str) -> None:
        """Unknown words are ignored, and so is what follows a `#`."""
        for word in line.partition("#")[0].replace(",", " ").split():
            self._word(word.lower())

    def _word(self, word: str) -> None:
        if word in ("up", "down", "fail", "stopped"):
            self.up = word == "up"
        elif word in ("ready", "drain", "maint"):
            self.mode = Mode(word)
        elif word.startswith("maxconn:") and word[8:].isdigit():
            self.maxconn = int(word[8:])
        elif word.endswith("%") and word[:-1].isdigit():
            self.weight = min(256, self.initial * int(word[:-1]) // 100)
