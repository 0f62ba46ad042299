"""A server of an HAProxy backend: what is configured, and its state with HAProxy's names for its parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lbkit.errors import ConfigError

__all__ = ["SCALE", "Admin", "Node", "Server"]

SCALE = 16
"""BE_WEIGHT_SCALE: effective weights are sixteenths of the user's."""


class Admin(Enum):
    """What the operator (or the agent) wants of a server. DRAIN serves those who are bound to it."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


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

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 256:
            raise ConfigError(f"need 0 <= weight <= 256, got weight={self.weight} for {self.name}")


class Node:
    """The state of a server. Its algorithm keeps its own state beside it."""

    __slots__ = ("admin", "cookie", "maxconn", "queued", "served", "server", "sixteenths", "up", "weight")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.weight = server.weight
        self.admin = Admin.MAINT if server.disabled else Admin.READY
        self.up = True
        self.sixteenths = SCALE
        """Below 16 while slow start holds it back."""

        self.served = 0
        self.queued = 0
        self.maxconn = server.maxconn
        self.cookie = server.cookie

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def eweight(self) -> int:
        return self.weight * self.sixteenths

    @property
    def stopped(self) -> bool:
        """Not even those who are bound to it are served."""
        return not self.up or self.admin is Admin.MAINT

    @property
    def usable(self) -> bool:
        return self.up and self.admin is Admin.READY and self.eweight > 0

    @property
    def free(self) -> bool:
        return not self.maxconn or (not self.queued and self.served < self.maxconn)

    def skipped(self) -> str:
        """Why it gets no new client now; empty when it may."""
        if not self.up:
            return "down"
        if self.admin is not Admin.READY:
            return f"admin state {self.admin.value}"
        if not self.eweight:
            return "weight 0"
        return "" if self.free else f"full: {self.served} of {self.maxconn} connections, {self.queued} queued"
