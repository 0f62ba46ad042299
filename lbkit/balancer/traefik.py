"""Traefik 3: the server balancers, the passive health check, the retry middleware and the sticky cookie.

Source: pkg/server/service/loadbalancer and pkg/healthcheck of 3.7. `wrr` is earliest deadline first on Go's
container/heap: ties follow the mechanics of that heap, and the servers are shuffled when the service is
built, so that a sequence is reproducible for a given insertion order only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import log

from lbkit.balancer.chance import Chance
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
from lbkit.balancer.hashing import Ending, fnv1a64
from lbkit.balancer.replica import Mode
from lbkit.balancer.retry import RetryRules
from lbkit.errors import ConfigError

__all__ = ["Cookie", "Member", "PassiveCheck", "Traefik"]

SAMPLES = 100
HEAVIEST = 65535
REFUSED = frozenset({"connect"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PassiveCheck:
    """`window` in seconds: that many failures within it take a server out for as long."""

    window: float
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookie:
    name: str
    attributes: str = "; Path=/"


class Member:
    """The state of one server."""

    __slots__ = (
        "active",
        "attempt",
        "deadline",
        "down_until",
        "ending",
        "failures",
        "mode",
        "name",
        "sid",
        "times",
        "up",
        "url",
        "weight",
        "whole",
    )

    def __init__(self, name: str, url: str, weight: float = 1.0, *, up: bool = True) -> None:
        if not 0 < weight <= HEAVIEST:
            raise ConfigError(f"need 0 < weight <= {HEAVIEST}, got weight={weight} for {name}")
        self.name = name
        self.url = url
        self.weight = self.whole = weight
        """`whole` is what is configured, `weight` what it gets of that now."""

        self.up = up
        self.mode = Mode.READY
        """DRAIN is what Traefik calls fenced: its sticky clients stay, and nobody else comes."""

        self.attempt = Attempt(name)
        self.ending = Ending(url.encode(), bits=64)
        self.sid = sha256(url.encode()).hexdigest()[:16]
        self.deadline = 0.0
        self.active = 0
        self.failures: list[float] = []
        self.down_until = 0.0
        self.times: deque[float] = deque(maxlen=SAMPLES)
        """Seconds until the header of the last answers."""

    def score(self) -> float:
        """leasttime: 0 without a sample, whatever is in flight. So a new server is flooded."""
        average = sum(self.times) / len(self.times) if self.times else 0.0
        return average * (1 + self.active) / self.weight


class Traefik:
    """`members` in the order of insertion; `strategy`: wrr, p2c, hrw or leasttime."""

    def __init__(
        self,
        members: Sequence[Member],
        *,
        strategy: str = "wrr",
        retries: int = 0,
        passive: PassiveCheck | None = None,
        cookie: Cookie | None = None,
        chance: Chance | None = None,
    ) -> None:
        if not members:
            raise ConfigError("need at least one server, got none")
        strategies = {"wrr": self._wrr, "p2c": self._p2c, "hrw": self._hrw, "leasttime": self._leasttime}
        if strategy not in strategies:
            raise ConfigError(f"need a strategy of Traefik ({', '.join(strategies)}), got {strategy!r}")
        self.members = list(members)
        self.names = tuple(member.name for member in members)
        self._strategy = strategies[strategy]
        self._rules = RetryRules(
            causes=lambda outcome: frozenset() if outcome.sent else REFUSED,
            on=REFUSED,
            retries=max(retries - 1, 0),
        )
        self._passive = passive
        self._cookie = cookie if strategy != "hrw" else None  # hrw is given no cookie, and says nothing
        self._chance = chance or Chance()
        self._alike = len({member.weight for member in members}) == 1
        self._heap = Heap()
        for member in members:
            member.deadline = 1 / member.weight
            self._heap.push(member)

    def serve(self, request: Request, *, now: float) -> Flow:
        attempts: list[str] = []
        while True:
            member, assigned = self._choose(request, now)
            if member is None:
                return Answer(status=503, replica=None, attempts=(*attempts, "-"))
            attempts.append(member.name)
            member.active += 1
            try:
                outcome = received((yield member.attempt))
                now = outcome.at
                status = _status(outcome)
                self._count(member, status, outcome)
                if not self._rules.allows(request, outcome, done=len(attempts) - 1, elapsed=0.0):
                    answer = self._answer(member, status, attempts, outcome, assigned=assigned)
                    if outcome.open:
                        yield Relay(answer)
                    return answer
            finally:
                member.active -= 1

    def explain(self, now: float) -> dict[str, str]:
        """For each server that gets no new client now, the rule that skips it."""
        reasons = {member.name: self._skipped(member, now) for member in self.members}
        return {name: reason for name, reason in reasons.items() if reason}

    def _skipped(self, member: Member, now: float) -> str:
        if not member.up or member.mode is Mode.MAINT:
            return "down"
        if now < member.down_until:
            return f"failed out for {member.down_until - now:g} s more"
        return "fenced: only sticky clients" if member.mode is Mode.DRAIN else ""

    def tell(self, name: str, standing: Standing) -> None:
        """Who drains is "fenced": it still serves the clients that are bound to it."""
        member = named(self.members, name)
        member.up, member.mode = standing.up, standing.mode
        member.weight = member.whole * standing.share
        self._alike = len({each.weight for each in self.members}) == 1

    def tick(self, now: float) -> None:
        """Windows are looked at when a request comes."""

    def woken(self) -> list[Wait]:
        """Traefik has no queue."""
        return []

    def _choose(self, request: Request, now: float) -> tuple[Member | None, bool]:
        """The server, and whether it is newly assigned. A refusing one keeps its clients until it is down."""
        if self._cookie is not None:
            value = request.cookie(self._cookie.name)
            for member in self.members if value else ():
                if member.sid == value and self._serves(member, now):
                    return member, False
        for member in self.members:
            if self._usable(member, now):
                break
        else:
            return None, False
        return self._strategy(request, now), True

    def _serves(self, member: Member, now: float) -> bool:
        return member.up and now >= member.down_until and member.mode is not Mode.MAINT

    def _usable(self, member: Member, now: float) -> bool:
        return member.up and now >= member.down_until and member.mode is Mode.READY

    def _open(self, now: float) -> list[Member]:
        return [member for member in self.members if self._usable(member, now)]

    def _count(self, member: Member, status: int, outcome: Outcome) -> None:
        if outcome.fault is None:
            member.times.append(outcome.seconds)
        if self._passive is None:
            return
        if status < 500:
            member.failures.clear()
            return
        since = outcome.at - self._passive.window
        member.failures = [at for at in member.failures if at > since] + [outcome.at]
        if len(member.failures) >= self._passive.attempts:
            member.down_until = outcome.at + self._passive.window

    def _answer(
        self, member: Member, status: int, attempts: list[str], outcome: Outcome, *, assigned: bool
    ) -> Answer:
        cookies = outcome.set_cookie
        if self._cookie is not None and assigned:
            text = f"{self._cookie.name}={member.sid}{self._cookie.attributes}"
            cookies = (text, *cookies)
        replica = member.name if outcome.fault is None else None
        return Answer(status=status, replica=replica, attempts=tuple(attempts), set_cookie=cookies)

    # -- strategies

    def _wrr(self, request: Request, now: float) -> Member:
        while True:
            member = self._heap.pop()
            member.deadline += 1 / member.weight
            self._heap.push(member)
            if self._usable(member, now):
                return member

    def _p2c(self, request: Request, now: float) -> Member:
        candidates = self._open(now)

        def decide(first: int, second: int) -> Member:
            if first == second:
                second = (second + 1) % len(candidates)
            one, other = candidates[first], candidates[second]
            return other if other.active < one.active else one

        return self._chance.two(len(candidates), decide)

    def _hrw(self, request: Request, now: float) -> Member:
        """Rendezvous with weights: the highest weight / -ln(hash)."""

        state = _client(request.client)
        low, best, highest = state & 0xFF, self.members[0], -1.0
        high, alike = state - low, self._alike
        for member in self.members:
            ending = member.ending
            number = (high * ending.factor + ending[low] & 0xFFFFFFFFFFFFFFFF) / 18446744073709551616
            # Of equal weights the highest number has the highest score.
            score = number if alike else member.weight / -log(number or 1e-20)
            if score > highest and self._usable(member, now):
                best, highest = member, score
        return best

    def _leasttime(self, request: Request, now: float) -> Member:
        candidates = self._open(now)
        least = min(member.score() for member in candidates)
        member = min((each for each in candidates if each.score() == least), key=lambda each: each.deadline)
        member.deadline += 1 / member.weight
        return member


def _status(outcome: Outcome) -> int:
    if outcome.fault is None:
        return outcome.status
    return 504 if outcome.fault is Fault.TIMEOUT else 502


@lru_cache(4096)
def _client(address: str) -> int:
    return fnv1a64(address.encode())


class Heap:
    """Go's container/heap by deadline alone, step by step: Python's heapq breaks ties otherwise."""

    def __init__(self) -> None:
        self._items: list[Member] = []

    def push(self, member: Member) -> None:
        items, deadline = self._items, member.deadline
        items.append(member)
        at = len(items) - 1
        while at > 0 and deadline < items[parent := (at - 1) // 2].deadline:
            items[at] = items[parent]
            at = parent
        items[at] = member

    def pop(self) -> Member:
        items = self._items
        first, last = items[0], items.pop()
        if items:
            self._sink(last)
        return first

    def _sink(self, member: Member) -> None:
        items, deadline, at = self._items, member.deadline, 0
        size = len(items)
        while (child := 2 * at + 1) < size:
            if child + 1 < size and items[child + 1].deadline < items[child].deadline:
                child += 1
            if not items[child].deadline < deadline:
                break
            items[at] = items[child]
            at = child
        items[at] = member
