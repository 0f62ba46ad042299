"""The JSON that lbkit answers with unless it is asked for something else."""

from __future__ import annotations

import json
from typing import Any

from lbkit.health.access import Level
from lbkit.health.formats.rendering import Rendering, iso, output_of, rounded
from lbkit.health.report import Endpoint, Report
from lbkit.health.standing import CheckView
from lbkit.health.status import Status
from lbkit.health.vitals import Vitals, breaches

__all__ = ["render"]

Json = dict[str, Any]


def render(report: Report, level: Level) -> Rendering:
    """`status`, `timestamp` and `version`, in this order, then what the endpoint adds."""
    head = f'{{"status":{_dumps(report.status)},"timestamp":'
    rest: Json = {"version": report.service.version}
    if level is not Level.STATUS_ONLY:
        rest |= _additions(report, level)
    return Rendering(head.encode(), f",{_dumps(rest)[1:]}".encode())


def _additions(report: Report, level: Level) -> Json:
    more: Json = {}
    if report.endpoint is Endpoint.DETAILED:
        more["state"] = report.state.value
        more["metrics"] = _metrics(report.vitals or Vitals())
        more["metrics_source"] = _metrics_source(report.vitals or Vitals())
        if breached := breaches(report.vitals or Vitals(), report.thresholds):
            more["breaches"] = list(breached)
        more["uptime"] = rounded(report.uptime, 3)
    if report.drain is not None:
        more["drain"] = dict(report.drain)
    if report.endpoint is Endpoint.CHECK:
        # The answer's own status is this check's.
        more |= {key: said for key, said in _one(report, level).items() if key != "status"}
    elif shown := _shown(report):
        more["checks"] = {view.check.name: _check(view, level) for view in shown}
    elif report.endpoint is Endpoint.DETAILED or (report.verbose and report.endpoint is Endpoint.READY):
        more["checks"] = {}
    if report.error is not None:
        more["error"] = report.error
    if report.hidden:
        more["checks_left_out"] = report.hidden
    if report.warnings:
        more["warnings"] = list(report.warnings)
    return more


def _one(report: Report, level: Level) -> Json:
    return _check(report.views[0], level) if report.views else {}


def _shown(report: Report) -> list[CheckView]:
    """Readiness names what is wrong, and everything when it is asked to be verbose."""
    if report.endpoint is Endpoint.DETAILED or report.verbose:
        return list(report.views)
    return [view for view in report.views if view.status is not Status.HEALTHY]


def _check(view: CheckView, level: Level) -> Json:
    shown: Json = {"status": view.status.value}
    if view.error is not None:
        shown["error"] = view.error
    if output := output_of(view, level):
        shown["output"] = output
    if view.response_ms is not None:
        shown["response_time_ms"] = rounded(view.response_ms)
    shown["critical"] = view.check.critical
    if view.age_ms is not None and view.wall is not None:
        shown["age_ms"] = round(view.age_ms)
        shown["checked_at"] = iso(view.wall)
    if view.failures:
        shown["consecutive_failures"] = view.failures
        shown["stale"] = view.stale
    if view.hung_ms is not None:
        shown["hung_for_ms"] = round(view.hung_ms)
    return shown


def _metrics(vitals: Vitals) -> Json:
    return {
        f"{name}_percent": None if value is None else rounded(value)
        for name, value in vitals.percentages().items()
    }


def _metrics_source(vitals: Vitals) -> Json:
    source = vitals.source
    return {
        "cpu": source.cpu,
        "memory": source.memory,
        "cpu_limit": source.cpu_limit,
        "memory_limit_bytes": source.memory_limit_bytes,
        "throttled_percent": None if source.throttled_percent is None else rounded(source.throttled_percent),
    }


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
