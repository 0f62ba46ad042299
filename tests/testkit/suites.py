"""Runs somebody's suite over replicas, as a user would: pytest in a process and a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lbkit.testkit.findings import Finding, Oracle, Report

SEEDED = Path(__file__).parent / "seeded"


@dataclass(frozen=True)
class Ran:
    code: int
    output: str
    report: Report | None

    @property
    def outcomes(self) -> dict[str, int]:
        """`{"passed": 24, "failed": 1}`"""
        last = self.output.strip().splitlines()[-1]
        return {
            word.rstrip("s") if word == "errors" else word: int(n)
            for n, word in re.findall(r"(\d+) (\w+)", last)
        }

    def found(self, oracle: Oracle) -> list[Finding]:
        assert self.report is not None, self.output
        return self.report.of(oracle)


def run(folder: Path, *arguments: str, replicas: int | None = 3) -> Ran:
    """Run pytest in a folder. The options of our own suite do not count there."""
    report = folder / "replicas.json"
    options = [f"--replicas={replicas}", f"--replica-report={report}"] if replicas else []
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "LBKIT"))}
    plain = ["-q", "-p", "lbkit.testkit.plugin", "-p", "no:cacheprovider", *options, *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain],
        cwd=folder,
        env={**variables, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    text = report.read_text() if report.exists() else None
    # stdout last: it ends with the outcomes, and an interpreter may say something at any time.
    return Ran(done.returncode, done.stderr + done.stdout, Report.from_json(text) if text else None)


def seeded(folder: Path, app: str, bug: str | None = None) -> Path:
    """A copy of the shop or the chat with its suite, and one bug put over it."""
    if not (folder / app).exists():
        shutil.copytree(SEEDED / "clean" / app, folder / app)
    shutil.copy(SEEDED / "clean" / f"suite_{app}.py", folder / f"test_{app}.py")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    if bug is not None:
        shutil.copytree(SEEDED / "bugs" / bug, folder, dirs_exist_ok=True)
    return folder
