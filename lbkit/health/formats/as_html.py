"""A small page for a person: each check with its state, age and latency, the figures as bars.

It loads nothing and runs nothing: the one style sheet is in the page, and the policy names it by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from lbkit.health.access import Level
from lbkit.health.formats.rendering import Rendering, iso, output_of
from lbkit.health.report import Endpoint, Report
from lbkit.health.standing import CheckView
from lbkit.health.status import Status
from lbkit.health.vitals import breaches

__all__ = ["render"]

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--line:#e3e6ea;--ink:#1b1f24;--soft:#616a75;
--good:#14693c;--warn:#835300;--bad:#b3202f;--goodbg:#e4f5ec;--warnbg:#fdf1d8;--badbg:#fde7e9}
@media(prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#181c22;--line:#2a3038;--ink:#e8ebef;--soft:#9aa4b0;
--good:#56d393;--warn:#f0b94d;--bad:#ff7b86;--goodbg:#12301f;--warnbg:#362909;--badbg:#3b151a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:46rem;margin:0 auto;padding:2rem 1rem 3rem}
h1{font-size:1.35rem;margin:0;overflow-wrap:anywhere}
h2{font-size:.8rem;letter-spacing:.07em;text-transform:uppercase;color:var(--soft);margin:2rem 0 .6rem}
.soft{color:var(--soft);font-size:.875rem;margin:.2rem 0 0}
header{display:flex;gap:.5rem 1rem;flex-wrap:wrap;align-items:center;justify-content:space-between}
.pill{display:inline-block;border-radius:99px;padding:.1rem .7rem;font-size:.875rem;font-weight:600;
white-space:nowrap}
.pill.big{font-size:1rem;padding:.35rem 1.1rem}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
.pill.good{background:var(--goodbg)}.pill.warn{background:var(--warnbg)}.pill.bad{background:var(--badbg)}
ul{list-style:none;margin:0;padding:0;background:var(--card);border:1px solid var(--line);border-radius:10px}
li{padding:.75rem 1rem;display:flex;gap:.25rem 1rem;flex-wrap:wrap;align-items:center}
li+li{border-top:1px solid var(--line)}
li b{flex:1 1 9rem;overflow-wrap:anywhere}
li .soft{margin:0;font-variant-numeric:tabular-nums}
li p{flex:1 0 100%;margin:0;font-size:.875rem;overflow-wrap:anywhere}
svg{flex:1 1 5rem;height:.6rem;border-radius:99px;display:block;min-width:4rem}
.track{fill:var(--line)}.fill{fill:currentColor}
.figure{flex:0 0 4rem;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.name{flex:0 0 4.5rem}
@media(max-width:34rem){li .soft{flex:1 0 100%;order:1}li p{order:2}}
""".strip()

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = (
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
)

TONES = {"healthy": "good", "degraded": "warn", "starting": "warn", "draining": "warn", "unknown": "warn"}
TITLES = {
    Endpoint.HEALTH: "health",
    Endpoint.LIVE: "liveness",
    Endpoint.READY: "readiness",
    Endpoint.STARTUP: "startup",
    Endpoint.DETAILED: "health in detail",
    Endpoint.CHECK: "one check",
}
REFRESH = 5
"""Seconds after which the page loads itself again."""


def render(report: Report, level: Level) -> Rendering:
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f'<meta http-equiv="refresh" content="{REFRESH}">',
        f"<title>{escape(report.status)} · {escape(report.service.name)}</title>",
        f"<style>{STYLE}</style></head><body><main>",
        *_header(report),
        *(_details(report, level) if level is not Level.STATUS_ONLY else ()),
        "</main></body></html>\n",
    ]
    return Rendering("\n".join(parts).encode("utf-8", "replace"), headers=HEADERS)


def _header(report: Report) -> list[str]:
    service = report.service
    return [
        f"<header><div><h1>{escape(service.name)}</h1>",
        f'<p class="soft">{TITLES[report.endpoint]} · version {escape(service.version)}</p></div>',
        _pill(report.status, "big"),
        "</header>",
    ]


def _details(report: Report, level: Level) -> list[str]:
    parts = [f'<p class="soft">{_facts(report)}</p>']
    if report.error is not None:
        parts.append(f'<p class="bad">{escape(report.error)}</p>')
    if report.views:
        parts += ["<h2>Checks</h2><ul>", *(_check(view, level) for view in report.views), "</ul>"]
    elif report.endpoint in (Endpoint.DETAILED, Endpoint.READY):
        parts.append('<h2>Checks</h2><p class="soft">None is registered.</p>')
    if report.hidden:
        parts.append(f'<p class="soft">and {report.hidden} more</p>')
    if report.endpoint is Endpoint.DETAILED:
        parts += _vitals(report)
    return [*parts, *(f'<p class="warn">{escape(warning)}</p>' for warning in report.warnings)]


def _facts(report: Report) -> str:
    words = [report.state.value]
    if report.endpoint is Endpoint.DETAILED:
        words.append(f"up {_ago(report.uptime)}")
    if report.service.instance is not None:
        words.append(report.service.instance)
    return escape(" · ".join(words))


def _check(view: CheckView, level: Level) -> str:
    parts = [f"<li><b>{escape(view.check.name)}</b>"]
    if view.response_ms is not None and view.age_ms is not None and view.wall is not None:
        when = f'<time datetime="{iso(view.wall)}">{_ago(view.age_ms / 1000)} ago</time>'
        facts = f"{view.response_ms:.1f} ms · {when}"
    else:
        facts = "no result yet"
    parts.append(f'<span class="soft">{facts}{"" if view.check.critical else " · not critical"}</span>')
    parts.append(_pill(view.status.value))
    said = ": ".join(filter(None, (view.error, output_of(view, level))))
    if view.failures > 1:
        said = f"{said} ({view.failures} times in a row)"
    if said:
        parts.append(f'<p class="{_tone(view.status.value)}">{escape(said)}</p>')
    return "".join([*parts, "</li>"])


def _vitals(report: Report) -> list[str]:
    if report.vitals is None:
        return []
    breached = breaches(report.vitals, report.thresholds)
    tone = "bad" if report.thresholds.breach is Status.UNHEALTHY else "warn"
    source = report.vitals.source
    limits = []
    if source.cpu_limit is not None:
        limits.append(f"{source.cpu_limit:g} CPUs")
    if source.memory_limit_bytes is not None:
        limits.append(f"{source.memory_limit_bytes / 2**20:.0f} MiB of memory")
    of = f"of {' and '.join(limits)}" if limits else "of the host"
    bars = [
        _bar(name, value, tone if name in breached else "good")
        for name, value in report.vitals.percentages().items()
        if value is not None
    ]
    return [f'<h2>Figures</h2><ul>{"".join(bars)}</ul><p class="soft">{escape(of)}</p>']


def _bar(name: str, value: float, tone: str) -> str:
    width = f"{min(100.0, max(0.0, value)):.1f}%"
    return (
        f'<li><span class="name">{name}</span>'
        f'<svg class="{tone}" role="img" aria-label="{name} {value:.1f} percent">'
        '<rect class="track" width="100%" height="100%"/>'
        f'<rect class="fill" width="{width}" height="100%"/></svg>'
        f'<span class="figure {tone}">{value:.1f} %</span></li>'
    )


def _pill(word: str, more: str = "") -> str:
    return f'<span class="{" ".join(filter(None, ("pill", more, _tone(word))))}">{escape(word)}</span>'


def _tone(word: str) -> str:
    return TONES.get(word, "bad")


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0.0, seconds):.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
