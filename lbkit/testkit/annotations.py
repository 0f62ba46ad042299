"""A report for other programs: properties for a JUnit file, and lines that GitHub shows beside the code."""

from __future__ import annotations

from lbkit.testkit.chaos import told
from lbkit.testkit.findings import Finding, Oracle, Report, Struck

__all__ = ["github_lines", "junit_properties"]


def junit_properties(report: Report) -> dict[str, str]:
    """For `<properties>` of a test suite: how it was run, and how much was found."""
    return {
        "lbkit.replicas": str(report.replicas),
        "lbkit.isolation": report.isolation,
        "lbkit.policy": report.policy,
        "lbkit.apps": ", ".join(report.apps),
        "lbkit.tests_on_two_replicas": str(report.spread),
        **_of_chaos(report.struck),
        **{f"lbkit.found.{oracle.value}": str(len(report.of(oracle))) for oracle in Oracle},
    }


def _of_chaos(struck: Struck | None) -> dict[str, str]:
    if struck is None or not struck.rates:
        return {}
    return {"lbkit.chaos": told(struck.rates), "lbkit.seed": str(struck.seed)}


def github_lines(report: Report) -> list[str]:
    """Workflow commands: printed in a GitHub action, each is a warning at its file and line."""
    return [
        f"::warning {_place(finding)}title={_escaped(f'lbkit: {finding.oracle.value}', of_property=True)}::"
        f"{_escaped(f'{finding.what}: {finding.remedy}')}"
        for finding in report.findings
        if finding.verdict is None or finding.verdict.real
    ]


def _place(finding: Finding) -> str:
    file, _, line = (finding.where or "").rpartition(":")
    if not (file and line.isdecimal()):
        return ""
    return f"file={_escaped(file, of_property=True)},line={line},"


def _escaped(text: str, *, of_property: bool = False) -> str:
    for sign in "%\r\n" + (":," if of_property else ""):
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
