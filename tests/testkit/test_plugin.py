"""What a suite may do while its app is three replicas: change it by hand, mark tests, use other plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lbkit.errors import ConfigError
from lbkit.testkit import clone
from lbkit.testkit.findings import Oracle, Report, Verdict
from tests.testkit.suites import run

FLASK = """
import flask
from tk_app import limits

def clock():
    return "noon"

class Prices:
    tax = 7
    def of(self, item):
        return limits.PRICE + self.tax

prices = Prices()
stock = {"tea": 1}

def create_app():
    app = flask.Flask(__name__)
    app.config["GREETING"] = "hello"

    @app.get("/all")
    def all():
        greeting = flask.current_app.config["GREETING"]
        return [clock(), prices.of("tea"), stock, greeting, getattr(flask.current_app, "extra", None)]

    @app.get("/fail")
    def fail():
        raise limits.SoldOut("tea")

    return app
"""
FASTAPI = """
from fastapi import Depends, FastAPI

app = FastAPI()
app.state.name = "shop"

def user():
    return "nobody"

@app.get("/me")
def me(name: str = Depends(user)):
    return [name, app.state.name]
"""
LIMITS = """
PRICE = 1

class SoldOut(Exception):
    pass
"""
SUITE = '''
import importlib
from unittest import mock

import pytest
import tk_app
from tk_app import limits


@pytest.fixture
def client():
    app = tk_app.create_app()
    app.testing = True
    return app.test_client()


def everywhere(client, path="/all"):
    """What all replicas answer."""
    answers = [client.get(path).json for _ in range(6)]
    assert all(answer == answers[0] for answer in answers), answers
    return answers[0]


def test_monkeypatch(client, monkeypatch):
    assert everywhere(client) == ["noon", 8, {"tea": 1}, "hello", None]
    monkeypatch.setattr(tk_app, "clock", lambda: "midnight")
    monkeypatch.setattr("tk_app.limits.PRICE", 100)
    monkeypatch.setattr(tk_app.Prices, "tax", 1)
    monkeypatch.setitem(tk_app.stock, "milk", 2)
    assert everywhere(client) == ["midnight", 101, {"tea": 1, "milk": 2}, "hello", None]


def test_it_is_all_back(client):
    assert everywhere(client) == ["noon", 8, {"tea": 1}, "hello", None]


def test_mock(client):
    with mock.patch("tk_app.clock", return_value="dawn") as clock, mock.patch.object(tk_app.prices, "tax", 2):
        with mock.patch.dict(tk_app.stock, {"bread": 1}, clear=True):
            assert everywhere(client) == ["dawn", 3, {"bread": 1}, "hello", None]
    assert clock.call_count == 6
    assert everywhere(client) == ["noon", 8, {"tea": 1}, "hello", None]


def test_assignment(client):
    limits.PRICE = 5
    try:
        assert everywhere(client)[1] == 12
    finally:
        limits.PRICE = 1
    assert everywhere(client)[1] == 8


def test_app(client):
    client.application.config["GREETING"] = "good day"
    client.application.extra = 3
    assert everywhere(client)[3:] == ["good day", 3]
    client.application.config.update(GREETING="hi")
    assert everywhere(client)[3:] == ["hi", 3]


def test_routes():
    app = tk_app.create_app()

    @app.get("/mine")
    def mine():
        return ["mine"]

    assert everywhere(app.test_client(), "/mine") == ["mine"]


def test_error(client):
    for _ in range(3):
        with pytest.raises(limits.SoldOut):
            client.get("/fail")


def test_reload(client, monkeypatch):
    limits.PRICE = 50
    importlib.reload(limits)
    assert everywhere(client)[1] == 8
'''
API_SUITE = """
import httpx
import pytest
from starlette.testclient import TestClient
from tk_api import app, user


@pytest.fixture(scope="module")
def client():
    with TestClient(app) as client:
        yield client


def everywhere(client):
    answers = [client.get("/me").json() for _ in range(6)]
    assert all(answer == answers[0] for answer in answers), answers
    return answers[0]


def test_override(client):
    app.dependency_overrides[user] = lambda: "ann"
    assert everywhere(client)[0] == "ann"
    app.dependency_overrides.clear()
    assert everywhere(client)[0] == "nobody"


def test_state(client):
    client.app.state.name = "other shop"
    assert everywhere(client) == ["nobody", "other shop"]
    app.state.name = "shop"


def test_route(client):
    @app.get("/mine")
    async def mine():
        return "mine"

    assert [client.get("/mine").json() for _ in range(3)] == ["mine"] * 3


@pytest.mark.anyio
async def test_httpx():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        assert [(await client.get("/me")).json()[0] for _ in range(3)] == ["nobody"] * 3


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tk_app").mkdir()
    (tmp_path / "tk_app" / "__init__.py").write_text(FLASK)
    (tmp_path / "tk_app" / "limits.py").write_text(LIMITS)
    (tmp_path / "tk_api.py").write_text(FASTAPI)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    return tmp_path


def test_what_a_test_does_to_a_flask_app_and_its_modules_all_replicas_see(folder: Path) -> None:
    (folder / "test_app.py").write_text(SUITE)
    ran = run(folder)
    assert ran.outcomes == {"passed": 8}, ran.output
    assert ran.report is not None
    assert (ran.report.findings, ran.report.spread) == ([], 8)


def test_what_a_test_does_to_a_fastapi_app_all_replicas_see_behind_each_client(folder: Path) -> None:
    (folder / "test_api.py").write_text(API_SUITE)
    ran = run(folder, "-p", "anyio.pytest_plugin")
    assert ran.outcomes == {"passed": 4}, ran.output
    assert ran.report is not None
    assert (ran.report.findings, ran.report.spread) == ([], 4)
    assert ran.report.apps == {"tk_api:app": "module"}


COUNTER = """
import flask
COUNT = []
def create_app():
    app = flask.Flask(__name__)
    @app.get("/")
    def count():
        COUNT.append(1)
        return str(len(COUNT))
    return app
"""
COUNTER_SUITE = """
import pytest, tk_count

@pytest.fixture
def client():
    return tk_count.create_app().test_client()

def ask(client):
    return [int(client.get("/").text) for _ in range(3)]

def test_spread(client):
    assert ask(client) == [1, 2, 3]

@pytest.mark.single_replica("it counts")
def test_single(client):
    first = int(client.get("/").text)
    assert ask(client) == [first + 1, first + 2, first + 3]
"""


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    (tmp_path / "tk_count.py").write_text(COUNTER)
    (tmp_path / "test_count.py").write_text(COUNTER_SUITE)
    return tmp_path


def test_a_marked_test_is_asked_of_one_replica(counter: Path) -> None:
    ran = run(counter, "--replica-classify=no", "-p", "no:lbkit.testkit.fixtures")
    assert ran.outcomes == {"failed": 1, "passed": 1}, ran.output
    assert [each.what for each in ran.found(Oracle.ASSERTION)] == ["test_count.py::test_spread"]


def test_the_workers_of_xdist_report_as_one(counter: Path) -> None:
    for number in range(3):
        (counter / f"test_{number}.py").write_text(COUNTER_SUITE.replace("[1, 2, 3]", "[1, 1, 1]"))
    (counter / "test_count.py").unlink()
    ran = run(counter, "-p", "xdist.plugin", "-n2", "--dist=loadfile", "--replica-classify=no")
    assert ran.report is not None, ran.output
    assert (ran.report.tests, ran.report.spread) == (6, 3)
    (state,) = ran.found(Oracle.STATE)
    assert state.what.startswith("tk_count.COUNT (list")
    assert state.times == 21
    assert len(ran.report.rows) == 21


def test_the_junit_file_of_a_run_in_workers_has_the_properties_of_a_run_without(counter: Path) -> None:
    (counter / "test_more.py").write_text(COUNTER_SUITE)
    files = {"-n0": counter / "alone.xml", "-n2": counter / "workers.xml"}
    for workers, file in files.items():
        options = ["-p", "xdist.plugin", workers, "--dist=loadfile", "--replica-classify=no"]
        run(counter, *options, f"--junitxml={file}")
    alone, workers = (properties(file) for file in files.values())
    assert workers == alone
    assert (alone["lbkit.replicas"], alone["lbkit.tests_on_two_replicas"]) == ("3", "2")
    assert (alone["lbkit.apps"], alone["lbkit.found.state"]) == ("tk_count:create_app()", "1")


def properties(file: Path) -> dict[str, str]:
    suite = ElementTree.parse(file).getroot().find("testsuite")
    assert suite is not None
    return {each.attrib["name"]: each.attrib["value"] for each in suite.iterfind("properties/property")}


def test_a_verdict_of_state_that_sticky_clients_do_not_save(counter: Path) -> None:
    suite = COUNTER_SUITE.replace("[int(client.get", "[int(tk_count.create_app().test_client().get")
    (counter / "test_count.py").write_text(suite)
    (test,) = run(counter, "-k", "spread").found(Oracle.ASSERTION)
    assert test.verdict is Verdict.GLOBAL


def test_a_test_that_fails_anyway_is_not_the_replicas_fault(counter: Path) -> None:
    (counter / "test_count.py").write_text("def test_it():\n    assert False\n")
    ran = run(counter)
    (test,) = ran.found(Oracle.ASSERTION)
    assert test.verdict is Verdict.ALONE
    assert "nothing that 1 test touches depends on which replica answers" in ran.output


def test_an_app_that_the_test_makes_is_cloned_and_the_report_says_why(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import flask, os\n"
        "def test_it():\n"
        "    app = flask.Flask('mine')\n"
        "    app.get('/')(lambda: str(os.getpid()))\n"
        "    client = app.test_client()\n"
        "    assert len({client.get('/').text for _ in range(6)}) == 3\n"
    )
    ran = run(tmp_path)
    assert ran.outcomes == {"passed": 1}, ran.output
    assert ran.report is not None
    (how,) = ran.report.apps.values()
    assert (
        how == "clone: Flask cannot be made once more: it was made by the test itself, not by a function or "
        "module of the project"
    )
    assert "Flask: clone: " in ran.output


def test_an_import_that_works_once_only_falls_back_to_clones(tmp_path: Path) -> None:
    (tmp_path / "tk_once.py").write_text(
        "import flask, logging\n"
        "if logging.getLogger('tk_once').disabled: raise OSError('port in use')\n"
        "logging.getLogger('tk_once').disabled = True\n"
        "app = flask.Flask(__name__)\n"
        "app.get('/')(lambda: 'yes')\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import tk_once\ndef test_it():\n    assert tk_once.app.test_client().get('/').text == 'yes'\n"
    )
    ran = run(tmp_path)
    assert ran.outcomes == {"passed": 1}, ran.output
    assert ran.report is not None
    (how,) = ran.report.apps.values()
    assert how.startswith(
        "clone: replica web2 failed to start: importing tk_once again raised OSError: port in use"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas=0"], "need at least 1 replica, got --replicas 0"),
        (["--replicas=2", "--replica-private=shoop"], "there is no package shoop to copy for each replica"),
        (["--replicas=2", "--replica-policy=best"], "need a policy of round_robin, random, sticky"),
        (
            ["--replicas=2", "--replica-isolation=vm"],
            "need an isolation of auto, module, clone, process, none, got 'vm'",
        ),
    ],
)
def test_a_wrong_option_is_one_line(counter: Path, options: list[str], said: str) -> None:
    ran = run(counter, *options, replicas=None)
    assert ran.code == 4
    assert f"ERROR: {said}" in ran.output


def test_without_fork_clone_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(
        ConfigError, match=r"isolation clone needs os.fork, which .* does not have: use module"
    ):
        clone.need_fork()


def test_without_replicas_nothing_is_patched(counter: Path) -> None:
    (counter / "test_count.py").write_text(
        "import builtins, importlib, pathlib, sys\n"
        "import werkzeug.test, starlette.testclient, httpx, flask, lbkit\n"
        "OURS = pathlib.Path(lbkit.__file__).parent\n"  # a checkout may be called lbkit, too
        "def test_it():\n"
        "    for each in (werkzeug.test.Client.run_wsgi_app, starlette.testclient.TestClient.__init__,\n"
        "                 httpx.ASGITransport.__init__, flask.Flask.__init__, importlib.reload):\n"
        "        assert not hasattr(each, '__wrapped__')\n"
        "        assert OURS not in pathlib.Path(each.__code__.co_filename).parents\n"
        "    assert type(builtins.__import__).__name__ == 'builtin_function_or_method'\n"
        "    assert 'lbkit.testkit.run' not in sys.modules and 'lbkit.testkit.kit' not in sys.modules\n"
    )
    assert run(counter, replicas=None).outcomes == {"passed": 1}


def test_pytest_finds_the_plugin_by_itself_beside_others(counter: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    report = counter / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-k", "single"),
            *("--replicas=3", "--replica-classify=no", f"--replica-report={report}"),
        ],
        cwd=counter,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Report.from_json(report.read_text()).tests == 1


TWO_TESTS = """
import tk_count

def test_one():
    assert tk_count.create_app().test_client().get("/").text == "1"

def test_two():
    assert tk_count.create_app().test_client().get("/").text == "1"
"""


@pytest.mark.parametrize(
    ("fresh", "outcomes"), [("test", {"passed": 2}), ("session", {"failed": 1, "passed": 1})]
)
def test_copies_live_as_long_as_they_are_asked_to(
    counter: Path, fresh: str, outcomes: dict[str, int]
) -> None:
    (counter / "test_count.py").write_text(TWO_TESTS)
    ran = run(counter, f"--replica-fresh={fresh}", "--replica-policy=one", "--replica-classify=no")
    assert ran.outcomes == outcomes, ran.output


def test_an_app_that_tests_put_together_themselves_is_made_as_one_is_told(counter: Path) -> None:
    (counter / "test_count.py").write_text(
        "import tk_count\n"
        "class Wrapped:\n"
        "    def __init__(self): self.app = tk_count.create_app()\n"
        "    def __call__(self, environ, start_response): return self.app(environ, start_response)\n"
        "def test_it():\n"
        "    from werkzeug.test import Client\n"
        "    client = Client(Wrapped())\n"
        "    assert sorted(client.get('/').text for _ in range(3)) == ['1', '1', '1']\n"
    )
    ran = run(counter, "--replica-app=tk_count:create_app()")
    assert ran.outcomes == {"passed": 1}, ran.output
    assert ran.report is not None
    assert ran.report.apps == {"tk_count:create_app()": "module"}
    wrong = run(counter, "--replica-app=tk_count")
    assert "need module:app or module:create_app(), got --replica-app 'tk_count'" in wrong.output


def test_coverage_sees_the_lines_that_any_replica_runs(counter: Path) -> None:
    (counter / "test_count.py").write_text(TWO_TESTS.replace('== "1"', "in '12'"))
    variables = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ["-q", "-p", "lbkit.testkit.plugin", "--replicas=3", "--replica-policy=one"]
    for command in (
        ["run", "--include=tk_count.py", "-m", "pytest", *options],
        ["report", "--fail-under=100"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "coverage", *command],
            cwd=counter,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_async_test_asks_replicas_that_run_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "tk_slow.py").write_text(
        "import asyncio, sys\n"
        "from starlette.applications import Starlette\n"
        "from starlette.responses import JSONResponse\n"
        "from starlette.routing import Route\n"
        "SEEN = []\n"
        "async def slow(request):\n"
        "    SEEN.append(1)\n"
        "    await asyncio.sleep(0.01)\n"
        "    import tk_slow\n"
        "    return JSONResponse([len(SEEN), tk_slow.SEEN is SEEN, sys.modules['tk_slow'].SEEN is SEEN])\n"
        "app = Starlette(routes=[Route('/', slow)])\n"
    )
    (tmp_path / "test_slow.py").write_text(
        "import asyncio, httpx2, pytest, tk_slow\n"
        "@pytest.mark.asyncio\n"
        "async def test_it():\n"
        "    transport = httpx2.ASGITransport(app=tk_slow.app)\n"
        "    async with httpx2.AsyncClient(transport=transport, base_url='http://t') as client:\n"
        "        answers = await asyncio.gather(*(client.get('/') for _ in range(3)))\n"
        "    assert [each.json() for each in answers] == [[1, True, True]] * 3\n"
    )
    ran = run(tmp_path, "-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
    assert ran.outcomes == {"passed": 1}, ran.output


IN_MEMORY = """
import flask, sqlite3
MINE = sqlite3.connect(":memory:")
MINE.execute("CREATE TABLE own (x)")

def create_app(database):
    app = flask.Flask(__name__)
    app.database = sqlite3.connect(database)

    @app.post("/")
    def add():
        app.database.execute("INSERT INTO item VALUES (1)")
        app.database.commit()
        return ""

    @app.get("/")
    def count():
        return str(app.database.execute("SELECT count(*) FROM item").fetchone()[0])

    @app.get("/own")
    def own():
        MINE.execute("INSERT INTO own VALUES (1)")
        return str(MINE.execute("SELECT count(*) FROM own").fetchone()[0])

    return app
"""


def test_the_in_memory_database_of_a_test_is_the_one_that_replicas_share(tmp_path: Path) -> None:
    (tmp_path / "tk_memory.py").write_text(IN_MEMORY)
    (tmp_path / "test_memory.py").write_text(
        "import pytest, sqlite3, tk_memory\n"
        "@pytest.mark.parametrize('number', range(3))\n"
        "def test_it(number):\n"
        "    app = tk_memory.create_app(':memory:')\n"
        "    app.database.execute('CREATE TABLE item (x)')\n"
        "    client = app.test_client()\n"
        "    for _ in range(3): client.post('/')\n"
        "    assert [client.get('/').text for _ in range(3)] == ['3'] * 3\n"
        "    assert sqlite3.connect(':memory:').execute('SELECT * FROM sqlite_master').fetchall() == []\n"
        "    if not number: assert [client.get('/own').text for _ in range(3)] == ['1'] * 3\n"
    )
    ran = run(tmp_path)
    assert ran.outcomes == {"passed": 3}, ran.output
    assert "3 in-memory SQLite databases were shared" in ran.output
    assert "3 in-memory SQLite databases were shared" in run(tmp_path, "-p", "xdist.plugin", "-n2").output


def test_forked_replicas_with_copies_of_a_database_in_memory_are_no_finding(tmp_path: Path) -> None:
    (tmp_path / "tk_memory.py").write_text(IN_MEMORY)
    (tmp_path / "test_memory.py").write_text(
        "import tk_memory\n"
        "def test_it():\n"
        "    app = tk_memory.create_app(':memory:')\n"
        "    app.database.execute('CREATE TABLE item (x)')\n"
        "    client = app.test_client()\n"
        "    for _ in range(3): client.post('/')\n"
        "    assert client.get('/').text == '3'\n"
    )
    ran = run(tmp_path, "--replica-isolation=clone")
    (test,) = ran.found(Oracle.ASSERTION)
    assert test.verdict is Verdict.HARNESS
    assert "nothing that 1 test touches depends on which replica answers" in ran.output


MANAGED = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

lived = []

@asynccontextmanager
async def lifespan(app):
    lived.append("started")
    yield {"number": len(lived), "app": id(app)}
    lived.append("stopped")

async def home(request):
    return JSONResponse([request.state.number, request.state.app == id(request.app), request.state.app])

def create_app():
    return Starlette(routes=[Route("/", home)], lifespan=lifespan)
"""
MANAGED_SUITE = """
import httpx, pytest
from asgi_lifespan import LifespanManager
from tk_managed import create_app, lived

def client(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

@pytest.mark.asyncio
async def test_it():
    async with LifespanManager(create_app()) as manager:
        async with client(manager.app) as ann, client(manager.app) as bob:
            answers = [(await each.get("/")).json() for each in (ann, bob) for _ in range(3)]
        assert {(number, own) for number, own, _ in answers} == {(1, True)}
        assert len({app for _, _, app in answers[:3]}) == len({app for _, _, app in answers[3:]}) == SEEN
        assert lived == ["started"]
    assert lived == ["started", "stopped"]
"""


@pytest.mark.parametrize(("policy", "seen", "replicas"), [("round_robin", 3, 3), ("sticky", 1, 2)])
def test_a_lifespan_manager_runs_a_lifespan_for_each_replica_and_its_state_reaches_them(
    tmp_path: Path, policy: str, seen: int, replicas: int
) -> None:
    (tmp_path / "tk_managed.py").write_text(MANAGED)
    (tmp_path / "test_managed.py").write_text(MANAGED_SUITE.replace("SEEN", str(seen)))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    ran = run(tmp_path, "-p", "pytest_asyncio.plugin", "--replica-classify=no", f"--replica-policy={policy}")
    assert ran.outcomes == {"passed": 1}, ran.output
    assert ran.report is not None
    assert ran.report.apps == {"tk_managed:create_app()": "module"}
    assert len(ran.report.rows) == 6
    assert len({row.replica for row in ran.report.rows}) == replicas
