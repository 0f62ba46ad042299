"""The servers of an HAProxy backend: who may be asked, and what operators, checks, agents and time do here.

Sources: src/server.c, src/check.c and src/backend.c of 2.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import ceil, gcd
from random import Random
from typing import Protocol

from lbkit.balancer.exchange import Standing, named
from lbkit.balancer.haproxy.hashed import Map, RandomDraws, Ring
from lbkit.balancer.haproxy.health import Agent, Health, HealthRules, slow_start
from lbkit.balancer.haproxy.key import hashed_of
from lbkit.balancer.haproxy.leastconn import First, LeastConn
from lbkit.balancer.haproxy.node import SCALE, Node, Server
from lbkit.balancer.haproxy.roundrobin import RoundRobin
from lbkit.errors import ConfigError

__all__ = ["Servers"]


class Algorithm(Protocol):
    def pick(self, avoid: Node | None = None) -> Node | None: ...
    def changed(self, node: Node) -> None: ...
    def taken(self, node: Node) -> None: ...


class Servers:
    """The active servers and the backups, each with the algorithm that picks among them."""

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        balance: str,
        hash_type: str,
        balance_factor: int,
        all_backups: bool,
        rng: Random | None,
    ) -> None:
        if not servers:
            raise ConfigError("need at least one server, got none")
        self.nodes = [Node(server) for server in servers]
        self.names = tuple(server.name for server in servers)
        self.balance = balance
        self.all_backups = all_backups
        self._rng = rng or Random()
        self._hashed = hashed_of(balance, hash_type)
        self._starting: list[Node] = []
        self.healths: dict[str, Health] = {}
        """What checks and traffic have made of the servers, once `observe` was called."""

        self._agents: dict[str, Agent] = {}
        make = self._algorithm(hash_type, balance_factor)
        self._active = make([node for node in self.nodes if not node.server.backup])
        self._backup = make([node for node in self.nodes if node.server.backup])
        self._aim()

    def _algorithm(self, hash_type: str, factor: int) -> Callable[[list[Node]], Algorithm]:
        word = (self.balance.partition("(")[0].split() or [""])[0]
        if word == "random":
            draws = int(re.sub(r"\D", "", self.balance) or 2)
            return lambda nodes: RandomDraws(nodes, draws=draws, rng=self._rng)
        if self._hashed is not None:
            return (lambda nodes: Ring(nodes, factor=factor)) if "consistent" in hash_type else self._map
        known: dict[str, Callable[[list[Node]], Algorithm]] = {
            "roundrobin": RoundRobin,
            "static-rr": self._map,
            "leastconn": LeastConn,
            "first": First,
        }
        if word not in known:
            names = ", ".join([*known, "random", "source", "uri", "url_param", "hdr(NAME)"])
            raise ConfigError(f"need an algorithm of HAProxy ({names}), got {self.balance!r}")
        return known[word]

    def _map(self, nodes: list[Node]) -> Map:
        return Map(nodes, common=gcd(*(node.server.weight for node in self.nodes)) or 1)

    # -- what an operator, a check or an agent may change

    def node(self, name: str) -> Node:
        return named(self.nodes, name)

    def tell(self, name: str, standing: Standing) -> None:
        node = self.node(name)
        stood = node.stopped
        node.mode, node.up = standing.mode, standing.up
        node.share = ceil(SCALE * standing.share)
        self._changed(node, back=stood and not node.stopped)

    def set_weight(self, name: str, weight: int) -> None:
        """A weight in 0 .. 256. 0 lets bound clients in, and no others."""
        if not 0 <= weight <= 256:
            raise ConfigError(f"need 0 <= weight <= 256, got weight={weight} for {name}")
        node = self.node(name)
        node.weight = weight
        self._changed(node)

    def agent(self, name: str, reply: str) -> None:
        """What an agent-check has answered, such as `75% up maxconn:30`."""
        node = self.node(name)
        agent = self._agents.setdefault(name, Agent(weight=node.server.weight))
        agent.reply(reply)
        stood = node.stopped
        node.up, node.mode, node.weight = agent.up, agent.mode, min(agent.weight, 256)
        node.maxconn = node.full_maxconn = agent.maxconn or node.server.maxconn
        self._changed(node, back=stood and not node.stopped)

    def observe(self, rules: HealthRules) -> None:
        """From now on traffic and `check` count together, as the check options of a server line say."""
        self.healths = {name: Health(rules) for name in self.names}

    def check(self, name: str, *, passed: bool) -> float:
        """A check of that server has passed or failed. The seconds until the next one."""
        node, health = self.node(name), self.healths[name]
        health.check(passed=passed)
        self._judged(node, health)
        return health.next_after

    def _judged(self, node: Node, health: Health) -> None:
        if health.up is not node.up:
            stood, node.up = node.stopped, health.up
            self._changed(node, back=stood and not node.stopped)

    def tick(self, now: float) -> None:
        """Slow start: more weight and more connections, every second or every 20th of the time."""
        for node in self._starting:
            self._warm(node, now)
        self._starting = [node for node in self._starting if node.sixteenths < SCALE]

    def _warm(self, node: Node, now: float) -> None:
        """It begins at the first instant that is known after the server has come back."""
        node.up_at = now if node.up_at is None else node.up_at
        whole = int(node.server.slowstart)
        step = max(1.0, whole / 20)
        seconds = (now - node.up_at) // step * step
        sixteenths = slow_start(seconds, whole)
        if node.full_maxconn and sixteenths < SCALE:
            node.maxconn = max(1, node.full_maxconn * int(100 * seconds / whole) // 100)
        elif node.full_maxconn:
            node.maxconn = node.full_maxconn
        if sixteenths != node.sixteenths:
            node.sixteenths = sixteenths
            self._changed(node)

    def _changed(self, node: Node, *, back: bool = False) -> None:
        if back and node.server.slowstart >= 1:
            node.up_at, node.sixteenths = None, slow_start(0, int(node.server.slowstart))
            node.maxconn = min(node.full_maxconn, 1)
            self._starting.append(node)
        before = node.usable, node.eweight
        node.recount()
        if (node.usable, node.eweight) != before:
            # A change that changes nothing must not move the server behind its equals.
            self._group(node).changed(node)
        self._aim()
        self._settled(node)

    def _settled(self, node: Node) -> None:
        """Its state has changed: who waits may have to be told."""

    def _aim(self) -> None:
        """Who is asked: the active servers, else the first usable backup, or all with `allbackups`."""
        self._usable = sum(node.usable for node in self.nodes if not node.server.backup)
        backups = [node for node in self.nodes if node.server.backup and node.usable]
        self._target: Algorithm | Node | None = self._active
        if not self._usable:
            self._target = self._backup if self.all_backups else next(iter(backups), None)
        self._anybody = bool(self._usable or backups)

    def _group(self, node: Node) -> Algorithm:
        return self._backup if node.server.backup else self._active

    def explain(self, now: float) -> dict[str, str]:
        """For each server that gets no new client now, the rule that skips it."""
        reasons = {node.name: node.skipped() for node in self.nodes}
        backups = [node.name for node in self.nodes if node.server.backup and node.usable]
        if self._usable:
            reasons.update(dict.fromkeys(backups, "backup: an active one is usable"))
        elif not self.all_backups:
            reasons.update(dict.fromkeys(backups[1:], "backup: only the first usable one is used"))
        return {name: reason for name, reason in reasons.items() if reason}
