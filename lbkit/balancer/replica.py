"""A replica: one of several equal copies of an app."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lbkit.errors import ConfigError

__all__ = ["Replica", "ReplicaState"]

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


@dataclass(slots=True, eq=False)
class ReplicaState:
    """What changes about a replica while it serves. The pool writes it, policies read it."""

    replica: Replica
    active: int = 0
    """Requests that were sent here and have not ended."""

    picked: int = 0
    """Requests that were ever sent here."""

    @property
    def name(self) -> str:
        return self.replica.name
