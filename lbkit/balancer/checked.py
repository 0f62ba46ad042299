"""What active checks make of a replica: up or down, by `lbkit.balancer.check`, and its share of the load.

An answer that passes may ask for less, and gets there step by step:

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
from dataclasses import dataclass

from lbkit.balancer.check import CheckRules, Health

__all__ = ["LOOK", "Checked", "Reply", "score_of"]

LOOK = 0.25
"""Seconds after which whoever waits for the next check looks whether the replica has come back meanwhile."""

STEP = 0.25
"""The most that one answer changes a replica's share: a weight that jumps moves the load in one blow."""

LEAST = 0.01
DEGRADED = 0.8
WORDS = re.compile(r"^(?:(?:ready|up|drain|maint)\s+)*(\d{1,3})%", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a replica answered to a check."""

    status: int
    text: str = ""


class Checked:
    """What the checks have made of one replica, in this life of it."""

    def __init__(self, rules: CheckRules, *, life: int = 0) -> None:
        self.life = life
        self.share = 1.0
        """How much of its weight it gets, by its own word."""

        self._health = Health(rules)

    @property
    def up(self) -> bool:
        return self._health.up

    @property
    def next_after(self) -> float:
        """Seconds until it is asked again."""
        return self._health.next_after

    def heard(self, reply: Reply | None) -> None:
        """Take its answer; None when there was none in time."""
        passed = reply is not None and self._health.rules.passes(reply.status, reply.text)
        self._health.check(passed=passed)
        if passed and reply is not None:
            wanted = score_of(reply.text)
            self.share += min(STEP, max(-STEP, wanted - self.share))


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
