"""The mini balancer's decisions: replicas, pools and policies.

The carriers are `lbkit.asgi.Balancer` and `lbkit.wsgi.Balancer`.
"""

from lbkit.balancer.dispatch import Dispatch
from lbkit.balancer.policy import Policy, RoundRobin
from lbkit.balancer.pool import Pool
from lbkit.balancer.replica import Replica, ReplicaState

__all__ = ["Dispatch", "Policy", "Pool", "Replica", "ReplicaState", "RoundRobin"]
