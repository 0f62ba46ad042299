"""Long and large exchanges over real sockets: a real server, the balancer in it, three replicas behind."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.serving import LIMIT, started
from tests.e2e.streaming import BLOCK, BLOCKS, SIZE

MiB = 2**20
REPLICAS = ["web1", "web2", "web3"]


class Server:
    def __init__(self, url: str) -> None:
        self.host, self.port = str(urlsplit(url).hostname), int(urlsplit(url).port or 0)
        self.process = psutil.Process(self.count()["pid"])

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=LIMIT)
        try:
            yield connection
        finally:
            connection.close()

    def count(self) -> Any:
        with self.connection() as connection:
            connection.request("GET", "/count")
            return json.load(connection.getresponse())

    def wait_until(self, true: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + LIMIT
        while not true(count := self.count()):
            assert time.monotonic() < deadline, count
        return count


@pytest.fixture(scope="module", params=["asgi", "wsgi"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def asgi_server() -> Iterator[Server]:
    with serving("asgi") as server:
        yield server


@contextmanager
def serving(kind: str) -> Iterator[Server]:
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        f"tests.e2e.streaming:{kind}",
        "--port",
        "0",
        "--no-access-log",
    ]
    with started(command) as process:
        yield Server(process.wait_for(r"http://[\d.]+:\d+").group())


class Peak:
    """The most memory that a process held in the block, beyond what it held before, in bytes."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._most = 0
        self._exact = False
        self._over = Event()
        self._sampler = Thread(target=self._sample)

    def __enter__(self) -> Peak:
        self._exact = self._reset()
        self._before = self._process.memory_info().rss
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampler.join()
        if self._exact:
            self._most = max(self._most, self._high_water())

    @property
    def growth(self) -> int:
        return self._most - self._before

    def _reset(self) -> bool:
        """Linux keeps the peak itself, if we may tell it to begin anew (proc(5), clear_refs)."""
        try:
            Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def _high_water(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024

    def _sample(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)


def test_the_peak_is_what_a_process_held_and_gave_back() -> None:
    """The measure itself: a child that takes 50 MB and drops them again shows them."""
    script = "input(); hog = bytearray(b'x') * (50 * 2**20); del hog; print('done', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with Peak(psutil.Process(child.pid)) as peak:
            child.stdin.write(b"go\n")
            child.stdin.flush()
            assert child.stdout.readline().strip() == b"done"
        child.stdin.write(b"end\n")
    assert peak.growth > 45 * MiB


def upload(server: Server, *, chunked: bool, blocks: int = BLOCKS) -> tuple[int, str]:
    length = {} if chunked else {"Content-Length": str(len(BLOCK) * blocks)}
    with server.connection() as connection:
        body = (BLOCK for _ in range(blocks))
        connection.request("POST", "/sum", body, length, encode_chunked=chunked)
        size, digest = json.load(connection.getresponse())
        return size, digest


def download(server: Server) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with server.connection() as connection:
        connection.request("GET", "/bytes")
        response = connection.getresponse()
        while piece := response.read(65536):
            size += len(piece)
            digest.update(piece)
    return size, digest.hexdigest()


def expected() -> tuple[int, str]:
    digest = hashlib.sha256()
    for _ in range(BLOCKS):
        digest.update(BLOCK)
    return SIZE, digest.hexdigest()


FLAT = 8 * MiB
"""Less than a sixth of what passes through: buffers of sockets and threads, and what the allocator keeps."""


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
def test_an_upload_of_50_mb_passes_through_in_flat_memory(server: Server, chunked: bool) -> None:
    upload(server, chunked=chunked, blocks=32)  # whatever is made once is made
    with Peak(server.process) as peak:
        assert upload(server, chunked=chunked) == expected()
    assert peak.growth < FLAT
    assert server.wait_until(lambda count: sum(count["active"]) == 1)  # the question itself


def test_a_download_of_50_mb_passes_through_in_flat_memory(server: Server) -> None:
    download(server)
    with Peak(server.process) as peak:
        assert download(server) == expected()
    assert peak.growth < FLAT


def test_a_download_that_the_client_does_not_read_waits_in_flat_memory(server: Server) -> None:
    """The replica makes no more than the socket takes: at the end all of it still arrives."""
    with Peak(server.process) as peak, server.connection() as connection:
        connection.request("GET", "/bytes")
        response = connection.getresponse()
        taken = len(response.read(1))
        for _ in range(20):
            server.count()  # others are served meanwhile
        while piece := response.read(MiB):
            taken += len(piece)
    assert taken == SIZE
    assert peak.growth < FLAT


def test_a_stream_that_the_client_leaves_in_the_middle_is_closed_in_the_replica(server: Server) -> None:
    before = server.count()
    with ExitStack() as clients:
        names = []
        for _ in range(6):
            client = clients.enter_context(server.connection())
            client.request("GET", "/events")
            response = clients.enter_context(client.getresponse())
            assert [response.readline() for _ in range(6)] == [b"data: tick\n", b"\n"] * 3
            names.append(response.headers["x-lbkit-replica"])
        assert sorted(names) == sorted(REPLICAS * 2)
        during = server.count()
        assert during["opened"] - before["opened"] == 6
        assert during["closed"] == before["closed"]
        assert sum(during["active"]) == 7  # and the question itself
    after = server.wait_until(lambda count: count["closed"] - before["closed"] == 6)
    assert after["opened"] == during["opened"]
    server.wait_until(lambda count: sum(count["active"]) == 1)


def test_a_client_that_resets_the_connection_in_the_middle_of_its_upload_leaves_nothing_behind(
    server: Server,
) -> None:
    for _ in range(3):
        client = socket.create_connection((server.host, server.port), LIMIT)
        client.sendall(b"POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends RST
        client.close()
    server.wait_until(lambda count: sum(count["active"]) == 1)
    assert upload(server, chunked=False, blocks=1)[0] == len(BLOCK)


def test_websockets_echo_through_three_replicas_at_once(asgi_server: Server) -> None:
    url = f"ws://{asgi_server.host}:{asgi_server.port}/"
    with connect(url, max_size=None) as first, connect(url) as second, connect(url) as third:
        sockets = [first, second, third]
        names = [each.response.headers["x-lbkit-replica"] for each in sockets if each.response]
        assert sorted(names) == REPLICAS
        assert sum(asgi_server.count()["active"]) == 4
        for turn in range(3):
            for number, each in enumerate(sockets):
                each.send(f"{turn} {number} é")
                each.send(bytes([turn, number, 255]))
            for number, each in enumerate(sockets):
                assert each.recv(LIMIT) == f"{turn} {number} é"
                assert each.recv(LIMIT) == bytes([turn, number, 255])
        first.send(BLOCK * 16)
        assert first.recv(LIMIT) == BLOCK * 16
        second.send("bye")
        with pytest.raises(ConnectionClosed) as caught:
            second.recv(LIMIT)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "as you wish")
    asgi_server.wait_until(lambda count: sum(count["active"]) == 1)


def test_a_websocket_negotiates_its_subprotocol_with_the_replica(asgi_server: Server) -> None:
    url = f"ws://{asgi_server.host}:{asgi_server.port}/"
    with connect(url, subprotocols=["chat.v2", "chat.v1"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "chat.v2"
