"""Apps that behave well behind a load balancer, and proof that they do.

Plugins: `lbkit_flask`, `lbkit_starlette`, `lbkit_fastapi`. Without a framework: `lbkit.asgi`, `lbkit.wsgi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbkit.balancer import (
        Dispatch,
        KeyedPolicy,
        Mode,
        Policy,
        Pool,
        Replica,
        ReplicaState,
        RequestKey,
        RoundRobin,
        SourceAddress,
        Tried,
    )
    from lbkit.departure import Departure
    from lbkit.drain import DrainTimings, Reject
    from lbkit.errors import (
        ConfigError,
        LbkitError,
        MissingExtra,
        ReplicaRefused,
        ReplicaReset,
        ReplicaTimeout,
        StartupError,
        TargetError,
    )
    from lbkit.forwarded import TrustedProxies
    from lbkit.health import Check, Outcome, Status
    from lbkit.monitor import Change, Health
    from lbkit.service import Service
    from lbkit.sticky import Sticky

__all__ = [
    "Change",
    "Check",
    "ConfigError",
    "Departure",
    "Dispatch",
    "DrainTimings",
    "Health",
    "KeyedPolicy",
    "LbkitError",
    "MissingExtra",
    "Mode",
    "Outcome",
    "Policy",
    "Pool",
    "Reject",
    "Replica",
    "ReplicaRefused",
    "ReplicaReset",
    "ReplicaState",
    "ReplicaTimeout",
    "RequestKey",
    "RoundRobin",
    "Service",
    "SourceAddress",
    "StartupError",
    "Status",
    "Sticky",
    "TargetError",
    "Tried",
    "TrustedProxies",
]

HOMES = {
    "lbkit.balancer": (
        "Dispatch",
        "KeyedPolicy",
        "Mode",
        "Policy",
        "Pool",
        "Replica",
        "ReplicaState",
        "RequestKey",
        "RoundRobin",
        "SourceAddress",
        "Tried",
    ),
    "lbkit.departure": ("Departure",),
    "lbkit.drain": (
        "DrainTimings",
        "Reject",
    ),
    "lbkit.errors": (
        "ConfigError",
        "LbkitError",
        "MissingExtra",
        "ReplicaRefused",
        "ReplicaReset",
        "ReplicaTimeout",
        "StartupError",
        "TargetError",
    ),
    "lbkit.forwarded": ("TrustedProxies",),
    "lbkit.health": (
        "Check",
        "Outcome",
        "Status",
    ),
    "lbkit.monitor": (
        "Change",
        "Health",
    ),
    "lbkit.service": ("Service",),
    "lbkit.sticky": ("Sticky",),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import what is asked for: pytest loads our plugin in each of its runs, and needs no name."""
        home = next((home for home, names in HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
