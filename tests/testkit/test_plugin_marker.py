"""`@pytest.mark.replicas(5, isolation="process")`: one test has other replicas than the rest of its suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testkit.suites import run

APP = """
import os
import flask

HITS = []

def create_app():
    app = flask.Flask(__name__)

    @app.get("/")
    def hit():
        HITS.append(1)
        return [os.getpid(), len(HITS)]

    return app
"""
SUITE = """
import os
import pytest
from hits import create_app

@pytest.fixture
def answers():
    client = create_app().test_client()
    return lambda: [client.get("/").json for _ in range(30)]

def each_is_asked_alike(answers, count):
    assert sorted(hits for _, hits in answers) == sorted([*range(1, 30 // count + 1)] * count)

def test_as_many_as_the_run_has(answers):
    each_is_asked_alike(answers(), 3)

@pytest.mark.replicas(5, isolation="clone")
def test_more_of_another_kind(answers):
    given = answers()
    assert len({pid for pid, _ in given}) == 5 and os.getpid() in {pid for pid, _ in given}

@pytest.mark.replicas(2, isolation="process")
def test_fewer_in_processes(answers):
    given = answers()
    each_is_asked_alike(given, 2)
    assert len({pid for pid, _ in given}) == 2 and os.getpid() not in {pid for pid, _ in given}

@pytest.mark.replicas(1)
def test_one(answers):
    given = answers()
    assert {pid for pid, _ in given} == {os.getpid()} and given[-1][1] - given[0][1] == 29
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hits.py").write_text(APP)
    return tmp_path


def test_a_test_has_as_many_replicas_and_of_the_kind_that_it_is_marked_with(folder: Path) -> None:
    (folder / "test_hits.py").write_text(SUITE)
    ran = run(folder, "--replica-classify=no")
    assert ran.outcomes == {"passed": 4}, ran.output
    assert ran.report is not None
    reached = {row.test.partition("::")[2]: set[str]() for row in ran.report.rows}
    for row in ran.report.rows:
        reached[row.test.partition("::")[2]].add(row.replica)
    assert {test: len(names) for test, names in reached.items()} == {
        "test_as_many_as_the_run_has": 3,
        "test_more_of_another_kind": 5,
        "test_fewer_in_processes": 2,
        "test_one": 1,
    }


def test_without_replicas_the_marker_changes_nothing(folder: Path) -> None:
    (folder / "test_hits.py").write_text(
        "import os, pytest\nfrom hits import create_app\n"
        "@pytest.mark.replicas(3, isolation='process')\n"
        "def test_it():\n"
        "    client = create_app().test_client()\n"
        "    assert [client.get('/').json for _ in range(3)] == [[os.getpid(), n] for n in (1, 2, 3)]\n"
    )
    assert run(folder, replicas=None).outcomes == {"passed": 1}


@pytest.mark.parametrize("replicas", [None, 3])
def test_the_cluster_of_a_marked_test_has_its_faults(folder: Path, replicas: int | None) -> None:
    (folder / "test_hits.py").write_text(
        "import pytest\nfrom lbkit.testkit import error, slow\n"
        "@pytest.mark.replicas(2, faults=[slow(0.001), error(418)])\n"
        "def test_it(cluster, lb_client):\n"
        "    assert [lb_client.get('/').status_code for _ in range(4)] == [418] * 4\n"
        "    assert len(cluster) == 2\n"
        "    assert cluster.trace[0].attempts[0].injected == 'slow(0.001), error(418)'\n"
    )
    ran = run(folder, "-o", "replica_app=hits:create_app()", replicas=replicas)
    assert ran.outcomes == {"passed": 1}, ran.output


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("replicas(0)", "need at least 1 replica, got replicas(0)"),
        (
            "replicas(2, isolation='vm')",
            "need an isolation of auto, module, clone, process, none, got 'vm'",
        ),
        (
            "replicas(faults=['kill'])",
            "need faults such as hang() or error(503), got replicas(faults=['kill'])",
        ),
    ],
)
def test_a_wrong_marker_is_one_line(folder: Path, marker: str, said: str) -> None:
    (folder / "test_hits.py").write_text(f"import pytest\n@pytest.mark.{marker}\ndef test_it():\n    pass\n")
    ran = run(folder)
    assert ran.code == 4
    assert f"ERROR: test_hits.py::test_it: {said}" in ran.output
