"""The one description of an app that its endpoints, its drain and whoever configures a balancer agree on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lbkit.errors import ConfigError

__all__ = ["Service"]

PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
DRAIN_STATUSES = (503, 404)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What an app is called, which version of it runs, and where its health is asked for."""

    version: str = "unknown"
    name: str = "app"
    instance: str | None = None
    """Tells one process or replica from another; public, and left out when None."""

    health_path: str = "/health"
    """`/live`, `/ready`, `/startup`, `/detailed` and `/checks/NAME` are below it."""

    kubernetes: bool = False
    """Answer `/livez`, `/readyz` and `/startupz` too."""

    dockerflow: bool = False
    """Answer `/__lbheartbeat__` and `/__heartbeat__` too (Mozilla's Dockerflow)."""

    health_role: Literal["lifecycle", "ready"] = "lifecycle"
    """What `/health` depends on: the lifecycle alone, or everything that `/health/ready` depends on."""

    drain_status: Literal[503, 404] = 503
    """The code while draining: 404 is for HAProxy's `http-check disable-on-404`."""

    def __post_init__(self) -> None:
        for name in ("version", "name"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value):
                raise ConfigError(f"need {name} as a text that is not empty, got {name}={value!r}")
        if not (isinstance(self.health_path, str) and PATH.fullmatch(self.health_path)):
            rule = "a path such as /health, without a slash at the end"
            raise ConfigError(f"need health_path as {rule}, got {self.health_path!r}")
        if self.health_role not in ("lifecycle", "ready"):
            raise ConfigError(f"need health_role 'lifecycle' or 'ready', got {self.health_role!r}")
        if self.drain_status not in DRAIN_STATUSES:
            raise ConfigError(f"need drain_status 503 or 404, got {self.drain_status!r}")
