"""How a report is written down: one module for each format, each a function from a report to text."""

from __future__ import annotations

from collections.abc import Callable

from lbkit.health.accept import Format
from lbkit.health.access import Level
from lbkit.health.formats import as_json
from lbkit.health.formats.rendering import Rendering
from lbkit.health.report import Report

__all__ = ["RENDERERS", "Rendering"]

RENDERERS: dict[Format, Callable[[Report, Level], Rendering]] = {
    Format.JSON: as_json.render,
    Format.HEALTH_JSON: as_json.render,
    Format.TEXT: as_json.render,
    Format.HTML: as_json.render,
    Format.OPENMETRICS: as_json.render,
}
