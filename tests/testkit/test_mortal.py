"""Requests of a suite's run that go wrong, through both doors: what the client gets, and what was asked."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from lbkit.testkit.faults import Fault, crash, drip, error, hang, refuse, reset, slow
from lbkit.testkit.kit import Kit
from lbkit.testkit.settings import Settings

FLASK = """
import os
import flask

app = flask.Flask(__name__)
app.config["PROPAGATE_EXCEPTIONS"] = True
HITS = []

@app.route("/", methods=["GET", "POST", "PUT"])
def hit():
    HITS.append(1)
    return {"hits": len(HITS), "pid": os.getpid(), "body": flask.request.get_data(as_text=True)}

@app.get("/raises")
def raises():
    raise ZeroDivisionError("the app's own")
"""
STARLETTE = """
import os
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

HITS = []
SAID = []

async def hit(request):
    HITS.append(1)
    body = (await request.body()).decode()
    lives = request.state.lives if hasattr(request.state, "lives") else None
    return JSONResponse({"hits": len(HITS), "pid": os.getpid(), "body": body, "lives": lives})

async def raises(request):
    raise ZeroDivisionError("the app's own")

async def echo(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)

async def talk(websocket):
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())

@asynccontextmanager
async def lifespan(app):
    SAID.append("begins")
    yield {"lives": len(SAID)}
    SAID.append("ends")

app = Starlette(
    routes=[
        Route("/", hit, methods=["GET", "POST", "PUT"]),
        Route("/raises", raises),
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/talk", talk),
    ],
    lifespan=lifespan,
)
"""
NAMES = ("web1", "web2", "web3")


class Suite:
    """A kit, an app, and a client of it."""

    def __init__(self, kind: str, **settings: Any) -> None:
        self.kind = kind
        self.name = f"mortal_{kind}"
        self.module = importlib.import_module(self.name)
        self.kit = Kit(Settings(replicas=3, private=(self.name,), **settings))
        self.door = self.kit.door(self.module.app, self, wsgi=kind == "wsgi")

    def begin(self, *faults: Fault, **asked: Any) -> None:
        self.kit.begin_test("test_it", faults=faults, **asked)

    def client(self) -> httpx.Client:
        if self.kind == "asgi":
            return TestClient(self.door)
        return httpx.Client(transport=httpx.WSGITransport(self.door), base_url="http://test")

    @property
    def told(self) -> list[str]:
        """What the trace has, without the names of the replicas."""
        return [", ".join(str(attempt)[5:] for attempt in row.attempts) for row in self.kit.turn.trace]

    def hits(self) -> int:
        """How often the app has run, in all replicas."""
        copies = (space.modules.get(self.name) for space in self.kit.spaces[1:])
        return sum(len(module.HITS) for module in (self.module, *copies) if module is not None)


Make = Callable[..., Suite]


@pytest.fixture(params=["wsgi", "asgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    (tmp_path / "mortal_wsgi.py").write_text(FLASK)
    (tmp_path / "mortal_asgi.py").write_text(STARLETTE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("lbkit.testkit.mortal.SILENCE", 0.01)
    made: list[Suite] = []

    def suite(kind: str, **settings: Any) -> Suite:
        made.append(Suite(kind, **settings))
        return made[-1]

    yield suite
    for each in made:
        each.kit.close()
        sys.modules.pop(each.name, None)


@pytest.mark.parametrize(
    ("fault", "method", "status", "told", "ran"),
    [
        (slow(0.001), "GET", 200, "200 (slow(0.001))", 1),
        (drip(10_000), "GET", 200, "200 (drip(10000))", 1),
        (error(503), "GET", 503, "503 (error(503))", 0),
        (refuse(), "POST", 502, ", ".join(["refused (refuse())"] * 3), 0),
        (crash(), "POST", 200, "refused (crash()), refused (crash()), 200", 1),
        (hang(), "GET", 504, ", ".join(["timeout (hang())"] * 3), 0),
        (hang(), "POST", 504, "timeout (hang())", 0),
        (hang(at="headers"), "POST", 504, "timeout (hang(at='headers'))", 1),
        (reset(), "GET", 502, ", ".join(["reset (reset())"] * 3), 3),
        (reset(), "POST", 502, "reset (reset())", 1),
    ],
    ids=str,
)
def test_a_client_gets_what_one_behind_a_balancer_would(
    make: Make, kind: str, fault: Fault, method: str, status: int, told: str, ran: int
) -> None:
    suite = make(kind)
    suite.begin(fault)
    assert suite.client().request(method, "/").status_code == status
    # Whose client has left may still be on its way: it ends with its loop, which is over here.
    answers = [each.replace(", zombie", "").replace("(zombie)", "") for each in suite.told]
    assert answers == [told]
    assert suite.hits() == ran


def test_a_request_goes_elsewhere_with_its_body(make: Make, kind: str) -> None:
    suite = make(kind)
    suite.begin(crash())
    assert suite.client().post("/", content="tea").json()["body"] == "tea"


def test_half_an_answer_is_a_broken_transfer_as_the_client_knows_it(make: Make, kind: str) -> None:
    suite = make(kind)
    suite.begin(reset(after_bytes=3))
    client = suite.client()
    with pytest.raises(ConnectionResetError, match=r"replica web\d broke the connection"):
        client.get("/")
    suite.door.client = client
    with pytest.raises(Exception, match=r"replica web\d broke the connection") as broken:
        client.get("/")
    assert type(broken.value).__name__ == "RemoteProtocolError"
    assert all(told.startswith("200, then reset (reset(after_bytes=3)") for told in suite.told)
    assert len(suite.told) == 2


def test_what_an_app_raises_is_its_own_and_asked_once(make: Make, kind: str) -> None:
    suite = make(kind)
    suite.begin(slow(0))
    with pytest.raises(ZeroDivisionError, match="the app's own"):
        suite.client().get("/raises")
    (told,) = suite.told
    assert told.endswith("raised ZeroDivisionError: the app's own (slow(0))")


def test_who_was_killed_is_passed_over_and_comes_back_with_an_empty_memory(make: Make, kind: str) -> None:
    suite = make(kind, chaos={"kill": 0.0})
    suite.begin()
    client = suite.client()
    before = [client.get("/").json()["hits"] for _ in range(6)]
    assert sorted(before) == [1, 1, 1, 2, 2, 2]
    suite.kit.deaths.kill(1)
    assert sorted(client.get("/").json()["hits"] for _ in range(3)) == [1, 3, 3]


def test_the_test_s_own_app_cannot_be_made_anew(make: Make, kind: str) -> None:
    suite = make(kind, chaos={"kill": 0.0})
    suite.begin()
    client = suite.client()
    for _ in range(3):
        client.get("/")
    suite.kit.deaths.kill(0)
    assert sorted(client.get("/").json()["hits"] for _ in range(3)) == [2, 2, 2]


@pytest.mark.parametrize(("kind", "isolation"), [("wsgi", "clone"), ("asgi", "clone"), ("wsgi", "process")])
def test_a_process_is_killed_and_started_again(make: Make, kind: str, isolation: str) -> None:
    suite = make(kind, chaos={"kill": 0.0}, isolation=isolation)
    suite.begin()
    client = suite.client()
    first = {answer["pid"]: answer["hits"] for answer in (client.get("/").json() for _ in range(6))}
    assert len(first) == 3
    suite.kit.deaths.kill(1)
    (dead,) = [pid for pid in first if not lives(pid)]
    again = {answer["pid"]: answer["hits"] for answer in (client.get("/").json() for _ in range(3))}
    assert dead not in again
    at_its_start = first.pop(dead) - 2  # a fork has what was there when it was forked
    (new,) = again.keys() - first.keys()
    assert again.pop(new) == at_its_start + 1
    assert again == {pid: hits + 1 for pid, hits in first.items()}
    suite.kit.end_test()


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_bound_client_of_a_replica_that_dies_is_bound_to_another(make: Make, kind: str) -> None:
    suite = make(kind, policy="sticky", chaos={"kill": 0.0})
    suite.begin()
    client = suite.client()
    client.get("/")
    danger = suite.kit.turn.danger
    assert danger is not None
    home = NAMES.index(suite.kit.turn.trace[-1].replica or "")
    danger.leave(home)
    homes = {suite.kit.turn.trace[-1].replica for _ in range(3) if client.get("/")}
    assert len(homes) == 1
    assert NAMES[home] not in homes


def test_the_same_seed_brings_the_same_again(make: Make, kind: str) -> None:
    def answers(**settings: Any) -> list[tuple[str, ...]]:
        suite = make(kind, chaos={"kill": 0.2, "error": 0.1, "refuse": 0.2}, **settings)
        for test in ("test_a", "test_b"):
            suite.kit.begin_test(test)
            client = suite.client()
            for _ in range(20):
                client.get("/")
        return [tuple(map(str, row.attempts)) for row in suite.kit.turn.trace]

    assert answers() == answers() != answers(seed=1)
    assert any(len(attempts) > 1 for attempts in answers())


def test_the_report_counts_what_went_wrong(make: Make, kind: str) -> None:
    suite = make(kind, chaos={"refuse": 0.0})
    for faults in ([refuse()], [], [crash()], [error(500)]):
        suite.begin(*faults)
        suite.client().get("/")
        suite.kit.end_test()
    struck = suite.kit.report.struck
    assert struck is not None
    assert struck.hits == {"refuse()": 3, "crash()": 2, "error(500)": 1}
    assert (struck.requests, struck.elsewhere, struck.lost) == (3, 1, 1)
    rows = suite.kit.report.rows
    assert [row.status for row in rows] == [502, 200, 200, 500]
    assert [len(row.attempts) for row in rows] == [3, 0, 3, 1]
    assert str(rows[2]).endswith(f"GET / 200 [{', '.join(rows[2].attempts)}]")


def test_a_test_of_one_replica_is_left_alone_unless_it_asks(make: Make, kind: str) -> None:
    suite = make(kind, chaos={"error": 1.0})
    suite.begin(single=True)
    assert suite.client().get("/").status_code == 200
    suite.begin(error(503), single=True)
    assert suite.client().get("/").status_code == 503


def test_a_lifespan_is_cut_with_its_replica_and_begins_anew(make: Make) -> None:
    suite = make("asgi", chaos={"kill": 0.0})
    suite.begin()
    with suite.client() as client:
        assert [client.get("/").json()["lives"] for _ in range(3)] == [1, 1, 1]
        dead = suite.kit.spaces[1].modules[suite.name]
        suite.kit.deaths.kill(1)
        assert [client.get("/").json()["lives"] for _ in range(6)] == [1] * 6
        fresh = suite.kit.spaces[1].modules[suite.name]
    assert fresh is not dead
    assert (dead.SAID, fresh.SAID) == (["begins"], ["begins", "ends"])
    assert suite.module.SAID == ["begins", "ends"]


def test_a_websocket_that_is_refused_goes_to_the_next_replica(make: Make) -> None:
    suite = make("asgi")
    suite.begin(crash())
    with TestClient(suite.door).websocket_connect("/echo") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"
    assert suite.told == ["refused (crash()), refused (crash()), 101"]


@pytest.mark.parametrize("isolation", ["module", "clone"])
def test_an_open_websocket_is_closed_with_1012_when_its_replica_dies(make: Make, isolation: str) -> None:
    suite = make("asgi", chaos={"kill": 0.0}, isolation=isolation)
    suite.begin()
    suite.kit.turn.next = 1  # where the process, if it is one, is not the test's own
    with TestClient(suite.door).websocket_connect("/echo") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"
        suite.kit.deaths.kill(NAMES.index(suite.kit.turn.trace[-1].replica or ""))
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text()
    assert closed.value.code == 1012


@pytest.mark.parametrize("fault", [None, slow(0.001), drip(10_000)], ids=str)
def test_an_app_learns_that_its_websocket_is_left_before_it_is_cancelled(
    make: Make, fault: Fault | None
) -> None:
    suite = make("asgi", chaos={"kill": 0.0})
    suite.begin(*[fault] if fault is not None else [])
    for _ in range(10):
        with pytest.raises(WebSocketDisconnect):  # the app's own, which it does not catch
            talk(suite.door)


def talk(door: Any) -> None:
    with TestClient(door).websocket_connect("/talk") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


def test_a_websocket_is_not_waited_for_when_its_replica_hangs(make: Make) -> None:
    suite = make("asgi")
    suite.begin(hang())
    with pytest.raises(WebSocketDisconnect), TestClient(suite.door).websocket_connect("/echo"):
        pass
    assert suite.told == ["timeout (hang())"]


def test_concurrent_requests_in_a_replica_die_with_it(make: Make) -> None:
    suite = make("asgi")
    suite.begin(slow(5))

    async def cut() -> list[int]:
        transport = httpx.ASGITransport(suite.door)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            inside = [asyncio.create_task(client.post("/")) for _ in range(3)]
            while sum(map(len, suite.kit.deaths.inside.values())) < 3:  # noqa: ASYNC110 (an exact state)
                await asyncio.sleep(0)
            for index in range(3):
                suite.kit.deaths.kill(index)
            return [(await each).status_code for each in inside]

    assert asyncio.run(cut()) == [502, 502, 502]
    assert suite.told == ["reset (slow(5))"] * 3


def test_a_calm_run_is_calm_whatever_the_markers_say(make: Make) -> None:
    suite = make("wsgi", calm=True)
    suite.begin(error(503))
    assert suite.client().get("/").status_code == 200
    assert suite.kit.report.struck is None


HALF = """
import flask
import halfway_settings

if halfway_settings.IMPORTS.read_text() == "x":
    halfway_settings.IMPORTS.write_text("xx")
    raise RuntimeError("the second import fails")
halfway_settings.IMPORTS.write_text("x")

app = flask.Flask(__name__)
app.get("/")(lambda: {"limit": halfway_settings.LIMIT})
"""


def test_a_replica_that_is_made_at_the_second_attempt_has_what_the_test_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imports").write_text("")
    (tmp_path / "halfway_settings.py").write_text(
        f"import pathlib\nLIMIT = 1\nIMPORTS = pathlib.Path({str(tmp_path / 'imports')!r})\n"
    )
    (tmp_path / "halfway.py").write_text(HALF)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("halfway", "halfway_settings")
    app = importlib.import_module("halfway").app
    kit = Kit(Settings(replicas=2, private=names))
    try:
        kit.begin_test("test_it")
        settings = sys.modules["halfway_settings"]
        settings.LIMIT = 3  # type: ignore[attr-defined]
        kit.mirror.touch(settings, "LIMIT", 1)
        transport = httpx.WSGITransport(kit.door(app, kit, wsgi=True))
        with httpx.Client(transport=transport, base_url="http://test") as client:
            assert [client.get("/").json() for _ in range(2)] == [{"limit": 3}] * 2
        assert (tmp_path / "imports").read_text() == "x"
    finally:
        kit.close()
        for name in names:
            sys.modules.pop(name, None)
