"""Whose fault is it that a test fails over replicas? Fresh processes are asked: no earlier test left a trace.

=========  ==============  ==============  ==============  ==========================================
without    one isolated    replicas again  sticky clients  verdict
replicas   replica
=========  ==============  ==============  ==============  ==========================================
fails      -               -               -               ALONE: the test's own
passes     fails           -               -               INSIDE, when a request of the test has
                                                           changed memory; else HARNESS: undecided
passes     passes          passes          -               PASSING: undecided
passes     passes          fails           passes          CLIENT: state per client, in one process
passes     passes          fails           fails           GLOBAL: state of all, in one process
=========  ==============  ==============  ==============  ==========================================
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbkit.testkit.findings import Verdict
from lbkit.testkit.outcomes import VARIABLE

__all__ = ["Rerun", "kept", "verdict"]

DROPPED = {
    # option: how many arguments follow it
    "--replicas": 1,
    "--replica-policy": 1,
    "--replica-report": 1,
    "--replica-classify": 1,
    "--replica-diff": 0,
    "-n": 1,
    "--numprocesses": 1,
    "--dist": 1,
    "--maxfail": 1,
    "-x": 0,
    "--exitfirst": 0,
    "--lf": 0,
    "--last-failed": 0,
    "--ff": 0,
    "--failed-first": 0,
    "--sw": 0,
    "--stepwise": 0,
    "-k": 1,
    "-m": 1,
    "--junitxml": 1,
    "--junit-xml": 1,
    "--cov": 0,
    "--cov-report": 1,
    "--cov-fail-under": 1,
    "--pdb": 0,
}
MOST = 200
PATIENCE = 600.0
"""Seconds that the fresh processes have together."""


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """How to run some tests of this run again, by themselves."""

    program: tuple[str, ...]
    options: tuple[str, ...]
    folder: Path
    replicas: int

    def outcomes(self, tests: Sequence[str]) -> dict[str, dict[str, bool]]:
        """For each trial, which of the tests passed in it. A test that did not run is not in there."""
        trials = {
            "without": ["-p", "lbkit.testkit.outcomes"],
            "one": self._over(2, "one"),
            "again": self._over(self.replicas, "round_robin"),
            "sticky": self._over(self.replicas, "sticky"),
        }
        with tempfile.TemporaryDirectory(prefix="lbkit-") as folder:
            files = {name: Path(folder, name) for name in trials}
            running = [self._start(trials[name], tests, files[name]) for name in trials]
            for process in running:
                finish(process)
            return {name: passed(file) for name, file in files.items()}

    def _over(self, replicas: int, policy: str) -> list[str]:
        return [
            "-p",
            "lbkit.testkit.outcomes",
            f"--replicas={replicas}",
            f"--replica-policy={policy}",
            "--replica-classify=no",
            "--no-replica-watch",
        ]

    def _start(self, options: list[str], tests: Sequence[str], file: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - pytest, as the user has started it
            [*self.program, *self.options, *options, *tests[:MOST]],
            cwd=self.folder,
            env={**os.environ, VARIABLE: str(file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def verdict(test: str, outcomes: dict[str, dict[str, bool]], *, state: bool = False) -> Verdict:
    """What the outcomes say of a test; `state` is whether it has changed memory.

    One that could not be run again is not confirmed.
    """
    ran = {trial: passing[test] for trial, passing in outcomes.items() if test in passing}
    if ran.get("without") is False:
        return Verdict.ALONE
    if len(ran) < len(outcomes):
        return Verdict.UNCONFIRMED
    if not ran["one"]:
        return Verdict.INSIDE if state else Verdict.HARNESS
    if ran["again"]:
        return Verdict.PASSING
    return Verdict.CLIENT if ran["sticky"] else Verdict.GLOBAL


def program() -> tuple[str, ...]:
    """pytest, started as this one was: `python -m pytest` puts the working directory on the path."""
    name = Path(sys.argv[0]).name
    return (
        (sys.executable, sys.argv[0]) if name in ("pytest", "py.test") else (sys.executable, "-m", "pytest")
    )


def kept(arguments: Iterable[str], tests: Iterable[str]) -> tuple[str, ...]:
    """The arguments of a run without what selects tests and what must not happen twice."""
    paths, left, skip = set(tests), [], 0
    for argument in arguments:
        name = argument.partition("=")[0]
        if skip:
            skip -= 1
        elif name in DROPPED:
            skip = DROPPED[name] if "=" not in argument else 0
        elif name.startswith("-n") and name[2:].isdigit():
            continue
        elif argument not in paths:
            left.append(argument)
    return tuple(left)


def finish(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def passed(file: Path) -> dict[str, bool]:
    """Each test's outcome: it passed if none of its phases failed."""
    outcomes: dict[str, bool] = {}
    if file.exists():
        for line in file.read_text("utf-8").splitlines():
            test, failed = json.loads(line)
            outcomes[test] = outcomes.get(test, True) and not failed
    return outcomes
