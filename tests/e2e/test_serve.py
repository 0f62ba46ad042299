"""`lbkit serve` as its user meets it: a real process, real requests, a real Ctrl-C."""

from __future__ import annotations

import re
import socket
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import httpx
import pytest

from tests.e2e.serving import lbkit_serve, served, started

COUNTER = """
    def create_app():
        seen = []
        def app(environ, start_response):
            seen.append(environ["PATH_INFO"])
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(len(seen)).encode()]
        return app
    app = create_app()
"""

WSGI_STREAM = """
    import time

    def ticks():
        while True:
            yield b"data: tick\\n\\n"
            time.sleep(0.05)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return ticks()
"""

ASGI_STREAM = """
    import asyncio

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            print("replica stopped", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            await send({"type": "http.response.body", "body": b"data: tick\\n\\n", "more_body": True})
            await asyncio.sleep(0.05)
"""

FAILS_SECOND = """
    import itertools
    numbers = itertools.count(1)

    def create_app():
        number = next(numbers)
        async def app(scope, receive, send):
            assert scope["type"] == "lifespan"
            await receive()
            if number == 2:
                await send({"type": "lifespan.startup.failed", "message": "no database\\nat db:5432"})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
            print(f"stopped {number}", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
        return app
"""


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(dedent(text))
    return folder / name


def mistake(*arguments: str, cwd: Path, code: int = 2) -> str:
    """The one line that a mistake is answered with."""
    with started(lbkit_serve(*arguments), cwd=cwd) as process:
        assert (process.end(), process.out, len(process.err)) == (code, [], 1), process
        return process.err[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["shpo"], "there is no module shpo in {cwd} or among the installed packages; perhaps you mean shop"),
        (["needy"], "needy needs the module no_such_library, which is not installed (needy.py:1)"),
        (["shop:ap"], "shop has no attribute ap; perhaps you mean app"),
        (["shop.py:__name__"], "shop:__name__ is not an app: 'shop' is not callable: an ASGI app takes"),
        (["shop:raising"], "replica web1 failed to start: RuntimeError: no database (shop.py:3)"),
        (["shop:empty"], "replica web1 failed to start: shop:empty() returned no app: None is not callable"),
        (
            ["shop:app", "--factory"],
            "shop:app(environ, start_response) is no factory: need one without required",
        ),
        (["broken.py"], "SyntaxError in broken.py:1: '(' was never closed"),
        (["none.py"], "there is no file none.py"),
        (["shop", "--replicas", "0"], "need --replicas >= 1, got 0"),
        (["shop", "--replicas", "many"], "Invalid value for '--replicas': 'many' is not a valid integer."),
        (["shop", "--port", "65536"], "need 0 <= --port <= 65535, got 65536"),
        (["shop", "--port", "-1"], "need 0 <= --port <= 65535, got -1"),
        (["shop", "--host", "300.0.0.1"], "cannot listen on 300.0.0.1 port 0: "),
        (["shop", "--app-dir", "nowhere"], "need a folder as --app-dir, got nowhere"),
        (["shop", "--replica", "3"], "No such option"),
        (["shop", "more"], "Got unexpected extra argument"),
        ([], "Missing argument 'TARGET'."),
        (["shop", "--reload", "--replicas", "-1"], "need --replicas >= 1, got -1"),
        (["shop", "--profile", "nginy"], "need a profile (nginx, nginx@1.22, haproxy@2.6, "),
        (["a file", "--reload"], "need package.module:app or a path to a .py file, got 'a file'"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], line: str, tmp_path: Path
) -> None:
    shop = "def app(environ, start_response): ...\ndef raising():\n    raise RuntimeError('no\\ndatabase')\n"
    write(tmp_path, "shop.py", f"{shop}def empty(): ...\n")
    write(tmp_path, "broken.py", "x = (\n")
    write(tmp_path, "needy.py", "import no_such_library\n")
    assert mistake(*arguments, cwd=tmp_path).startswith(f"Error: {line.format(cwd=tmp_path)}")


def test_a_port_in_use_is_a_mistake(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", COUNTER)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = mistake("shop", "--port", str(port), cwd=tmp_path)
    assert line == f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use"


def test_a_replica_whose_lifespan_fails_is_named_in_one_line_with_exit_code_3(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", FAILS_SECOND)
    with started(lbkit_serve("shop"), cwd=tmp_path) as process:
        assert process.end() == 3
        assert process.err == ["Error: replica web2 failed to start: no database at db:5432"]
        assert process.out == ["stopped 1"], "the replica that had started was stopped again"


def test_each_request_goes_to_the_next_replica_and_the_access_line_names_it(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", COUNTER)
    with served("shop:create_app", cwd=tmp_path) as (process, url), httpx.Client(base_url=url) as client:
        answers = [client.get(f"/{number}") for number in range(6)]
        assert [answer.headers["x-lbkit-replica"] for answer in answers] == ["web1", "web2", "web3"] * 2
        assert [answer.text for answer in answers] == ["1", "1", "1", "2", "2", "2"]
        for number, replica in enumerate(["web1", "web2", "web3"] * 2):
            process.wait_for(rf"^\d\d:\d\d:\d\d  {replica}  GET /{number}  200  \d+\.\d ms$")
        assert process.err == []


def test_a_profile_decides_and_the_start_tells_what_was_asked(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", COUNTER)
    asked = ["--profile", "nginx", "--weight", "web1=2", "--check", "/health", "--sticky", "--replicas", "2"]
    with served("shop:create_app", *asked, cwd=tmp_path) as (process, url), httpx.Client(base_url=url) as one:
        told = "profile: nginx   policy: round_robin   check: /health   sticky: cookie route"
        assert any(told in line for line in process.out), process
        homes = {one.get(f"/{number}").headers["x-lbkit-replica"] for number in range(4)}
        assert len(homes) == 1
        fresh = Counter(httpx.get(url).headers["x-lbkit-replica"] for _ in range(6))
        assert fresh == {"web1": 4, "web2": 2}


def test_routes_lead_to_pools_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", COUNTER)
    routes = ["--route", "/api/*=api", "--route", "/=web", "--replicas", "2"]
    with served("shop:create_app", *routes, cwd=tmp_path) as (_, url):
        names = [
            httpx.get(f"{url}{path}").headers["x-lbkit-replica"] for path in ("/", "/api/", "/", "/api/")
        ]
        assert names == ["web1", "api1", "web2", "api2"]
        assert httpx.get(f"{url}/else").status_code == 404


def test_an_app_object_is_shared_and_the_start_says_so(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", COUNTER)
    with served("shop:app", "--replicas", "2", cwd=tmp_path) as (process, url):
        assert [httpx.get(url).text for _ in range(3)] == ["1", "2", "3"]
        assert [line.split()[-1] for line in process.out if "shop:app" in line] == ["shared", "shared"]


def test_each_replica_can_be_a_process_of_its_own(tmp_path: Path) -> None:
    """Then even an app object has its memory for itself."""
    write(tmp_path, "shop.py", COUNTER)
    with served("shop:app", "--replicas", "2", "--isolation", "process", cwd=tmp_path) as (process, url):
        assert [httpx.get(url).text for _ in range(4)] == ["1", "1", "2", "2"]
        assert [line.split()[-4:] for line in process.out if "shop:app" in line] == [
            ["WSGI", "its", "own", "process"]
        ] * 2
        assert process.interrupt() == 0
        assert process.err == []


def test_a_replica_whose_process_does_not_start_is_named_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", "def create_app():\n    raise KeyError('SHOP_DB')\n")
    with started(lbkit_serve("shop:create_app", "--isolation", "process"), cwd=tmp_path) as process:
        assert process.end() == 3
        said = "KeyError: 'SHOP_DB' (shop.py:2)"
        assert process.err == [f"web1 | Error: {said}", f"Error: replica web1 failed to start: {said}"]


def test_ctrl_c_ends_with_exit_code_0_and_without_a_traceback(tmp_path: Path) -> None:
    write(tmp_path, "shop.py", COUNTER)
    with served("shop:create_app", cwd=tmp_path) as (process, url):
        assert httpx.get(url).status_code == 200
        assert process.interrupt() == 0
        assert process.err == []
        assert process.out[-1] == "stopping ..."


@pytest.mark.parametrize("stream", [ASGI_STREAM, WSGI_STREAM], ids=["asgi", "wsgi"])
def test_ctrl_c_ends_a_stream_that_has_no_end_without_a_traceback(stream: str, tmp_path: Path) -> None:
    write(tmp_path, "streams.py", stream)
    with served("streams", cwd=tmp_path) as (process, url), httpx.stream("GET", url) as answer:
        lines = answer.iter_lines()  # held: without a reference it would hang up
        assert next(lines) == "data: tick"
        assert process.interrupt() == 0
        assert [line.split("  ")[1] for line in process.err] == [
            "Cancel 1 running task(s), timeout graceful shutdown exceeded"
        ]
        assert re.search(r"web1  GET /  200  \d+\.\d ms  cut", str(process))
        if stream is ASGI_STREAM:
            assert process.out.count("replica stopped") == 3


def test_reload_serves_the_changed_source_and_survives_an_error_in_it(tmp_path: Path) -> None:
    file = write(tmp_path, "shop.py", COUNTER)
    with served("shop.py:create_app", "--reload", cwd=tmp_path) as (process, url):
        assert httpx.get(url).text == "1"
        file.write_text("def create_app(:\n")
        process.wait_for(r"^Error: SyntaxError in shop.py:1: ")
        file.write_text(dedent(COUNTER).replace("str(len(seen))", "'changed'"))
        process.wait_for(r"detected changes in 'shop.py'. Reloading")
        assert process.wait_for(r"http://\S+").group() == url
        assert httpx.get(url).text == "changed"
        assert process.interrupt() == 0
        assert [line for line in process.err if "Traceback" in line] == []


def test_a_broken_source_can_be_mended_under_reload_from_the_start(tmp_path: Path) -> None:
    file = write(tmp_path, "shop.py", "import no_such_library")
    with started(lbkit_serve("shop", "--reload"), cwd=tmp_path) as process:
        process.wait_for("^Error: shop needs the module no_such_library")
        file.write_text(dedent(COUNTER))
        assert httpx.get(process.wait_for(r"http://\S+").group()).text == "1"
        assert process.interrupt() == 0


DATASETTE = """
    from datasette.app import Datasette

    def create_app():
        return Datasette(["shop.db"]).app()
"""


@pytest.mark.parametrize(("target", "path"), [("httpbin:app", "/get"), ("tables.py", "/shop/goods.json")])
def test_a_real_app_runs_unchanged_over_three_replicas_and_requests_spread_evenly(
    target: str, path: str, tmp_path: Path
) -> None:
    write(tmp_path, "tables.py", DATASETTE)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        database.execute("create table goods (name text, price integer)")
    with served(target, cwd=tmp_path) as (process, url), httpx.Client(base_url=url) as client:
        answers = [client.get(path) for _ in range(300)]
        assert Counter(answer.status_code for answer in answers) == {200: 300}
        replicas = Counter(answer.headers["x-lbkit-replica"] for answer in answers)
        assert replicas == {"web1": 100, "web2": 100, "web3": 100}
        assert process.interrupt() == 0
