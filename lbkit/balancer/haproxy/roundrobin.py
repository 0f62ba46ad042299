"""HAProxy's `roundrobin`: earliest position first, weights that may change at any time.

Source: src/lb_fwrr.c of 2.6. Three trees for each group of servers: `init` and `next`, by weight, and
`current`, by position. A server picked moves ahead by total/weight positions; what does not fit into
this turn waits in `next`, which becomes `init` when the turn is over.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import count

from lbkit.balancer.haproxy.node import SCALE, Node

__all__ = ["RoundRobin"]

WEIGHT_MAX = 256 * SCALE
Tree = list[tuple[int, int, "Place"]]


class Place:
    """Where a server stands: its position, the one before, and the rest of the division."""

    __slots__ = ("entry", "lpos", "node", "npos", "rweight", "tree", "weight")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.npos = self.lpos = self.rweight = 0
        self.weight = node.eweight
        """The effective weight with which it was last counted; the node's own may have changed since."""

        self.tree: Tree | None = None
        self.entry: tuple[int, int, Place] | None = None


class RoundRobin:
    """One group: the active servers, or the backups."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.init: Tree = []
        self.next: Tree = []
        self.current: Tree = []
        self._order = count()
        self.places = {node.name: Place(node) for node in nodes}
        usable = [place for place in self.places.values() if place.node.usable]
        self.next_weight = sum(place.weight for place in usable)
        self.curr_weight = self.curr_pos = self.next_weight
        for place in usable:
            self._queue_by_weight(self.init, place)

    # -- changes from outside

    def changed(self, node: Node) -> None:
        """The node's state or weight is another one now."""
        place = self.places[node.name]
        was, is_now = place.tree is not None, node.usable
        if was and not is_now:
            self.next_weight -= place.weight
            self._dequeue(place)
            place.tree = None
        elif is_now and not was:
            self._up(place)
        elif is_now:
            self._reweigh(place)

    def taken(self, node: Node) -> None:
        """Positions do not depend on load."""

    def _up(self, place: Place) -> None:
        place.weight = place.node.eweight
        self.next_weight += place.weight
        rest = self.next_weight + self.curr_weight - self.curr_pos
        place.npos = self.curr_pos + rest // place.weight
        self._queue(place)

    def _reweigh(self, place: Place) -> None:
        self.next_weight += place.node.eweight - place.weight
        place.weight = place.node.eweight
        tree = place.tree
        self._leave(place)
        if tree is self.init:
            self._queue_by_weight(self.init, place)
            return
        step = self.next_weight // place.weight
        place.npos = min(place.lpos + step, place.npos)
        place.rweight = 0
        if place.npos < self.curr_pos + 2:
            place.npos = self.curr_pos + step
        self._queue(place)

    # -- picking

    def pick(self, avoid: Node | None = None) -> Node | None:
        """The next server that has a free slot. The one to avoid only when there is no other."""
        if self.curr_weight and (place := self._first()) is not None:
            node = place.node
            if node is not avoid and (not node.maxconn or node.free):  # nearly always
                self._advance(place)
                self._queue(place)
                return node
        passed: list[Place] = []
        avoided: Place | None = None
        switched = False
        if not self.curr_weight:
            self.curr_pos = self.curr_weight = self.next_weight
        while True:
            place = self._first()
            if place is None and switched:
                place = avoided
                break
            if place is None:
                self._switch()
                switched = True
                continue
            self._advance(place)
            if place.node.free:
                if place.node is not avoid or avoided is not None:
                    break
                avoided = place
            passed.append(place)
        if place is not None:
            self._queue(place)
        for other in reversed(passed):
            if other is not place:
                # After a switch their place was lost, and only their weight matters.
                self._queue_by_weight(self.init, other) if switched else self._queue(other)
        return place.node if place is not None else None

    def _first(self) -> Place | None:
        front = self.current[0][2] if self.current else None
        if front is not None and front.npos <= self.curr_pos:
            return front
        if self.init:
            place = self.init[0][2]
            place.npos = place.rweight = 0
            return place
        return front

    def _switch(self) -> None:
        self.init, self.next = self.next, self.init
        self.curr_pos = self.curr_weight = self.next_weight

    def _advance(self, place: Place) -> None:
        place.npos = place.npos or self.curr_pos
        place.lpos = place.npos
        place.npos += self.next_weight // place.weight
        place.rweight += self.next_weight % place.weight
        if place.rweight >= place.weight:
            place.rweight -= place.weight
            place.npos += 1
        self._dequeue(place)
        self.curr_pos += 1

    # -- the trees

    def _leave(self, place: Place) -> None:
        """Take it out, its position as seen from the current turn."""
        if place.tree is self.init:
            place.npos = place.rweight = 0
        elif place.tree is self.next:
            place.npos += self.curr_weight
        self._dequeue(place)

    def _dequeue(self, place: Place) -> None:
        if place.tree is not None and place.entry is not None:
            tree = place.tree
            del tree[0 if tree[0] is place.entry else bisect_left(tree, place.entry)]
            place.entry = None

    def _queue(self, place: Place) -> None:
        if place.npos >= 2 * self.curr_weight or place.npos >= self.curr_weight + self.next_weight:
            place.npos -= self.curr_weight
            self._queue_by_weight(self.next, place)
            return
        key = 256 * place.npos + (WEIGHT_MAX + place.rweight - place.weight) // SCALE
        self._insert(self.current, key, place)

    def _queue_by_weight(self, tree: Tree, place: Place) -> None:
        self._insert(tree, WEIGHT_MAX - place.weight, place)

    def _insert(self, tree: Tree, key: int, place: Place) -> None:
        place.tree = tree
        place.entry = (key, next(self._order), place)  # equal keys: first in, first out
        insort(tree, place.entry)
