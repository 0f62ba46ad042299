"""A server of an nginx upstream group: what is configured, and its state with nginx' names for its parts."""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.balancer.exchange import Attempt
from lbkit.balancer.hashing import md5_hex
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["Peer", "Server"]

HEAVIEST = 65535


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

    def __post_init__(self) -> None:
        if not 1 <= self.weight <= HEAVIEST:
            raise ConfigError(f"need 1 <= weight <= {HEAVIEST}, got weight={self.weight} for {self.name}")
        if min(self.max_conns, self.max_fails, self.fail_timeout) < 0:
            raise ConfigError(f"need max_conns, max_fails and fail_timeout >= 0 for {self.name}")


class Peer:
    """The state of a server. `bit` is its own in the set of those that a request has tried."""

    __slots__ = (
        "accessed",
        "attempt",
        "bit",
        "checked",
        "closed",
        "conns",
        "cw",
        "ew",
        "fail_timeout",
        "fails",
        "header_time",
        "max_conns",
        "max_fails",
        "mode",
        "name",
        "response_time",
        "server",
        "share",
        "sid",
        "up",
        "weight",
    )

    def __init__(self, server: Server, bit: int = 1) -> None:
        self.server = server
        self.name = server.name
        self.attempt = Attempt(server.name)
        self.bit = bit
        self.weight = self.ew = server.weight
        self.max_conns, self.max_fails = server.max_conns, server.max_fails
        self.fail_timeout = server.fail_timeout
        self.cw = self.conns = self.fails = self.accessed = self.checked = 0
        self.header_time = 0
        """Milliseconds until the header of an answer, on average; `response_time`: until its end."""

        self.response_time = 0
        self.sid = server.route or md5_hex(server.address)
        self.up = True
        self.share = 1.0
        self.mode = Mode.MAINT if server.down else Mode.DRAIN if server.drain else Mode.READY
        self.closed = self.mode is not Mode.READY
        """Gets no new client, whatever the time is."""

    @property
    def down(self) -> bool:
        """Gets nothing at all, and is not even counted as a try."""
        return not self.up or self.mode is Mode.MAINT

    def opened(self) -> None:
        self.closed = not self.up or self.mode is not Mode.READY

    def skipped(self, now: int) -> str:
        """Why it gets nothing now; empty when it may."""
        if self.down:
            return "down"
        if self.fails and self.failed_out(now):
            return f"failed out: {self.fails} of {self.max_fails} fails, {now - self.checked} s ago"
        if self.max_conns and self.conns >= self.max_conns:
            return f"full: {self.conns} of {self.max_conns} connections"
        return ""

    def failed_out(self, now: int) -> bool:
        return 0 < self.max_fails <= self.fails and now - self.checked <= self.fail_timeout

    def usable(self, now: int) -> bool:
        """Hot: asked for each peer of each pick, so that the rules stand in the order of their cost."""
        if self.closed or (self.fails and self.failed_out(now)):
            return False
        return not self.max_conns or self.conns < self.max_conns

    def fail(self, now: int) -> None:
        self.fails += 1
        self.accessed = self.checked = now
        if self.max_fails:
            self.ew = max(0, self.ew - self.weight // self.max_fails)

    def pass_(self) -> None:
        if self.accessed < self.checked:
            self.fails = 0

    def took(self, header: int, whole: int) -> None:
        """Milliseconds until the header and until the end of an answer that counts."""
        self.header_time = _average(self.header_time, header)
        self.response_time = _average(self.response_time, whole)


def _average(average: int, milliseconds: int) -> int:
    return int(0.5 + 0.05 * milliseconds + 0.95 * average) if average else milliseconds
