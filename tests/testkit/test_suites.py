"""Suites that other people wrote, unchanged, over three replicas: where nothing is wrong nothing is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.suites import SUITES, fetched, interpreter, is_as_known, ran


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Downloaded once for a checkout, as the cache of pytest is."""
    cache = request.config.cache
    return Path(cache.mkdir("suites")) if cache is not None else tmp_path_factory.mktemp("suites")


def provided(name: str, sources: Path) -> tuple[Path, str]:
    """The suite's source, and a Python that has what it needs."""
    try:
        return fetched(SUITES[name], sources), interpreter(name, SUITES[name], sources)
    except subprocess.CalledProcessError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{SUITES[name].source} could not be had from the package index")


@pytest.mark.parametrize(
    ("name", "isolation", "tests", "spread"),
    [
        ("flaskr", "auto", 24, 12),
        ("flaskr", "clone", 24, 12),
        ("httpbin", "auto", 70, 11),
        ("httpbin", "clone", 70, 11),
        ("isso", "auto", 113, 51),  # its tests make the app themselves: there is no recipe for it
    ],
)
def test_a_suite_of_a_sound_app_passes_and_nothing_is_said(
    sources: Path, tmp_path: Path, name: str, isolation: str, tests: int, spread: int
) -> None:
    source, python = provided(name, sources)
    folder = tmp_path / name
    shutil.copytree(source, folder)
    over = ("--replicas=3", f"--replica-isolation={isolation}")
    outcome = ran(SUITES[name], folder, *over, python=python)
    assert (outcome.passed, outcome.failed) == (tests, 0), outcome.output
    assert outcome.report is not None
    assert outcome.report.findings == []
    assert (outcome.report.tests, outcome.report.spread) == (tests, spread)
    hows = {how.partition(":")[0] for how in outcome.report.apps.values()}
    assert hows == {"module" if isolation == "auto" and name != "isso" else "clone"}


@pytest.mark.timeout(600)  # it has an environment to make, and 1,399 tests
def test_what_is_wrong_in_the_examples_of_fastapi_is_found_and_nothing_else(
    sources: Path, tmp_path: Path
) -> None:
    suite, (source, python) = SUITES["fastapi"], provided("fastapi", sources)
    folder = tmp_path / "fastapi"
    shutil.copytree(source, folder)
    outcome = ran(suite, folder, "--replicas=3", python=python)
    assert is_as_known(suite, outcome), outcome.output
    assert outcome.report is not None
    assert outcome.report.tests > 1300
    assert outcome.report.spread > 150


def test_a_suite_of_a_sound_app_passes_while_its_replicas_die(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flaskr"
    source, python = provided("flaskr", sources)
    shutil.copytree(source, folder)
    outcome = ran(SUITES["flaskr"], folder, "--replicas=3", "--replica-chaos=kill=.1", python=python)
    assert (outcome.passed, outcome.failed) == (24, 0), outcome.output
    assert outcome.report is not None
    assert outcome.report.findings == []
    struck = outcome.report.struck
    assert struck is not None
    assert struck.hits["kill"] > 0
    assert (struck.elsewhere, struck.lost) == (struck.requests, 0)
