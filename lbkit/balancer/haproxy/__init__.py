"""HAProxy 2.6: backends, their algorithms, health, cookies and queues."""

from lbkit.balancer.haproxy.backend import Haproxy, Retries
from lbkit.balancer.haproxy.cookie import Cookie
from lbkit.balancer.haproxy.health import Agent, Health, HealthRules, slow_start
from lbkit.balancer.haproxy.node import Server

__all__ = ["Agent", "Cookie", "Haproxy", "Health", "HealthRules", "Retries", "Server", "slow_start"]
