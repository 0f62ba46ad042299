"""Active checks: after how many results a replica is up or down, and when it is asked again.

==========  ==============================================================================
a check     health (0 .. rise + fall - 1; up from `rise` on)
==========  ==============================================================================
passes      one up; at `rise` all the way to the top
fails       one down; below `rise` all the way to 0
==========  ==============================================================================

A replica begins up with one life (its health is `rise`): the first failed check takes it down. With
`begins_up=False` it begins down with one to go, and the first result decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lbkit.errors import ConfigError

__all__ = ["CheckRules", "Health"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRules:
    """What is asked of a replica, and how often. Durations in seconds; an interval of 0 means "as inter"."""

    path: str = "/health"
    statuses: tuple[int, int] = (200, 399)
    """The lowest and the highest status that passes."""

    body: str = ""
    """A regular expression that has to be found in the body; empty for any body."""

    rise: int = 2
    fall: int = 3
    inter: float = 2.0
    fastinter: float = 0.0
    downinter: float = 0.0
    timeout: float = 1.0
    begins_up: bool = True

    def __post_init__(self) -> None:
        if self.rise < 1 or self.fall < 1:
            raise ConfigError(f"need rise >= 1 and fall >= 1, got rise={self.rise}, fall={self.fall}")
        if self.inter <= 0 or self.timeout <= 0 or min(self.fastinter, self.downinter) < 0:
            got = f"inter={self.inter}, fastinter={self.fastinter}, downinter={self.downinter}"
            raise ConfigError(f"need intervals and a timeout > 0, got {got}, timeout={self.timeout}")
        if not self.path.startswith("/"):
            raise ConfigError(f"need the path of a check that begins with '/', got {self.path!r}")

    def passes(self, status: int, body: str = "") -> bool:
        low, high = self.statuses
        return low <= status <= high and (not self.body or re.search(self.body, body) is not None)


class Health:
    """The health of one replica, as its checks have found it."""

    def __init__(self, rules: CheckRules | None = None) -> None:
        self.rules = rules or CheckRules()
        self.health = self.rules.rise - (not self.rules.begins_up)

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
