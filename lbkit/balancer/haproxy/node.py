"""A server of an HAProxy backend: what is configured, and its state with HAProxy's names for its parts."""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.balancer.exchange import Attempt
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

__all__ = ["SCALE", "Node", "Server"]

SCALE = 16
"""BE_WEIGHT_SCALE: effective weights are sixteenths of the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One `server` line. `id` is 1 for the first one when the file gives none; 0 switches a limit off."""

    name: str
    address: str
    id: int
    weight: int = 1
    cookie: str = ""
    backup: bool = False
    disabled: bool = False
    maxconn: int = 0
    maxqueue: int = 0
    slowstart: float = 0.0
    """Seconds over which a server that has come back gets its weight."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 256:
            raise ConfigError(f"need 0 <= weight <= 256, got weight={self.weight} for {self.name}")
        if min(self.maxconn, self.maxqueue, self.slowstart) < 0:
            raise ConfigError(f"need maxconn, maxqueue and slowstart >= 0 for {self.name}")


class Node:
    """The state of a server. Its algorithm keeps its own state beside it."""

    __slots__ = (
        "attempt",
        "cookie",
        "eweight",
        "full_maxconn",
        "maxconn",
        "mode",
        "name",
        "queued",
        "served",
        "server",
        "share",
        "sixteenths",
        "up",
        "up_at",
        "usable",
        "weight",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = server.name
        self.attempt = Attempt(server.name)
        self.weight = server.weight
        self.mode = Mode.MAINT if server.disabled else Mode.READY
        self.up = True
        self.up_at: float | None = None
        self.sixteenths = SCALE
        """Below 16 while slow start holds it back; `share`: while it is told to take less."""

        self.share = SCALE

        self.served = 0
        self.queued = 0
        self.maxconn = self.full_maxconn = server.maxconn
        self.cookie = server.cookie
        self.recount()

    def recount(self) -> None:
        """After a change of mode, weight, health or slow start: what follows from them, looked at often."""
        self.eweight = self.weight * self.sixteenths
        if self.share < SCALE:
            self.eweight = -(-self.eweight * self.share // SCALE)
        self.usable = self.up and self.mode is Mode.READY and self.eweight > 0

    @property
    def stopped(self) -> bool:
        """Not even those who are bound to it are served."""
        return not self.up or self.mode is Mode.MAINT

    @property
    def free(self) -> bool:
        return not self.maxconn or (not self.queued and self.served < self.maxconn)

    def skipped(self) -> str:
        """Why it gets no new client now; empty when it may."""
        if not self.up:
            return "down"
        if self.mode is not Mode.READY:
            return f"admin state {self.mode.value}"
        if not self.eweight:
            return "weight 0"
        return "" if self.free else f"full: {self.served} of {self.maxconn} connections, {self.queued} queued"
