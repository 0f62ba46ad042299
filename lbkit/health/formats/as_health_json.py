"""application/health+json, after draft-inadarei-api-health-check-06 (October 2021, expired).

healthy is `pass`, degraded is `warn`, everything else is `fail`; `output` is left out where a check passes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from lbkit.health.access import Level
from lbkit.health.formats.rendering import Rendering, iso, output_of, rounded
from lbkit.health.report import Endpoint, Report
from lbkit.health.standing import CheckView
from lbkit.health.status import Status
from lbkit.health.vitals import breaches

__all__ = ["render"]

Json = dict[str, Any]

WORDS = {"healthy": "pass", "degraded": "warn"}
MAJOR = re.compile(r"v?(\d+)")


def render(report: Report, level: Level) -> Rendering:
    said: Json = {"status": WORDS.get(report.status, "fail")}
    version = report.service.version
    major = MAJOR.match(version)
    said["version"] = major.group(1) if major else version
    said["releaseId"] = version
    if level is not Level.STATUS_ONLY:
        said |= _additions(report, level)
    return Rendering(json.dumps(said, separators=(",", ":")).encode())


def _additions(report: Report, level: Level) -> Json:
    more: Json = {}
    if report.service.instance is not None:
        more["serviceId"] = report.service.instance
    more["description"] = f"health of {report.service.name}"
    if not report.passing:
        more["output"] = report.error or report.status
    if report.warnings:
        more["notes"] = list(report.warnings)
    checks = {f"{view.check.name}:responseTime": [_check(view, level)] for view in report.views}
    if report.endpoint is Endpoint.DETAILED:
        checks |= _vitals(report)
        checks["uptime"] = [_system(rounded(report.uptime, 3), "s", "pass")]
    if checks:
        more["checks"] = checks
    return more


def _check(view: CheckView, level: Level) -> Json:
    said: Json = {"componentId": view.check.name, "componentType": view.check.component_type}
    if view.response_ms is not None:
        said["observedValue"] = rounded(view.response_ms)
        said["observedUnit"] = "ms"
    said["status"] = WORDS.get(view.status.value, "fail")
    if view.wall is not None:
        said["time"] = iso(view.wall)
    if view.status is not Status.HEALTHY:
        said["output"] = ": ".join(filter(None, (view.error or view.status.value, output_of(view, level))))
    return said


def _vitals(report: Report) -> Json:
    if report.vitals is None:
        return {}
    breached = breaches(report.vitals, report.thresholds)
    bad = "fail" if report.thresholds.breach is Status.UNHEALTHY else "warn"
    return {
        f"{name}:utilization": [_system(rounded(value), "percent", bad if name in breached else "pass")]
        for name, value in report.vitals.percentages().items()
        if value is not None
    }


def _system(value: float, unit: str, status: str) -> Json:
    return {"componentType": "system", "observedValue": value, "observedUnit": unit, "status": status}
