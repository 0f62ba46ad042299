"""What only replicas with modules, or processes, of their own can show."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbkit.errors import ConfigError, ReplicaTimeout, StartupError
from lbkit.testkit import Cluster, assert_failover, assert_no_local_files, assert_stateless
from lbkit.testkit.partition import Place
from lbkit.testkit.redis_server import redis_server
from tests.programs import program

SHOP = """
import os
from flask import Flask, request

CARTS = {}
PRICES = {"tea": 3}
STORE = []

def store():
    import redis
    if not STORE:
        STORE.append(redis.from_url(os.environ["TK_REDIS"], retry=None))
    return STORE[0]

def create_app():
    app = Flask("shop")

    @app.post("/cart")
    def add():
        CARTS["ann"] = request.get_data(as_text=True)
        return {}

    @app.get("/price")
    def price():
        return {"tea": PRICES["tea"], "pid": os.getpid()}

    @app.post("/count")
    def count():
        return {"count": store().incr("count")}

    @app.post("/picture")
    def save():
        with open("picture.png", "wb") as file:
            file.write(b"png")
        return {}

    @app.get("/picture")
    def show():
        with open("picture.png", "rb") as file:
            return file.read()

    return app
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tk_isolated.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:  # noqa: ARG001
    with Cluster("tk_isolated:create_app()", private=["tk_isolated"]) as cluster:
        yield cluster


def test_memory_that_a_request_has_changed_is_named(cluster: Cluster) -> None:
    client = cluster.client()
    client.get("/price")
    assert_stateless(cluster)
    client.post("/cart", data="tea")
    with pytest.raises(AssertionError) as failure:
        assert_stateless(cluster)
    assert "web2: tk_isolated.CARTS (dict, 0 → 1)  tk_isolated.py:5" in str(failure.value)
    assert "POST /cart" in str(failure.value)
    assert_stateless(cluster, allow=["tk_isolated.CARTS"])


def test_memory_is_clean_again_after_a_restart(cluster: Cluster) -> None:
    client = cluster.client()
    client.post("/cart", data="tea")
    cluster["web1"].restart()
    assert_stateless(cluster)


def test_a_file_that_another_replica_reads_is_named(cluster: Cluster) -> None:
    client = cluster.client()
    client.post("/picture")
    with client.on("web1"):
        client.get("/picture")
    assert_no_local_files(cluster)  # its own
    client.get("/picture")
    with pytest.raises(AssertionError, match=r"web2 read .*picture.png, which web1 wrote") as failure:
        assert_no_local_files(cluster)
    assert [line.split()[2:4] for line in str(failure.value).splitlines()[-2:]] == [
        ["POST", "/picture"],
        ["GET", "/picture"],
    ]
    assert_no_local_files(cluster, allow=["*.png"])


@pytest.mark.usefixtures("folder")
def test_the_hooks_of_a_cluster_are_gone_with_it() -> None:
    before = builtins.__import__
    with Cluster("tk_isolated:create_app()", private=["tk_isolated"]) as first:
        with Cluster("tk_isolated:create_app()", private=["tk_isolated"]) as second:
            assert second.client().get("/price").status_code == 200
        assert builtins.__import__ is not before
        first["web1"].restart()
        assert first.client().get("/price").status_code == 200
    assert builtins.__import__ is before


@pytest.mark.usefixtures("folder")
def test_without_modules_of_their_own_nobody_can_look() -> None:
    rule = pytest.raises(ConfigError, match="need a recipe such as")
    with Cluster("tk_isolated:create_app()", isolation="none") as cluster, rule:
        assert_stateless(cluster)
    for other in ("vm", "clone"):
        with pytest.raises(ConfigError, match=f"need an isolation of module, none, process, got '{other}'"):
            Cluster("tk_isolated:create_app()", isolation=other)


@pytest.mark.usefixtures("folder")
def test_a_process_of_its_own_can_be_killed_for_real() -> None:
    with Cluster("tk_isolated:create_app()", replicas=2, isolation="process", timeout=0.5) as cluster:
        client = cluster.client()
        pids = {client.get("/price").json()["pid"] for _ in range(2)}
        assert len(pids) == 2
        assert os.getpid() not in pids
        assert_stateless(cluster)
        client.post("/cart", content="tea")
        changed = r"web1: tk_isolated.CARTS \(dict, 0 → 1\)  tk_isolated.py:5"
        with pytest.raises(AssertionError, match=changed):
            assert_stateless(cluster)
        cluster["web1"].kill()
        assert [client.get("/price").status_code for _ in range(3)] == [200] * 3
        assert_failover(cluster, frm="web1")
        process = cluster["web2"].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            with client.on("web2"), pytest.raises(ReplicaTimeout, match=r"web2 was silent for 0.5 s"):
                client.get("/price")
        finally:
            process.send_signal(signal.SIGCONT)
        cluster["web1"].start()
        with client.on("web1"):
            assert client.get("/price").json()["pid"] not in pids


def test_a_process_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "tk_unstarted.py").write_text("raise OSError('no database')")
    with pytest.raises(StartupError, match=r"replica web1 failed to start: .*no database"):
        Cluster(str(tmp_path / "tk_unstarted.py"), isolation="process").start()


def test_one_replica_can_be_cut_off_from_redis(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    program("redis-server")
    with redis_server() as redis:
        monkeypatch.setenv("TK_REDIS", redis.url)
        with Cluster("tk_isolated:create_app()", private=["tk_isolated"]) as cluster:
            client = cluster.client()
            assert [client.post("/count").json["count"] for _ in range(3)] == [1, 2, 3]
            with cluster["web2"].partition(redis.url):
                assert [client.post("/count").status_code for _ in range(3)] == [200, 500, 200]
            assert [client.post("/count").json["count"] for _ in range(3)] == [6, 7, 8]
            cluster["web2"].partition(redis.url)
            cluster.heal()
            assert [client.post("/count").json["count"] for _ in range(3)] == [9, 10, 11]
            for replica in cluster:
                for connection in list(replica.module("tk_isolated").STORE):
                    connection.close()


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("redis://127.0.0.1/0", ("127.0.0.1", 6379), ("127.0.0.1", 6380)),
        ("localhost:5432", ("127.0.0.1", 5432), ("127.0.0.2", 5432)),
        ("127.0.0.1", ("127.0.0.1", 1), ("127.0.0.2", 1)),
        ("[::1]:80", ("::1", 80, 0, 0), ("::1", 81, 0, 0)),
        ("unix:/run/redis.sock", "/run/redis.sock", "/run/other.sock"),
    ],
)
def test_a_service_is_known_by_its_addresses(text: str, inside: object, outside: object) -> None:
    assert inside in Place.parse(text)
    assert outside not in Place.parse(text)


@pytest.mark.parametrize("text", ["", "redis://", "redis:99999"])
def test_what_is_no_service_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="need a "):
        Place.parse(text)
