"""nginx: upstream groups, their methods, failure counters, sticky sessions and what is passed on."""

from lbkit.balancer.nginx.group import NextUpstream, Nginx
from lbkit.balancer.nginx.peer import Peer, Server
from lbkit.balancer.nginx.sticky import Sticky
from lbkit.balancer.nginx.variable import evaluate

__all__ = ["NextUpstream", "Nginx", "Peer", "Server", "Sticky", "evaluate"]
