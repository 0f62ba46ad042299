"""A pytest plugin for the fresh processes that confirm a verdict: writes each test's outcome to a file."""

from __future__ import annotations

import json
import os

import pytest

__all__ = ["VARIABLE", "pytest_runtest_logreport"]

VARIABLE = "LBKIT_OUTCOMES"
"""The file's name is in this environment variable."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = os.environ.get(VARIABLE)
    if file:
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps([report.nodeid, report.failed]) + "\n")
