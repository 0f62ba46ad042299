"""A report as bytes and headers, made once and given to many probers.

A JSON answer leaves a hole for its `timestamp`, so that one rendering serves a whole second and each
answer still tells the instant it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus

from lbkit.health.accept import Format
from lbkit.health.access import Level
from lbkit.health.formats import RENDERERS, Rendering
from lbkit.health.lifecycle import State
from lbkit.health.report import Report
from lbkit.health.routes import ALLOW

__all__ = ["LONGEST_BODY", "METHOD_NOT_ALLOWED", "OPTIONS", "Reply", "make_reply"]

LONGEST_BODY = 8 * 1024
"""Bytes. A kubelet reads 10 KB of an answer and throws the rest away."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, in the shapes of both gateways. `body` fills the time in."""

    code: int
    head: bytes
    tail: bytes | None
    asgi_headers: tuple[tuple[bytes, bytes], ...]
    wsgi_headers: Headers
    wsgi_status: str
    draining: bool = False
    """The connection should end with this answer, where the protocol has a word for that."""

    def body(self, wall: float) -> bytes:
        """`wall` is now, as Unix seconds."""
        return self.head if self.tail is None else b"%b%.3f%b" % (self.head, wall, self.tail)


def make_reply(
    report: Report, *, format_: Format, level: Level, wall: float, max_age: int = 0, headers: Headers = ()
) -> Reply:
    """Render a report, leaving out as many checks as it takes to stay within LONGEST_BODY."""
    rendering = _within_cap(report, RENDERERS[format_], level, wall)
    cache = f"max-age={max_age}" if format_ is Format.HEALTH_JSON else "no-store"
    # A scraper throws away what does not come with 200; the figures themselves tell what is wrong.
    code = 200 if format_ is Format.OPENMETRICS else report.code
    own = (("Cache-Control", cache), ("Vary", "Accept"), *rendering.headers, *headers)
    return _reply(code, format_.media_type, rendering, own, wall, draining=report.state is State.DRAINING)


def _within_cap(
    report: Report, render: Callable[[Report, Level], Rendering], level: Level, wall: float
) -> Rendering:
    rendering = render(report, level)
    # The worst come first, so that what is left out is what matters least.
    worst_first = sorted(report.views, key=lambda view: (-view.status.badness, not view.check.critical))
    shown = len(worst_first)
    while rendering.length(wall) > LONGEST_BODY and shown:
        shown = shown * 3 // 4
        kept = {view.check.name for view in worst_first[:shown]}
        views = tuple(view for view in report.views if view.check.name in kept)
        rendering = render(replace(report, views=views, hidden=len(report.views) - shown), level)
    return rendering


def _reply(
    code: int, media_type: str, rendering: Rendering, headers: Headers, wall: float, *, draining: bool = False
) -> Reply:
    every = (
        ("Content-Type", media_type),
        # The timestamp has three decimals: its length, like this one, stays the same until the year 2286.
        ("Content-Length", str(rendering.length(wall))),
        ("X-Content-Type-Options", "nosniff"),
        *headers,
    )
    return Reply(
        code=code,
        head=rendering.head,
        tail=rendering.tail,
        asgi_headers=tuple(
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in every
        ),
        wsgi_headers=every,
        wsgi_status=f"{code} {HTTPStatus(code).phrase}",
        draining=draining,
    )


def _fixed(code: int, text: bytes) -> Reply:
    headers = (("Allow", ALLOW), ("Cache-Control", "no-store"))
    reply = _reply(code, "text/plain; charset=utf-8", Rendering(text), headers, 0.0)
    if code != HTTPStatus.NO_CONTENT:
        return reply
    kept = tuple(header for header in reply.wsgi_headers if not header[0].startswith("Content-"))
    lower = tuple(header for header in reply.asgi_headers if not header[0].startswith(b"content-"))
    return replace(reply, wsgi_headers=kept, asgi_headers=lower)


OPTIONS = _fixed(204, b"")
METHOD_NOT_ALLOWED = _fixed(405, b"405 Method Not Allowed: health is asked for with GET or HEAD\n")
NOT_FOUND = _fixed(404, b"404 Not Found: there is no check of that name\n")
