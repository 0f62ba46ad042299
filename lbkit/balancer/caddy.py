"""Caddy 2.6: the reverse proxy's selection policies, passive health and retries.

Source: modules/caddyhttp/reverseproxy of 2.6.2. Three things to know: `round_robin` counts before it picks,
so the *second* upstream is first; nothing is retried unless `lb_try_duration` says so, and then after a sent
request only GET; each failure is forgotten on its own, `fail_duration` after it happened.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lbkit.balancer.chance import Chance
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
from lbkit.balancer.hashing import fnv1a32
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["Caddy", "Passive", "Retrying", "Upstream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passive:
    """Passive health; off while `fail_duration` (seconds) is 0."""

    fail_duration: float = 0.0
    max_fails: int = 1
    unhealthy_status: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """`lb_try_duration` and `lb_try_interval`, in seconds."""

    duration: float = 0.0
    interval: float = 0.25

    def allows(self, request: Request, fault: Fault, elapsed: float) -> bool:
        if elapsed >= self.duration:
            return False
        return not fault.sent or request.method == "GET"


class Upstream:
    """The state of one upstream. `dial` is the text that is hashed."""

    __slots__ = ("active", "dial", "fails", "healthy", "most", "name")

    def __init__(self, name: str, dial: str, *, most: int = 0) -> None:
        self.name = name
        self.dial = dial
        self.most = most
        """`unhealthy_request_count`: with so many requests inside it gets no more; 0 for no limit."""

        self.healthy = True
        """What active checks say."""

        self.active = 0
        self.fails: list[float] = []
        """When each failure is forgotten."""


class Caddy:
    """`policy` as the Caddyfile spells it: `round_robin`, `header X-Key`, `cookie lb secret`, ..."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        policy: str = "random",
        passive: Passive | None = None,
        retrying: Retrying | None = None,
        chance: Chance | None = None,
    ) -> None:
        if not upstreams:
            raise ConfigError("need at least one upstream, got none")
        self.upstreams = list(upstreams)
        self.passive = passive or Passive()
        self.retrying = retrying or Retrying()
        self._chance = chance or Chance()
        self._robin = 0
        self._words = policy.split()
        self._select = self._policy()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(upstream.name for upstream in self.upstreams)

    def serve(self, request: Request, *, now: float) -> Flow:
        began_at, after, lost = now, 0.0, False
        attempts: list[str] = []
        while True:
            upstream = self._select(request, now)
            if upstream is None:
                return Answer(status=503, replica=None, attempts=(*attempts, "-"))
            attempts.append(upstream.name)
            upstream.active += 1
            try:
                outcome = yield from attempt(Attempt(upstream.name, after=after, body_lost=lost))
                now = outcome.at
                self._count(upstream, outcome)
                if outcome.fault is None:
                    answer = self._answer(request, upstream, attempts, outcome)
                    return (yield from relay(answer, outcome))
            finally:
                upstream.active -= 1
            if not self.retrying.allows(request, outcome.fault, now + self.retrying.interval - began_at):
                status = 504 if outcome.fault is Fault.TIMEOUT else 502
                return Answer(status=status, replica=None, attempts=tuple(attempts))
            after = self.retrying.interval
            # Go's transport closed the body with the failed dial: whatever connects next gets none.
            lost = request.body

    def tell(self, name: str, standing: Standing) -> None:
        """Caddy has no weights, so that it knows no share, and no drain: who leaves gets nothing."""
        upstream = next(upstream for upstream in self.upstreams if upstream.name == name)
        upstream.healthy = standing.up and standing.mode is Mode.READY

    def woken(self) -> list[Wait]:
        """Nobody waits: Caddy has no queue."""
        return []

    def explain(self, now: float) -> dict[str, str]:
        """For each upstream that gets nothing now, the rule that skips it."""
        return {
            upstream.name: self._skipped(upstream)
            for upstream in self.upstreams
            if not self._available(upstream, now)
        }

    def _skipped(self, upstream: Upstream) -> str:
        if not upstream.healthy:
            return "unhealthy"
        if upstream.most and upstream.active >= upstream.most:
            return f"full: {upstream.active} of {upstream.most} requests"
        rule = f"of {self.passive.max_fails} failures within {self.passive.fail_duration:g} s"
        return f"{len(upstream.fails)} {rule}"

    def _count(self, upstream: Upstream, outcome: Outcome) -> None:
        failed = outcome.fault is not None or outcome.status in self.passive.unhealthy_status
        if failed and self.passive.fail_duration:
            upstream.fails.append(outcome.at + self.passive.fail_duration)

    def _available(self, upstream: Upstream, now: float) -> bool:
        if not upstream.healthy or 0 < upstream.most <= upstream.active:
            return False
        upstream.fails = [until for until in upstream.fails if until > now]
        return not self.passive.fail_duration or len(upstream.fails) < self.passive.max_fails

    def _open(self, now: float) -> list[Upstream]:
        return [upstream for upstream in self.upstreams if self._available(upstream, now)]

    def _answer(self, request: Request, upstream: Upstream, attempts: list[str], outcome: Outcome) -> Answer:
        cookies = outcome.set_cookie
        if self._words[0] == "cookie" and request.cookie(self._words[1]) != self._signed(upstream):
            cookies = (f"{self._words[1]}={self._signed(upstream)}; Path=/", *cookies)
        return Answer(
            status=outcome.status, replica=upstream.name, attempts=tuple(attempts), set_cookie=cookies
        )

    # -- selection policies

    def _policy(self) -> Callable[[Request, float], Upstream | None]:
        words = self._words
        keyed: dict[str, Callable[[Request], str]] = {
            "ip_hash": lambda request: request.client,
            "uri_hash": lambda request: request.target,
            "header": lambda request: request.header(words[1].lower()),
        }
        plain = {
            "round_robin": self._round_robin,
            "first": self._first,
            "random": self._random,
            "random_choose": self._random_choose,
            "least_conn": self._least_conn,
            "cookie": self._by_cookie,
        }
        if words[0] in keyed:
            return self._by_key(keyed[words[0]])
        if words[0] not in plain:
            known = ", ".join([*plain, *keyed])
            raise ConfigError(f"need a policy of Caddy ({known}), got {words[0]!r}")
        return plain[words[0]]

    def _round_robin(self, request: Request, now: float) -> Upstream | None:
        for _ in self.upstreams:
            self._robin += 1
            upstream = self.upstreams[self._robin % len(self.upstreams)]
            if self._available(upstream, now):
                return upstream
        return None

    def _first(self, request: Request, now: float) -> Upstream | None:
        return next(iter(self._open(now)), None)

    def _random(self, request: Request, now: float) -> Upstream | None:
        candidates = self._open(now)
        return self._chance.one(candidates) if candidates else None

    def _random_choose(self, request: Request, now: float) -> Upstream | None:
        candidates = self._open(now)
        count = min(int(self._words[1]) if len(self._words) > 1 else 2, len(candidates))
        return self._least(self._chance.rng.sample(candidates, count))

    def _least_conn(self, request: Request, now: float) -> Upstream | None:
        return self._least(self._open(now))

    def _least(self, candidates: list[Upstream]) -> Upstream | None:
        least = min((upstream.active for upstream in candidates), default=0)
        equal = [upstream for upstream in candidates if upstream.active == least]
        return self._chance.one(equal) if equal else None

    def _by_key(self, key_of: Callable[[Request], str]) -> Callable[[Request, float], Upstream | None]:
        """Rendezvous: each upstream hashes with the key, the highest wins. Without a key: random."""

        def select(request: Request, now: float) -> Upstream | None:
            key = key_of(request)
            if not key:
                return self._random(request, now)
            return max(
                self._open(now),
                key=lambda upstream: fnv1a32((key + upstream.dial).encode()),
                default=None,
            )

        return select

    def _by_cookie(self, request: Request, now: float) -> Upstream | None:
        value = request.cookie(self._words[1])
        bound = (upstream for upstream in self._open(now) if self._signed(upstream) == value)
        return next(bound, None) or self._random(request, now)

    def _signed(self, upstream: Upstream) -> str:
        secret = self._words[2] if len(self._words) > 2 else ""
        return hmac.new(secret.encode(), upstream.dial.encode(), "sha256").hexdigest()
