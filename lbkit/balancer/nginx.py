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

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random

from lbkit.balancer.exchange import (
    Answer,
    Attempt,
    Fault,
    Flow,
    Outcome,
    Request,
    Standing,
    Wait,
    attempt,
    relay,
)
from lbkit.balancer.hashing import crc32, ip_hash, md5_hex
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["NextUpstream", "Nginx", "Peer", "Server", "Sticky", "evaluate"]

NON_IDEMPOTENT = frozenset({"POST", "LOCK", "PATCH"})
LISTED = {f"http_{status}": status for status in (500, 502, 503, 504, 403, 404, 429)}
SCALE = 100
VARIABLE = re.compile(r"\$(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One `server` line of an upstream block. `fail_timeout` in seconds; 0 switches a limit off."""

    name: str
    address: str
    """As configured: the consistent ring hashes this text, so `localhost:80` is not `127.0.0.1:80`."""

    weight: int = 1
    max_conns: int = 0
    max_fails: int = 1
    fail_timeout: float = 10.0
    backup: bool = False
    down: bool = False
    drain: bool = False
    route: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextUpstream:
    """When a request goes on to another server: `proxy_next_upstream` and its limits, as data."""

    on: frozenset[str] = frozenset({"error", "timeout"})
    tries: int = 0
    timeout: float = 0.0
    """Seconds since the first attempt after which no other one is begun; 0 for no limit."""

    def allows(self, cause: str, request: Request, *, sent: bool, elapsed: float) -> bool:
        needed = {cause}
        if sent and request.method in NON_IDEMPOTENT:
            needed.add("non_idempotent")
        return needed <= self.on and not (self.timeout and elapsed >= self.timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sticky:
    """`sticky cookie`, `sticky route` or `sticky learn`, free since 1.29.6."""

    mode: str
    name: str = ""
    attributes: str = ""
    """What follows the value in Set-Cookie, in nginx' order and lower case."""

    sources: tuple[str, ...] = ()
    """route: the variables in which the route is looked for, the first one that is not empty wins.
    learn: the variable with the session's id."""

    create: str = ""
    """learn: the cookie of the answer that opens a session."""

    timeout: float = 600.0


class Peer:
    """The state of a server, with nginx' names for its parts."""

    __slots__ = (
        "accessed",
        "average",
        "checked",
        "conns",
        "cw",
        "down",
        "drain",
        "ew",
        "fails",
        "server",
        "share",
        "sid",
        "weight",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.weight = server.weight
        self.ew = server.weight
        self.cw = 0
        self.conns = 0
        self.fails = 0
        self.accessed = 0
        self.checked = 0
        self.down = server.down
        self.drain = server.drain
        self.share = 1.0
        self.average = 0
        """Of the response times, in milliseconds."""

        self.sid = server.route or md5_hex(server.address)

    def skipped(self, now: int) -> str:
        """Why it gets nothing now; empty when it may."""
        server = self.server
        if self.down:
            return "down"
        if server.max_fails and self.fails >= server.max_fails and now - self.checked <= server.fail_timeout:
            return f"failed out: {self.fails} of {server.max_fails} fails, {now - self.checked} s ago"
        if server.max_conns and self.conns >= server.max_conns:
            return f"full: {self.conns} of {server.max_conns} connections"
        return ""

    def usable(self, now: int) -> bool:
        return not self.drain and not self.skipped(now)


@dataclass(slots=True)
class Trip:
    """One request on its way: what it has tried, what it may still try."""

    request: Request
    began_at: float
    tries: int
    peers: list[Peer]
    tried: set[int] = field(default_factory=set)
    attempts: list[str] = field(default_factory=list)
    hint: str = ""
    """The sid to which a cookie, a route or a learnt session binds the request."""

    hashed: int = 89
    turns: int = 0
    point: int | None = None


Method = Callable[["Nginx", Trip, int], "Peer | None"]


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
        _refuse_nonsense(servers)
        self.primaries = [Peer(server) for server in servers if not server.backup]
        self.backups = [Peer(server) for server in servers if server.backup]
        self.passing = passing or NextUpstream()
        self.sticky = sticky
        self.rng = rng or Random()
        self.method, self._key = _method(method)
        self.single = len(self.primaries) == 1 and not self.backups
        self._scale = 1
        self._ring: tuple[list[int], list[str]] | None = None
        self._learnt: dict[str, tuple[str, float]] = {}

    @property
    def peers(self) -> list[Peer]:
        return self.primaries + self.backups

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(peer.server.name for peer in self.peers)

    # -- one request, from its arrival to its answer

    def serve(self, request: Request, *, now: float) -> Flow:
        trip = self.begin(request, now)
        while True:
            peer = self.pick(trip, now)
            if peer is None:
                trip.attempts.append("-")
                return self._answer(trip, None, 502)
            trip.attempts.append(peer.server.name)
            try:
                outcome = yield from attempt(Attempt(peer.server.name))
            except GeneratorExit:
                self._left(peer)
                raise
            now = outcome.at
            if outcome.open and (status := self.verdict(trip, outcome)):
                answer = self._answer(trip, peer, status, outcome)
                try:
                    return (yield from relay(answer, outcome))
                finally:
                    self.release(trip, peer, outcome)
            status = self.release(trip, peer, outcome)
            if status:
                return self._answer(trip, peer, status, outcome)

    def begin(self, request: Request, now: float) -> Trip:
        tries = sum(not peer.down for peer in self.peers)
        if self.passing.tries:
            tries = min(tries, self.passing.tries)
        return Trip(request, now, tries, self.primaries, hint=self._hint(request, now))

    def pick(self, trip: Trip, now: float) -> Peer | None:
        second = int(now)
        if self.single:
            return self._only(second)
        peer = self._bound(trip, second) if trip.hint and self.method is not round_robin else None
        peer = peer or self.method(self, trip, second)
        return peer and self._take(trip, peer, second)

    def release(self, trip: Trip, peer: Peer, outcome: Outcome) -> int:
        """Count the outcome. The status for the client, or 0: pick again."""
        status = self.verdict(trip, outcome)
        cause, _ = _cause(outcome)
        if outcome.fault is None and status:
            self._free(trip, peer, outcome, failed=False)
            self._learn(trip, peer, outcome)
        else:
            self._free(trip, peer, outcome, failed=cause not in ("http_403", "http_404"))
        return status

    def verdict(self, trip: Trip, outcome: Outcome) -> int:
        """The status for the client, or 0: pick again. A status is passed on from the last server."""
        cause, status = _cause(outcome)
        elapsed = outcome.at - trip.began_at
        sent = outcome.fault is None or outcome.fault.sent
        allowed = cause and self.passing.allows(cause, trip.request, sent=sent, elapsed=elapsed)
        return 0 if allowed and trip.tries > 1 and not self.single else status

    def explain(self, now: float) -> dict[str, str]:
        """For each peer that gets nothing now, the rule that skips it."""
        second = int(now)
        reasons = {peer.server.name: peer.skipped(second) for peer in self.peers}
        reasons.update({p.server.name: "drain: only bound clients" for p in self.peers if p.drain})
        return {name: reason for name, reason in reasons.items() if reason}

    def tell(self, name: str, standing: Standing) -> None:
        """Checks and slow start are those of NGINX Plus; weights then count in hundredths."""
        peer = next(peer for peer in self.peers if peer.server.name == name)
        peer.down = not standing.up or standing.mode is Mode.MAINT
        peer.drain = standing.mode is Mode.DRAIN
        self._reweigh(peer, standing.share)

    def woken(self) -> list[Wait]:
        """Nobody waits: nginx has no queue."""
        return []

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
        peer.weight = max(1, round(peer.server.weight * self._scale * share))
        peer.ew = min(peer.ew, peer.weight) if share < 1 else peer.weight

    # -- counting in and out

    def _only(self, now: int) -> Peer | None:
        """The only server of a group is never failed out."""
        (peer,) = self.primaries
        full = peer.server.max_conns and peer.conns >= peer.server.max_conns
        if peer.down or full:
            return None
        peer.conns += 1
        return peer

    def _take(self, trip: Trip, peer: Peer, now: int) -> Peer:
        trip.tried.add(id(peer))
        if now - peer.checked > peer.server.fail_timeout:
            peer.checked = now  # from here on, everybody else skips it until this probe has ended
        peer.conns += 1
        return peer

    def _left(self, peer: Peer) -> None:
        """The client did not wait for the answer (499): no failure, and no success."""
        peer.conns -= 1
        if peer.accessed < peer.checked:
            peer.fails = 0

    def _free(self, trip: Trip, peer: Peer, outcome: Outcome, *, failed: bool) -> None:
        now = int(outcome.at)
        peer.conns -= 1
        trip.tries = 0 if self.single else trip.tries - 1
        if self.single:
            peer.fails = 0
        elif failed:
            self._count_failure(peer, now)
        else:
            if outcome.fault is None:
                peer.average = _average(peer.average, round(outcome.seconds * 1000))
            if peer.accessed < peer.checked:
                peer.fails = 0

    def _count_failure(self, peer: Peer, now: int) -> None:
        peer.fails += 1
        peer.accessed = peer.checked = now
        if peer.server.max_fails:
            peer.ew = max(0, peer.ew - peer.weight // peer.server.max_fails)

    # -- sticky

    def _hint(self, request: Request, now: float) -> str:
        sticky = self.sticky
        if sticky is None:
            return ""
        if sticky.mode == "cookie":
            return request.cookie(sticky.name)
        found = next(filter(None, (evaluate(text, request) for text in sticky.sources)), "")
        if sticky.mode == "route":
            return found
        sid, until = self._learnt.get(md5_hex(found), ("", now))
        return sid if until > now else ""

    def _bound(self, trip: Trip, now: int) -> Peer | None:
        for peer in self.peers:
            if peer.sid == trip.hint and id(peer) not in trip.tried and not peer.skipped(now):
                return peer
        return None

    def _learn(self, trip: Trip, peer: Peer, outcome: Outcome) -> None:
        sticky = self.sticky
        if sticky is None or sticky.mode != "learn":
            return
        opened = _cookie_value(outcome.set_cookie, sticky.create)
        looked_up = next(filter(None, (evaluate(text, trip.request) for text in sticky.sources)), "")
        session = opened or (looked_up if md5_hex(looked_up) in self._learnt else "")
        if session:
            self._learnt[md5_hex(session)] = (peer.sid, outcome.at + sticky.timeout)

    def _answer(self, trip: Trip, peer: Peer | None, status: int, outcome: Outcome | None = None) -> Answer:
        answered = peer is not None and outcome is not None and outcome.fault is None
        cookies = outcome.set_cookie if outcome and answered else ()
        if self.sticky and self.sticky.mode == "cookie" and peer is not None:
            cookies = (*cookies, f"{self.sticky.name}={peer.sid}{self.sticky.attributes}")
        replica = peer.server.name if peer is not None and answered else None
        return Answer(status=status, replica=replica, attempts=tuple(trip.attempts), set_cookie=cookies)

    # -- the ring, built when it is first needed

    def ring(self) -> tuple[list[int], list[str]]:
        if self._ring is None:
            self._ring = _ketama(self.primaries)
        return self._ring


# -- methods: each gives an untried, usable peer, or None


def round_robin(group: Nginx, trip: Trip, now: int) -> Peer | None:
    """Smooth weighted round robin: everyone gains its weight, the richest is chosen and pays for all."""
    peer = _bound_round_robin(group, trip, now) if trip.hint else None
    peer = peer or _smooth(trip.peers, trip, now)
    if peer is None and trip.peers is group.primaries and group.backups:
        trip.peers = group.backups
        trip.tried.clear()
        return _smooth(trip.peers, trip, now)
    return peer


def _bound_round_robin(group: Nginx, trip: Trip, now: int) -> Peer | None:
    """A bound client is charged to the rotation, but never twice in a row."""
    peer = group._bound(trip, now)
    if peer is None:
        return None
    peers = group.backups if peer.server.backup else group.primaries
    total_weight = sum(each.weight for each in peers)
    if peer.cw > -(total_weight - peer.weight):
        _, total = _gain(peers, trip, now)
        peer.cw -= total
    return peer


def _smooth(peers: Sequence[Peer], trip: Trip, now: int) -> Peer | None:
    best, total = _gain(peers, trip, now)
    if best is not None:
        best.cw -= total
    return best


def _gain(peers: Sequence[Peer], trip: Trip, now: int) -> tuple[Peer | None, int]:
    best, total = None, 0
    for peer in peers:
        if id(peer) in trip.tried or not peer.usable(now):
            continue
        peer.cw += peer.ew
        total += peer.ew
        if peer.ew < peer.weight:
            peer.ew += 1
        if best is None or peer.cw > best.cw:
            best = peer
    return best, total


def _least(cost: Callable[[Peer], int]) -> Method:
    """The least `cost` per weight. Smooth round robin among equals, from the first of them on."""

    def pick(group: Nginx, trip: Trip, now: int) -> Peer | None:
        usable = [peer for peer in trip.peers if id(peer) not in trip.tried and peer.usable(now)]
        if not usable:
            return round_robin(group, trip, now) if trip.peers is group.primaries and group.backups else None
        best = usable[0]
        for peer in usable[1:]:
            if cost(peer) * best.weight < cost(best) * peer.weight:
                best = peer
        equal = [peer for peer in usable if cost(peer) * best.weight == cost(best) * peer.weight]
        return best if len(equal) == 1 else _smooth(equal, trip, now)

    return pick


def _time_cost(peer: Peer) -> int:
    """A bucket of 20 ms, times what is in flight: a new server attracts load only until it is busy."""
    rounded = min(5000, peer.average + 20 - peer.average % 20)
    return rounded * (1 + peer.conns)


least_conn = _least(lambda peer: peer.conns)
least_time = _least(_time_cost)


def by_address(group: Nginx, trip: Trip, now: int) -> Peer | None:
    """The first three octets of IPv4, all of IPv6, walked over the configured weights."""
    octets = ip_address(trip.request.client).packed
    octets = octets[:3] if len(octets) == 4 else octets
    while trip.turns <= 20:
        trip.hashed = ip_hash(octets, trip.hashed)
        peer = _by_weight(group.primaries, trip.hashed)
        if id(peer) not in trip.tried and peer.usable(now):
            return peer
        trip.turns += 1
    return round_robin(group, trip, now)


def by_key(group: Nginx, trip: Trip, now: int) -> Peer | None:
    """`hash KEY`: crc32 over the configured weights, hashed again for each server that is not usable."""
    key = evaluate(group._key, trip.request)
    if not key:
        return round_robin(group, trip, now)
    if trip.point is None:
        trip.point, trip.hashed = 0, 0
    while trip.turns <= 20:
        text = f"{trip.point or ''}{key}"
        trip.hashed += (crc32(text.encode()) >> 16) & 0x7FFF
        trip.point += 1
        peer = _by_weight(group.primaries, trip.hashed)
        if id(peer) not in trip.tried and peer.usable(now):
            return peer
        trip.turns += 1
    return round_robin(group, trip, now)


def by_ring(group: Nginx, trip: Trip, now: int) -> Peer | None:
    """`hash KEY consistent`: ketama with 160 points per weight, and clockwise from there."""
    points, owners = group.ring()
    if trip.point is None:
        trip.point = bisect_left(points, crc32(evaluate(group._key, trip.request).encode()))
    while trip.turns <= 20:
        owner = owners[trip.point % len(owners)]
        peer = _smooth([peer for peer in group.primaries if peer.server.address == owner], trip, now)
        if peer is not None:
            return peer
        trip.point += 1
        trip.turns += 1
    return round_robin(group, trip, now)


def at_random(group: Nginx, trip: Trip, now: int) -> Peer | None:
    for _ in range(20):
        peer = _drawn(group)
        if id(peer) not in trip.tried and peer.usable(now):
            return peer
    return round_robin(group, trip, now)


def random_two(group: Nginx, trip: Trip, now: int) -> Peer | None:
    """Draw until there are two different ones, keep the less loaded. On an idle pool: the second.

    So the shares are not the weights: with 5, 3, 1 they are 34.7, 45.8 and 19.4 %, as measured.
    """
    previous: Peer | None = None
    for _ in range(20):
        peer = _drawn(group)
        if peer is previous or id(peer) in trip.tried or not peer.usable(now):
            continue
        if previous is None:
            previous = peer
            continue
        return previous if peer.conns * previous.weight > previous.conns * peer.weight else peer
    return round_robin(group, trip, now)


def _drawn(group: Nginx) -> Peer:
    total = sum(peer.weight for peer in group.primaries)
    return _by_weight(group.primaries, group.rng.randrange(total))


def _by_weight(peers: Sequence[Peer], value: int) -> Peer:
    """A `down` server stays in this walk, so its keys alone move; a removed one moves nearly all."""
    value %= sum(peer.weight for peer in peers)
    for peer in peers:
        value -= peer.weight
        if value < 0:
            return peer
    raise ConfigError("need at least one server with a weight, got none")


def _ketama(peers: Sequence[Peer]) -> tuple[list[int], list[str]]:
    owners: dict[int, str] = {}
    entries = [(point, peer.server.address) for peer in peers for point in _points(peer)]
    for point, address in sorted(entries, key=lambda entry: entry[0]):
        owners.setdefault(point, address)
    return list(owners), list(owners.values())


def _points(peer: Peer) -> list[int]:
    address = peer.server.address
    host, colon, port = address.rpartition(":")
    if address.startswith("unix:"):
        host, port = address[5:], ""
    elif not (colon and port.isdigit()):
        host, port = address, ""
    base = crc32(host.encode() + b"\0" + port.encode())
    points, previous = [], b"\0\0\0\0"
    for _ in range(peer.server.weight * 160):
        points.append(crc32(previous, base))
        previous = points[-1].to_bytes(4, "little")
    return points


METHODS: dict[str, Method] = {
    "": round_robin,
    "ip_hash": by_address,
    "least_conn": least_conn,
    "random": at_random,
    "random two": random_two,
    "random two least_conn": random_two,
    "least_time header": least_time,
}


def _method(text: str) -> tuple[Method, str]:
    words = text.split()
    if words[:1] == ["hash"] and len(words) in (2, 3) and words[2:] in ([], ["consistent"]):
        return (by_ring if words[2:] else by_key), words[1]
    if text in METHODS:
        return METHODS[text], ""
    known = ", ".join([*filter(None, METHODS), "hash KEY", "hash KEY consistent"])
    raise ConfigError(f"need a method of nginx ({known}), got {text!r}")


def evaluate(text: str, request: Request) -> str:
    """A text with nginx' variables: $http_NAME, $cookie_NAME, $arg_NAME, $remote_addr, $uri, $request_uri."""
    return VARIABLE.sub(lambda match: _variable(match[1], request), text)


def _variable(name: str, request: Request) -> str:
    fixed = {
        "remote_addr": request.client,
        "request_uri": request.target,
        "uri": request.target.partition("?")[0],
        "host": request.header("host"),
    }
    if name in fixed:
        return fixed[name]
    kind, _, rest = name.partition("_")
    if kind == "http":
        return request.header(rest.replace("_", "-"))
    if kind == "cookie":
        return request.cookie(rest)
    if kind == "arg":
        return request.argument(rest)
    raise ConfigError(
        f"need a variable that stands for the request ($http_NAME, $cookie_NAME, ...), got ${name}"
    )


def _cause(outcome: Outcome) -> tuple[str, int]:
    """The word of `proxy_next_upstream` for it (empty: none), and the status when nothing follows."""
    if outcome.fault is Fault.TIMEOUT:
        return "timeout", 504
    if outcome.fault is not None:
        return "error", 502
    return next((word for word, status in LISTED.items() if status == outcome.status), ""), outcome.status


def _average(average: int, milliseconds: int) -> int:
    return int(0.5 + 0.05 * milliseconds + 0.95 * average) if average else milliseconds


def _cookie_value(lines: Sequence[str], name: str) -> str:
    for line in lines:
        key, _, value = line.partition(";")[0].partition("=")
        if key.strip() == name:
            return value.strip()
    return ""


def _refuse_nonsense(servers: Sequence[Server]) -> None:
    if not any(not server.backup for server in servers):
        raise ConfigError("need at least one server that is not a backup, got none")
    for server in servers:
        if not 1 <= server.weight <= 65535:
            raise ConfigError(f"need 1 <= weight <= 65535, got weight={server.weight} for {server.name}")
