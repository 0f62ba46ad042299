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
from ipaddress import ip_address
from math import ceil
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
    attempt,
    relay,
)
from lbkit.balancer.haproxy.cookie import Cookie, Persistence
from lbkit.balancer.haproxy.hashed import FUNCTIONS, Map, RandomDraws, Ring
from lbkit.balancer.haproxy.leastconn import First, LeastConn
from lbkit.balancer.haproxy.node import SCALE, Admin, Node, Server
from lbkit.balancer.haproxy.roundrobin import RoundRobin
from lbkit.balancer.hashing import full_hash
from lbkit.errors import ConfigError

__all__ = ["Haproxy", "Retries"]

TAKING_TURNS = ("roundrobin", "static-rr", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """`retries`, `option redispatch` and `retry-on`, as data."""

    count: int = 3
    redispatch: int = 0
    """Every how many retries another server is asked: 0 never, -1 on the last one."""

    on: frozenset[str] = frozenset({"conn-failure"})
    """POST is retried like anything else once this names more than `conn-failure`."""

    def allows(self, outcome: Outcome, done: int) -> bool:
        return done < self.count and bool(_causes(outcome) & self.on)

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
    began_at: float
    ck: Persistence | None = None
    bound: Node | None = None
    avoid: Node | None = None
    retries: int = 0
    moved: bool = False
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
        self.balance = balance
        self.retries = retries or Retries()
        self.cookie = cookie
        self.queue_timeout = queue_timeout
        self.all_backups = all_backups
        self._rng = rng or Random()
        self._key = _key_of(balance)
        self._function = _function(hash_type)
        self._stick_on = stick_on
        self._stuck: dict[str, Node] = {}
        self._queue: list[Pending] = []
        self._woken: list[Wait] = []
        self._reused = False
        make = self._algorithm(hash_type, balance_factor)
        self._active = make([node for node in self.nodes if not node.server.backup])
        self._backup = make([node for node in self.nodes if node.server.backup])

    def _algorithm(self, hash_type: str, factor: int) -> Callable[[list[Node]], Algorithm]:
        word = self.balance.partition("(")[0].split()[0]
        if word == "random":
            draws = int(re.sub(r"\D", "", self.balance) or 2)
            return lambda nodes: RandomDraws(nodes, draws=draws, rng=self._rng)
        if self._key is not None:
            return (lambda nodes: Ring(nodes, factor=factor)) if "consistent" in hash_type else Map
        known: dict[str, Callable[[list[Node]], Algorithm]] = {
            "roundrobin": RoundRobin,
            "static-rr": Map,
            "leastconn": LeastConn,
            "first": First,
        }
        if word not in known:
            names = ", ".join([*known, "random", "source", "uri", "url_param", "hdr(NAME)"])
            raise ConfigError(f"need an algorithm of HAProxy ({names}), got {self.balance!r}")
        return known[word]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    # -- what an operator or a check may change

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def set_admin(self, name: str, admin: Admin) -> None:
        node = self.node(name)
        node.admin = admin
        self._changed(node)

    def set_up(self, name: str, *, up: bool) -> None:
        node = self.node(name)
        node.up = up
        self._changed(node)

    def set_weight(self, name: str, weight: int) -> None:
        """A weight in 0 .. 256. 0 lets bound clients in, and no others."""
        if not 0 <= weight <= 256:
            raise ConfigError(f"need 0 <= weight <= 256, got weight={weight} for {name}")
        node = self.node(name)
        node.weight = weight
        self._changed(node)

    def tell(self, name: str, standing: Standing) -> None:
        node = self.node(name)
        node.admin, node.up = Admin(standing.mode.value), standing.up
        node.sixteenths = ceil(SCALE * standing.share)
        self._changed(node)
        if node.usable:
            self._serve_queue(node)

    def _changed(self, node: Node) -> None:
        self._group(node).changed(node)

    def _group(self, node: Node) -> Algorithm:
        return self._backup if node.server.backup else self._active

    def explain(self, now: float) -> dict[str, str]:
        """For each server that gets no new client now, the rule that skips it."""
        reasons = {node.name: node.skipped() for node in self.nodes}
        if any(node.usable for node in self.nodes if not node.server.backup):
            reasons.update({n.name: "backup: an active one is usable" for n in self.nodes if n.server.backup})
        return {name: reason for name, reason in reasons.items() if reason}

    # -- one request, from its arrival to its answer

    def serve(self, request: Request, *, now: float) -> Flow:
        stream = self._begin(request, now)
        while True:
            try:
                node = yield from self._slot(stream, now)
            except TimeoutError:
                node = None
            if node is None:
                return self._answer(stream, None, 503)
            outcome = yield from self._attempt(stream, node)
            now = outcome.at
            if self.retries.allows(outcome, stream.retries):
                self._retry(stream, node)
            elif outcome.fault is None:
                self._remember(stream, node)
                answer = self._answer(stream, node, outcome.status, outcome)
                if outcome.open:
                    yield from self._relay(answer, outcome, node)
                return answer
            else:
                return self._failed(stream, outcome.fault)

    def _begin(self, request: Request, now: float) -> Stream:
        stream = Stream(request, now)
        if self.cookie is not None:
            stream.ck = Persistence(self.cookie, request, self.nodes, now)
            stream.request = stream.ck.request
            stream.bound = stream.ck.node
        if self._stick_on and stream.bound is None:
            stuck = self._stuck.get(request.header(self._stick_on))
            stream.bound = stuck if stuck is not None and not stuck.stopped else None
        return stream

    def _slot(self, stream: Stream, now: float) -> Generator[Wait, Outcome | None, Node | None]:
        """A server with room, at once or after a wait. None: there is none to wait for."""
        node = stream.bound or self._pick(stream)
        if node is not None and not node.free and self._queue_full(node):
            if not (stream.ck and stream.ck.node and self.retries.redispatch):
                return None
            self._unbind(stream)
            node = self._pick(stream)
        if node is None and not any(each.usable for each in self.nodes):
            return None
        if node is not None and node.free:
            self._take(node)
            return node
        return (yield from self._wait(node, now))

    def _wait(self, node: Node | None, now: float) -> Generator[Wait, Outcome | None, Node | None]:
        pending = Pending(Wait(now + self.queue_timeout, node.name if node else ""), node)
        self._queue.append(pending)
        if node is not None:
            node.queued += 1
            self._group(node).taken(node)
        try:
            yield pending.wait
        except (TimeoutError, GeneratorExit):
            self._give_up(pending)
            raise
        return pending.given

    def _give_up(self, pending: Pending) -> None:
        if pending.given is None:
            self._leave_queue(pending)
        else:
            self._freed(pending.given)

    def _leave_queue(self, pending: Pending) -> None:
        self._queue.remove(pending)
        if pending.node is not None:
            pending.node.queued -= 1

    def _queue_full(self, node: Node) -> bool:
        return 0 < node.server.maxqueue <= node.queued

    def _pick(self, stream: Stream) -> Node | None:
        group = self._usable_group()
        if isinstance(group, Node) or group is None:
            return group
        waiting = any(pending.node is None for pending in self._queue)
        if waiting and self.balance in ("roundrobin", "static-rr", "first"):
            return None  # whoever waits already is first
        value = self._hash(stream.request)
        if value is not None and isinstance(group, (Map, Ring)):
            return group.by_hash(value, stream.avoid)
        return group.pick(stream.avoid)

    def _usable_group(self) -> Algorithm | Node | None:
        """The active servers; without any, the first usable backup, or all of them with `allbackups`."""
        if any(node.usable for node in self.nodes if not node.server.backup):
            return self._active
        if self.all_backups:
            return self._backup
        return next((node for node in self.nodes if node.server.backup and node.usable), None)

    def _hash(self, request: Request) -> int | None:
        key = self._key(request) if self._key is not None else None
        return None if key is None else self._function(key)

    def _attempt(self, stream: Stream, node: Node) -> Generator[Attempt, Outcome | None, Outcome]:
        stream.attempts.append(node.name)
        try:
            outcome = yield from attempt(Attempt(node.name, stream.request))
        except GeneratorExit:
            self._freed(node)
            raise
        if not outcome.open or self.retries.allows(outcome, stream.retries):
            self._freed(node)
        return outcome

    def _relay(self, answer: Answer, outcome: Outcome, node: Node) -> Generator[Relay, Outcome | None, None]:
        """The slot is taken until the last byte has left."""
        try:
            yield from relay(answer, outcome)
        finally:
            self._freed(node)

    def _freed(self, node: Node) -> None:
        node.served -= 1
        self._group(node).taken(node)
        self._serve_queue(node)

    def _retry(self, stream: Stream, node: Node) -> None:
        stream.retries += 1
        turns = self.balance.partition("(")[0] in TAKING_TURNS and stream.bound is None
        several = sum(each.usable for each in self.nodes if not each.server.backup) > 1
        redispatch = self.retries.redispatch != 0
        if redispatch and (node.stopped or self.retries.elsewhere(stream.retries) or (turns and several)):
            self._unbind(stream)
            stream.avoid = node
        else:
            stream.bound = node

    def _unbind(self, stream: Stream) -> None:
        stream.bound = None
        stream.moved = True
        if stream.ck is not None:
            stream.ck.moved()

    # -- slots

    def _take(self, node: Node) -> None:
        node.served += 1
        self._group(node).taken(node)

    def _serve_queue(self, node: Node) -> None:
        """Give the free slots of a server to whoever waits longest."""
        while node.maxconn and node.served < node.maxconn:
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

    def woken(self) -> list[Wait]:
        """Whose wait is over since the last call: resume these flows."""
        woken, self._woken = self._woken, []
        return woken

    # -- answers

    def _remember(self, stream: Stream, node: Node) -> None:
        key = stream.request.header(self._stick_on) if self._stick_on else ""
        if key:
            self._stuck[key] = node

    def _failed(self, stream: Stream, fault: Fault) -> Answer:
        if fault is Fault.REFUSED:
            return self._answer(stream, None, 503, letters="SC")
        if fault is Fault.TIMEOUT:
            return self._answer(stream, None, 504, letters="sH")
        # On a connection that has served already, the client is told by closing it: it may then retry itself.
        return self._answer(stream, None, 0 if self._reused else 502, letters="SH")

    def _answer(
        self,
        stream: Stream,
        node: Node | None,
        status: int,
        outcome: Outcome | None = None,
        letters: str = "--",
    ) -> Answer:
        self._reused = status != 0
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


def _causes(outcome: Outcome) -> set[str]:
    if outcome.fault is None:
        return {str(outcome.status)}
    names = {
        Fault.REFUSED: "conn-failure",
        Fault.RESET: "empty-response",
        Fault.TIMEOUT: "response-timeout",
    }
    return {names[outcome.fault]}


def _function(hash_type: str) -> Callable[[bytes], int]:
    words = hash_type.split()
    named = next((word for word in words if word in FUNCTIONS), None)
    function = FUNCTIONS[named or "sdbm"]
    plain = int.from_bytes

    def raw(key: bytes) -> int:
        return plain(key, "big") if key[:1] == b"\0" else function(key)

    if "avalanche" in words or ("consistent" in words and named is None):
        return lambda key: full_hash(raw(key))
    return raw


def _key_of(balance: str) -> Callable[[Request], bytes | None] | None:
    """What of a request is hashed; None for the algorithms that look at no key."""
    if balance == "source":
        return _source
    if balance.startswith("uri"):
        return _uri(balance.split()[1:])
    if found := re.fullmatch(r"url_param (\S+)", balance):
        name = found[1]
        return lambda request: request.argument(name).encode() or None
    if found := re.fullmatch(r"hdr\(([^)]+)\)( use_domain_only)?", balance):
        return _header(found[1].lower(), domain_only=bool(found[2]))
    return None


def _source(request: Request) -> bytes:
    """An address is no text: the xor of its 32-bit words, marked by a zero in front."""
    packed = ip_address(request.client).packed
    value = 0
    for at in range(0, len(packed), 4):
        value ^= int.from_bytes(packed[at : at + 4], "big")
    return value.to_bytes(5, "big")


def _uri(words: list[str]) -> Callable[[Request], bytes]:
    whole = "whole" in words
    limits = {name: int(words[words.index(name) + 1]) for name in ("len", "depth") if name in words}

    def key(request: Request) -> bytes:
        text = request.target[: limits.get("len") or None]
        if not whole:
            text = text.partition("?")[0]
        if "depth" in limits:
            text = "/".join(text.split("/")[: limits["depth"] + 1])
        return text.encode()

    return key


def _header(name: str, *, domain_only: bool) -> Callable[[Request], bytes | None]:
    def key(request: Request) -> bytes | None:
        value = request.header(name)
        if domain_only and value.count("."):
            value = value.split(".")[-2]
        return value.encode() or None

    return key
