"""Apps that behave well behind a load balancer, and proof that they do.

Plugins: `lbkit_flask`, `lbkit_starlette`, `lbkit_fastapi`. Without a framework: `lbkit.asgi`, `lbkit.wsgi`.
"""

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
