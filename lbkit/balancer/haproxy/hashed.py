"""HAProxy's maps and rings: `static-rr`, `hash-type map-based`, `hash-type consistent`, `random(n)`.

Sources: src/lb_map.c, src/lb_chash.c and src/hash.c of 2.6. Two things that textbooks do not have: the ring
takes the *nearest* point, not the next one clockwise, and its points come from a server's id, not its
address, so that removing a server from the file renumbers and moves the ones behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from random import Random

from lbkit.balancer.haproxy.node import Node
from lbkit.balancer.hashing import crc32, djb2, full_hash, sdbm, wt6

__all__ = ["FUNCTIONS", "Map", "RandomDraws", "Ring"]

FUNCTIONS: dict[str, Callable[[bytes], int]] = {"sdbm": sdbm, "djb2": djb2, "wt6": wt6, "crc32": crc32}
M32 = 0xFFFFFFFF


class Map:
    """One slot for each unit of weight, interleaved. It is rebuilt when a server comes or goes."""

    def __init__(self, nodes: Sequence[Node], *, common: int = 1) -> None:
        """`common`: the greatest common divisor of all servers' weights, backups and disabled ones too."""
        self._nodes = nodes
        self._common = common
        self._slots: list[Node] | None = None
        self._index = 0

    def changed(self, node: Node) -> None:
        self._slots = None

    def taken(self, node: Node) -> None:
        """Slots do not depend on load."""

    @property
    def slots(self) -> list[Node]:
        if self._slots is None:
            self._slots = _slots([node for node in self._nodes if node.usable], self._common)
        return self._slots

    def pick(self, avoid: Node | None = None) -> Node | None:
        """The next free server in the walk of the map."""
        slots = self.slots
        if not slots:
            return None
        start = self._index if self._index < len(slots) else 0
        avoided: int | None = None
        for turn in range(len(slots)):
            at = (start + turn) % len(slots)
            if not slots[at].free:
                continue
            if slots[at] is not avoid:
                return self._step(at)
            avoided = at if avoided is None else avoided
        return None if avoided is None else self._step(avoided)

    def by_hash(self, value: int, avoid: Node | None = None) -> Node | None:
        return self.slots[value % len(self.slots)] if self.slots else None

    def _step(self, at: int) -> Node:
        self._index = at + 1
        return self.slots[at]


def _slots(nodes: Sequence[Node], common: int) -> list[Node]:
    weights = [-(-node.weight // common) for node in nodes]
    if set(weights) == {1}:
        return list(nodes)  # what comes out of the walk below, in which each is looked at for each slot
    total = sum(weights)
    scores = [0] * len(nodes)
    slots = []
    for _ in range(total):
        scores = [score + weight for score, weight in zip(scores, weights, strict=True)]
        best = max(range(len(nodes)), key=lambda i: ((scores[i] + total) // total, -i))
        scores[best] -= total
        slots.append(nodes[best])
    return slots


class Ring:
    """16 points per unit of weight, at the hash of id and number. `factor`: hash-balance-factor, 0: none."""

    def __init__(self, nodes: Sequence[Node], *, factor: int = 0) -> None:
        self._nodes = nodes
        self._factor = factor
        self._points: tuple[list[int], list[Node]] | None = None
        self._last = -1

    def changed(self, node: Node) -> None:
        self._points = None

    def taken(self, node: Node) -> None:
        """Points do not depend on load."""

    @property
    def points(self) -> tuple[list[int], list[Node]]:
        if self._points is None:
            usable = [node for node in self._nodes if node.usable]
            pairs = [
                (full_hash(node.server.id * 4096 + j), node) for node in usable for j in range(node.eweight)
            ]
            pairs.sort(key=lambda pair: pair[0])
            self._points = ([key for key, _ in pairs], [node for _, node in pairs])
        return self._points

    def pick(self, avoid: Node | None = None) -> Node | None:
        """Without a key: the next point of the ring."""
        _, owners = self.points
        avoided: int | None = None
        for turn in range(1, len(owners) + 1):
            at = (self._last + turn) % len(owners)
            if not owners[at].free:
                continue
            if owners[at] is not avoid:
                self._last = at
                return owners[at]
            avoided = at
        if avoided is None:
            return None
        self._last = avoided
        return owners[avoided]

    def by_hash(self, value: int, avoid: Node | None = None) -> Node | None:
        keys, owners = self.points
        if not keys:
            return None
        at = self._nearest(keys, value)
        for turn in range(len(owners)):
            node = owners[(at + turn) % len(owners)]
            if node is not avoid and (not self._factor or self._eligible(node)):
                return node
        return owners[at]

    def _nearest(self, keys: list[int], value: int) -> int:
        after = bisect_left(keys, value) % len(keys)
        before = after - 1
        if (value - keys[before]) & M32 <= (keys[after] - value) & M32:
            return before % len(keys)
        return after

    def _eligible(self, node: Node) -> bool:
        """Below its share of what the backend serves, times the factor, in percent."""
        served = sum(each.served for each in self._nodes)
        slots = ((served + 1) * self._factor + 99) // 100
        usable = [each for each in self._nodes if each.usable]
        total = sum(each.eweight for each in usable)
        before = sum(each.eweight for each in usable[: usable.index(node)])
        rest = slots % total
        share = node.eweight * (slots // total)
        share += (before + node.eweight) * rest // total - before * rest // total
        return node.served < max(1, share)


class RandomDraws(Ring):
    """`random(n)`: draw n points of the ring, keep the least loaded. Arcs, so not exactly the weights."""

    def __init__(self, nodes: Sequence[Node], *, draws: int, rng: Random) -> None:
        super().__init__(nodes)
        self._draws = draws
        self._rng = rng

    def pick(self, avoid: Node | None = None) -> Node | None:
        best: Node | None = None
        for _ in range(self._draws):
            node = self.by_hash(self._rng.getrandbits(32), avoid)
            if node is None:
                return None
            if best is None or node.served * best.eweight <= best.served * node.eweight:
                best = node
        return best if best is not None and best.free else None
