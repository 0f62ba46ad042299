"""Envoy: a cluster and the route to it. Sources: the router and the load balancers of 1.40.

Nothing is retried unless the route says so; then any method is, POST as well, and each try asks the balancer
anew. Without enough healthy hosts it panics and uses all of a priority.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lbkit.balancer.chance import Chance
from lbkit.balancer.envoy.host import Host
from lbkit.balancer.envoy.outlier import Outlier
from lbkit.balancer.envoy.policy import Chooser
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
from lbkit.balancer.hashing import xxh64
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["CookieHash", "Envoy", "HeaderHash", "Retries", "Session", "Source"]

Source = tuple[int, bool]
"""The priority, and whether it is all of its hosts (a panic) or the healthy ones."""

M64 = 0xFFFFFFFFFFFFFFFF
SCALE = 100
"""Hundredths: what a whole number can say of a share of the weight 1."""

OVERPROVISIONING = 140


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """`retry_on` and its limits. `previous_hosts`: draw again, up to `draws` times, for one not tried yet."""

    on: frozenset[str] = frozenset()
    count: int = 1
    previous_hosts: bool = False
    draws: int = 1

    def allows(self, outcome: Outcome, done: int) -> bool:
        return done < self.count and bool(_conditions(outcome) & self.on)


@dataclass(frozen=True, slots=True)
class HeaderHash:
    name: str

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

    def value(self, request: Request, connection: str) -> tuple[int | None, str]:
        if found := request.cookie(self.name):
            return xxh64(found.strip('"').encode()), ""
        if self.ttl is None:
            return None, ""
        made = f"{xxh64(connection.encode()):x}"
        line = f'{self.name}="{made}"; Max-Age={self.ttl}; Path={self.path}; HttpOnly'
        return xxh64(made.encode()), line


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
        hashing: Sequence[HeaderHash | CookieHash] = (),
        retries: Retries | None = None,
        outlier: Outlier | None = None,
        session: Session | None = None,
        panic_below: int = 50,
        connection: str = "",
        chance: Chance | None = None,
    ) -> None:
        if not hosts:
            raise ConfigError("need at least one host, got none")
        self._all = list(hosts)
        self.hosts = list(hosts)
        self._make = chooser
        self._hashing = hashing
        self._retries = retries or Retries()
        self._outlier = outlier
        self._session = session
        self._panic_below = panic_below
        self._connection = connection
        self._chance = chance or Chance()
        self._choosers: dict[Source, tuple[tuple[str, ...], Chooser]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(host.name for host in self._all)

    def serve(self, request: Request, *, now: float) -> Flow:
        hashed, cookie = self._hash(request)
        attempts: list[str] = []
        while True:
            if self._outlier is not None:
                self._outlier.tick(now)
            host = self._bound(request) if self._session and not attempts else None
            host = host or self._pick(hashed, attempts)
            if host is None:
                return Answer(status=503, replica=None, attempts=(*attempts, "-"))
            attempts.append(host.name)
            host.active += 1
            try:
                outcome = yield from attempt(Attempt(host.name))
                now = outcome.at
                if self._outlier is not None:
                    self._outlier.observe(host, outcome)
                if not self._retries.allows(outcome, len(attempts) - 1):
                    answer = self._answer(request, host, attempts, outcome, cookie)
                    return (yield from relay(answer, outcome))
            finally:
                host.active -= 1

    def tell(self, name: str, standing: Standing) -> None:
        """A host that drains keeps its stateful sessions. One in maintenance is no host any more."""
        host = next(host for host in self._all if host.name == name)
        host.removed = standing.mode is Mode.MAINT
        self.hosts = [host for host in self._all if not host.removed]
        host.healthy = standing.up
        host.draining = standing.mode is Mode.DRAIN
        self._reweigh(host, standing.share)

    def woken(self) -> list[Wait]:
        """Nobody waits: what Envoy queues is connections, which cost nothing here."""
        return []

    def _reweigh(self, host: Host, share: float) -> None:
        if share == host.share:
            return
        host.share = share
        for each in self._all:  # all on a finer scale, so that the shares are kept
            each.weight = max(1, round(each.whole * SCALE * each.share))
        self._choosers.clear()

    def explain(self, now: float) -> dict[str, str]:
        """For each host that gets nothing now unless there is a panic, the rule that skips it."""
        return {host.name: host.skipped for host in self._all if host.skipped}

    # -- which host

    def _pick(self, hashed: int | None, tried: Sequence[str]) -> Host | None:
        value = hashed if hashed is not None else self._chance.rng.getrandbits(64)
        host = self._draw(value, len(tried))
        for _ in range(self._retries.draws if self._retries.previous_hosts and tried else 0):
            if host is None or host.name not in tried:
                break
            host = self._draw(value, len(tried))
        return host

    def _draw(self, value: int, attempt: int) -> Host | None:
        if not self.hosts:
            return None
        priority, panic = self._priority(value)
        hosts = [host for host in self.hosts if host.priority == priority and (panic or host.usable)]
        if not hosts:
            return None
        return self._chooser((priority, panic), hosts).choose(value, attempt)

    def _chooser(self, source: Source, hosts: list[Host]) -> Chooser:
        names = tuple(host.name for host in hosts)
        known = self._choosers.get(source)
        if known is None or known[0] != names:
            known = self._choosers[source] = (names, self._make(hosts, source))
        return known[1]

    def _priority(self, value: int) -> tuple[int, bool]:
        """Which priority this hash goes to, and whether it panics."""
        health = {}
        for priority in sorted({host.priority for host in self.hosts}):
            members = [host for host in self.hosts if host.priority == priority]
            usable = sum(host.usable for host in members)
            health[priority] = (
                min(100, OVERPROVISIONING * usable // len(members)),
                100 * usable / len(members),
            )
        total = min(100, sum(share for share, _ in health.values()))
        chosen = _by_load({each: share for each, (share, _) in health.items()}, total, value % 100 + 1)
        return chosen, total < 100 and health[chosen][1] < self._panic_below

    def _hash(self, request: Request) -> tuple[int | None, str]:
        hashed: int | None = None
        cookie = ""
        for rule in self._hashing:
            value, line = rule.value(request, self._connection)
            cookie = cookie or line
            if value is not None:
                hashed = value if not hashed else ((hashed << 1 | hashed >> 63) & M64) ^ value
        return hashed, cookie

    def _bound(self, request: Request) -> Host | None:
        address = self._session.address(request) if self._session else ""
        return next((host for host in self.hosts if host.address == address and host.serving), None)

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


def _by_load(shares: dict[int, int], total: int, point: int) -> int:
    """Fill the priorities in their order up to 100 %; the one in which `point` (1 .. 100) falls."""
    reached = 0
    for priority, share in shares.items():
        reached += min(100 - reached, share * 100 // total if total else 0)
        if point <= reached:
            return priority
    return next((priority for priority, share in shares.items() if share), 0)


def _conditions(outcome: Outcome) -> set[str]:
    if outcome.fault is Fault.REFUSED:
        return {"5xx", "connect-failure"}
    if outcome.fault is Fault.RESET:
        return {"5xx", "reset"}
    if outcome.fault is Fault.TIMEOUT:
        return {"5xx"}
    words = {"5xx"} if outcome.status >= 500 else set()
    return words | ({"gateway-error"} if outcome.status in (502, 503, 504) else set())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
