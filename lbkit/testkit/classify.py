"""What a test that failed is to be blamed for: run it again, and let `verdicts` say what that means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lbkit.testkit.chaos import told
from lbkit.testkit.findings import Finding, Oracle, Report, Verdict
from lbkit.testkit.settings import Settings
from lbkit.testkit.verdicts import REMEDIES, Rerun, kept, minded, program, verdict

__all__ = ["classified"]


def classified(config: pytest.Config, settings: Settings, report: Report) -> list[Finding]:
    """The findings, those of failed tests with a verdict. Runs them again, in fresh processes."""
    failed = [each for each in report.of(Oracle.ASSERTION) if each.verdict is Verdict.UNCONFIRMED]
    if not failed:
        return report.findings
    trials = rerun(config, settings, failed)
    here = {each.what: from_here(config, each.what) for each in failed}
    outcomes = trials.outcomes(list(here.values()))
    return [
        judged(each, outcomes, trials.command(here[each.what])) if each in failed else each
        for each in report.findings
    ]


def judged(finding: Finding, outcomes: dict[str, dict[str, bool]], command: str) -> Finding:
    said = verdict(finding.what, outcomes, state=bool(finding.state), hit=bool(finding.faults))
    if said is not Verdict.FAULT:
        return replace(finding, verdict=said)
    faults = minded(finding.what, finding.faults, outcomes)
    remedy = REMEDIES.get(faults[0], REMEDIES["error"])
    return replace(finding, verdict=said, faults=faults, remedy=remedy, again=command)


def rerun(config: pytest.Config, settings: Settings, failed: Sequence[Finding]) -> Rerun:
    params = config.invocation_params
    mixed = {kind for each in failed if len(each.faults) > 1 for kind in each.faults}
    return Rerun(
        program=program(),
        options=kept(params.args, config.option.file_or_dir),
        steady=tuple(steady(config)),
        folder=Path(params.dir),
        replicas=settings.replicas,
        policy=settings.policy,
        chaos=told(settings.chaos),
        struck=any(each.faults for each in failed),
        alone=tuple(told({kind: rate}) for kind, rate in settings.chaos.items() if kind in mixed),
    )


def steady(config: pytest.Config) -> Iterator[str]:
    """What has other plugins leave the tests in one process and in their order."""
    if config.pluginmanager.hasplugin("xdist"):
        yield "-n0"
    if config.pluginmanager.hasplugin("_cov"):
        yield "--no-cov"
    if config.pluginmanager.hasplugin("randomly"):
        yield from ("-p", "no:randomly")


def from_here(config: pytest.Config, test: str) -> str:
    """A test's id, which is told from the root, for the folder in which pytest was started."""
    path, colons, rest = test.partition("::")
    return os.path.relpath(config.rootpath / path, config.invocation_params.dir) + colons + rest
