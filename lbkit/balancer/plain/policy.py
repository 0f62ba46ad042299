"""The plain balancer's policies, each a small class with one method.

One of them gets the members that may be picked, in the pool's order and never empty; the same tuple for as
long as nobody comes or goes, so that rings and tables can be kept.
"""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, count
from math import ceil, log
from random import Random
from typing import Generic, Protocol, TypeVar

from lbkit.balancer.envoy.host import Host
from lbkit.balancer.envoy.policy import Maglev as MaglevTable
from lbkit.balancer.exchange import Request
from lbkit.balancer.nginx.method import ketama_points, refuse_big_ring
from lbkit.balancer.nginx.variable import compiled
from lbkit.balancer.plain.member import Member, hashed
from lbkit.errors import ConfigError

__all__ = ["POLICIES", "QUICK", "ByKey", "Policy", "policy_named"]

T = TypeVar("T")
TABLE = 65537
MIX = 0xD6E8FEB86659FD93
"""Multiplied by it, and its halves mixed before and after, one bit of a number changes half of the others."""

M64 = 0xFFFFFFFFFFFFFFFF
RANGE = M64 + 3
Members = Sequence[Member]


class Policy(Protocol):
    def pick(self, request: Request, candidates: Members, now: float) -> Member: ...


class RoundRobin:
    """Each in turn."""

    def __init__(self) -> None:
        self._turns = count()

    def pick(self, request: Request, candidates: Members, now: float) -> Member:
        return candidates[next(self._turns) % len(candidates)]


class Weighted:
    """Smooth weighted round robin, as nginx' ngx_http_upstream_round_robin.c does it."""

    def pick(self, request: Request, candidates: Members, now: float) -> Member:
        return smooth(candidates)


def smooth(candidates: Members) -> Member:
    """Everyone gains its weight, the richest is picked and pays for all."""
    best, most, total = candidates[0], None, 0
    for member in candidates:
        member.cw += member.weight
        total += member.weight
        if most is None or member.cw > most:
            best, most = member, member.cw
    best.cw -= total
    return best


class LeastConn:
    """The fewest requests per weight, compared crosswise; equal ones by smooth round robin, as in nginx."""

    def pick(self, request: Request, candidates: Members, now: float) -> Member:
        least, weight = candidates[0].active, candidates[0].weight
        equal: list[Member] = []
        for member in candidates:
            here, there = member.active * weight, least * member.weight
            if here < there:
                least, weight, equal = member.active, member.weight, [member]
            elif here == there:
                equal.append(member)
        return equal[0] if len(equal) == 1 else smooth(equal)


class TwoChoices:
    """Two different ones are drawn, the lower `load` wins, the first one a tie (Finagle's P2C)."""

    def __init__(self, rng: Random, load: Callable[[Member, float], float]) -> None:
        self._rng = rng
        self._load = load

    def pick(self, request: Request, candidates: Members, now: float) -> Member:
        size = len(candidates)
        if size == 1:
            return candidates[0]
        first = int(self._rng.random() * size)
        second = int(self._rng.random() * (size - 1))
        one, other = candidates[first], candidates[second + (second >= first)]
        return other if self._load(other, now) < self._load(one, now) else one


def requests(member: Member, _: float) -> float:
    return member.active / member.weight


def latency(member: Member, now: float) -> float:
    return member.latency.load(member.active, now) / member.weight


class Kept(Generic[T]):
    """What is made of a list of candidates, for as long as it is that same list."""

    def __init__(self, make: Callable[[Members], T]) -> None:
        self._make = make
        self._candidates: Members | None = None
        self._made: T | None = None

    def of(self, candidates: Members) -> T:
        if self._made is None or candidates is not self._candidates:
            self._made, self._candidates = self._make(candidates), candidates
        return self._made


class Drawn:
    """At random, by weight."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._sums = Kept(lambda candidates: list(accumulate(member.weight for member in candidates)))

    def pick(self, request: Request, candidates: Members, now: float) -> Member:
        sums = self._sums.of(candidates)
        return candidates[bisect(sums, self._rng.random() * sums[-1])]


Choose = Callable[[int, Members], Member]


class ByKey:
    """By the hash of a key. A request without one takes its turn."""

    def __init__(self, key_of: Callable[[Request], str], choose: Choose) -> None:
        self._key_of = key_of
        self._choose = choose
        self._turns = RoundRobin()

    def prepare(self, candidates: Members) -> None:
        """Build rings and tables. Raises ConfigError for what would be too big."""
        if candidates:
            self._choose(0, candidates)

    def pick(self, request: Request, candidates: Members, now: float) -> Member:
        if key := self._key_of(request):
            return self._choose(hashed(key), candidates)
        return self._turns.pick(request, candidates, now)


class Rendezvous:
    """Each has a score for each key, the highest wins: whoever leaves moves its own keys alone."""

    def __init__(self) -> None:
        self._alike = Kept(lambda candidates: len({member.weight for member in candidates}) == 1)

    def __call__(self, key: int, candidates: Members) -> Member:
        return self.best(key, candidates, alike=self._alike.of(candidates))

    def best(self, key: int, members: Members, *, alike: bool) -> Member:
        """Of equal weights the highest number wins; else weight / -ln(number), so that shares are weights."""
        best, most = members[0], -1.0
        for member in members:
            number = key ^ member.seed
            number = (number ^ number >> 32) * MIX & M64
            number ^= number >> 32
            score = number if alike else member.weight / -log((number + 1) / RANGE)
            if score > most:
                best, most = member, score
        return best


class Bounded(Rendezvous):
    """The best score of those below their share of all the requests inside, this one included."""

    def __init__(self, percent: int) -> None:
        super().__init__()
        self._factor = percent / 100
        self._weights = Kept(lambda candidates: sum(member.weight for member in candidates))

    def __call__(self, key: int, candidates: Members) -> Member:
        total = 1
        for member in candidates:
            total += member.active
        share = total * self._factor / self._weights.of(candidates)
        open_ = [member for member in candidates if member.active < ceil(share * member.weight)]
        return self.best(key, open_, alike=self._alike.of(candidates))


def ketama() -> Choose:
    """Clockwise from the key's place on a ring."""
    kept = Kept(_ring)

    def choose(key: int, candidates: Members) -> Member:
        points, owners = kept.of(candidates)
        return owners[bisect_left(points, key & 0xFFFFFFFF) % len(owners)]

    return choose


def _ring(candidates: Members) -> tuple[list[int], list[Member]]:
    refuse_big_ring(sum(member.whole for member in candidates))
    owners: dict[int, Member] = {}
    for member in candidates:
        for point in ketama_points(member.address, member.whole):
            owners.setdefault(point, member)
    points = sorted(owners)
    return points, [owners[point] for point in points]


def _table(candidates: Members) -> list[Member]:
    if len(candidates) > TABLE // 10:
        raise ConfigError(
            f"need at most {TABLE // 10} replicas for a table of {TABLE}, got {len(candidates)}"
        )
    members = {member.name: member for member in candidates}
    hosts = [Host(name=each.name, address=each.address, weight=each.weight) for each in candidates]
    return [members[host.name] for host in MaglevTable(hosts, size=TABLE).table]


def maglev() -> Choose:
    """The slot of the key in a table of 65,537."""
    kept = Kept(_table)
    return lambda key, candidates: kept.of(candidates)[key % TABLE]


# -- policies by name


PLAIN: dict[str, Callable[[Random], Policy]] = {
    "round_robin": lambda _: RoundRobin(),
    "weighted": lambda _: Weighted(),
    "least_conn": lambda _: LeastConn(),
    "p2c": lambda rng: TwoChoices(rng, requests),
    "peak_ewma": lambda rng: TwoChoices(rng, latency),
    "random": Drawn,
    "source": lambda _: ByKey(lambda request: request.client, Rendezvous()),
}
KEYED: dict[str, Callable[[], Choose]] = {
    "rendezvous": Rendezvous,
    "ketama": ketama,
    "maglev": maglev,
}
KEYS = {"uri": "$request_uri", "path": "$uri", "source": "$remote_addr"}
POLICIES = (*PLAIN, *(f"{word} KEY" for word in KEYED), "bounded KEY PERCENT")
QUICK = ("round_robin", "p2c", "peak_ewma", "random", "ketama")
"""Those that do not look at every replica for each pick."""


def policy_named(text: str, rng: Random) -> Policy:
    """The policy that a text names. Raises ConfigError with the known ones."""
    word, *rest = text.split() or ["round_robin"]
    if word in PLAIN and not rest:
        return PLAIN[word](rng)
    if word in KEYED and rest:
        return ByKey(_key(rest, text), KEYED[word]())
    if word == "bounded" and len(rest) > 1:
        return ByKey(_key(rest[:-1], text), Bounded(_percent(rest[-1])))
    raise ConfigError(f"need a policy ({', '.join(POLICIES)}), got {text!r}")


def _key(words: list[str], text: str) -> Callable[[Request], str]:
    if len(words) == 1 and (words[0] in KEYS or "$" in words[0]):
        return compiled(KEYS.get(words[0], words[0]))
    if len(words) == 2 and words[0] in ("header", "cookie"):
        name = words[1].lower()
        if words[0] == "header":
            return lambda request: request.header(name)
        return lambda request: request.cookie(words[1])
    kinds = "uri, path, source, header NAME, cookie NAME or a text with variables such as $arg_id"
    raise ConfigError(f"need a key ({kinds}), got {' '.join(words)!r} in {text!r}")


def _percent(text: str) -> int:
    if not text.isdigit() or int(text) < 100:
        raise ConfigError(f"need a bound of at least 100 (percent of a fair share), got {text!r}")
    return int(text)
