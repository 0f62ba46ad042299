"""Envoy: a cluster and the route to it. Sources: the router and the load balancers of 1.40.

Nothing is retried unless the route says so; then any method is, POST as well, and each try asks the balancer
anew, as long as the budget allows. Without enough healthy hosts it panics and uses all of a priority.

=========  ===================================================================================
a host     gets
=========  ===================================================================================
unhealthy  nothing, unless there is a panic
ejected    the same: outlier detection has found it
DRAIN      those whom a session cookie binds to it; a panic treats it as unhealthy
MAINT      nothing at all: the control plane has taken it out of the cluster
=========  ===================================================================================
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from lbkit.balancer.chance import Chance
from lbkit.balancer.envoy.host import Host, SlowStart
from lbkit.balancer.envoy.outlier import Outlier
from lbkit.balancer.envoy.policy import Chooser
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
from lbkit.balancer.hashing import xxh64
from lbkit.balancer.replica import Mode
from lbkit.balancer.retry import Budget, RetryRules, twice
from lbkit.errors import ConfigError

__all__ = ["CookieHash", "Envoy", "HeaderHash", "ParameterHash", "Retries", "Session", "Source"]

Source = tuple[int, bool]
"""The priority, and whether it is all of its hosts (a panic) or the healthy ones."""

M64 = 0xFFFFFFFFFFFFFFFF
SCALE = 100
"""Hundredths: what a whole number can say of a share of the weight 1."""

OVERPROVISIONING = 140
DEFAULT_BUDGET = Budget()
"""The circuit breaker `max_retries` of a cluster that sets none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """`retry_on` and its limits. `previous_hosts`: draw again, up to `draws` times, for one not tried yet."""

    on: frozenset[str] = frozenset()
    count: int = 1
    previous_hosts: bool = False
    draws: int = 1
    statuses: frozenset[int] = frozenset()
    """`retriable_status_codes`, for the word `retriable-status-codes`."""

    per_try_timeout: float = 0.0
    """Seconds after which a try is given up for another one. Without it the whole request times out."""

    budget: Budget = DEFAULT_BUDGET

    def rules(self) -> RetryRules:
        return RetryRules(causes=self._conditions, on=self.on, retries=self.count, budget=self.budget)

    def _conditions(self, outcome: Outcome) -> frozenset[str]:
        if outcome.fault is Fault.TIMEOUT and not self.per_try_timeout:
            return frozenset()
        words = _conditions(outcome)
        return words | {"retriable-status-codes"} if outcome.status in self.statuses else words


@dataclass(frozen=True, slots=True)
class HeaderHash:
    """`terminal`: what comes after is only looked at when this one is missing."""

    name: str
    terminal: bool = False

    def value(self, request: Request, connection: str) -> tuple[int | None, str]:
        """The hash, and the Set-Cookie line that goes with it."""
        if self.name not in request.headers:
            return None, ""
        hashed = 0
        for line in sorted(request.header(self.name).split("\n")):
            hashed = xxh64(line.encode(), hashed)
        return hashed, ""


@dataclass(frozen=True, slots=True)
class CookieHash:
    """A client without the cookie gets one, made of the two ends of its connection."""

    name: str
    ttl: int | None = None
    path: str = "/"
    terminal: bool = False

    def value(self, request: Request, connection: str) -> tuple[int | None, str]:
        if found := request.cookie(self.name):
            return xxh64(found.strip('"').encode()), ""
        if self.ttl is None:
            return None, ""
        made = f"{xxh64(connection.encode()):x}"
        line = f'{self.name}="{made}"; Max-Age={self.ttl}; Path={self.path}; HttpOnly'
        return xxh64(made.encode()), line


@dataclass(frozen=True, slots=True)
class ParameterHash:
    """The first query parameter of that name, as sent."""

    name: str
    terminal: bool = False

    def value(self, request: Request, _: str) -> tuple[int | None, str]:
        found = request.argument(self.name)
        return (None if found is None else xxh64(found.encode())), ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The stateful session filter with a cookie: it holds the host's address, and when it ends."""

    name: str
    ttl: int
    path: str = "/"

    def address(self, request: Request) -> str:
        """The address in the request's cookie; empty for a cookie that is none."""
        try:
            raw = b64decode(request.cookie(self.name).strip('"'), validate=True)
        except ValueError:
            return ""
        inner = raw[2 : 2 + raw[1]] if raw[:1] == b"\n" and len(raw) > 1 else raw
        return inner.decode("latin-1")

    def line(self, host: Host, now: float) -> str:
        address = host.address.encode()
        raw = b"\n" + bytes([len(address)]) + address + b"\x10" + _varint(int(now) + self.ttl)
        value = b64encode(raw).decode()
        return f'{self.name}="{value}"; Max-Age={self.ttl}; Path={self.path}; HttpOnly'


class Envoy:
    """A cluster, and the route to it.

    `chooser` makes the policy for a list of hosts, given where the list is from; `connection` is the text of
    the client's two ends, from which cookies are made.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        *,
        chooser: Callable[[list[Host], Source], Chooser],
        hashing: Sequence[HeaderHash | CookieHash | ParameterHash] = (),
        retries: Retries | None = None,
        outlier: Outlier | None = None,
        session: Session | None = None,
        slow_start: SlowStart | None = None,
        panic_below: int = 50,
        connection: str = "",
        chance: Chance | None = None,
    ) -> None:
        if not hosts:
            raise ConfigError("need at least one host, got none")
        self.hosts = list(hosts)
        self.names = tuple(host.name for host in hosts)
        self._make = chooser
        self._hashing = hashing
        self._retries = retries or Retries()
        self._rules = self._retries.rules()
        self._outlier = outlier
        self._session = session
        self._slow_start = slow_start
        self._panic_below = panic_below
        self._connection = connection
        self._chance = chance or Chance()
        self._choosers: dict[Source, tuple[tuple[str, ...], Chooser | None]] = {}
        self._active = self._retrying = 0
        self._starting: list[Host] = []
        self._refresh()

    def serve(self, request: Request, *, now: float) -> Flow:
        hashed, cookie = self._hash(request) if self._hashing else (None, "")
        attempts: list[str] = []
        risked = ""
        self._active += 1
        try:
            while True:
                if self._outlier is not None or self._starting:
                    self.tick(now)
                host = self._bound(request) if self._session and not attempts else None
                host = host or self._pick(hashed, attempts)
                if host is None:
                    return Answer(status=503, replica=None, attempts=(*attempts, "-"))
                attempts.append(host.name)
                asked = host.attempt
                if risked:
                    asked = Attempt(host.name, warning=twice(request, risked, host.name))
                host.active += 1
                try:
                    outcome = received((yield asked))
                    now = outcome.at
                    if self._outlier is not None and self._outlier.observe(host, outcome):
                        self._refresh()
                    if not self._again(request, outcome, len(attempts) - 1):
                        answer = self._answer(request, host, attempts, outcome, cookie)
                        if outcome.open:
                            yield Relay(answer)
                        return answer
                finally:
                    host.active -= 1
                    self._retrying -= len(attempts) > 1
                self._retrying += 1
                risked = risked or (host.name if outcome.sent else "")
        finally:
            self._active -= 1

    def _again(self, request: Request, outcome: Outcome, done: int) -> bool:
        if not self._rules.allows(request, outcome, done=done, elapsed=0.0):
            return False
        return self._retries.budget.allows(retrying=self._retrying, active=self._active)

    def explain(self, now: float) -> dict[str, str]:
        """For each host that gets nothing now unless there is a panic, the rule that skips it."""
        reasons = {host.name: _skipped(host) for host in self.hosts}
        first = min((host.priority for host in self.hosts if host.usable), default=0)
        if self._loads.get(first, 0) == 100:
            rest = [host.name for host in self.hosts if host.priority > first and not reasons[host.name]]
            reasons.update(dict.fromkeys(rest, f"priority: those of {first} are healthy enough"))
        return {name: reason for name, reason in reasons.items() if reason}

    def tell(self, name: str, standing: Standing) -> None:
        """A host that drains keeps its stateful sessions. One in maintenance is no host any more."""
        host = named(self.hosts, name)
        was_there = host.healthy and host.mode is not Mode.MAINT
        is_there = standing.up and standing.mode is not Mode.MAINT
        if is_there and not was_there and self._slow_start is not None:
            host.up_at, host.factor = None, self._slow_start.factor(0.0)
            self._starting.append(host)
            self._choosers.clear()  # one that took turns among equals would not see it
        host.healthy, host.mode = standing.up, standing.mode
        self._reweigh(host, standing.share)
        self._refresh()

    def _reweigh(self, host: Host, share: float) -> None:
        if share == host.share:
            return
        host.share = share
        for each in self.hosts:  # all on a finer scale, so that the shares are kept
            each.weight = max(1, round(each.whole * SCALE * each.share))
        self._choosers.clear()

    def tick(self, now: float) -> None:
        """Let the timers of outlier detection and slow start that are due by `now` fire."""
        if self._outlier is not None and self._outlier.tick(now):
            self._refresh()
        if self._starting and self._slow_start is not None:
            for host in self._starting:
                host.up_at = now if host.up_at is None else host.up_at
                host.factor = self._slow_start.factor(now - host.up_at)
            self._starting = [host for host in self._starting if host.factor < 1]

    def woken(self) -> list[Wait]:
        """What exceeds a circuit breaker is refused: there is no queue to wait in."""
        return []

    # -- which host

    def _pick(self, hashed: int | None, tried: Sequence[str]) -> Host | None:
        host = self._draw(hashed, 0)
        # Without the predicate a retry asks for the same: what is hashed goes to the same host again.
        for draw in range(self._retries.draws if self._retries.previous_hosts and tried else 0):
            if host is None or host.name not in tried:
                break
            host = self._draw(hashed, draw + 1)
        return host

    def _draw(self, hashed: int | None, attempt: int) -> Host | None:
        """Without a hash, priority and host are drawn."""
        source = self._sources[0][1]
        if len(self._sources) > 1 and hashed is None:
            source = self._chance.share(self._sources, self._whom)
        elif len(self._sources) > 1 and hashed is not None:
            point = hashed % 100 + 1
            source = next(source for reached, source in self._sources if point <= reached)
        if source not in self._current:
            self._current[source] = self._chooser(source)
        chooser = self._current[source]
        value = self._chance.rng.getrandbits(64) if hashed is None else hashed
        return chooser.choose(value, attempt) if chooser is not None else None

    def _whom(self, source: Source) -> list[str]:
        return [host.name for host in self._members[source[0]] if source[1] or host.usable]

    def _chooser(self, source: Source) -> Chooser | None:
        """The same one as long as the hosts are the same: its rotation goes on."""
        priority, panic = source
        hosts = [host for host in self._members[priority] if panic or host.usable]
        names = tuple(host.name for host in hosts)
        if source not in self._choosers or self._choosers[source][0] != names:
            self._choosers[source] = names, self._make(hosts, source) if hosts else None
        return self._choosers[source][1]

    def _refresh(self) -> None:
        """A host has come, gone, or got another health: the priorities are filled anew."""
        self._current: dict[Source, Chooser | None] = {}
        self._members: dict[int, list[Host]] = {each: [] for each in sorted({h.priority for h in self.hosts})}
        for host in self.hosts:
            if host.mode is not Mode.MAINT:
                self._members[host.priority].append(host)
        counts = {priority: len(hosts) for priority, hosts in self._members.items()}
        usable = {priority: sum(host.usable for host in hosts) for priority, hosts in self._members.items()}
        health = {each: min(100, OVERPROVISIONING * usable[each] // max(1, counts[each])) for each in counts}
        total = min(100, sum(health.values()))
        # When nobody at all is healthy, each priority panics, and gets its share by the number of its hosts.
        everybody = not total and self._panic_below > 0
        self._loads = _loads(counts, sum(counts.values())) if everybody else _loads(health, total)
        panics = {
            each: total < 100 and 100 * usable[each] < self._panic_below * counts[each] for each in counts
        }
        reached = list(accumulate(self._loads.values()))
        self._sources = [
            (upto, (each, panics[each])) for upto, each in zip(reached, self._loads, strict=True)
        ]

    def _hash(self, request: Request) -> tuple[int | None, str]:
        hashed: int | None = None
        cookie = ""
        for rule in self._hashing:
            value, line = rule.value(request, self._connection)
            cookie = cookie or line
            if value is not None:
                hashed = value if not hashed else ((hashed << 1 | hashed >> 63) & M64) ^ value
                if rule.terminal:
                    break
        return hashed, cookie

    def _bound(self, request: Request) -> Host | None:
        address = self._session.address(request) if self._session else ""
        return next((host for host in self.hosts if host.address == address and host.serves), None)

    def _answer(
        self, request: Request, host: Host, attempts: list[str], outcome: Outcome, cookie: str
    ) -> Answer:
        if outcome.fault is not None:
            status = 504 if outcome.fault is Fault.TIMEOUT else 503
            return Answer(status=status, replica=None, attempts=tuple(attempts))
        cookies = outcome.set_cookie + ((cookie,) if cookie else ())
        if self._session and self._session.address(request) != host.address:
            cookies = (*cookies, self._session.line(host, outcome.at))
        return Answer(status=outcome.status, replica=host.name, attempts=tuple(attempts), set_cookie=cookies)


def _loads(shares: Mapping[int, int], total: int) -> dict[int, int]:
    """Which percentage of the hashes each priority gets: filled in their order, what is left to the first."""
    left, loads = 100, dict.fromkeys(shares, 0)
    for priority, share in shares.items():
        loads[priority] = min(left, share * 100 // total) if total else 0
        left -= loads[priority]
    first = next((priority for priority, share in shares.items() if share), next(iter(shares)))
    loads[first] += left
    return loads


def _skipped(host: Host) -> str:
    if host.mode is Mode.MAINT:
        return "maint: not in the cluster"
    if not host.healthy:
        return "unhealthy"
    if host.ejected:
        return "ejected"
    return "draining: only bound clients" if host.mode is Mode.DRAIN else ""


FAULTS = {
    Fault.REFUSED: frozenset({"5xx", "gateway-error", "reset", "connect-failure", "reset-before-request"}),
    Fault.RESET: frozenset({"5xx", "gateway-error", "reset"}),
    Fault.TIMEOUT: frozenset({"5xx", "gateway-error", "reset"}),
}


def _conditions(outcome: Outcome) -> frozenset[str]:
    """The words of `retry_on` for an outcome."""
    if outcome.fault is not None:
        return FAULTS[outcome.fault]
    words = {"5xx"} if outcome.status >= 500 else set()
    words |= {"gateway-error"} if outcome.status in (502, 503, 504) else set()
    return frozenset(words | ({"retriable-4xx"} if outcome.status == 409 else set()))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
