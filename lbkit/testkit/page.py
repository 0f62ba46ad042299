"""The report of a run as one HTML page: what depends on the replica, and every dispatch on a timeline.

It loads nothing and runs nothing: the one style sheet is in the page, and its policy names it by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape

from lbkit.testkit.findings import Finding, Oracle, Report, Row
from lbkit.testkit.terminal import became, chaos, notes, verdict

__all__ = ["render"]

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--line:#e3e6ea;--ink:#1b1f24;--soft:#5b6570;
--good:#14693c;--warn:#835300;--bad:#b3202f;--goodbg:#e4f5ec;--warnbg:#fdf1d8;--badbg:#fde7e9;
--a:#3566d6;--b:#0f8a83;--c:#a3480f;--d:#8443c4;--e:#5b6570}
@media(prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#181c22;--line:#2a3038;--ink:#e8ebef;--soft:#9aa4b0;
--good:#56d393;--warn:#f0b94d;--bad:#ff7b86;--goodbg:#12301f;--warnbg:#362909;--badbg:#3b151a;
--a:#86a8ff;--b:#4fd1c7;--c:#f0a06a;--d:#c79bff;--e:#9aa4b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:70rem;margin:0 auto;padding:2.2rem 1.2rem 4rem}
h1{font-size:1.5rem;line-height:1.3;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:.8rem;letter-spacing:.07em;text-transform:uppercase;color:var(--soft);margin:2.4rem 0 .6rem}
h3{font:600 1rem/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:0;overflow-wrap:anywhere}
p{margin:.25rem 0}
.soft{color:var(--soft);font-size:.9rem}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem;
margin:.7rem 0}
.card.real{border-left:4px solid var(--bad)}
.verdict{font-weight:600}
.figures{display:flex;flex-wrap:wrap;gap:.7rem;margin:1.4rem 0 0}
.figures div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem 1.1rem;
flex:1 1 9rem}
.figures b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:.8rem -.2rem .4rem;padding:0 .2rem .3rem}
table.lanes{border-collapse:separate;border-spacing:0 3px;font-size:.85rem}
table.lanes th{font-weight:600;text-align:left;padding:.3rem .9rem .3rem 0;white-space:nowrap;
position:sticky;left:0;background:var(--card)}
table.lanes td{padding:.15rem .3rem;border-bottom:1px solid var(--line);min-width:2.2rem}
.pill{display:inline-block;border-radius:7px;padding:.2rem .6rem;white-space:nowrap;
font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--goodbg);color:var(--good)}
.pill.warn{background:var(--warnbg)}.pill.bad{background:var(--badbg)}.pill.warn{color:var(--warn)}
.pill.bad{color:var(--bad)}
.time{display:grid;grid-template-columns:auto 1fr;gap:0 .9rem;align-items:center}
.time b{font-size:.9rem;white-space:nowrap}
.time svg{display:block;width:100%;height:2rem}
.time .scale{grid-column:2;display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem}
.track{fill:var(--line);opacity:.45}
.r0{color:var(--a)}.r1{color:var(--b)}.r2{color:var(--c)}.r3{color:var(--d)}.r4{color:var(--e)}
.hit{fill:currentColor}.hit.bad{fill:var(--bad)}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--soft)}
table.rows{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}
table.rows th{text-align:left;color:var(--soft);font-weight:500}
table.rows td,table.rows th{padding:.2rem .8rem .2rem 0;border-bottom:1px solid var(--line);
white-space:nowrap}
table.rows td.wide{white-space:normal;overflow-wrap:anywhere;min-width:14rem}
@media(max-width:40rem){main{padding:1.4rem .8rem 3rem}h1{font-size:1.25rem}}
""".strip()

_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"

TITLES = {
    Oracle.BOOT: "Replicas that were started alike and are not",
    Oracle.STATE: "Memory that a request changed, and that other replicas do not see",
    Oracle.DIFFERENCE: "Pages that depend on which replica answers",
    Oracle.DISK: "Files that one replica wrote and another one read",
}
MOST_DRAWN = 3000
MOST_LISTED = 400
MOST_IN_A_TEST = 40
WIDTH = 1000.0
COLOURS = 5


def render(report: Report, *, headline: str) -> str:
    """The whole page."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(headline)}</title>",
        f"<style>{STYLE}</style></head><body><main>",
        *_header(report, headline),
        *_tests(report),
        *(part for oracle, title in TITLES.items() for part in _things(report.of(oracle), title)),
        *_timeline(report.rows),
        *_notes(report),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _header(report: Report, headline: str) -> Iterator[str]:
    tone = "bad" if any(_is_real(finding) for finding in report.findings) else "good"
    apps = ", ".join(report.apps) or "no app"
    how = f"{report.isolation} isolation, {report.policy.replace('_', ' ')}"
    if report.struck is not None and report.struck.rates:
        how += f", {chaos(report.struck)}"
    yield f'<header><h1 class="{tone}">{escape(headline)}</h1>'
    yield f'<p class="soft">{report.replicas} &times; <code>{escape(apps)}</code>, {escape(how)}</p></header>'
    counts = Counter(row.replica for row in report.rows)
    spread = ", ".join(f"{name} {counts[name]}" for name in sorted(counts)) or "none"
    yield '<div class="figures">'
    yield f'<div><b>{report.tests}</b><span class="soft">tests</span></div>'
    yield f'<div><b>{report.spread}</b><span class="soft">reached two replicas or more</span></div>'
    yield f'<div><b>{len(report.rows)}</b><span class="soft">requests: {escape(spread)}</span></div>'
    boot = f"{report.boot_seconds * 1000:.0f} ms"
    yield f'<div><b>{boot}</b><span class="soft">to start the replicas</span></div>'
    if (struck := report.struck) is not None:
        yield f'<div><b>{struck.requests}</b><span class="soft">{escape(became(struck))}</span></div>'
    yield "</div>"


def _is_real(finding: Finding) -> bool:
    return finding.verdict is None or finding.verdict.real


def _tests(report: Report) -> Iterator[str]:
    failed = report.of(Oracle.ASSERTION)
    if failed:
        yield "<h2>Tests that fail on several replicas</h2>"
    for finding in sorted(failed, key=lambda each: not _is_real(each)):
        rows = [row for row in report.rows if row.test in (finding.what, *finding.tests)]
        yield f'<section class="card{" real" if _is_real(finding) else ""}"><h3>{escape(finding.what)}</h3>'
        if finding.verdict is not None:
            tone = "bad" if finding.verdict.real else "warn"
            yield f'<p class="verdict {tone}">{escape(verdict(finding))}</p>'
        yield from _lanes(rows)
        for state in finding.state:
            yield f'<p><span class="soft">wrote</span> <code>{escape(state)}</code></p>'
        yield _remedy(finding)
        if finding.again is not None:
            yield f'<p><span class="soft">again:</span> <code>{escape(finding.again)}</code></p>'
        yield "</section>"


def _lanes(rows: Sequence[Row]) -> Iterator[str]:
    """The requests of one test: a line for each replica, a column for each request."""
    if not rows:
        return
    shown = rows[:MOST_IN_A_TEST]
    yield '<div class="scroll"><table class="lanes">'
    for replica in sorted({row.replica for row in shown}):
        cells = "".join(f"<td>{_pill(row) if row.replica == replica else ''}</td>" for row in shown)
        yield f"<tr><th scope=row>{escape(replica)}</th>{cells}</tr>"
    yield "</table></div>"
    if len(rows) > len(shown):
        yield f'<p class="soft">and {len(rows) - len(shown)} more requests</p>'


def _pill(row: Row) -> str:
    status = "-" if row.status is None else str(row.status)
    text = f"{row.method} {row.path}"
    short = text if len(text) <= 34 else f"{text[:33]}…"
    pill = f'<span class="pill {_tone(row)}" title="{escape(text)}">{escape(short)} {status}</span>'
    return pill + _attempts(row)


def _attempts(row: Row) -> str:
    """Who was asked, when something went wrong."""
    return f'<br><span class="soft">{escape(", ".join(row.attempts))}</span>' if row.attempts else ""


def _tone(row: Row) -> str:
    if row.status is None or row.status >= 500:
        return "bad"
    return "warn" if row.status >= 400 else "good"


def _things(findings: Sequence[Finding], title: str) -> Iterator[str]:
    if not findings:
        return
    yield f"<h2>{escape(title)}</h2>"
    for finding in findings:
        times = f" · {finding.times} times" if finding.times > 1 else ""
        yield f'<section class="card real"><h3>{escape(finding.what)}</h3>'
        if finding.where or times:
            yield f'<p class="soft"><code>{escape(finding.where or "")}</code>{times}</p>'
        if finding.requests:
            yield f"<p><code>{escape(' → '.join(finding.requests))}</code></p>"
        yield f"{_remedy(finding)}</section>"


def _remedy(finding: Finding) -> str:
    return f'<p><span class="soft">fix:</span> {escape(finding.remedy)}</p>' if finding.remedy else ""


def _timeline(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    drawn = rows[:MOST_DRAWN]
    end = max(row.at + row.seconds for row in drawn) or 1.0
    yield '<h2>Every request, by replica and time</h2><div class="card"><div class="time">'
    for index, replica in enumerate(sorted({row.replica for row in drawn})):
        hits = "".join(_hit(row, end) for row in drawn if row.replica == replica)
        count = sum(row.replica == replica for row in drawn)
        yield f'<b class="r{index % COLOURS}">{escape(replica)}</b>'
        yield (
            f'<svg class="r{index % COLOURS}" viewBox="0 0 {WIDTH:g} 30" preserveAspectRatio="none" '
            f'role="img" aria-label="{count} requests of {escape(replica)}">'
            f'<rect class="track" x="0" y="14" width="{WIDTH:g}" height="2"/>{hits}</svg>'
        )
    scale = "".join(f"<span>{each:.3g} s</span>" for each in (0, end / 2, end))
    yield f'<span class="scale">{scale}</span></div>'
    if len(rows) > len(drawn):
        yield f'<p class="soft">the first {len(drawn)} of {len(rows)}</p>'
    yield from _listed(rows)
    yield "</div>"


def _hit(row: Row, end: float) -> str:
    x, width = row.at / end * WIDTH, max(1.6, row.seconds / end * WIDTH)
    bad = " bad" if _tone(row) == "bad" else ""
    told = escape(f"{row} · {row.seconds * 1000:.1f} ms · {row.test}")
    place = f'x="{x:.2f}" y="4" width="{width:.2f}" height="22"'
    return f'<rect class="hit{bad}" {place}><title>{told}</title></rect>'


def _listed(rows: Sequence[Row]) -> Iterator[str]:
    yield "<details><summary>as a table</summary>"
    titles = "".join(f"<th>{title}" for title in ("at", "replica", "request", "status", "ms", "test"))
    yield f'<div class="scroll"><table class="rows"><tr>{titles}</tr>'
    for row in rows[:MOST_LISTED]:
        status = "-" if row.status is None else row.status
        yield (
            f"<tr><td>{row.at:.3f} s<td>{escape(row.replica)}"
            f'<td class="wide"><code>{escape(f"{row.method} {row.path}")}</code>{_attempts(row)}'
            f'<td class="{_tone(row)}">{status}<td>{row.seconds * 1000:.1f}'
            f'<td class="wide soft">{escape(row.test)}</tr>'
        )
    yield "</table></div>"
    if len(rows) > MOST_LISTED:
        yield f'<p class="soft">the first {MOST_LISTED} of {len(rows)}</p>'
    yield "</details>"


def _notes(report: Report) -> Iterator[str]:
    odd = [f"{name}: {how}" for name, how in report.apps.items() if how != "module"]
    told = list(notes(report))
    if not (odd or told or report.private):
        return
    yield "<h2>How it was run</h2><div class='card'>"
    if report.private:
        yield f"<p>Each replica has its own copy of <code>{escape(', '.join(report.private))}</code>.</p>"
    yield from (f"<p>{escape(text)}</p>" for text in [*odd, *told])
    yield "</div>"
