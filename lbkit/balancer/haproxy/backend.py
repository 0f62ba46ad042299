"""HAProxy: a backend, decision for decision.

Sources: src/backend.c, src/stream.c, src/queue.c of 2.6. One thread group. A connection that fails is tried
again up to `retries` times: at once elsewhere when the algorithm takes turns and `redispatch` is set, else on
the same server until the last retry. A request that a server cannot take waits: those bound to it in the
server's queue, all others in the backend's; a freed slot takes the oldest of both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from math import ceil, gcd
from random import Random
from typing import Protocol

from lbkit.balancer.exchange import (
    Answer,
    Attempt,
    Fault,
    Flow,
    Outcome,
    Relay,
    Request,
    Standing,
    Wait,
    named,
    received,
)
from lbkit.balancer.haproxy.cookie import Cookie, Persistence
from lbkit.balancer.haproxy.hashed import Map, RandomDraws, Ring
from lbkit.balancer.haproxy.health import Agent, Health, HealthRules, slow_start
from lbkit.balancer.haproxy.key import fetch, hashed_of
from lbkit.balancer.haproxy.leastconn import First, LeastConn
from lbkit.balancer.haproxy.node import SCALE, Node, Server
from lbkit.balancer.haproxy.roundrobin import RoundRobin
from lbkit.balancer.retry import RetryRules, twice
from lbkit.errors import ConfigError

__all__ = ["Haproxy", "Retries"]

FAIR = ("roundrobin", "static-rr", "first")
TAKING_TURNS = ("roundrobin", "static-rr", "random")
RETRYABLE = frozenset({"conn-failure", "empty-response", "response-timeout", "500", "502", "503", "504"})
"""`retry-on all-retryable-errors`, as far as there are such errors here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """`retries`, `option redispatch` and `retry-on`, as data."""

    count: int = 3
    redispatch: int = 0
    """Every how many retries another server is asked: 0 never, -1 on the last one."""

    on: frozenset[str] = frozenset({"conn-failure"})
    """POST is retried like anything else once this names more than `conn-failure`."""

    pause: float = 1.0
    """Seconds before the same server is asked again after a refused connection: min(timeout connect, 1 s)."""

    def rules(self) -> RetryRules:
        on = self.on | RETRYABLE if "all-retryable-errors" in self.on else self.on
        return RetryRules(causes=_causes, on=on, retries=self.count)

    def elsewhere(self, done: int) -> bool:
        if self.redispatch < 0:
            return done % (self.count + 1 + self.redispatch) == 0
        return self.redispatch > 0 and done % self.redispatch == 0


class Algorithm(Protocol):
    def pick(self, avoid: Node | None = None) -> Node | None: ...
    def changed(self, node: Node) -> None: ...
    def taken(self, node: Node) -> None: ...


class Hashing(Algorithm, Protocol):
    def by_hash(self, value: int, avoid: Node | None = None) -> Node | None: ...


@dataclass(slots=True)
class Stream:
    """One request on its way."""

    request: Request
    ck: Persistence | None = None
    bound: Node | None = None
    avoid: Node | None = None
    before: Node | None = None
    """Where it was when it was redispatched."""

    retries: int = 0
    moved: bool = False
    pause: float = 0.0
    risked: str = ""
    """The first server that may have run the request without an answer."""

    attempts: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Pending:
    """A stream that waits for a slot: of `node`, or of any server."""

    wait: Wait
    node: Node | None
    given: Node | None = None


class Haproxy:
    """`balance` and `hash_type` as HAProxy spells them, such as `hdr(x-key)` and `consistent`."""

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        balance: str = "roundrobin",
        hash_type: str = "map-based",
        balance_factor: int = 0,
        all_backups: bool = False,
        retries: Retries | None = None,
        cookie: Cookie | None = None,
        stick_on: str = "",
        queue_timeout: float = 5.0,
        rng: Random | None = None,
    ) -> None:
        if not servers:
            raise ConfigError("need at least one server, got none")
        self.nodes = [Node(server) for server in servers]
        self.names = tuple(server.name for server in servers)
        self.balance = balance
        self.retries = retries or Retries()
        self.cookie = cookie
        self.queue_timeout = queue_timeout
        self.all_backups = all_backups
        self._rules = self.retries.rules()
        self._rng = rng or Random()
        self._hashed = hashed_of(balance, hash_type)
        self._stick_on = fetch(stick_on) if stick_on else None
        self._stuck: dict[str, Node] = {}
        self._queue: list[Pending] = []
        self._woken: list[Wait] = []
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
        if node.stopped:
            self._redistribute(node)
        else:
            self._serve_queue(node)

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

    # -- one request, from its arrival to its answer

    def serve(self, request: Request, *, now: float) -> Flow:
        if self._starting:
            self.tick(now)
        stream = Stream(request)
        if self.cookie is not None or self._stick_on is not None:
            self._bind(stream, now)
        while True:
            node, letters = stream.bound or self._pick(stream), ""
            if node is not None and node.free:
                self._take(node)
            else:
                letters = "SC"
                try:
                    node = yield from self._slot(stream, node, now)
                except TimeoutError:
                    node, letters = None, "sQ"
            if node is None:
                return self._answer(stream, None, 503, letters=letters)
            self._arrived(stream, node)
            try:
                outcome = received((yield self._asked(stream, node, request)))
                now = outcome.at
                again = self._rules.allows(request, outcome, done=stream.retries, elapsed=0.0)
                if outcome.open and not again:
                    self._remember(stream, node)
                    answer = self._answer(stream, node, outcome.status, outcome)
                    yield Relay(answer)  # the slot is taken until the last byte has left
                    return answer
            finally:
                self._leave(node)
            if self.healths:
                self._observe(node, outcome)
            if again:
                self._retry(stream, node, outcome)
            elif outcome.fault is None:
                self._remember(stream, node)
                return self._answer(stream, node, outcome.status, outcome)
            else:
                return self._failed(stream, outcome.fault)

    def _asked(self, stream: Stream, node: Node, came_in: Request) -> Attempt:
        if stream.request is came_in and not stream.retries:
            return node.attempt
        request = None if stream.request is came_in else stream.request
        warning = twice(came_in, stream.risked, node.name)
        return Attempt(node.name, request, after=stream.pause, warning=warning)

    def _bind(self, stream: Stream, now: float) -> None:
        """By the cookie, else by the stick table."""
        if self.cookie is not None:
            stream.ck = Persistence(self.cookie, stream.request, self.nodes, now)
            stream.request = stream.ck.request
            stream.bound = stream.ck.node
        if self._stick_on is not None and stream.bound is None:
            stuck = self._stuck.get(self._stick_on(stream.request))
            stream.bound = stuck if stuck is not None and not stuck.stopped else None

    def _slot(
        self, stream: Stream, node: Node | None, now: float
    ) -> Generator[Wait, Outcome | None, Node | None]:
        """A server with room after a wait. None: there is none to wait for."""
        if node is not None and self._queue_full(node):
            if not (stream.ck and stream.ck.node and self.retries.redispatch):
                return None
            self._unbind(stream, node)
            node = self._pick(stream)
        while True:
            if node is not None and node.free:
                self._take(node)
                return node
            if node is None and not self._anybody:
                return None
            given = yield from self._wait(node, now)
            if given is not None:
                return given
            self._unbind(stream, node)  # its server went down while it waited there
            node = self._pick(stream)

    def _wait(self, node: Node | None, now: float) -> Generator[Wait, Outcome | None, Node | None]:
        pending = Pending(Wait(now + self.queue_timeout, node.name if node else ""), node)
        self._queue.append(pending)
        if node is not None:
            node.queued += 1
            self._group(node).taken(node)
        try:
            yield pending.wait
        except BaseException:
            if pending.given is not None:
                self._leave(pending.given)
            elif pending in self._queue:
                self._leave_queue(pending)
            raise
        return pending.given

    def _leave_queue(self, pending: Pending) -> None:
        self._queue.remove(pending)
        if pending.node is not None:
            pending.node.queued -= 1

    def _queue_full(self, node: Node) -> bool:
        return 0 < node.server.maxqueue <= node.queued

    def _pick(self, stream: Stream) -> Node | None:
        group = self._target
        if group is None or isinstance(group, Node):
            return group
        if self._queue and self.balance in FAIR and any(pending.node is None for pending in self._queue):
            return None  # whoever waits already is first
        if self._hashed is not None and isinstance(group, (Map, Ring)):
            value = self._hashed(stream.request)
            if value is not None:
                return group.by_hash(value, stream.avoid)
        return group.pick(stream.avoid)

    def _observe(self, node: Node, outcome: Outcome) -> None:
        """`observe layer4` counts connections, `observe layer7` what comes back over them."""
        health = self.healths[node.name]
        if not health.observed.observe:
            return
        refused = outcome.fault is Fault.REFUSED
        if health.observed.observe == "layer4":
            health.observe(0 if refused else 200)
        elif not refused:
            health.observe(outcome.status)
        self._judged(node, health)

    def _retry(self, stream: Stream, node: Node, outcome: Outcome) -> None:
        stream.retries += 1
        stream.risked = stream.risked or (node.name if outcome.sent else "")
        turns = self.balance.partition("(")[0] in TAKING_TURNS and stream.bound is None
        redispatch = self.retries.redispatch != 0
        several = turns and self._usable > 1
        if redispatch and (node.stopped or self.retries.elsewhere(stream.retries) or several):
            self._unbind(stream, node)
            stream.avoid = node
            stream.pause = 0.0
        else:
            stream.bound = node
            stream.pause = 0.0 if outcome.sent else self.retries.pause

    def _unbind(self, stream: Stream, node: Node | None) -> None:
        stream.bound = None
        stream.before = node
        if stream.ck is not None:
            stream.ck.node = None

    def _arrived(self, stream: Stream, node: Node) -> None:
        """A redispatch that ends at the same server is none."""
        stream.attempts.append(node.name)
        if stream.before is not None and stream.before is not node:
            stream.moved = True
            if stream.ck is not None:
                stream.ck.moved()
        stream.before = None

    # -- slots

    def _take(self, node: Node) -> None:
        node.served += 1
        self._group(node).taken(node)

    def _leave(self, node: Node) -> None:
        node.served -= 1
        self._group(node).taken(node)
        if self._queue:
            self._serve_queue(node)

    def _serve_queue(self, node: Node) -> None:
        """Give the free slots of a server to whoever waits longest."""
        while self._queue and (not node.maxconn or node.served < node.maxconn):
            waiting = [
                each for each in self._queue if each.node is node or (each.node is None and node.usable)
            ]
            if not waiting:
                return
            pending = waiting[0]
            self._leave_queue(pending)
            pending.given = node
            self._take(node)
            self._woken.append(pending.wait)

    def _redistribute(self, node: Node) -> None:
        """A server went down: with `redispatch`, those who wait for it look for another one."""
        for pending in [each for each in self._queue if each.node is node and self.retries.redispatch]:
            self._leave_queue(pending)
            self._woken.append(pending.wait)

    def woken(self) -> list[Wait]:
        """Whose wait is over since the last call: resume these flows."""
        woken, self._woken = self._woken, []
        return woken

    # -- answers

    def _remember(self, stream: Stream, node: Node) -> None:
        key = self._stick_on(stream.request) if self._stick_on is not None else ""
        if key:
            self._stuck[key] = node

    def _failed(self, stream: Stream, fault: Fault) -> Answer:
        if fault is Fault.REFUSED:
            return self._answer(stream, None, 503, letters="SC")
        if fault is Fault.TIMEOUT:
            return self._answer(stream, None, 504, letters="sH")
        # On a connection that has served already, the client is told by closing it: it may then retry itself.
        return self._answer(stream, None, 502 if stream.request.first else 0, letters="SH")

    def _answer(
        self,
        stream: Stream,
        node: Node | None,
        status: int,
        outcome: Outcome | None = None,
        letters: str = "--",
    ) -> Answer:
        cookies = outcome.set_cookie if outcome else ()
        if stream.ck is not None and node is not None and outcome is not None:
            cookies = stream.ck.response(node, outcome)
        pair = stream.ck.letter + stream.ck.answer_letter if stream.ck else "--"
        retries = f"{'+' * (stream.moved and stream.retries > 0)}{stream.retries}"
        return Answer(
            status=status,
            replica=node.name if node else None,
            attempts=tuple(stream.attempts),
            set_cookie=cookies,
            log=f"{retries} {letters}{pair}",
        )


CAUSES = {
    Fault.REFUSED: frozenset({"conn-failure"}),
    Fault.RESET: frozenset({"empty-response"}),
    Fault.TIMEOUT: frozenset({"response-timeout"}),
}


def _causes(outcome: Outcome) -> frozenset[str]:
    """The words of `retry-on` for an outcome."""
    return frozenset({str(outcome.status)}) if outcome.fault is None else CAUSES[outcome.fault]
