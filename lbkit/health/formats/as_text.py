"""Plain text, for a person with curl: one line for the whole, and one for each thing worth a line."""

from __future__ import annotations

from lbkit.health.access import Level
from lbkit.health.formats.rendering import Rendering, output_of
from lbkit.health.report import Endpoint, Report
from lbkit.health.standing import CheckView
from lbkit.health.status import Status
from lbkit.health.vitals import breaches

__all__ = ["render"]

MARKS = {Status.HEALTHY: "+", Status.DEGRADED: "~", Status.UNKNOWN: "?", Status.UNHEALTHY: "-"}


def render(report: Report, level: Level) -> Rendering:
    lines = [report.status]
    if level is not Level.STATUS_ONLY:
        lines += _details(report, level)
    return Rendering(("\n".join(lines) + "\n").encode("utf-8", "replace"))


def _details(report: Report, level: Level) -> list[str]:
    every = report.verbose or report.endpoint in (Endpoint.DETAILED, Endpoint.CHECK)
    views = [view for view in report.views if every or view.status is not Status.HEALTHY]
    width = max((len(view.check.name) for view in views), default=0)
    lines = [_line(view, level, width) for view in views]
    if report.endpoint is Endpoint.DETAILED:
        lines += _vitals(report)
        lines.append(
            f"state {report.state.value}, up {report.uptime:.0f} s, version {report.service.version}"
        )
    if report.error is not None:
        lines.append(f"error: {report.error}")
    if report.hidden:
        lines.append(f"and {report.hidden} more")
    return [*lines, *(f"warning: {warning}" for warning in report.warnings)]


def _line(view: CheckView, level: Level, width: int) -> str:
    words = [f"[{MARKS[view.status]}] {view.check.name:<{width}}  {view.status.value:<9}"]
    if view.response_ms is not None and view.age_ms is not None:
        words.append(f"{view.response_ms:7.1f} ms  {view.age_ms / 1000:.1f} s ago")
    if view.error is not None:
        words.append(view.error)
    if not view.check.critical:
        words.append("(not critical)")
    if output := output_of(view, level):
        words.append(output)
    return "  ".join(words).rstrip()


def _vitals(report: Report) -> list[str]:
    if report.vitals is None:
        return []
    breached = breaches(report.vitals, report.thresholds)
    figures = report.vitals.percentages().items()
    return [
        f"[{'-' if name in breached else '+'}] {name} {value:.1f} %"
        for name, value in figures
        if value is not None
    ]
