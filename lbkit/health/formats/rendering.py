"""The text of an answer, with a hole where the time goes if it has one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from lbkit.health.access import Level
from lbkit.health.redact import redact
from lbkit.health.standing import CheckView

__all__ = ["Rendering", "iso", "output_of", "rounded"]


@dataclass(frozen=True, slots=True)
class Rendering:
    """`head` alone, or `head`, the time with three decimals, and `tail`."""

    head: bytes
    tail: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def length(self, wall: float) -> int:
        if self.tail is None:
            return len(self.head)
        return len(self.head) + len(b"%.3f" % wall) + len(self.tail)


def iso(wall: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    try:
        moment = datetime.fromtimestamp(wall, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return "1970-01-01T00:00:00.000Z"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rounded(figure: float, digits: int = 1) -> float:
    return round(figure, digits)


def output_of(view: CheckView, level: Level) -> str:
    """What may be said of a check in words: nothing, or the redacted text for an authorised caller."""
    return redact(view.output) if level is Level.FULL and view.output else ""
