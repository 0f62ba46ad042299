"""`pytest --replica-chaos kill=.05`: a suite whose requests go wrong, the same way each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbkit.testkit.annotations import junit_properties
from lbkit.testkit.findings import Oracle, Verdict
from lbkit.testkit.verdicts import Rerun, kept, minded, verdict
from tests.testkit.suites import Ran, run, seeded

LOSSLESS = "--replica-chaos=kill=.2,slow=.2"

PLAIN = """
import os
import flask

NEVER_CLOSED = open(os.devnull)

def create_app():
    app = flask.Flask(__name__)
    app.get("/<name>")(lambda name: name)
    return app
"""
MARKED = """
import gc
import pytest
from lbkit.testkit import crash, error, slow
from plain import create_app

@pytest.fixture
def statuses():
    client = create_app().test_client()
    yield lambda: [client.get("/a").status_code for _ in range(6)]
    gc.collect()  # what is collected warns of what it has left open

@pytest.mark.replicas(faults=[slow(0.001), error(503)])
def test_each_request_fails(statuses):
    assert statuses() == [503] * 6

def test_no_request_fails(statuses):
    assert statuses() == [200] * 6

@pytest.mark.replicas(2, faults=[crash()])
def test_one_of_two_dies(statuses):
    assert statuses() == [200] * 6
"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with a suite whose markers ask for faults."""
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "test_plain.py").write_text(MARKED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    return tmp_path


def attempts(ran: Ran) -> dict[str, list[tuple[str, ...]]]:
    """By test, what became of its requests."""
    assert ran.report is not None, ran.output
    told: dict[str, list[tuple[str, ...]]] = {}
    for row in ran.report.rows:
        told.setdefault(row.test, []).append(row.attempts)
    return told


def test_an_app_without_a_mistake_survives_what_the_balancer_makes_good(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    seed = "--replica-seed=4"
    ran = run(seeded(tmp_path, "shop"), LOSSLESS, seed, "-v")
    assert ran.outcomes == {"passed": 5}, ran.output
    assert "round robin, chaos kill=0.2,slow=0.2 (seed 4)" in ran.output
    assert ran.report is not None
    assert ran.report.findings == []
    struck = ran.report.struck
    assert struck is not None
    assert (struck.rates, struck.seed, struck.lost) == ({"kill": 0.2, "slow": 0.2}, 4, 0)
    assert struck.hits.keys() == struck.rates.keys()
    assert struck.elsewhere > 0
    assert f"chaos kill=0.2,slow=0.2 (seed 4): {struck.requests} requests hit" in ran.output
    properties = junit_properties(ran.report)
    assert (properties["lbkit.chaos"], properties["lbkit.seed"]) == ("kill=0.2,slow=0.2", "4")
    run(tmp_path, LOSSLESS, seed, f"--replica-report={page}")
    assert "refused (kill)" in page.read_text("utf-8")
    assert f"<b>{struck.requests}</b>" in page.read_text("utf-8")


def test_sessions_in_a_dict_are_found_though_clients_are_sticky(tmp_path: Path) -> None:
    folder = seeded(tmp_path, "shop", "sessions")
    ran = run(folder, "--replica-policy=sticky", "--replica-chaos=kill=.3", "--replica-seed=4")
    (test,) = ran.found(Oracle.ASSERTION)
    assert test.what == "test_shop.py::test_the_cart_is_remembered"
    assert (test.verdict, test.faults) == (Verdict.FAULT, ("kill",))
    assert any("refused (kill)" in request for request in test.requests)
    assert test.state[0].startswith("shop.sessions.STORE (dict, 0 → 1), written by web1 POST /login")
    assert "Redis" in test.remedy
    assert test.again is not None
    assert test.again.endswith("--replicas=3 --replica-policy=sticky --replica-chaos=kill=0.3")
    assert "--replica-seed=4" in test.again
    assert "1 of 5 tests need replicas that do not fail" in ran.output
    assert "needs a replica that does not die: passes with the same replicas and clients" in ran.output
    assert "lbkit trace" in ran.output


def test_a_test_meets_the_same_faults_alone_in_another_order_and_in_a_worker(plain: Path) -> None:
    chaos = "--replica-chaos=kill=.3,slow=.2"
    in_a_row = run(plain, chaos)
    assert in_a_row.outcomes == {"passed": 3}, in_a_row.output
    told = attempts(in_a_row)
    assert any(map(any, told["test_plain.py::test_no_request_fails"]))
    two = [f"test_plain.py::test_{name}" for name in ("one_of_two_dies", "no_request_fails")]
    assert attempts(run(plain, chaos, *two)) == {test: told[test] for test in two}
    in_workers = run(plain, chaos, "-p", "xdist", "-n2")
    assert attempts(in_workers) == told
    assert in_workers.report is not None
    assert in_a_row.report is not None
    assert in_workers.report.struck == in_a_row.report.struck


def test_a_marker_s_faults_are_for_the_requests_of_its_test(plain: Path) -> None:
    ran = run(plain, "--replica-chaos=slow=1")
    assert ran.outcomes == {"passed": 3}, ran.output
    each = attempts(ran)["test_plain.py::test_each_request_fails"]
    assert {attempt[5:] for asked in each for attempt in asked} == {"503 (slow, slow(0.001), error(503))"}
    struck = ran.report.struck if ran.report is not None else None
    assert struck is not None
    assert struck.hits == {"slow": 19, "slow(0.001)": 6, "error(503)": 6, "crash()": 1}


@pytest.mark.parametrize(
    ("replicas", "options", "said"),
    [
        (3, ["--replica-chaos=explode=.1"], "each of kill, hang, slow, error, refuse, reset, drip once"),
        (3, ["--replica-chaos=kill=2"], "with 0 <= RATE <= 1, got 'kill=2'"),
        (None, ["--replica-chaos=kill=.1"], "need --replicas N, got --replica-chaos 'kill=.1' without it"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, replicas: int | None, options: list[str], said: str
) -> None:
    ran = run(tmp_path, *options, replicas=replicas)
    assert ran.code == 4
    (line,) = [line for line in ran.output.splitlines() if line.startswith("ERROR")]
    assert said in line


def rerun(**more: object) -> Rerun:
    return Rerun(program=("pytest",), options=(), folder=Path(), replicas=3, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("struck", Verdict.FAULT),
        ("struck kill", Verdict.FAULT),
        ("struck calm again sticky", Verdict.GLOBAL),
        ("struck again sticky", Verdict.FAULT),
        ("struck one", Verdict.HARNESS),
        ("struck without", Verdict.ALONE),
        ("", Verdict.PASSING),
    ],
)
def test_a_fault_is_to_blame_when_all_is_well_without_it(failing: str, said: Verdict) -> None:
    trials = ("without", "one", "again", "sticky", "calm", "struck", "kill", "slow")
    outcomes = {trial: {"test_it": trial not in failing.split()} for trial in trials}
    assert verdict("test_it", outcomes, hit=True) is said


def test_a_run_of_round_robin_is_compared_with_the_trial_that_there_is_anyway() -> None:
    outcomes = {trial: {"test_it": True} for trial in ("without", "one", "again", "sticky")}
    outcomes["struck"] = {"test_it": False}
    assert verdict("test_it", outcomes, hit=True) is Verdict.FAULT
    assert verdict("test_it", outcomes, hit=False) is Verdict.PASSING
    assert "calm" not in rerun(chaos="kill=0.1").in_danger()


def test_of_several_faults_those_are_named_that_fail_the_test_alone() -> None:
    outcomes = {"kill": {"test_it": False}, "slow": {"test_it": True}}
    assert minded("test_it", ["slow", "kill"], outcomes) == ("kill",)
    assert minded("test_it", ["slow", "error(503)"], outcomes) == ("slow", "error(503)")


def test_trials_are_calm_but_those_of_the_faults() -> None:
    struck = rerun(policy="sticky", chaos="kill=0.1,slow=0.1", alone=("kill=0.1", "slow=0.1"))
    trials = struck.in_danger()
    chaos = {name: [each for each in options if "chaos" in each] for name, options in trials.items()}
    assert chaos == {
        "calm": ["--replica-chaos=none"],
        "struck": ["--replica-chaos=kill=0.1,slow=0.1"],
        "kill": ["--replica-chaos=kill=0.1"],
        "slow": ["--replica-chaos=slow=0.1"],
    }
    assert all("--replica-policy=sticky" in options for options in trials.values())
    assert kept(["--replica-chaos", "kill=1", "-q", "--replica-chaos=slow=1"], []) == ("-q",)
