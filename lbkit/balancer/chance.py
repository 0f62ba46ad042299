"""Chance comes in through the door: what a policy asks of a random generator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TypeVar

__all__ = ["Chance"]

T = TypeVar("T")


class Chance:
    """Equally likely choices. A replay puts one in its place that knows what the real balancer chose."""

    def __init__(self, rng: Random | None = None) -> None:
        self.rng = rng or Random()

    def one(self, options: Sequence[T]) -> T:
        return options[self.rng.randrange(len(options))]

    def share(self, options: Sequence[tuple[int, T]], names: Callable[[T], Collection[str]]) -> T:
        """One of the options, each with the percentage up to which it is drawn. `names`: whom it leads to."""
        point = self.rng.randrange(100) + 1
        return next(option for upto, option in options if point <= upto)

    def two(self, count: int, decide: Callable[[int, int], T]) -> T:
        """Draw two numbers below `count`, with replacement, and let `decide` make a result of them."""
        return decide(self.rng.randrange(count), self.rng.randrange(count))
