"""nginx: the upstream module, decision for decision.

Sources: ngx_http_upstream_round_robin.c and its neighbours of 1.22.1, ngx_http_upstream.c (what is passed to
the next server), and the sticky and least_time modules of 1.31. One worker process: with n workers, nginx
itself has n independent rotations and n independent failure counters.

Instants are whole seconds (`ngx_time()`), so a fail_timeout of 2 s lasts between 2 and 3.

====================  =====================================================================
a peer is skipped     because
====================  =====================================================================
tried                 this request has failed there already
down, drain           the operator said so; drain still serves those a cookie binds to it
failed out            `fails >= max_fails`, and `fail_timeout` has not passed since `checked`
full                  `conns >= max_conns`
====================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

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
from lbkit.balancer.nginx.method import Peers, Trip, method_named, refuse_big_ring, round_robin
from lbkit.balancer.nginx.peer import Peer, Server
from lbkit.balancer.nginx.sticky import Binding, Sticky
from lbkit.balancer.replica import Mode
from lbkit.balancer.retry import RetryRules, twice
from lbkit.errors import ConfigError

__all__ = ["NextUpstream", "Nginx"]

NON_IDEMPOTENT = frozenset({"POST", "LOCK", "PATCH"})
LISTED = {status: f"http_{status}" for status in (500, 502, 503, 504, 403, 404, 429)}
SCALE = 100
NO_FAILURE = ("http_403", "http_404")


@dataclass(frozen=True, slots=True, kw_only=True)
class NextUpstream:
    """When a request goes on to another server: `proxy_next_upstream` and its limits, as data."""

    on: frozenset[str] = frozenset({"error", "timeout"})
    tries: int = 0
    timeout: float = 0.0
    """Seconds since the first attempt after which no other one is begun; 0 for no limit."""

    def rules(self) -> RetryRules:
        return RetryRules(
            causes=lambda outcome: frozenset({_cause(outcome)[0]}),
            on=frozenset() if "off" in self.on else self.on,
            seconds=self.timeout,
            again=lambda request: request.method not in NON_IDEMPOTENT or "non_idempotent" in self.on,
        )


class Nginx:
    """An upstream group and the location that passes to it.

    `method` is the balancing directive as nginx spells it: empty, `ip_hash`, `hash $http_x_key`,
    `hash $http_x_key consistent`, `least_conn`, `random`, `random two least_conn`, `least_time header`.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        method: str = "",
        passing: NextUpstream | None = None,
        sticky: Sticky | None = None,
        rng: Random | None = None,
    ) -> None:
        self.passing = passing or NextUpstream()
        self.method, takes_backups = method_named(method, rng or Random())
        _refuse_nonsense(servers, method, takes_backups=takes_backups)
        self.peers = [Peer(server, 1 << at) for at, server in enumerate(servers)]
        self.names = tuple(server.name for server in servers)
        backups = [peer for peer in self.peers if peer.server.backup]
        self._backups = Peers(backups) if backups else None
        self._primaries = Peers([p for p in self.peers if not p.server.backup], backups=self._backups)
        self._rules = self.passing.rules()
        self._binding = Binding(sticky) if sticky is not None else None
        self._by_name = {peer.name: peer for peer in self.peers}
        if "consistent" in method.split():
            refuse_big_ring(self._primaries.total)
        self._only = self.peers[0] if len(self.peers) == 1 else None
        if self.method is not round_robin:
            self._part()
        self._scale = 1
        self._count_tries()

    # -- one request, from its arrival to its answer

    def serve(self, request: Request, *, now: float) -> Flow:
        hint = self._binding.hint(request, now) if self._binding is not None else ""
        trip = Trip(request, now, self._tries, self._primaries, hint)
        while True:
            peer = self.pick(trip, now)
            if peer is None:
                return Answer(status=502, replica=None, attempts=(*trip.attempts, "-"))
            asked = peer.attempt
            if trip.risked:
                asked = Attempt(peer.name, warning=twice(request, trip.risked, peer.name))
            try:
                outcome = received((yield asked))
            except BaseException:
                self._gone(peer)
                raise
            now = outcome.at
            status = self.verdict(trip, outcome)
            if status and outcome.open:
                answer = self._answer(trip, peer, status, outcome)
                try:
                    yield Relay(answer)
                finally:
                    self.release(trip, peer, outcome, status)
                return answer
            self.release(trip, peer, outcome, status)
            if status:
                return self._answer(trip, peer, status, outcome)

    def pick(self, trip: Trip, now: float) -> Peer | None:
        """Choose a peer and count the request in. None: no live upstreams."""
        second = int(now)
        peer = self._single() if self._only is not None else self.method(trip, second)
        if peer is None:
            return None
        trip.attempts.append(peer.name)
        trip.tried |= peer.bit
        if self._only is None and second - peer.checked > peer.fail_timeout:
            peer.checked = second  # from here on, everybody else skips it until this probe has ended
        peer.conns += 1
        return peer

    def verdict(self, trip: Trip, outcome: Outcome) -> int:
        """The status for the client, or 0: pick again."""
        if outcome.fault is None and outcome.status not in LISTED:
            return outcome.status
        if trip.tries > 1 and self._only is None:
            elapsed = outcome.at - trip.began_at
            if self._rules.allows(trip.request, outcome, done=0, elapsed=elapsed):
                return 0
        return _cause(outcome)[1]

    def release(self, trip: Trip, peer: Peer, outcome: Outcome, status: int) -> None:
        """Count the outcome, of which `verdict` has made that status."""
        if outcome.sent and not status and not trip.risked:
            trip.risked = peer.name
        if outcome.fault is None and status:
            self._free(trip, peer, outcome)
            if self._binding is not None:
                self._binding.learn(trip.request, peer.sid, outcome)
        else:
            self._free(trip, peer, outcome, cause=_cause(outcome)[0])

    def explain(self, now: float) -> dict[str, str]:
        """For each peer that gets nothing now, the rule that skips it."""
        second = int(now)
        reasons = {peer.name: peer.skipped(second) for peer in self.peers}
        reasons.update({p.name: "drain: only bound clients" for p in self.peers if p.mode is Mode.DRAIN})
        if any(peer.usable(second) for peer in self._primaries.all):
            rest = [peer for peer in self.peers if peer.server.backup and not reasons[peer.name]]
            reasons.update({peer.name: "backup: a primary is usable" for peer in rest})
        return {name: reason for name, reason in reasons.items() if reason}

    def tell(self, name: str, standing: Standing) -> None:
        """Checks and slow start are those of NGINX Plus; weights then count in hundredths."""
        peer = named(self.peers, name)
        self._part()
        peer.up, peer.mode = standing.up, standing.mode
        peer.opened()
        self._reweigh(peer, standing.share)
        self._count_tries()

    def _reweigh(self, peer: Peer, share: float) -> None:
        if share == peer.share:
            return
        peer.share = share
        if self._scale == 1:
            self._scale = SCALE
            for each in self.peers:
                each.cw *= SCALE
                each.ew *= SCALE
                each.weight *= SCALE
        whole = peer.ew == peer.weight  # else failures have lowered it, and it recovers by itself
        peer.weight = max(1, round(peer.server.weight * self._scale * share))
        peer.ew = peer.weight if whole else min(peer.ew, peer.weight)
        for group in filter(None, (self._primaries, self._backups)):
            group.reweighed()

    def tick(self, now: float) -> None:
        """nginx has no timers: what is over is seen when a request comes."""

    def woken(self) -> list[Wait]:
        """nginx has no queue: what is full is passed on or refused."""
        return []

    # -- counting in and out

    def _part(self) -> None:
        self._primaries.part()
        if self._backups is not None:
            self._backups.part()

    def _count_tries(self) -> None:
        tries = sum(not peer.down for peer in self.peers)
        self._tries = min(tries, self.passing.tries) if self.passing.tries else tries

    def _single(self) -> Peer | None:
        """The only server of a group is never failed out."""
        (peer,) = self.peers
        full = peer.max_conns and peer.conns >= peer.max_conns
        return None if peer.down or full else peer

    def _free(self, trip: Trip, peer: Peer, outcome: Outcome, *, cause: str = "") -> None:
        """`cause`: the word for which another peer might be asked; empty when this one has answered."""
        peer.conns -= 1
        if self._only is not None:
            trip.tries = peer.fails = 0
            return
        trip.tries -= 1
        if cause and cause not in NO_FAILURE:
            self._part()
            peer.fail(int(outcome.at))
            return
        if not cause:
            header = int(outcome.seconds * 1000 + 0.5)
            peer.took(header, header)
        if peer.fails:
            peer.pass_()

    def _gone(self, peer: Peer) -> None:
        """The client has gone (499): no failure."""
        peer.conns -= 1
        peer.pass_()

    def _answer(self, trip: Trip, peer: Peer, status: int, outcome: Outcome) -> Answer:
        cookies = outcome.set_cookie
        if self._binding is not None:
            cookies = (*cookies, *self._binding.cookies(peer.sid))
        replica = peer.name if outcome.fault is None else None
        return Answer(status=status, replica=replica, attempts=tuple(trip.attempts), set_cookie=cookies)


def _cause(outcome: Outcome) -> tuple[str, int]:
    """The word of `proxy_next_upstream` for it (empty: none), and the status when nothing follows."""
    if outcome.fault is Fault.TIMEOUT:
        return "timeout", 504
    if outcome.fault is not None:
        return "error", 502
    return LISTED.get(outcome.status, ""), outcome.status


def _refuse_nonsense(servers: Sequence[Server], method: str, *, takes_backups: bool) -> None:
    if all(server.backup for server in servers):
        raise ConfigError("need at least one server that is not a backup, got none")
    if not takes_backups and any(server.backup for server in servers):
        raise ConfigError(
            f"need a method that takes backups, got {method!r}: ip_hash, hash and random do not"
        )
