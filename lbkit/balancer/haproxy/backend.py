"""HAProxy: a backend, decision for decision.

Sources: src/backend.c, src/stream.c, src/queue.c of 2.6. One thread group. A connection that fails is tried
again up to `retries` times: at once elsewhere when the algorithm takes turns and `redispatch` is set, else on
the same server until the last retry. A request that a server cannot take waits: those bound to it in the
server's queue, all others in the backend's; a freed slot takes the oldest of both.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from random import Random

from lbkit.balancer.exchange import Answer, Attempt, Fault, Flow, Outcome, Relay, Request, Wait, received
from lbkit.balancer.haproxy.cookie import Cookie, Persistence
from lbkit.balancer.haproxy.hashed import Map, Ring
from lbkit.balancer.haproxy.key import fetch
from lbkit.balancer.haproxy.node import Node, Server
from lbkit.balancer.haproxy.servers import Servers
from lbkit.balancer.haproxy.stream import Pending, Retries, Stream
from lbkit.balancer.retry import twice

__all__ = ["Haproxy", "Retries"]

FAIR = ("roundrobin", "static-rr", "first")
MOST_STUCK = 100_000
"""Entries of the stick table, before the oldest one has to go."""

TAKING_TURNS = ("roundrobin", "static-rr", "random")


class Haproxy(Servers):
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
        super().__init__(
            servers,
            balance=balance,
            hash_type=hash_type,
            balance_factor=balance_factor,
            all_backups=all_backups,
            rng=rng,
        )
        self.retries = retries or Retries()
        self.cookie = cookie
        self.queue_timeout = queue_timeout
        self._rules = self.retries.rules()
        self._stick_on = fetch(stick_on) if stick_on else None
        self._stuck: dict[str, Node] = {}
        self._queue: list[Pending] = []
        self._woken: list[Wait] = []

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
                if self.healths:
                    self._observe(node, outcome)
                again = self._rules.allows(request, outcome, done=stream.retries, elapsed=0.0)
                if outcome.open and not again:
                    self._remember(stream, node)
                    answer = self._answer(stream, node, outcome.status, outcome)
                    yield Relay(answer)  # the slot is taken until the last byte has left
                    return answer
            finally:
                self._leave(node)
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

    def _settled(self, node: Node) -> None:
        if node.stopped:
            self._redistribute(node)
        else:
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
            self._stuck.pop(key, None)
            self._stuck[key] = node
            if len(self._stuck) > MOST_STUCK:
                del self._stuck[next(iter(self._stuck))]

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
        cookies, headers = outcome.set_cookie if outcome else (), {}
        if stream.ck is not None and node is not None and outcome is not None:
            cookies, headers = stream.ck.response(node, outcome), stream.ck.caching(outcome)
        pair = stream.ck.letter + stream.ck.answer_letter if stream.ck else "--"
        retries = f"{'+' * (stream.moved and stream.retries > 0)}{stream.retries}"
        return Answer(
            status=status,
            replica=node.name if node else None,
            attempts=tuple(stream.attempts),
            set_cookie=cookies,
            log=f"{retries} {letters}{pair}",
            headers=headers,
        )
