"""Compare ways of doing one thing on a noisy machine: many short rounds, each way in turn in each round.

What disturbs one round disturbs all the ways in it alike, so ratios and differences are taken within a
round, and their medians reported.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

__all__ = ["Comparison", "compare"]

Batch = Callable[[int], object]
"""Do the thing so many times."""

ROUND = 0.004
"""Seconds that one way takes in one round, about."""


class Comparison:
    """Microseconds for one call, each way in each round. The others are held against the first way."""

    def __init__(self, rounds: list[dict[str, float]]) -> None:
        self.rounds = rounds
        self.ways = list(rounds[0])

    def cost(self, way: str) -> float:
        return median(each[way] for each in self.rounds)

    def ratio(self, way: str, *, to: str | None = None) -> float:
        return median(each[way] / each[to or self.ways[0]] for each in self.rounds)

    def added(self, way: str, *, to: str | None = None) -> float:
        return median(each[way] - each[to or self.ways[0]] for each in self.rounds)

    def least_added(self, way: str, *, to: str | None = None) -> float:
        """What it adds when nothing else runs on the machine: between the quietest rounds of the two."""
        quiet = {each: min(costs[each] for costs in self.rounds) for each in self.ways}
        return quiet[way] - quiet[to or self.ways[0]]

    def table(self) -> str:
        width = max(map(len, self.ways))
        first = self.ways[0]
        lines = [f"    {first:{width}}  {self.cost(first):9.2f} us"]
        for way in self.ways[1:]:
            numbers = f"{self.cost(way):9.2f} us  {self.ratio(way):7.2f} x  {self.added(way):+9.2f} us"
            lines.append(f"    {way:{width}}  {numbers}")
        return "\n".join(lines)


def compare(
    ways: Mapping[str, Batch], *, rounds: int, clock: Callable[[], float] = perf_counter
) -> Comparison:
    """Time each way `rounds` times, in turn. `process_time` as the clock leaves out what is waited for."""
    counts = {way: _count(batch, clock) for way, batch in ways.items()}
    return Comparison(
        [{way: _timed(batch, counts[way], clock) for way, batch in ways.items()} for _ in range(rounds)]
    )


def _count(batch: Batch, clock: Callable[[], float]) -> int:
    """How many calls fill a round. The calls made to find out warm everything up."""
    batch(50)
    return max(5, int(ROUND / (_timed(batch, 50, clock) / 1e6)))


def _timed(batch: Batch, calls: int, clock: Callable[[], float]) -> float:
    was_on = gc.isenabled()
    gc.disable()  # as timeit does: a collection belongs to whatever made the garbage before
    try:
        began = clock()
        batch(calls)
        return (clock() - began) / calls * 1e6
    finally:
        if was_on:
            gc.enable()
