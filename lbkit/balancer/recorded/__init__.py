"""Recordings of real balancers: the pool that each describes, and whether lbkit decides the same."""

from lbkit.balancer.recorded.verdict import Verdict, replay

__all__ = ["Verdict", "replay"]
