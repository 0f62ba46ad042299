"""The mini balancer's decisions: replicas, pools and policies.

The carriers are `lbkit.asgi.Balancer` and `lbkit.wsgi.Balancer`. `lbkit.balancer.profile` has the balancers
that lbkit decides like, `lbkit.balancer.decision` one decision at a time, `lbkit.balancer.routes` the routes.
"""

from lbkit.balancer.dispatch import Dispatch, Tried
from lbkit.balancer.key import RequestKey
from lbkit.balancer.policy import KeyedPolicy, Policy, RoundRobin
from lbkit.balancer.pool import Pool
from lbkit.balancer.replica import Mode, Replica, ReplicaState
from lbkit.balancer.source_address import SourceAddress

__all__ = [
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
]
