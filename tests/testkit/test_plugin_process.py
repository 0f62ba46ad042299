"""`--replica-isolation process`: the replicas of a suite's app are interpreters that import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lbkit.testkit.findings import Oracle, Verdict
from tests.testkit.suites import Ran, run, seeded

PROCESS = "--replica-isolation=process"
MODULE = "--replica-isolation=module"
FIXTURE = """
@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("shop"))
        Path("uploads").mkdir()
        app = create_app()
        with app.app_context():
            database.create()
        yield app
"""


def shop(folder: Path, bug: str | None = None) -> Path:
    """The shop, whose suite keeps its files where an interpreter without arguments looks for them."""
    seeded(folder, "shop", bug)
    suite = folder / "test_shop.py"
    head, _, rest = suite.read_text().partition("\n@pytest.fixture\ndef app")
    tests = rest[rest.index("\n@pytest.fixture\ndef client") :]
    suite.write_text(f"from pathlib import Path\n{head}{FIXTURE}\n{tests}")
    return folder


def test_an_app_without_a_mistake_gets_no_word_from_interpreters_of_its_own(tmp_path: Path) -> None:
    ran = run(shop(tmp_path), PROCESS, "--replica-diff")
    assert ran.outcomes == {"passed": 5}, ran.output
    assert ran.report is not None
    assert ran.report.findings == []
    assert ran.report.apps == {"shop:create_app": "process"}
    assert {row.replica for row in ran.report.rows} == {"web1", "web2", "web3"}


def test_interpreters_find_the_same_things_at_the_same_places_as_private_modules_do(tmp_path: Path) -> None:
    for bug in ("secret", "sessions", "cache", "lockout", "upload"):
        shop(tmp_path, bug)
    in_processes, in_modules = (run(tmp_path, how, "--replica-classify=no") for how in (PROCESS, MODULE))
    assert things(in_processes) == things(in_modules), in_processes.output
    assert in_processes.outcomes == in_modules.outcomes
    assert {
        (oracle, str(what).partition(" ")[0], where) for oracle, what, where, *_ in things(in_processes)
    } == {
        (Oracle.BOOT, 'app.config["SECRET_KEY"]', "shop/keys.py:5"),
        (Oracle.STATE, "shop.sessions.STORE", "shop/sessions.py:7"),
        (Oracle.STATE, "shop.texts.CACHE", "shop/texts.py:3"),
        (Oracle.STATE, "shop.lockout.FAILS", "shop/lockout.py:1"),
        (Oracle.DISK, "web3", None),
    }


def things(ran: Ran) -> list[tuple[Any, ...]]:
    """What was found besides failed tests."""
    assert ran.report is not None, ran.output
    found = [each for each in ran.report.findings if each.oracle is not Oracle.ASSERTION]
    return [(each.oracle, each.what, each.where, each.times, each.requests, each.remedy) for each in found]


def test_a_test_that_fails_over_interpreters_is_told_what_they_have_written(tmp_path: Path) -> None:
    (test,) = run(shop(tmp_path, "sessions"), PROCESS).found(Oracle.ASSERTION)
    assert test.what == "test_shop.py::test_the_cart_is_remembered"
    assert test.verdict is Verdict.CLIENT
    assert test.state[0].startswith("shop.sessions.STORE (dict, 0 → 1), written by web2 POST /login")


WHO = """
import os
from fastapi import FastAPI, WebSocket

app = FastAPI()

@app.get("/pid")
def pid():
    return os.getpid()

@app.websocket("/pid")
async def socket(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text(str(os.getpid()))
    await websocket.close()

@app.websocket("/wait")
async def wait(websocket: WebSocket):
    await websocket.accept()
    await websocket.receive_text()
"""
ASKED = """
import gc
import os

import httpx
import pytest
from starlette.testclient import TestClient
from who import app

def test_a_client_and_a_websocket():
    with TestClient(app) as client:
        pids = [client.get("/pid").json() for _ in range(6)]
        assert len(set(pids)) == 3 and os.getpid() not in pids
        with client.websocket_connect("/pid") as websocket:
            assert int(websocket.receive_text()) in pids

def test_a_client_that_leaves_closes_its_connection():
    with TestClient(app) as client, client.websocket_connect("/wait"):
        pass
    gc.collect()

def test_each_request_on_a_loop_of_its_own():
    client = TestClient(app)
    assert len({client.get("/pid").json() for _ in range(6)}) == 3

@pytest.mark.anyio
async def test_httpx():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert len({(await client.get("/pid")).json() for _ in range(6)}) == 3

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.single_replica("it looks into the process")
def test_the_test_process_itself():
    assert TestClient(app).get("/pid").json() == os.getpid()
"""


def test_each_kind_of_client_reaches_the_interpreters(tmp_path: Path) -> None:
    (tmp_path / "who.py").write_text(WHO)
    (tmp_path / "test_who.py").write_text(ASKED)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    ran = run(tmp_path, PROCESS, "-p", "anyio")
    assert ran.outcomes == {"passed": 5}, ran.output


MADE = """
import os
import flask

def create_app(greeting="hello"):
    app = flask.Flask(__name__)
    app.get("/")(lambda: f"{greeting} {os.getpid()}")
    return app
"""


@pytest.mark.parametrize(
    ("made", "options", "how"),
    [
        ("create_app()", [], {"made:create_app": "process"}),
        ("create_app('hi')", ["--replica-app=made:create_app()"], {"made:create_app": "process"}),
        (
            "create_app('hi')",
            [],
            {
                "made:create_app(...)": "module: no process: made:create_app(...) was called with arguments, "
                "which a new interpreter does not have"
            },
        ),
    ],
)
def test_what_a_new_interpreter_cannot_make_is_made_of_modules_and_the_report_says_why(
    tmp_path: Path, made: str, options: list[str], how: dict[str, str]
) -> None:
    (tmp_path / "made.py").write_text(MADE)
    pids = 3 if "process" in how.values() else 1
    (tmp_path / "test_made.py").write_text(
        "from made import create_app\n"
        "def test_it():\n"
        f"    client = {made}.test_client()\n"
        f"    assert len({{client.get('/').text for _ in range(6)}}) == {pids}\n"
    )
    ran = run(tmp_path, PROCESS, *options)
    assert ran.outcomes == {"passed": 1}, ran.output
    assert ran.report is not None
    assert ran.report.apps == how
    assert pids == 3 or "no process: " in ran.output


def test_an_app_that_other_interpreters_cannot_import_is_not_silently_left_alone(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(f"import os\nos.environ['TK_MADE'] += '!'\n{MADE}")
    (tmp_path / "test_made.py").write_text(
        "import os\n"
        "os.environ['TK_MADE'] = ''\n"
        "from made import create_app\n"
        "def test_it(monkeypatch):\n"
        "    monkeypatch.delenv('TK_MADE')\n"
        "    assert create_app().test_client().get('/').status_code == 200\n"
    )
    ran = run(tmp_path, PROCESS)
    assert ran.report is not None
    (how,) = ran.report.apps.values()
    assert how.startswith("clone: ")
    assert "no process: replica web1 failed to start: importing made raised KeyError: 'TK_MADE'" in how
