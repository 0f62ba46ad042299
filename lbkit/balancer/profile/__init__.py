"""Profiles: the balancers that lbkit decides like, by name and version."""

from lbkit.balancer.profile.place import Options, Place
from lbkit.balancer.profile.registry import PROFILES, Profile, profile_named

__all__ = ["PROFILES", "Options", "Place", "Profile", "profile_named"]
