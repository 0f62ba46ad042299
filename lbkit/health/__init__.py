"""Health, decided: what checks say, how that adds up, how it is written. `lbkit.probes` runs the checks."""

from lbkit.health.access import Caller
from lbkit.health.check import Check
from lbkit.health.lifecycle import Lifecycle, LifecycleSource, State
from lbkit.health.outcome import Outcome
from lbkit.health.report import Endpoint, Report
from lbkit.health.standing import CheckView
from lbkit.health.status import Status
from lbkit.health.vitals import Thresholds, Vitals

__all__ = [
    "Caller",
    "Check",
    "CheckView",
    "Endpoint",
    "Lifecycle",
    "LifecycleSource",
    "Outcome",
    "Report",
    "State",
    "Status",
    "Thresholds",
    "Vitals",
]
