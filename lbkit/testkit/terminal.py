"""The report as a person reads it at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator

from lbkit.testkit.chaos import told
from lbkit.testkit.findings import Finding, Oracle, Report, Struck, Verdict
from lbkit.testkit.verdicts import NEEDS

__all__ = ["became", "chaos", "headline", "lines", "notes", "verdict", "wrong"]

TITLES = {
    Oracle.STATE: "memory that a request changed, and that other replicas do not see:",
    Oracle.BOOT: "replicas that were started alike and are not:",
    Oracle.DIFFERENCE: "pages that depend on which replica answers:",
    Oracle.DISK: "files that one replica wrote and another one read:",
}
MANY = 12
FEW = 3


def headline(report: Report) -> str:
    """One line: how many tests depend on which replica answers."""
    real = [finding for finding in report.of(Oracle.ASSERTION) if finding.verdict and finding.verdict.real]
    struck = sum(finding.verdict is Verdict.FAULT for finding in real)
    if len(real) > struck:
        return f"{len(real) - struck} of {report.tests} tests depend on which replica answers{more(struck)}"
    if struck:
        return f"{struck} of {report.tests} tests need replicas that do not fail"
    others = sum(len(report.of(oracle)) for oracle in TITLES)
    if others:
        return f"no test depends on which replica answers, but {others} {plural('thing', others)} would"
    touched = "1 test touches" if report.tests == 1 else f"{report.tests} tests touch"
    return f"nothing that {touched} depends on which replica answers"


def more(struck: int) -> str:
    return f", {struck} more need replicas that do not fail" if struck else ""


def lines(report: Report) -> Iterator[str]:
    yield from about(report)
    failed = report.of(Oracle.ASSERTION)
    for finding in failed:
        yield from of_test(finding)
    for oracle, title in TITLES.items():
        if findings := report.of(oracle):
            yield title
            for finding in findings:
                yield from of_thing(finding)
    yield from coverage(report)
    yield from notes(report)


def about(report: Report) -> Iterator[str]:
    private = ", ".join(report.private) or "no package"
    names = [name for name, how in report.apps.items() if not how.startswith("none")]
    more = [f"and {len(names) - FEW} more apps"] if len(names) > FEW else []
    apps = ", ".join([*names[:FEW], *more])
    yield (
        f"{report.replicas} x {apps or 'no app'}, {report.policy.replace('_', ' ')}; "
        f"each with its own {private}; booted in {report.boot_seconds * 1000:.0f} ms"
    )


def of_test(finding: Finding) -> Iterator[str]:
    yield finding.what
    yield f"    {' → '.join(finding.requests)}"
    if finding.verdict is not None:
        yield f"    {verdict(finding)}"
    for state in finding.state:
        yield f"    state: {state}"
    if finding.verdict is not None and finding.verdict.real:
        yield f"    fix: {finding.remedy}"
    if finding.again is not None:
        yield f"    again: {finding.again}"


def verdict(finding: Finding) -> str:
    """In a line; one that minds faults says which."""
    if finding.verdict is Verdict.FAULT:
        needs = " and ".join(NEEDS.get(fault, f"no {fault}") for fault in finding.faults)
        return f"needs {needs}: {finding.verdict.value}"
    return finding.verdict.value if finding.verdict is not None else ""


def of_thing(finding: Finding) -> Iterator[str]:
    times = f", {finding.times} times" if finding.times > 1 and finding.oracle is Oracle.STATE else ""
    place = f"  {finding.where}" if finding.where else ""
    yield f"    {finding.what}{times}{place}"
    if finding.requests:
        yield f"        {' → '.join(finding.requests)}"
    yield f"        fix: {finding.remedy}"


def coverage(report: Report) -> Iterator[str]:
    yield f"{report.spread} of {report.tests} tests reached two replicas or more"
    if report.struck is not None:
        yield wrong(report.struck)
    for name, how in list(report.apps.items())[:MANY]:
        if how not in ("module", "clone", "process"):
            yield f"    {name}: {how}"


def notes(report: Report) -> Iterator[str]:
    """What was no finding, and why."""
    if report.volatile:
        yield f"{report.volatile} of {report.compared} pages say something else each time: skipped"
    if count := report.shared_databases:
        yield f"{count} in-memory SQLite {'database was' if count == 1 else 'databases were'} shared"


def wrong(struck: Struck) -> str:
    """What was made to go wrong, in a line."""
    count = f"{struck.requests} {plural('request', struck.requests)}"
    return f"{chaos(struck) or 'faults'}: {count} {became(struck)}"


def chaos(struck: Struck) -> str:
    """As it was asked for."""
    return f"chaos {told(struck.rates)} (seed {struck.seed})" if struck.rates else ""


def became(struck: Struck) -> str:
    hits = ", ".join(f"{fault} {times}" for fault, times in struck.hits.items()) or "by nothing"
    return f"hit ({hits}); {struck.elsewhere} answered by another replica, {struck.lost} by none"


def plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
