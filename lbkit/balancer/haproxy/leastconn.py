"""HAProxy's `leastconn` and `first`. Sources: src/lb_fwlc.c and src/lb_fas.c of 2.6."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import count

from lbkit.balancer.haproxy.node import SCALE, Node

__all__ = ["First", "LeastConn"]

Entry = tuple[int, int, Node]
"""Key, order of arrival, server: no two have the same first two."""


class LeastConn:
    """The least (served + 1) per weight. Idle servers have key 0 whatever their weight, and take turns."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._tree: list[Entry] = []
        self._entries: dict[str, Entry] = {}
        self._order = count()
        for node in nodes:
            self.changed(node)

    def changed(self, node: Node) -> None:
        """Its load or its state is another one: it goes to the end of those with its new key."""
        if (entry := self._entries.pop(node.name, None)) is not None:
            del self._tree[bisect_left(self._tree, entry)]
        if node.usable:
            entry = self._entries[node.name] = (self._key(node), next(self._order), node)
            insort(self._tree, entry)

    taken = changed

    def pick(self, avoid: Node | None = None) -> Node | None:
        """The first with room. The one to avoid only when there is no other."""
        avoided: Node | None = None
        for _, _, node in self._tree:
            if _has_room(node):
                if node is not avoid:
                    return node
                avoided = node
        return avoided

    def _key(self, node: Node) -> int:
        inflight = node.served + node.queued
        return (inflight + 1) * 256 * SCALE // node.eweight if inflight else 0


class First:
    """The lowest id that has a free slot: fills one server after the other."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.server.id)

    def changed(self, node: Node) -> None:
        """Its state is looked at when it is picked."""

    taken = changed

    def pick(self, avoid: Node | None = None) -> Node | None:
        open_ = [node for node in self._nodes if node.usable and node.free]
        return next((node for node in open_ if node is not avoid), open_[0] if open_ else None)


def _has_room(node: Node) -> bool:
    return not node.maxconn or node.served + node.queued < node.maxconn + node.server.maxqueue
