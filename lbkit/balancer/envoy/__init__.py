"""Envoy 1.40: clusters, policies, panic, outlier detection, retries and session cookies."""

from lbkit.balancer.envoy.cluster import CookieHash, Envoy, HeaderHash, ParameterHash, Retries, Session
from lbkit.balancer.envoy.host import Host, SlowStart
from lbkit.balancer.envoy.outlier import Outlier, OutlierRules

__all__ = [
    "CookieHash",
    "Envoy",
    "HeaderHash",
    "Host",
    "Outlier",
    "OutlierRules",
    "ParameterHash",
    "Retries",
    "Session",
    "SlowStart",
]
