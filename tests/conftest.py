"""For all tests: a machine that is busy is no failure, so no example has a deadline."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("lbkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lbkit")
