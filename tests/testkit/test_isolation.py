"""Several replicas in one process: what each has of its own, and what the test process keeps."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import pytest

from lbkit.errors import ConfigError, StartupError
from lbkit.interface import Interface
from lbkit.testkit.first_party import FirstParty
from lbkit.testkit.isolation import IsolatedReplica, replicas
from lbkit.testkit.spaces import SWITCH, current
from lbkit.types import ASGIApp, Message, WSGIApp

APP = '''
import asyncio, json, os, sys, threading
from concurrent.futures import ThreadPoolExecutor

SECRET = os.urandom(8).hex()
HITS = []

class SoldOut(Exception):
    pass

def create_app():
    from tk_shop.routes import answer
    return answer

def seen():
    """Whether an import here, one in a raw thread, and sys.modules all give this replica's own copy."""
    found = [sys.modules[__name__].HITS is HITS]
    def look():
        import tk_shop
        found.append(tk_shop.HITS is HITS)
    look()
    thread = threading.Thread(target=look)
    thread.start(); thread.join()
    return all(found) and len(found) == 3
'''
ROUTES = """
import asyncio, json
from . import HITS, SECRET, SoldOut, seen

def answer(environ, start_response):
    if environ["PATH_INFO"] == "/sold":
        raise SoldOut("no more")
    HITS.append(environ["PATH_INFO"])
    start_response("200 OK", [])
    def body():
        from tk_shop import HITS as mine
        yield json.dumps({"secret": SECRET, "hits": len(HITS), "seen": seen() and mine is HITS}).encode()
    return body()

async def live(scope, receive, send):
    if scope["type"] != "http":
        return
    await receive()
    HITS.append("live")
    await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, seen)
    body = json.dumps({"secret": SECRET, "hits": len(HITS), "seen": seen()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "headers": [(b"host", b"shop")],
    "client": None,
    "server": None,
}


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tk_shop").mkdir()
    (tmp_path / "tk_shop" / "__init__.py").write_text(APP)
    (tmp_path / "tk_shop" / "routes.py").write_text(ROUTES)
    (tmp_path / "tk_moody.py").write_text(
        "import tk_count\nif tk_count.again(): raise OSError('port in use')\n"
    )
    (tmp_path / "tk_count.py").write_text("def again(): return True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    SWITCH.remove()
    for name in [name for name in sys.modules if name.startswith("tk_")]:
        del sys.modules[name]


def get(replica: IsolatedReplica, path: str = "/") -> dict[str, Any]:
    app = cast("WSGIApp", replica.app)
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    body = app(environ, lambda *_: lambda _: None)  # type: ignore[arg-type, return-value]
    answer: dict[str, Any] = json.loads(b"".join(body))
    return answer


async def aget(replica: IsolatedReplica) -> dict[str, Any]:
    sent: list[Message] = []
    asked: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not asked:
            await asyncio.Event().wait()  # the client stays
        return asked.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await cast("ASGIApp", replica.app)(dict(SCOPE), receive, send)
    answer: dict[str, Any] = json.loads(b"".join(message.get("body", b"") for message in sent))
    return answer


def test_each_replica_has_its_own_modules_and_the_process_keeps_its_own() -> None:
    import tk_shop

    several = replicas("tk_shop:create_app", 3)
    answers = [get(replica) for replica in several] + [get(several[1])]
    assert [answer["hits"] for answer in answers] == [1, 1, 1, 2]
    assert all(answer["seen"] for answer in answers)
    assert len({answer["secret"] for answer in answers} | {tk_shop.SECRET}) == 4
    assert tk_shop.HITS == []
    assert sys.modules["tk_shop"] is tk_shop
    assert current() is None


def test_coroutines_of_several_replicas_run_side_by_side_each_in_its_own_modules() -> None:
    several = replicas("tk_shop.routes:live", 3)
    assert {replica.interface for replica in several} == {Interface.ASGI}

    async def scenario() -> list[dict[str, Any]]:
        import tk_shop

        answers = list(await asyncio.gather(*(aget(replica) for replica in several)))
        from tk_shop import HITS

        assert HITS is tk_shop.HITS == []
        return answers

    answers = asyncio.run(scenario())
    assert [answer["hits"] for answer in answers] == [1, 1, 1]
    assert all(answer["seen"] for answer in answers)


def test_a_test_that_waits_for_a_replica_imports_its_own_modules() -> None:
    import tk_shop

    replica = replicas("tk_shop.routes:live", 1)[0]
    seen: list[object] = []

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request"}

    async def send(message: Message) -> None: ...

    async def scenario() -> None:
        task = asyncio.ensure_future(cast("ASGIApp", replica.app)(dict(SCOPE), receive, send))
        await asyncio.sleep(0)
        import importlib

        import tk_shop as mine

        seen.extend([mine, importlib.import_module("tk_shop")])
        await task

    asyncio.run(scenario())
    assert seen == [tk_shop, tk_shop]


def test_an_error_of_the_app_is_the_one_that_the_test_knows() -> None:
    import tk_shop

    with pytest.raises(tk_shop.SoldOut, match="no more"):
        get(replicas("tk_shop:create_app", 1)[0], "/sold")


def test_one_can_look_into_a_replica_and_run_code_in_it() -> None:
    first, second = replicas("tk_shop:create_app", 2)
    get(first)
    assert first.module("tk_shop").HITS == ["/"]
    assert second.module("tk_shop").HITS == []
    assert second.run("tk_shop:seen") is True
    second.run("tk_shop:HITS.append", "/mine")
    assert second.module("tk_shop").HITS == ["/mine"]


def test_without_isolation_replicas_share_their_modules() -> None:
    first, second = replicas("tk_shop:create_app", 2, isolation="none")
    assert [get(first)["hits"], get(second)["hits"]] == [1, 2]


@pytest.mark.parametrize(("isolation", "same_secret"), [("clone", True), ("process", False)])
@pytest.mark.timeout(60)
def test_replicas_in_processes_of_their_own(isolation: str, same_secret: bool) -> None:
    several = replicas("tk_shop:create_app", 3, isolation=isolation)
    try:
        answers = [get(replica) for replica in [*several, several[0]]]
        with pytest.raises(ConfigError, match="cannot look at tk_shop in another process"):
            several[0].module("tk_shop")
    finally:
        for replica in several:
            replica.close()
    assert [answer["hits"] for answer in answers] == [1, 1, 1, 2]
    # A fork has the secret that was made before, as gunicorn --preload has.
    assert (len({answer["secret"] for answer in answers}) == 1) is same_secret


def test_an_import_error_in_one_replica_names_the_replica_and_the_error() -> None:
    with pytest.raises(StartupError, match=r"replica web1 failed to start: .*port in use"):
        replicas("tk_moody:app", 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"private": ["tk_shoop"]}, "there is no package tk_shoop"),
        ({"private": ["tk_shop.routes"]}, "need the name of a top-level package such as shop"),
        ({"private": ["json"]}, "json cannot be private"),
        ({"n": 0}, "need at least 1 replica, got 0"),
        ({"isolation": "vm"}, "need an isolation of .*module.*, got 'vm'"),
    ],
)
def test_a_wrong_value_is_refused_with_the_rule(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replicas("tk_shop:create_app", **wrong)


@pytest.mark.parametrize(
    ("name", "private"),
    [
        ("tk_shop", True),
        ("tk_shop.routes", True),
        ("tk_shop.tests.test_cart", False),
        ("tk_shop.conftest", False),
        ("sqlmodel.main", True),
        ("flask", False),
        ("json", False),
        ("lbkit", False),
        ("lbkit_flask", False),
        ("test_shop", False),
        ("there_is_none", False),
    ],
)
def test_what_is_not_installed_and_no_test_is_private(name: str, private: bool) -> None:
    assert (name in FirstParty()) is private


def test_what_is_named_replaces_what_is_found() -> None:
    named = FirstParty(["httpbin"])
    assert "httpbin.core" in named
    assert "tk_shop" not in named
    assert "prometheus_client" in named


def test_the_hooks_go_when_the_last_one_is_gone() -> None:
    import builtins
    import importlib

    SWITCH.remove()
    before = builtins.__import__, importlib.import_module
    replicas("tk_shop:create_app", 1)
    assert builtins.__import__ is not before[0]
    SWITCH.remove()
    assert (builtins.__import__, importlib.import_module) == before


def test_importing_the_plugin_imports_no_framework_and_no_machinery() -> None:
    pytest.importorskip("lbkit.testkit.plugin")
    code = (
        "import sys, lbkit.testkit.plugin as p; "
        "print(sorted({'flask','starlette','httpx','click','lbkit.testkit.spaces'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_of_two_replicas_do_not_mix_their_imports() -> None:
    several = replicas("tk_shop:create_app", 2)
    wrong: list[int] = []

    def ask(replica: IsolatedReplica) -> None:
        app = cast("WSGIApp", replica.app)
        for _ in range(50):
            body = app({"PATH_INFO": "/"}, lambda *_: lambda _: None)  # type: ignore[arg-type, return-value]
            wrong.extend([1] * (b"".join(body) == b""))

    threads = [threading.Thread(target=ask, args=(replica,)) for replica in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [len(replica.module("tk_shop").HITS) for replica in several] == [50, 50]
