"""Which requests are ours, and what about them can be decided before any check is looked at.

A path is ours or it is not; there is no redirect and no trailing slash. GET and HEAD are answered,
OPTIONS tells what is allowed, and every other method is refused with 405.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from lbkit.health.check import NAME
from lbkit.health.report import Endpoint
from lbkit.service import Service

__all__ = ["ALLOW", "Options", "Route", "options", "routes", "under_checks"]

ALLOW = "GET, HEAD, OPTIONS"
LONGEST_QUERY = 2048
MOST_EXCLUDED = 32


@dataclass(frozen=True, slots=True)
class Route:
    endpoint: Endpoint
    check: str | None = None
    """The name of the one check that is asked for; the endpoint is then CHECK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the query string asks for."""

    format: str | None = None
    exclude: frozenset[str] = frozenset()
    verbose: bool = False


def routes(service: Service) -> dict[str, Route]:
    """The exact paths, aliases included."""
    found = {service.health_path: Route(Endpoint.HEALTH)}
    for endpoint in (Endpoint.LIVE, Endpoint.READY, Endpoint.STARTUP, Endpoint.DETAILED):
        found[f"{service.health_path}/{endpoint.value}"] = Route(endpoint)
    if service.kubernetes:
        found["/livez"] = Route(Endpoint.LIVE)
        found["/readyz"] = Route(Endpoint.READY)
        found["/startupz"] = Route(Endpoint.STARTUP)
    if service.dockerflow:
        found["/__lbheartbeat__"] = Route(Endpoint.HEALTH)
        found["/__heartbeat__"] = Route(Endpoint.READY)
    return found


def under_checks(service: Service) -> str:
    """What the paths of single checks begin with."""
    return f"{service.health_path}/checks/"


def options(query: str) -> Options:
    """Read a query string. What makes no sense is left out: a prober must not fail on a typing error."""
    if not query or len(query) > LONGEST_QUERY:
        return Options()
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=2 * MOST_EXCLUDED)
    except ValueError:
        return Options()
    formats = [value for key, value in pairs if key == "format"]
    return Options(
        format=formats[-1] if formats else None,
        exclude=frozenset(_names([value for key, value in pairs if key == "exclude"])),
        verbose=any(key == "verbose" and value not in ("0", "false", "no") for key, value in pairs),
    )


def _names(values: Sequence[str]) -> list[str]:
    """What could not be a check's name is shown as a word of ours, never echoed."""
    return [value if NAME.fullmatch(value) else "(no name)" for value in values[:MOST_EXCLUDED]]
