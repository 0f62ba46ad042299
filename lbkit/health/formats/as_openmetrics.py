"""OpenMetrics 1.0 text, for Prometheus: the same facts as gauges."""

from __future__ import annotations

from collections.abc import Iterable

from lbkit.health.access import Level
from lbkit.health.formats.rendering import Rendering
from lbkit.health.lifecycle import State
from lbkit.health.report import Report
from lbkit.health.status import Status

__all__ = ["render"]

Samples = Iterable[tuple[dict[str, str], float | None]]


def render(report: Report, level: Level) -> Rendering:
    version = report.service.version
    lines = [
        "# TYPE lbkit_build info",
        "# HELP lbkit_build The version that runs.",
        f"lbkit_build_info{_labels({'version': version, 'service': report.service.name})} 1",
        *_gauge("lbkit_healthy", "1 when this endpoint answers 200.", [({}, float(report.passing))]),
    ]
    if level is not Level.STATUS_ONLY:
        lines += _details(report)
    return Rendering(("\n".join([*lines, "# EOF"]) + "\n").encode())


def _details(report: Report) -> list[str]:
    views = report.views
    named = [({"check": view.check.name}, view) for view in views]
    return [
        *_gauge(
            "lbkit_state",
            "Where in its life the process is: 1 for the state it is in.",
            [({"state": state.value}, float(state is report.state)) for state in State],
        ),
        *_gauge(
            "lbkit_uptime_seconds", "Time since the app was made.", [({}, report.uptime)], unit="seconds"
        ),
        *_gauge(
            "lbkit_check_status",
            "1 for the status that a check has.",
            [
                ({"check": view.check.name, "status": status.value}, float(view.status is status))
                for view in views
                for status in Status
            ],
        ),
        *_gauge(
            "lbkit_check_critical",
            "1 when the check decides about traffic.",
            [(labels, float(view.check.critical)) for labels, view in named],
        ),
        *_gauge(
            "lbkit_check_duration_seconds",
            "How long the last run took.",
            [(labels, _seconds(view.response_ms)) for labels, view in named],
            unit="seconds",
        ),
        *_gauge(
            "lbkit_check_age_seconds",
            "How long ago the last run ended.",
            [(labels, _seconds(view.age_ms)) for labels, view in named],
            unit="seconds",
        ),
        *_gauge(
            "lbkit_check_consecutive_failures",
            "Failures in a row, up to now.",
            [(labels, float(view.failures)) for labels, view in named],
        ),
        *_vitals(report),
        *_sessions(report),
    ]


def _vitals(report: Report) -> list[str]:
    if report.vitals is None:
        return []
    lines: list[str] = []
    for name, value in report.vitals.percentages().items():
        ratio = None if value is None else value / 100
        what = f"{name} in use, of what this process may use."
        lines += _gauge(f"lbkit_{name}_utilization_ratio", what, [({}, ratio)], unit="ratio")
    return lines


def _sessions(report: Report) -> list[str]:
    if not report.session_events:
        return []
    name = "lbkit_session_events"
    counted = sorted(report.session_events.items())
    return [
        f"# TYPE {name} counter",
        f"# HELP {name} What has happened to sessions in this process.",
        *(f"{name}_total{_labels({'event': event})} {count}" for event, count in counted),
    ]


def _gauge(name: str, what: str, samples: Samples, *, unit: str = "") -> list[str]:
    lines = [f"# TYPE {name} gauge", *([f"# UNIT {name} {unit}"] if unit else []), f"# HELP {name} {what}"]
    found = [f"{name}{_labels(labels)} {value:g}" for labels, value in samples if value is not None]
    return lines + found if found else []


def _labels(labels: dict[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
