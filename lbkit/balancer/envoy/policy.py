"""Envoy's load balancing policies. Sources: source/extensions/load_balancing_policies of 1.40.

======================  ==============================================================================
ROUND_ROBIN             equal weights: an index over the current list, from a random start;
                        unequal: earliest deadline first, after some random number of picks
LEAST_REQUEST           equal weights: two draws *with* replacement, or a full scan;
                        unequal: earliest deadline first, by weight / (active + 1)
RING_HASH, MAGLEV       by the request's hash; without one, at random
======================  ==============================================================================

One object serves one list of hosts: the healthy ones of a priority, or all of them in a panic.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heapify, heapreplace
from itertools import count
from math import ceil, lcm
from random import Random
from typing import Protocol

from lbkit.balancer.chance import Chance
from lbkit.balancer.envoy.host import Host
from lbkit.balancer.hashing import murmur2, xxh64

__all__ = [
    "Bounded",
    "Chooser",
    "FullScan",
    "LeastRequest",
    "Maglev",
    "RandomChoice",
    "Ring",
    "RoundRobin",
    "TwoDraws",
]

M64 = 0xFFFFFFFFFFFFFFFF
MOST_PICKS = 100_000
"""With more weight in all, a rotation begins at its beginning: nobody waits for a random start."""


class Chooser(Protocol):
    def choose(self, hashed: int, attempt: int) -> Host: ...


class Scheduler:
    """Earliest deadline first; ties in the order in which they were put back.

    It begins as if `start` picks had been made. Deadlines are whole numbers, so that equal ones are equal: a
    host of weight w comes again after `cycle` / w.
    """

    def __init__(self, hosts: Sequence[Host], *, start: int, load: Callable[[Host], int]) -> None:
        self._cycle = lcm(*(host.weight for host in hosts))
        self._load = load
        self._order = count()
        self._heap = [(self._after(host), next(self._order), host) for host in hosts]
        heapify(self._heap)
        total = sum(host.weight for host in hosts)
        if total <= MOST_PICKS:
            for _ in range(start if start < 2 * total else total + start % total):
                self.next()

    def next(self) -> Host:
        deadline, _, host = self._heap[0]
        heapreplace(self._heap, (deadline + self._after(host), next(self._order), host))
        return host

    def _after(self, host: Host) -> float:
        if host.factor == 1:
            return self._cycle // host.weight * self._load(host)
        return self._cycle / (host.weight * host.factor) * self._load(host)


def no_load(_: Host) -> int:
    return 1


def requests_inside(host: Host) -> int:
    return host.active + 1


class RoundRobin:
    """`turns` outlives the list: when a host comes or goes, the index goes on."""

    def __init__(self, hosts: Sequence[Host], *, turns: Iterator[int], start: int) -> None:
        self._hosts = hosts
        self._turns = turns
        steady = len({host.weight for host in hosts}) == 1 and all(host.factor == 1 for host in hosts)
        self._scheduler = None if steady else Scheduler(hosts, start=start, load=no_load)

    def choose(self, hashed: int, attempt: int) -> Host:
        if self._scheduler is not None:
            return self._scheduler.next()
        return self._hosts[next(self._turns) % len(self._hosts)]


class LeastRequest:
    """Unequal weights: a host's load counts when it is put back, before the new pick is counted."""

    def __init__(self, hosts: Sequence[Host], *, start: int) -> None:
        self._scheduler = Scheduler(hosts, start=start, load=requests_inside)

    def choose(self, hashed: int, attempt: int) -> Host:
        return self._scheduler.next()


class TwoDraws:
    """The power of two choices: the second one only when it is strictly less busy."""

    def __init__(self, hosts: Sequence[Host], *, chance: Chance) -> None:
        self._hosts = hosts
        self._chance = chance

    def choose(self, hashed: int, attempt: int) -> Host:
        return self._chance.two(len(self._hosts), self._better)

    def _better(self, first: int, second: int) -> Host:
        one, other = self._hosts[first], self._hosts[second]
        return other if other.active < one.active else one


class FullScan:
    def __init__(self, hosts: Sequence[Host], *, chance: Chance) -> None:
        self._hosts = hosts
        self._chance = chance

    def choose(self, hashed: int, attempt: int) -> Host:
        least = min(host.active for host in self._hosts)
        return self._chance.one([host for host in self._hosts if host.active == least])


class RandomChoice:
    def __init__(self, hosts: Sequence[Host], *, chance: Chance) -> None:
        self._hosts = hosts
        self._chance = chance

    def choose(self, hashed: int, attempt: int) -> Host:
        return self._chance.one(self._hosts)


class Ring:
    """Ketama as Envoy does it: enough points for the smallest weight, shares by running sums."""

    def __init__(
        self,
        hosts: Sequence[Host],
        *,
        minimum: int = 1024,
        maximum: int = 8 * 1024 * 1024,
        function: Callable[[bytes], int] = xxh64,
    ) -> None:
        shares = _shares(hosts)
        least = min(shares)
        scale = min(ceil(least * minimum) / least, float(maximum))
        points: list[tuple[int, Host]] = []
        current = target = 0.0
        for host, share in zip(hosts, shares, strict=True):
            target += scale * share
            number = 0
            while current < target:
                points.append((function(f"{host.address}_{number}".encode()), host))
                number += 1
                current += 1
        points.sort(key=lambda point: point[0])
        self._keys = [key for key, _ in points]
        self._owners = [host for _, host in points]

    def choose(self, hashed: int, attempt: int) -> Host:
        return self._owners[(bisect_left(self._keys, hashed) + attempt) % len(self._owners)]


class Maglev:
    """The table of the Maglev paper (NSDI 2016, section 3.4), with weights."""

    def __init__(self, hosts: Sequence[Host], *, size: int = 65537) -> None:
        self._size = size
        shares = dict(zip((host.address for host in hosts), _shares(hosts), strict=True))
        rows = [
            Row(host, shares[host.address], size) for host in sorted(hosts, key=lambda host: host.address)
        ]
        self.table = _filled(rows, size)

    def choose(self, hashed: int, attempt: int) -> Host:
        if attempt:
            hashed ^= (M64 - attempt + 1) & M64
        return self.table[hashed % self._size]


class Row:
    """A host's own permutation of the slots, and how far it has come."""

    __slots__ = ("at", "host", "skip", "target", "weight")

    def __init__(self, host: Host, weight: float, size: int) -> None:
        key = host.address.encode()
        self.host = host
        self.weight = weight
        self.target = 0.0
        self.at = xxh64(key) % size
        self.skip = xxh64(key, 1) % (size - 1) + 1


def _filled(rows: Sequence[Row], size: int) -> list[Host]:
    table: dict[int, Host] = {}
    heaviest = max(row.weight for row in rows)
    for turn in count(1):
        for row in rows:
            if turn * row.weight < row.target:
                continue
            row.target += heaviest
            while row.at in table:
                row.at = (row.at + row.skip) % size
            table[row.at] = row.host
            if len(table) == size:
                return [table[slot] for slot in range(size)]
    raise AssertionError("count() never ends")


class Bounded:
    """Bounded loads (arXiv 1608.01350): past its share, to a host in an order that the hash decides."""

    def __init__(self, inner: Chooser, hosts: Sequence[Host], *, factor: int) -> None:
        self._inner = inner
        self._hosts = list(zip(hosts, _shares(hosts), strict=True))
        self._factor = factor

    def choose(self, hashed: int, attempt: int) -> Host:
        host = self._inner.choose(hashed, attempt)
        loads = {each.name: self._load(each, share) for each, share in self._hosts}
        if loads[host.name] <= 1:
            return host
        best = host
        for other in self._shuffled(hashed):
            if other is host:
                continue
            if loads[other.name] <= 1:
                return other
            best = other if loads[other.name] < loads[best.name] else best
        return best

    def _load(self, host: Host, share: float) -> float:
        active = sum(each.active for each, _ in self._hosts)
        total = ((active + 1) * self._factor + 99) // 100
        return host.active / max(1, ceil(total * share))

    def _shuffled(self, hashed: int) -> list[Host]:
        draw = mt19937(hashed)
        hosts = [host for host, _ in self._hosts]
        for at in range(len(hosts)):
            left = len(hosts) - at
            jump = left
            while jump >= left:
                jump = draw() // ((1 << 32) // left)
            hosts[at], hosts[at + jump] = hosts[at + jump], hosts[at]
        return hosts


def mt19937(seed: int) -> Callable[[], int]:
    """std::mt19937 with a number for a seed. Python's Random spreads its seed otherwise."""
    words = [seed & 0xFFFFFFFF]
    for number in range(1, 624):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + number) & 0xFFFFFFFF)
    rng = Random()
    rng.setstate((3, (*words, 624), None))
    return partial(rng.getrandbits, 32)


FUNCTIONS: dict[str, Callable[[bytes], int]] = {"XX_HASH": xxh64, "MURMUR_HASH_2": murmur2}


def _shares(hosts: Sequence[Host]) -> list[float]:
    total = sum(host.weight for host in hosts)
    return [host.weight / total for host in hosts]
