"""nginx' balancing methods: each gives an untried, usable peer, or None.

Sources: ngx_http_upstream_round_robin.c and the modules ip_hash, hash, least_conn, random and least_time
beside it, of 1.22.1 and 1.31.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from itertools import accumulate
from random import Random

from lbkit.balancer.exchange import Request
from lbkit.balancer.hashing import crc32, ip_hash
from lbkit.balancer.nginx.peer import Peer
from lbkit.balancer.nginx.variable import compiled
from lbkit.errors import ConfigError

__all__ = [
    "Method",
    "Peers",
    "Trip",
    "ketama_points",
    "method_named",
    "refuse_big_ring",
    "round_robin",
]

MOST_POINTS = 8_000_000


class Peers:
    """The primaries, or the backups, of a group.

    As long as all are alike (`turn` is not None), smooth round robin is a walk in their order, and what each
    has follows from whose turn it is. The first failure, retry or change ends that: `part` writes it down.
    """

    def __init__(self, peers: Sequence[Peer], *, backups: Peers | None = None) -> None:
        self.all = list(peers)
        self.backups = backups
        alike = len({peer.weight for peer in peers}) == 1
        self.turn = 0 if alike and not any(peer.closed or peer.max_conns for peer in peers) else None
        self.reweighed()

    def part(self) -> None:
        """From now on each peer has a history of its own."""
        turn, self.turn = self.turn, None
        for at, peer in enumerate(self.all if turn else ()):
            peer.cw = peer.weight * (turn or 0) - (self.total if at < (turn or 0) else 0)

    def reweighed(self) -> None:
        self.total = sum(peer.weight for peer in self.all)
        self._sums = list(accumulate(peer.weight for peer in self.all))
        self._ring: tuple[list[int], list[list[Peer]]] | None = None

    def at(self, value: int) -> Peer:
        """A `down` server stays in this walk, so its keys alone move; a removed one moves nearly all."""
        return self.all[bisect_right(self._sums, value % self.total)]

    def ring(self) -> tuple[list[int], list[list[Peer]]]:
        """Built when it is first needed: 160 points for each unit of weight."""
        if self._ring is None:
            refuse_big_ring(self.total)
            self._ring = _ketama(self.all)
        return self._ring


class Trip:
    """One request on its way: what it has tried, what it may still try."""

    __slots__ = (
        "attempts",
        "began_at",
        "hashed",
        "hint",
        "peers",
        "point",
        "request",
        "risked",
        "tried",
        "tries",
        "turns",
    )

    def __init__(self, request: Request, began_at: float, tries: int, peers: Peers, hint: str) -> None:
        self.request = request
        self.began_at = began_at
        self.tries = tries
        self.peers = peers
        self.hint = hint
        """The sid to which a cookie, a route or a learnt session binds the request."""

        self.tried = 0
        self.attempts: list[str] = []
        self.risked = ""
        """The first replica that may have run the request without an answer."""

        self.hashed = -1
        self.turns = 0
        self.point = 0


Method = Callable[[Trip, int], "Peer | None"]


def bound(trip: Trip, now: int) -> Peer | None:
    """The peer of the request's sid, if it may be used. Only among those of the trip's own group."""
    for peer in trip.peers.all:
        if peer.sid == trip.hint:
            return None if trip.tried & peer.bit or peer.skipped(now) else peer
    return None


def over_to_backups(trip: Trip) -> bool:
    if trip.peers.backups is None:
        return False
    trip.peers, trip.tried = trip.peers.backups, 0
    return True


def round_robin(trip: Trip, now: int) -> Peer | None:
    """Smooth weighted round robin: everyone gains its weight, the richest is chosen and pays for all."""
    peers = trip.peers
    if peers.turn is not None:
        if not trip.tried and not trip.hint:
            peer = peers.all[peers.turn]
            peers.turn = (peers.turn + 1) % len(peers.all)
            return peer
        peers.part()
    stuck = bound(trip, now) if trip.hint else None
    if stuck is not None and stuck.cw <= stuck.weight - peers.total:
        return stuck  # a bound client is charged to the rotation, but never twice in a row
    best, total = _gain(peers.all, trip.tried, now)
    chosen = stuck or best
    if chosen is None:
        return round_robin(trip, now) if over_to_backups(trip) else None
    chosen.cw -= total
    return chosen


def _gain(peers: Sequence[Peer], tried: int, now: int) -> tuple[Peer | None, int]:
    best, most, total = None, 0, 0
    for peer in peers:
        if tried & peer.bit or not peer.usable(now):
            continue
        gain = peer.ew
        peer.cw = money = peer.cw + gain
        total += gain
        if gain < peer.weight:
            peer.ew = gain + 1
        if best is None or money > most:
            best, most = peer, money
    return best, total


def _smooth(peers: Sequence[Peer], tried: int, now: int) -> Peer | None:
    best, total = _gain(peers, tried, now)
    if best is not None:
        best.cw -= total
    return best


def _least(cost: Callable[[Peer, int], int]) -> Method:
    """The least `cost` per weight. Smooth round robin among equals, from the first of them on."""

    def pick(trip: Trip, now: int) -> Peer | None:
        if trip.hint and (stuck := bound(trip, now)):
            return stuck
        best: Peer | None = None
        least = weight = 0
        equal: list[Peer] = []
        for peer in trip.peers.all:
            if trip.tried & peer.bit or not peer.usable(now):
                continue
            price = cost(peer, now)
            if best is None or price * weight < least * peer.weight:
                best, least, weight = peer, price, peer.weight
                equal = [peer]
            elif price * weight == least * peer.weight:
                equal.append(peer)
        if len(equal) > 1:
            return _smooth(equal, 0, now)
        if best is None:
            return pick(trip, now) if over_to_backups(trip) else None
        return best

    return pick


def _conns(peer: Peer, _: int) -> int:
    return peer.conns


def _header(peer: Peer, now: int) -> int:
    return _eta(peer, peer.header_time, now)


def _last_byte(peer: Peer, now: int) -> int:
    return _eta(peer, peer.response_time, now)


def _eta(peer: Peer, time: int, now: int) -> int:
    """A bucket of 20 ms, times what is in flight: a new server attracts load only until it is busy."""
    idle = now - peer.checked
    if time and idle > peer.fail_timeout:
        time >>= int(idle // (int(peer.fail_timeout) + 1))  # a chance for slow peers, once in a while
    return (5000 if time > 5000 else time + 20 - time % 20) * (1 + peer.conns)


def by_address(trip: Trip, now: int) -> Peer | None:
    """The first three octets of IPv4, all of IPv6, walked over the configured weights."""
    if trip.turns <= 20 and trip.hint and (stuck := bound(trip, now)):
        return stuck
    octets = _octets(trip.request.client)
    hashed = 89 if trip.hashed < 0 else trip.hashed
    while trip.turns <= 20:
        trip.hashed = hashed = ip_hash(octets, hashed)
        peer = trip.peers.at(hashed)
        if not trip.tried & peer.bit and peer.usable(now):
            return peer
        trip.turns += 1
    return round_robin(trip, now)


@lru_cache(4096)
def _octets(client: str) -> bytes:
    """A client without an address (a unix socket) counts as nothing at all, as in nginx."""
    try:
        octets = ip_address(client).packed
    except ValueError:
        return b"\0\0\0"
    return octets[:3] if len(octets) == 4 else octets


def _by_key(text: str) -> Method:
    """`hash KEY`: crc32 over the configured weights, hashed again for each server that is not usable."""
    key_of = compiled(text)

    def pick(trip: Trip, now: int) -> Peer | None:
        key = key_of(trip.request).encode()
        if trip.turns > 20 or not key or len(trip.peers.all) < 2:
            return round_robin(trip, now)
        if trip.hint and (stuck := bound(trip, now)):
            return stuck
        hashed = max(trip.hashed, 0)
        while trip.turns <= 20:
            salted = str(trip.point).encode() + key if trip.point else key
            trip.hashed = hashed = hashed + (crc32(salted) >> 16 & 0x7FFF)
            trip.point += 1
            peer = trip.peers.at(hashed)
            if not trip.tried & peer.bit and peer.usable(now):
                return peer
            trip.turns += 1
        return round_robin(trip, now)

    return pick


def _by_ring(text: str) -> Method:
    """`hash KEY consistent`: ketama with 160 points per weight, and clockwise from there."""
    key_of = compiled(text)

    def pick(trip: Trip, now: int) -> Peer | None:
        if trip.turns > 20 or len(trip.peers.all) < 2:
            return round_robin(trip, now)
        if trip.hint and (stuck := bound(trip, now)):
            return stuck
        points, owners = trip.peers.ring()
        if trip.hashed < 0:
            trip.hashed = bisect_left(points, crc32(key_of(trip.request).encode()))
        while trip.turns <= 20:
            peer = _smooth(owners[trip.hashed % len(owners)], trip.tried, now)
            if peer is not None:
                return peer
            trip.hashed += 1
            trip.turns += 1
        return round_robin(trip, now)

    return pick


def _at_random(rng: Random) -> Method:
    def pick(trip: Trip, now: int) -> Peer | None:
        if trip.turns <= 20 and trip.hint and (stuck := bound(trip, now)):
            return stuck
        peers = trip.peers
        while trip.turns <= 20 and len(peers.all) > 1:
            peer = peers.at(int(rng.random() * peers.total))
            if not trip.tried & peer.bit and peer.usable(now):
                return peer
            trip.turns += 1
        return round_robin(trip, now)

    return pick


def _random_two(rng: Random) -> Method:
    """Draw until there are two different ones, keep the less loaded. On an idle pool: the second.

    So the shares are not the weights: with 5, 3, 1 they are 34.7, 45.8 and 19.4 %, as measured.
    """

    def pick(trip: Trip, now: int) -> Peer | None:
        if trip.turns <= 20 and trip.hint and (stuck := bound(trip, now)):
            return stuck
        previous: Peer | None = None
        peers = trip.peers
        while trip.turns <= 20 and len(peers.all) > 1:
            peer = peers.at(int(rng.random() * peers.total))
            if peer is not previous and not trip.tried & peer.bit and peer.usable(now):
                if previous is not None:
                    busier = peer.conns * previous.weight > previous.conns * peer.weight
                    return previous if busier else peer
                previous = peer
            trip.turns += 1
        return round_robin(trip, now)

    return pick


def _ketama(peers: Sequence[Peer]) -> tuple[list[int], list[list[Peer]]]:
    servers: dict[str, list[Peer]] = {}
    owners: dict[int, str] = {}
    for peer in peers:
        servers.setdefault(peer.server.address, []).append(peer)
    entries = [
        (point, peer.server.address)
        for peer in peers
        for point in ketama_points(peer.server.address, peer.server.weight)
    ]
    for point, address in sorted(entries, key=lambda entry: entry[0]):
        owners.setdefault(point, address)
    return list(owners), [servers[address] for address in owners.values()]


def ketama_points(address: str, weight: int) -> list[int]:
    """Where a server stands on the ring, 160 times for each unit of weight. Its port counts apart."""
    host, colon, port = address.rpartition(":")
    if address.startswith("unix:"):
        host, port = address[5:], ""
    elif not (colon and port.isdigit()):
        host, port = address, ""
    base = crc32(host.encode() + b"\0" + port.encode())
    points, previous = [], b"\0\0\0\0"
    for _ in range(weight * 160):
        points.append(crc32(previous, base))
        previous = points[-1].to_bytes(4, "little")
    return points


def refuse_big_ring(total: int) -> None:
    """A ring of millions of points takes longer to build than anybody waits."""
    if total * 160 > MOST_POINTS:
        most = MOST_POINTS // 160
        raise ConfigError(f"need a total weight of at most {most} for a ring of 160 points each, got {total}")


PLAIN: dict[str, Method] = {
    "": round_robin,
    "round_robin": round_robin,
    "ip_hash": by_address,
    "least_conn": _least(_conns),
    "least_time header": _least(_header),
    "least_time last_byte": _least(_last_byte),
}
DRAWN: dict[str, Callable[[Random], Method]] = {
    "random": _at_random,
    "random two": _random_two,
    "random two least_conn": _random_two,
}


def method_named(text: str, rng: Random) -> tuple[Method, bool]:
    """The method that a directive names, and whether it takes backups. Raises ConfigError for none."""
    words = text.split()
    if words[:1] == ["hash"] and len(words) in (2, 3) and words[2:] in ([], ["consistent"]):
        return (_by_ring if words[2:] else _by_key)(words[1]), False
    joined = " ".join(words)
    if joined in DRAWN:
        return DRAWN[joined](rng), False
    if joined in PLAIN:
        return PLAIN[joined], joined != "ip_hash"
    known = ", ".join([*filter(None, PLAIN), *DRAWN, "hash KEY", "hash KEY consistent"])
    raise ConfigError(f"need a method of nginx ({known}), got {text!r}")
