"""A replica: one of several equal copies of an app."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from lbkit.errors import ConfigError

__all__ = ["Mode", "Replica", "ReplicaState"]

NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True)
class Replica:
    """What is fixed about a replica. No dot in the name: in a signed sticky cookie the dot ends it."""

    name: str

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and NAME.fullmatch(self.name)):
            raise ConfigError(
                f"need a replica name of 1 to 63 letters, digits, '_' or '-', got {self.name!r}"
            )


class Mode(Enum):
    """What the operator wants of a replica."""

    READY = "ready"
    DRAIN = "drain"
    """Keeps the clients that are bound to it, and gets no new ones."""

    MAINT = "maint"
    """Gets nothing. What is inside may finish."""


class ReplicaState:
    """What changes about a replica while it serves. The pool writes it, policies read it."""

    __slots__ = ("_inside", "life", "mode", "replica", "up")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.mode = Mode.READY
        self.life = 0
        """How often it has come back from maintenance: what was heard of an earlier life no longer counts."""

        self.up = True
        """What active checks say."""

        # One entry for each request inside. `append` and `pop` are atomic where `+=` is not, and
        # cost a seventh of a lock, which every request would take twice.
        self._inside: list[None] = []

    @property
    def open(self) -> bool:
        """Whether it gets new clients."""
        return self.mode is Mode.READY and self.up

    @property
    def active(self) -> int:
        """Requests that were sent here and have not ended."""
        return len(self._inside)

    def enter(self) -> None:
        self._inside.append(None)

    def leave(self) -> None:
        self._inside.pop()
