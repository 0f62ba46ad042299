"""Suites that other people wrote, unchanged, over three replicas: where nothing is wrong nothing is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.suites import SUITES, fetched, ran


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Downloaded once for a checkout, as the cache of pytest is."""
    cache = request.config.cache
    return Path(cache.mkdir("suites")) if cache is not None else tmp_path_factory.mktemp("suites")


def source_of(name: str, sources: Path) -> Path:
    try:
        return fetched(SUITES[name], sources)
    except subprocess.CalledProcessError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{SUITES[name].source} could not be downloaded from the package index")


@pytest.mark.parametrize(
    ("name", "isolation", "tests", "spread"),
    [
        ("flaskr", "auto", 24, 12),
        ("flaskr", "clone", 24, 12),
        ("httpbin", "auto", 70, 11),
        ("httpbin", "clone", 70, 11),
    ],
)
def test_a_suite_of_a_sound_app_passes_and_nothing_is_said(
    sources: Path, tmp_path: Path, name: str, isolation: str, tests: int, spread: int
) -> None:
    folder = tmp_path / name
    shutil.copytree(source_of(name, sources), folder)
    outcome = ran(SUITES[name], folder, "--replicas=3", f"--replica-isolation={isolation}")
    assert (outcome.passed, outcome.failed) == (tests, 0), outcome.output
    assert outcome.report is not None
    assert outcome.report.findings == []
    assert (outcome.report.tests, outcome.report.spread) == (tests, spread)
    (how,) = outcome.report.apps.values()
    assert how == ("module" if isolation == "auto" else "clone")
