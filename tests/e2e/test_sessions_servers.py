"""Sessions on real servers: several processes, some forked with everything in them, and a websocket."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.e2e.serving import LIMIT, Process, started
from tests.redis_servers import Server, free_ports, server, until

SITE = "tests.e2e.session_site"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("redis")) as running:
        yield running


def gunicorn(port: int) -> list[str]:
    """The app is made before the workers are forked, and the threads of each share its connections."""
    bind = ["--bind", f"127.0.0.1:{port}", "--workers", "3", "--threads", "4", "--preload"]
    return [sys.executable, "-m", "gunicorn", *bind, f"{SITE}:flask_app"]


def uvicorn(port: int) -> list[str]:
    listen = ["--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    return [sys.executable, "-m", "uvicorn", *listen, f"{SITE}:starlette_app"]


@pytest.fixture(params=[gunicorn, uvicorn], ids=["gunicorn", "uvicorn"])
def url(request: pytest.FixtureRequest, redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SESSION_URL", redis_server.url)
    yield from listening(request.param)


@pytest.fixture
def asgi_url(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SESSION_URL", redis_server.url)
    yield from listening(uvicorn)


def listening(command: Any) -> Iterator[str]:
    (port,) = free_ports(1)
    with started(command(port)) as process:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(process, f"{url}/health"), "the server answers", patience=LIMIT)
        yield url


def answers(process: Process, url: str) -> bool:
    assert process.running, process
    try:
        return httpx.get(url, timeout=LIMIT).status_code == 200
    except httpx.TransportError:
        return False


def test_visits_are_counted_by_all_processes_at_once(url: str) -> None:
    with httpx.Client(base_url=url, timeout=LIMIT) as first:
        first.get("/visit")
        cookie = {"cookie": f"sid={first.cookies['sid']}"}

    def visit(_: int) -> Any:
        # Each on a connection of its own, which any of the processes may take.
        return httpx.get(f"{url}/visit", headers=cookie, timeout=LIMIT).json()

    with ThreadPoolExecutor(8) as crowd:
        pids = {visited["pid"] for visited in crowd.map(visit, range(99))}
    assert visit(0)["session"] == {"visits": 101}
    # Which process takes a connection is the kernel's choice: all by one is possible, and never seen.
    assert len(pids) > 1


def test_a_websocket_and_a_request_share_a_session(asgi_url: str) -> None:
    with connect(f"{asgi_url.replace('http', 'ws', 1)}/talk", open_timeout=LIMIT) as websocket:
        assert websocket.response is not None
        pair = websocket.response.headers["set-cookie"].partition(";")[0]
        websocket.send("hello")
        assert websocket.recv(LIMIT) == "you said hello"
    found = until(lambda: looked(asgi_url, pair).get("said"), "what was said is kept", patience=LIMIT)
    assert (found, looked(asgi_url, pair)["greeted"]) == ("hello", True)


def test_a_client_that_leaves_early_has_its_session_kept(asgi_url: str) -> None:
    with httpx.Client(base_url=asgi_url, timeout=LIMIT) as client:
        client.get("/visit")
        pair = f"sid={client.cookies['sid']}"
    host, port = asgi_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(f"GET /slow HTTP/1.1\r\nHost: shop\r\nCookie: {pair}\r\n\r\n".encode())
    until(lambda: looked(asgi_url, pair).get("slow") == "kept", "it is kept", patience=LIMIT)


def looked(url: str, cookie: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/look", headers={"cookie": cookie}, timeout=LIMIT).json()
    return dict(found["session"])
