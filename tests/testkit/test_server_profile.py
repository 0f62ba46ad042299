"""What an app meets when its client leaves: of a real server, and of a cluster that promises the same."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.request import urlopen

import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from lbkit.errors import ConfigError
from lbkit.testkit import Cluster

T = TypeVar("T")

APP = """
import asyncio, json

told = {}
left = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["path"] in ("/left", "/told"):
        if scope["path"] == "/left":
            left.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})
    else:
        what = scope["type"] + scope["path"]
        told[what] = scope["asgi"]["spec_version"] + " " + await met(scope, receive, send)

async def met(scope, receive, send):
    await receive()
    more = {"type": "http.response.body", "body": b"more", "more_body": True}
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(dict(more))
    else:
        more = {"type": "websocket.send", "text": "more"}
        await send({"type": "websocket.accept"})
    await left.wait()
    if scope["path"] == "/listens":
        while not (await receive())["type"].endswith(".disconnect"):
            pass
    for _ in range(40):  # a server may take a while to notice
        try:
            await send(dict(more))
        except OSError:
            return "OSError"
        except Exception as error:
            return repr(error)
        await asyncio.sleep(0.01)
    return "dropped"
"""
HANDSHAKE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PATIENCE = 30.0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tk_leaving.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def met(port: int) -> dict[str, str]:
    """What the app meets when clients leave in the midst of an answer, and of a websocket."""
    for path in ("/talks", "/listens"):
        for headers in ("", HANDSHAKE):
            leave(port, f"GET {path} HTTP/1.1\r\nHost: lbkit\r\n{headers}\r\n")
    told(port, "left")
    return polled(lambda: told(port), lambda seen: len(seen) == 4)


def leave(port: int, request: str) -> None:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(request.encode())
        assert connection.recv(100)


def told(port: int, path: str = "told") -> dict[str, str]:
    with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=PATIENCE) as answer:
        seen: dict[str, str] = json.load(answer)
        return seen


def polled(ask: Callable[[], T], settled: Callable[[T], bool]) -> T:
    deadline = time.monotonic() + PATIENCE
    while not settled(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)
    return answer


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def port_of(cluster: Cluster) -> int:
    return int(cluster.serve().rpartition(":")[2])


@contextmanager
def real(server: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = {
        "uvicorn": ["--port", str(port)],
        "hypercorn": ["--bind", f"127.0.0.1:{port}"],
        "granian": ["--interface", "asgi", "--port", str(port)],
    }
    command = [sys.executable, "-m", server, "tk_leaving:app", *address[server]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        polled(lambda: listens(port), bool)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_an_app_of_a_cluster_meets_what_its_server_would_do(server: str) -> None:
    with real(server) as port:
        truth = met(port)
    with Cluster("tk_leaving:app", replicas=1, server_profile=server) as cluster:
        assert met(port_of(cluster)) == truth


@pytest.mark.usefixtures("here")
def test_a_strict_server_does_as_the_specification_says() -> None:
    with Cluster("tk_leaving:app", replicas=1) as cluster:
        assert set(met(port_of(cluster)).values()) == {"2.4 OSError"}
        left = cluster.trace.by(method="GET", path="/talks")[0]
        assert left.disconnected
        assert left.attempts[0].fault is None


@pytest.mark.parametrize("server", ["strict", "uvicorn"])
def test_a_stream_without_end_ends_when_its_client_leaves(server: str) -> None:
    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await asyncio.sleep(0.01)

    app = Starlette(routes=[Route("/", lambda _: StreamingResponse(forever()))])
    with Cluster([app], server_profile=server) as cluster:
        leave(port_of(cluster), "GET / HTTP/1.1\r\nHost: lbkit\r\n\r\n")
        polled(lambda: cluster["web1"].active, lambda active: active == 0)
        assert [str(attempt) for attempt in cluster.trace[0].attempts] == ["web1 200"]


def test_a_server_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="need a server_profile of strict, uvicorn, hypercorn, granian, got"
    ):
        Cluster("tk_leaving:app", server_profile="daphne")
    with pytest.raises(ConfigError, match="need server_profile='uvicorn' for isolation='process'"):
        Cluster("tk_leaving:app", isolation="process", server_profile="strict")
