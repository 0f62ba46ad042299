"""Which format an answer takes. A prober that asks for something odd gets JSON: there is no 406.

`?format=` wins over the Accept header. In Accept the highest q wins, then what is named first; a
wildcard asks for nothing in particular, which is JSON.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Format", "choose"]

LONGEST_ACCEPT = 2048


class Format(Enum):
    """The value is the word in `?format=`."""

    JSON = "json"
    HEALTH_JSON = "health+json"
    TEXT = "text"
    HTML = "html"
    OPENMETRICS = "openmetrics"

    @property
    def media_type(self) -> str:
        return _MEDIA_TYPES[self]


_MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.HEALTH_JSON: "application/health+json",
    Format.TEXT: "text/plain; charset=utf-8",
    Format.HTML: "text/html; charset=utf-8",
    Format.OPENMETRICS: "application/openmetrics-text; version=1.0.0; charset=utf-8",
}

_RANGES = {
    "application/json": Format.JSON,
    "application/health+json": Format.HEALTH_JSON,
    "text/plain": Format.TEXT,
    "text/html": Format.HTML,
    "application/openmetrics-text": Format.OPENMETRICS,
    "application/*": Format.JSON,
    "*/*": Format.JSON,
}


def choose(accept: str, asked: str | None = None) -> Format:
    """The format for an Accept header and the value of `?format=`; JSON for what is unknown or too long."""
    for format_ in Format:
        # A plus sign in a query string is read as a space.
        if asked is not None and asked.replace(" ", "+") == format_.value:
            return format_
    if not accept or len(accept) > LONGEST_ACCEPT:
        return Format.JSON
    best, best_q = Format.JSON, 0.0
    for part in accept.split(","):
        range_, _, parameters = part.partition(";")
        found = _RANGES.get(range_.strip().lower())
        if found is not None and (q := _q(parameters)) > best_q:
            best, best_q = found, q
    return best


def _q(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                q = float(value)
            except ValueError:
                return 0.0
            return q if 0 <= q <= 1 else 0.0
    return 1.0
