"""The fixtures, as a user's own suite meets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.serving import ROOT
from tests.programs import program

FLASK_SHOP = """
import os
from flask import Flask, request, session

CARTS = {}

def create_app():
    app = Flask("shop")
    app.secret_key = "one-for-all"

    @app.post("/login")
    def login():
        session["user"] = request.form["u"]
        return "welcome"

    @app.get("/me")
    def me():
        return session.get("user", "nobody")

    @app.post("/cart")
    def add():
        CARTS.setdefault("ann", []).append(request.json["sku"])
        return {}

    @app.get("/cart")
    def cart():
        return {"items": CARTS.get("ann", [])}

    @app.get("/slow")
    def slow():
        return "done"

    return app
"""

FLASK_TESTS = """
import pytest
from lbkit.testkit import assert_failover, assert_no_lost_requests, assert_spread, error, hang, reset, slow

def test_login_survives_any_replica(lb_client, cluster):
    lb_client.post("/login", data={"u": "ann", "p": "x"})
    for _ in range(6):
        assert b"ann" in lb_client.get("/me").data
    assert_spread(cluster)

@pytest.mark.replicas(3)
def test_deploy_drops_nothing(cluster, lb_aclient):
    with cluster.load(lb_aclient.get, "/slow", rate=50):
        cluster.rolling_restart(drain=5)
    assert_no_lost_requests(cluster)

def test_cart_after_crash(lb_client, cluster):
    lb_client.post("/cart", json={"sku": 1})
    home = cluster.trace[-1].replica
    cluster[home].kill()
    assert lb_client.get("/cart").json["items"] == [1]
    assert_failover(cluster, frm=home)

@pytest.mark.replicas(2, timeout=0.1)
@pytest.mark.parametrize("fault", [hang(), slow(.1), error(503), reset(after_bytes=1)], ids=str)
def test_checkout_is_sent_once(fault, lb_client, cluster):
    with cluster["web1"].inject(fault, path="/login"):
        try:
            lb_client.post("/login", data={"u": "ann"})
        except OSError:
            pass
    assert len(cluster) == 2
    assert sum(attempt.ran for attempt in cluster.trace[0].attempts) <= 1

def test_redis_is_real_and_empty(shared_redis):
    import redis
    client = redis.from_url(shared_redis)
    assert client.dbsize() == 0
    client.set("a", "b")

def test_redis_is_empty_again(shared_redis):
    import redis
    assert redis.from_url(shared_redis).dbsize() == 0

def test_a_real_port(lb_url):
    import httpx
    assert httpx.get(lb_url + "/me").text == "nobody"
"""

CHAT = """
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

ROOM = []

async def chat(socket):
    await socket.accept()
    ROOM.append(socket)
    try:
        while True:
            text = await socket.receive_text()
            for each in ROOM:
                await each.send_text(text)
    except WebSocketDisconnect:
        ROOM.remove(socket)

def create_app():
    return Starlette(routes=[WebSocketRoute("/chat", chat)])
"""

CHAT_TESTS = """
def test_room_spans_replicas(lb_client, cluster):
    with lb_client.ws("/chat", replica="web1") as a, lb_client.ws("/chat", replica="web2") as b:
        a.send_text("hi")
        assert b.receive_text(timeout=0.1) == "hi"
"""


def pytest_in(folder: Path) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), str(folder)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "lbkit.testkit.plugin", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def run(folder: Path, *, app: str, tests: str, name: str) -> str:
    (folder / f"{name}.py").write_text(app)
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text(f"[pytest]\nreplica_app = {name}:create_app\nfilterwarnings = error\n")
    return pytest_in(folder)


def test_what_the_readme_says_works_as_it_is_written(tmp_path: Path) -> None:
    program("redis-server")
    told = run(tmp_path, app=FLASK_SHOP, tests=FLASK_TESTS, name="tk_fixture_shop")
    assert "FAILED test_it.py::test_cart_after_crash" in told, (
        told
    )  # the cart was in the memory of one replica
    assert "1 failed, 9 passed" in told, told
    assert "lbkit trace" in told
    assert "POST /cart" in told.partition("lbkit trace")[2]


def test_a_room_in_one_replica_fails_with_both_names(tmp_path: Path) -> None:
    told = run(tmp_path, app=CHAT, tests=CHAT_TESTS, name="tk_fixture_chat")
    assert "this websocket is held by web2; messages were sent on web1 only" in told, told


def test_without_an_app_the_fixture_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(lb_client): pass")
    assert "need the app: set replica_app = shop:create_app" in pytest_in(tmp_path)
