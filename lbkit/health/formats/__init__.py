"""How a report is written down: one module for each format, each a function from a report to text."""

from __future__ import annotations

from collections.abc import Callable

from lbkit.health.accept import Format
from lbkit.health.access import Level
from lbkit.health.formats import as_health_json, as_html, as_json, as_openmetrics, as_text
from lbkit.health.formats.rendering import Rendering
from lbkit.health.report import Report

__all__ = ["RENDERERS", "Rendering"]

RENDERERS: dict[Format, Callable[[Report, Level], Rendering]] = {
    Format.JSON: as_json.render,
    Format.HEALTH_JSON: as_health_json.render,
    Format.TEXT: as_text.render,
    Format.HTML: as_html.render,
    Format.OPENMETRICS: as_openmetrics.render,
}
