"""Caddy 2.6: the reverse proxy's selection policies, passive health and retries.

Source: modules/caddyhttp/reverseproxy of 2.6.2. Three things to know: `round_robin` counts before it picks,
so the *second* upstream is first; nothing is retried unless `lb_try_duration` says so, and then after a sent
request only GET; each failure is forgotten on its own, `fail_duration` after it happened.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

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
from lbkit.balancer.hashing import Ending, fnv1a32
from lbkit.balancer.replica import Mode
from lbkit.balancer.retry import NO_LIMIT, RetryRules, twice
from lbkit.errors import ConfigError

__all__ = ["Caddy", "Passive", "Retrying", "Upstream"]


FAULTED = frozenset({"fault"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Passive:
    """Passive health; failures are not counted while `fail_duration` (seconds) is 0."""

    fail_duration: float = 0.0
    max_fails: int = 1
    """0 is what Caddy 2.6 takes when other rules come without a fail_duration: nothing is available."""

    unhealthy_status: frozenset[int] = frozenset()
    unhealthy_latency: float = 0.0
    """Seconds from which on an answer counts as a failure; 0 for never."""

    unhealthy_request_count: int = 0
    """From so many requests at once on, an upstream gets no other one; 0 for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """`lb_try_duration`, `lb_try_interval` in seconds, `lb_retries`. Without a limit nothing is retried."""

    duration: float = 0.0
    interval: float = 0.25
    retries: int = 0

    def rules(self) -> RetryRules:
        """Nothing is tried again unless there is a duration."""
        return RetryRules(
            causes=lambda outcome: FAULTED if outcome.fault is not None else frozenset(),
            on=FAULTED if self.duration or self.retries else frozenset(),
            retries=self.retries or NO_LIMIT,
            seconds=self.duration,
            again=lambda request: request.method == "GET",
        )


class Upstream:
    """The state of one upstream. `dial` is the text that is hashed."""

    __slots__ = ("active", "attempt", "dial", "ending", "fails", "healthy", "limit", "mode", "name")

    def __init__(self, name: str, dial: str, *, limit: int = 0) -> None:
        self.name = name
        self.dial = dial
        self.limit = limit
        self.attempt = Attempt(name)
        self.ending = Ending(dial.encode(), bits=32)
        self.healthy = True
        """What active checks say."""

        self.mode = Mode.READY
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
        self.names = tuple(upstream.name for upstream in upstreams)
        self.passive = passive or Passive()
        self.retrying = retrying or Retrying()
        self._rules = self.retrying.rules()
        self._chance = chance or Chance()
        self._robin = 0
        self._words = policy.split() or ["random"]
        self._select = self._policy()
        for upstream in self.upstreams:
            upstream.limit = upstream.limit or self.passive.unhealthy_request_count

    def serve(self, request: Request, *, now: float) -> Flow:
        began_at, risked, done = now, "", 0
        last: Outcome | None = None
        attempts: list[str] = []
        while True:
            upstream = self._select(request, now)
            if upstream is None:
                failed = last or Outcome(at=now, fault=Fault.REFUSED)
                if not self._rules.allows(request, failed, done=done, elapsed=now - began_at):
                    # What went wrong before is what the client hears of.
                    status = 503 if last is None else _status(last)
                    return Answer(status=status, replica=None, attempts=(*attempts, "-"))
                now, done = now + self.retrying.interval, done + 1
                yield from _rest(now)
                continue
            asked = self._again(request, upstream, risked) if attempts else upstream.attempt
            attempts.append(upstream.name)
            upstream.active += 1
            try:
                outcome = received((yield asked))
                now = outcome.at
                self._count(upstream, outcome)
                if outcome.fault is None:
                    answer = self._answer(request, upstream, attempts, outcome)
                    if outcome.open:
                        yield Relay(answer)
                    return answer
            finally:
                upstream.active -= 1
            if not self._rules.allows(request, outcome, done=done, elapsed=now - began_at):
                return Answer(status=_status(outcome), replica=None, attempts=tuple(attempts))
            last = outcome
            risked = risked or (upstream.name if outcome.sent else "")
            done += 1

    def _again(self, request: Request, upstream: Upstream, risked: str) -> Attempt:
        # Go's transport closed the body with the failed dial: whatever connects next gets none.
        return Attempt(
            upstream.name,
            after=self.retrying.interval,
            body_lost=request.body,
            warning=twice(request, risked, upstream.name),
        )

    def explain(self, now: float) -> dict[str, str]:
        """For each upstream that gets nothing now, the rule that skips it."""
        return {up.name: self._skipped(up) for up in self.upstreams if not self._available(up, now)}

    def _skipped(self, upstream: Upstream) -> str:
        if upstream.mode is not Mode.READY:
            return f"mode {upstream.mode.value}: taken out of the configuration"
        if not upstream.healthy:
            return "unhealthy"
        if upstream.limit and upstream.active >= upstream.limit:
            return f"full: {upstream.active} of {upstream.limit} requests"
        passive = self.passive
        return f"{len(upstream.fails)} of {passive.max_fails} failures within {passive.fail_duration:g} s"

    def tell(self, name: str, standing: Standing) -> None:
        """Caddy has no weights, so that it knows no share, and no drain: who leaves gets nothing."""
        upstream = named(self.upstreams, name)
        upstream.healthy, upstream.mode = standing.up, standing.mode

    def tick(self, now: float) -> None:
        """Failures are forgotten when somebody looks."""

    def woken(self) -> list[Wait]:
        """Caddy has no queue."""
        return []

    def _count(self, upstream: Upstream, outcome: Outcome) -> None:
        passive = self.passive
        if not passive.fail_duration:
            return
        slow = 0 < passive.unhealthy_latency <= outcome.seconds
        if outcome.fault is not None or outcome.status in passive.unhealthy_status or slow:
            upstream.fails.append(outcome.at + passive.fail_duration)

    def _available(self, upstream: Upstream, now: float) -> bool:
        if not upstream.healthy or upstream.mode is not Mode.READY:
            return False
        if upstream.fails:
            upstream.fails = [until for until in upstream.fails if until > now]
        if len(upstream.fails) >= self.passive.max_fails:
            return False
        return not upstream.limit or upstream.active < upstream.limit

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
            "header": lambda request: request.header(words[1].lower()).partition("\n")[0],
        }
        plain = {
            "round_robin": self._round_robin,
            "first": self._first,
            "random": self._random,
            "random_choose": self._random_choose,
            "least_conn": self._least_conn,
            "cookie": self._by_cookie,
        }
        if words[0] in ("header", "cookie") and len(words) < 2:
            raise ConfigError(f"need the name that {words[0]} looks at, such as '{words[0]} lb', got none")
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
        return next((each for each in self.upstreams if self._available(each, now)), None)

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
            state = fnv1a32(key.encode())
            low, best, highest = state & 0xFF, None, 0
            high = state - low
            for upstream in self.upstreams:
                ending = upstream.ending
                value = high * ending.factor + ending[low] & 0xFFFFFFFF  # `ending.after`, without the call
                if value > highest and self._available(upstream, now):
                    best, highest = upstream, value
            return best

        return select

    def _by_cookie(self, request: Request, now: float) -> Upstream | None:
        value = request.cookie(self._words[1])
        bound = (upstream for upstream in self._open(now) if self._signed(upstream) == value)
        return next(bound, None) or self._random(request, now)

    def _signed(self, upstream: Upstream) -> str:
        secret = self._words[2] if len(self._words) > 2 else ""
        return hmac.new(secret.encode(), upstream.dial.encode(), "sha256").hexdigest()


def _status(outcome: Outcome) -> int:
    return 504 if outcome.fault is Fault.TIMEOUT else 502


def _rest(until: float) -> Generator[Wait, Outcome | None, None]:
    """Nobody is there to take the request: look again at that instant."""
    try:
        yield Wait(until)
    except TimeoutError:
        return
