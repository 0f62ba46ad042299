"""A shop and a chat with one mistake each: the oracle that should notice does, and no other says a word."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lbkit.testkit.findings import Finding, Oracle, Verdict
from tests.testkit.suites import SEEDED, Ran, run, seeded


def others(ran: Ran, *but: Oracle) -> list[Finding]:
    assert ran.report is not None, ran.output
    return [finding for finding in ran.report.findings if finding.oracle not in but]


@pytest.mark.parametrize(
    ("app", "tests", "touched"), [("shop", 5, "5 tests touch"), ("chat", 1, "1 test touches")]
)
def test_an_app_without_a_mistake_gets_no_word(tmp_path: Path, app: str, tests: int, touched: str) -> None:
    ran = run(seeded(tmp_path, app), "--replica-diff")
    assert ran.outcomes == {"passed": tests}, ran.output
    assert others(ran) == []
    assert f"nothing that {touched} depends on which replica answers" in ran.output


def test_a_random_secret_key_is_a_difference_between_replicas_that_have_booted(tmp_path: Path) -> None:
    ran = run(seeded(tmp_path, "shop", "secret"))
    (boot,) = ran.found(Oracle.BOOT)
    assert boot.what == 'app.config["SECRET_KEY"] differs on web1, web2, web3'
    assert boot.where == "shop/keys.py:5"
    (test,) = ran.found(Oracle.ASSERTION)
    assert test.what == "test_shop.py::test_the_cart_is_remembered"
    assert test.verdict is Verdict.CLIENT
    assert test.remedy == boot.remedy
    assert others(ran, Oracle.BOOT, Oracle.ASSERTION) == []


def test_sessions_in_a_dict_fail_a_test_and_the_dict_is_named(tmp_path: Path) -> None:
    ran = run(seeded(tmp_path, "shop", "sessions"))
    (test,) = ran.found(Oracle.ASSERTION)
    assert test.verdict is Verdict.CLIENT
    assert test.requests == (
        "web2 POST /login 200",
        "web3 POST /cart 200",
        "web1 POST /cart 200",
        "web2 GET /cart 200",
    )
    assert test.state[0].startswith("shop.sessions.STORE (dict, 0 → 1), written by web2 POST /login")
    (state,) = ran.found(Oracle.STATE)
    assert (state.what, state.where, state.times) == (
        "shop.sessions.STORE (dict, 0 → 1)",
        "shop/sessions.py:7",
        3,
    )
    assert "Redis" in state.remedy
    assert others(ran, Oracle.STATE, Oracle.ASSERTION) == []


@pytest.mark.parametrize(
    ("bug", "what", "where", "remedy"),
    [
        ("cache", "shop.texts.CACHE (dict, 0 → 1)", "shop/texts.py:3", "a shared cache"),
        (
            "lockout",
            "shop.lockout.FAILS (dict, 0 → 1)",
            "shop/lockout.py:1",
            "a counter that all replicas share",
        ),
        (
            "limit",
            "shop.limits.limiter.hits (dict, 0 → 1)",
            "shop/limits.py:17",
            "a counter that all replicas share",
        ),
    ],
)
def test_memory_that_no_test_minds_is_seen_by_the_state_watch(
    tmp_path: Path, bug: str, what: str, where: str, remedy: str
) -> None:
    ran = run(seeded(tmp_path, "shop", bug))
    assert ran.outcomes == {"passed": 5}
    (state,) = ran.found(Oracle.STATE)
    assert (state.what, state.where) == (what, where)
    assert state.remedy.startswith(remedy)
    assert state.requests
    assert others(ran, Oracle.STATE) == []


def test_a_file_that_another_replica_reads_is_seen_by_the_disk_watch(tmp_path: Path) -> None:
    (disk,) = run(seeded(tmp_path, "shop", "upload")).found(Oracle.DISK)
    assert disk.what.endswith("uploads/a.png, which web2 wrote")
    assert disk.requests == ("web2 PUT /picture/a.png", "web3 GET /picture/a.png")


def test_a_room_of_one_process_fails_its_test_instead_of_hanging_it(tmp_path: Path) -> None:
    ran = run(seeded(tmp_path, "chat", "room"), "-o", "replicas_receive_timeout=0.5")
    assert ran.outcomes == {"failed": 1}
    assert "no websocket message within 0.5 s; open are: web1 WEBSOCKET /room 101, web2" in ran.output
    (test,) = ran.found(Oracle.ASSERTION)
    assert test.verdict is Verdict.CLIENT
    (state,) = ran.found(Oracle.STATE)
    assert state.what == "chat.hub.hub.connections (list, 0 → 1)"
    assert state.where == "chat/hub.py:19"


def test_a_page_that_another_replica_answers_differently_is_seen_by_asking_all(tmp_path: Path) -> None:
    ran = run(seeded(tmp_path, "shop", "sessions"), "--replica-diff", "--replica-policy=sticky")
    assert ran.outcomes == {"passed": 5}
    (page,) = ran.found(Oracle.DIFFERENCE)
    assert page.what == "GET /cart is answered differently by 3 replicas"
    assert page.tests == ("test_shop.py::test_the_cart_is_remembered",)


def test_state_that_may_differ_is_allowed_by_name(tmp_path: Path) -> None:
    folder = seeded(tmp_path, "shop", "cache")
    seeded(tmp_path, "shop", "lockout")
    test = folder / "test_shop.py"
    marked = '@pytest.mark.stateful_ok("shop.texts.CACHE")\ndef test_a_page('
    test.write_text(test.read_text().replace("def test_a_page(", marked))
    assert run(folder, "-o", "replicas_allow=shop.lockout.*").found(Oracle.STATE) == []


def test_the_wrong_shop_of_the_samples_is_told_what_is_wrong(tmp_path: Path) -> None:
    samples = SEEDED.parent.parent.parent / "sample_apps"
    shutil.copytree(samples / "flask_shop", tmp_path / "sample_apps" / "flask_shop")
    ran = run(tmp_path, "sample_apps/flask_shop/suite.py")
    assert ran.outcomes == {"failed": 1, "passed": 2}, ran.output
    (boot,) = ran.found(Oracle.BOOT)
    assert boot.where == "sample_apps/flask_shop/wrong.py:22"
    (state,) = ran.found(Oracle.STATE)
    assert (state.where, state.times) == ("sample_apps/flask_shop/wrong.py:24", 5)
    (test,) = ran.found(Oracle.ASSERTION)
    assert test.verdict is Verdict.CLIENT
