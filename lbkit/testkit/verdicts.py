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

Nothing goes wrong in these trials. A test that was hit by faults is also run with the run's own policy, once
calm and once with the same faults: if it passes calm and fails struck, it is a FAULT, whatever else. One that
several kinds of fault have hit is run with each kind alone, to tell which it minds.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lbkit.testkit.chaos import CALM
from lbkit.testkit.findings import Verdict
from lbkit.testkit.outcomes import VARIABLE

__all__ = ["NEEDS", "REMEDIES", "Rerun", "kept", "minded", "program", "verdict"]

NEEDS = {
    "kill": "a replica that does not die",
    "hang": "a replica that answers",
    "slow": "a replica that is not slow",
    "error": "a replica that gives no 500",
    "refuse": "a replica that takes each connection",
    "reset": "a replica whose connections do not break",
    "drip": "a replica whose answers come at once",
}
FAILED = "a client has to take 5xx for an answer: repeat what may be repeated, give up the rest"
REMEDIES = {
    "kill": "keep what must outlive a replica out of its memory: in Redis, a database, a signed cookie",
    "slow": "give it more time, or do not count it",
    "drip": "give it more time, or do not count it",
    "error": FAILED,
    "hang": FAILED,
    "refuse": FAILED,
    "reset": FAILED,
}

DROPPED = {
    # option: how many arguments follow it
    "--replicas": 1,
    "--replica-policy": 1,
    "--replica-report": 1,
    "--replica-classify": 1,
    "--replica-diff": 0,
    "--replica-chaos": 1,
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
    steady: tuple[str, ...] = ()
    """More options, for plugins that would run the tests in other processes or in another order."""

    policy: str = "round_robin"
    chaos: str = ""
    """As it was asked for."""

    struck: bool = False
    """Whether something was made to go wrong with one of the tests."""

    alone: tuple[str, ...] = ()
    """Parts of the chaos to be tried each by itself."""

    def command(self, test: str) -> str:
        """What a person types to have it all go wrong again."""
        options = [f"--replicas={self.replicas}", f"--replica-policy={self.policy}"]
        chaos = [f"--replica-chaos={self.chaos}"] if self.chaos else []
        return shlex.join(["pytest", test, *self.options, *options, *chaos])

    def outcomes(self, tests: Sequence[str]) -> dict[str, dict[str, bool]]:
        """For each trial, which of the tests passed in it. A test that did not run is not in there."""
        trials = {
            "without": ["-p", "lbkit.testkit.outcomes"],
            "one": self._over(2, "one"),
            "again": self._over(self.replicas, "round_robin"),
            "sticky": self._over(self.replicas, "sticky"),
            **(self.in_danger() if self.struck else {}),
        }
        with tempfile.TemporaryDirectory(prefix="lbkit-") as folder:
            files = {name: Path(folder, name) for name in trials}
            running = [self._start(trials[name], tests, files[name]) for name in trials]
            for process in running:
                finish(process)
            return {name: passed(file) for name, file in files.items()}

    def in_danger(self) -> dict[str, list[str]]:
        over = partial(self._over, self.replicas, self.policy)
        alone = {part.partition("=")[0]: over(chaos=part) for part in self.alone}
        calm = {"calm": over()} if self.policy != "round_robin" else {}
        return {**calm, "struck": over(chaos=self.chaos), **alone}

    def _over(self, replicas: int, policy: str, *, chaos: str = CALM) -> list[str]:
        return [
            "-p",
            "lbkit.testkit.outcomes",
            f"--replicas={replicas}",
            f"--replica-policy={policy}",
            "--replica-classify=no",
            "--no-replica-watch",
            *([f"--replica-chaos={chaos}"] if chaos else []),
        ]

    def _start(self, options: list[str], tests: Sequence[str], file: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - pytest, as the user has started it
            [*self.program, *self.options, *self.steady, *options, *tests[:MOST]],
            cwd=self.folder,
            env={**os.environ, VARIABLE: str(file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def verdict(
    test: str, outcomes: dict[str, dict[str, bool]], *, state: bool = False, hit: bool = False
) -> Verdict:
    """What the outcomes say of a test; `state` is whether it has changed memory, `hit` whether by faults.

    One that could not be run again is not confirmed.
    """
    ran = {trial: passing[test] for trial, passing in outcomes.items() if test in passing}
    if ran.get("without") is False:
        return Verdict.ALONE
    if len(ran) < len(outcomes):
        return Verdict.UNCONFIRMED
    if not ran["one"]:
        return Verdict.INSIDE if state else Verdict.HARNESS
    if hit and ran.get("calm", ran["again"]) and not ran.get("struck", True):
        return Verdict.FAULT
    if ran["again"]:
        return Verdict.PASSING
    return Verdict.CLIENT if ran["sticky"] else Verdict.GLOBAL


def minded(test: str, faults: Sequence[str], outcomes: dict[str, dict[str, bool]]) -> tuple[str, ...]:
    """Those of the faults that hit a test that fail it alone; all, when none does or none could be tried."""
    alone = tuple(fault for fault in faults if outcomes.get(fault, {}).get(test) is False)
    return alone or tuple(faults)


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
