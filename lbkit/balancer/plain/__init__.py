"""A balancer that emulates no product: the field's policies under their own names."""

from lbkit.balancer.plain.balancer import Plain
from lbkit.balancer.plain.member import Member, PeakEwma
from lbkit.balancer.plain.policy import POLICIES, QUICK

__all__ = ["POLICIES", "QUICK", "Member", "PeakEwma", "Plain"]
