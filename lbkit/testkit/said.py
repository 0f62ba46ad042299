"""What the interpreter of a replica and the test process say over a pipe that only the two of them have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lbkit.testkit.facts import Facts
from lbkit.testkit.oracles.memory import Change

__all__ = ["Booted", "Changed", "Looked", "Opened", "Said", "Skewed"]


@dataclass(frozen=True, slots=True)
class Booted:
    """It has made its app."""

    target: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Changed:
    """A request has changed its memory."""

    change: Change
    file: str | None
    """Of the module."""

    request: str
    """Such as `POST /cart 201`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A request has opened a file, to write it or to read it."""

    path: str
    writes: bool
    request: str


@dataclass(frozen=True, slots=True)
class Skewed:
    """Its clock is to be off by so many seconds; and the answer, that it is."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Looked:
    """It is to look at its memory; and the answer, what has changed since it did so first."""

    changed: tuple[Changed, ...] = ()


Said: TypeAlias = "Booted | Changed | Opened | Skewed | Looked"
