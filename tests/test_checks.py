"""The checks that come with lbkit, against the real thing: servers on a port, databases in a file."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from lbkit import checks
from lbkit.errors import ConfigError, MissingExtra
from lbkit.health import Status, Thresholds
from lbkit.health.report import Endpoint
from lbkit.health.routes import Route
from lbkit.monitor import Health
from lbkit.probes import is_async, wait
from tests.programs import program


def outcome(check: Any) -> tuple[Status, str | None, str]:
    """What health makes of a check: its status, the class of its error, and its text."""
    health = Health(thresholds=Thresholds(cpu=101, memory=101, disk=101), budget=5.0)
    health.check("it", timeout=5.0)(check)
    try:
        wait(health.awaited(Route(Endpoint.READY)), budget=health.budget)
        (view,) = health.report(Endpoint.READY).views
        return view.status, view.error, view.output
    finally:
        health.stop()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener, listener.getsockname()[1]


def test_tcp(free_port: int) -> None:
    with listening() as (_, port):
        assert outcome(checks.tcp("127.0.0.1", port))[0] is Status.HEALTHY
    assert outcome(checks.tcp("127.0.0.1", free_port))[:2] == (Status.UNHEALTHY, "connection")


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.send_header("Location", "/200")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_http(web: str, free_port: int) -> None:
    assert outcome(checks.http(f"{web}/200"))[0] is Status.HEALTHY
    assert outcome(checks.http(f"{web}/302"))[0] is Status.HEALTHY
    assert outcome(checks.http(f"{web}/503")) == (Status.UNHEALTHY, "failed", "answered 503")
    assert outcome(checks.http(f"{web}/503", expect={503}))[0] is Status.HEALTHY
    assert outcome(checks.http(f"http://127.0.0.1:{free_port}/"))[:2] == (Status.UNHEALTHY, "connection")
    with listening() as (_, port):  # accepts, and never answers
        assert outcome(checks.http(f"http://127.0.0.1:{port}/", timeout=0.1))[1] == "timeout"


def test_dns() -> None:
    assert outcome(checks.dns("localhost"))[0] is Status.HEALTHY
    assert outcome(checks.dns("no-such-name.invalid"))[:2] == (Status.UNHEALTHY, "connection")


def test_disk() -> None:
    assert outcome(checks.disk("/", max_percent=100))[0] is Status.HEALTHY
    status, error, text = outcome(checks.disk("/", max_percent=0.000001))
    assert (status, error) == (Status.UNHEALTHY, "failed")
    assert text.endswith("% used")
    assert outcome(checks.disk("/no/such/disk"))[1] == "error:FileNotFoundError"


def test_sqlalchemy(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/shop.db")
    assert outcome(checks.sqlalchemy(engine))[0] is Status.HEALTHY
    engine.dispose()
    broken = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/no/such/folder/shop.db")
    assert outcome(checks.sqlalchemy(broken))[:2] == (Status.UNHEALTHY, "connection")


def test_sqlalchemy_with_an_asynchronous_engine(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db", poolclass=sqlalchemy.NullPool)
    check = checks.sqlalchemy(engine)
    assert is_async(check)
    assert outcome(check)[0] is Status.HEALTHY
    missing = f"sqlite+aiosqlite:///{tmp_path}/no/such/folder/shop.db"
    broken = create_async_engine(missing, poolclass=sqlalchemy.NullPool)
    assert outcome(checks.sqlalchemy(broken))[:2] == (Status.UNHEALTHY, "connection")


@pytest.fixture
def redis_server(tmp_path: Path, free_port: int) -> Iterator[int]:
    command = [
        *(program("redis-server"), "--port", str(free_port), "--bind", "127.0.0.1", "--save", ""),
        *("--requirepass", "s3cr3t-pass", "--dir", str(tmp_path)),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if "Ready to accept connections" in line:
            break
    yield free_port
    server.kill()
    server.communicate()


def test_redis(redis_server: int) -> None:
    assert outcome(checks.redis(f"redis://:s3cr3t-pass@127.0.0.1:{redis_server}/0"))[0] is Status.HEALTHY
    assert outcome(checks.redis(f"redis://:wrong@127.0.0.1:{redis_server}/0"))[:2] == (
        Status.UNHEALTHY,
        "auth",
    )


def test_redis_that_is_not_there_or_does_not_answer(free_port: int) -> None:
    assert outcome(checks.redis(f"redis://127.0.0.1:{free_port}"))[:2] == (Status.UNHEALTHY, "connection")
    with listening() as (_, port):
        assert outcome(checks.redis(f"redis://127.0.0.1:{port}", timeout=0.1))[1] == "timeout"


def test_an_event_loop_that_is_held_up_is_degraded() -> None:
    async def scenario(*, hold: bool) -> Any:
        async def hog() -> None:
            while True:
                if hold:
                    time.sleep(0.05)  # noqa: ASYNC251  what the check is there to find
                await asyncio.sleep(0)

        task = asyncio.create_task(hog())
        try:
            return await checks.event_loop(max_lag=0.03)()
        finally:
            task.cancel()

    held = asyncio.run(scenario(hold=True))
    assert held.status is Status.DEGRADED
    assert held.output.endswith("ms late")


def test_worker_threads_that_are_all_busy_are_degraded() -> None:
    import anyio.to_thread

    async def scenario() -> list[Any]:
        gate, both = threading.Event(), threading.Barrier(3)
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2
        found = [await checks.worker_threads()()]

        def work() -> None:
            both.wait(10)
            gate.wait(10)

        busy = [asyncio.create_task(anyio.to_thread.run_sync(work)) for _ in range(2)]
        await asyncio.get_running_loop().run_in_executor(None, both.wait, 10)
        found.append(await checks.worker_threads()())
        gate.set()
        await asyncio.gather(*busy)
        return found

    idle, busy = asyncio.run(scenario())
    assert idle.status is Status.HEALTHY
    assert (busy.status, busy.output) == (Status.DEGRADED, "2 of 2 threads busy")


@pytest.mark.parametrize(
    "make",
    [
        lambda: checks.tcp("localhost", 0),
        lambda: checks.tcp("localhost", 80, timeout=0),
        lambda: checks.http("ftp://example.org"),
        lambda: checks.http("http://example.org", timeout=-1),
        lambda: checks.dns(""),
        lambda: checks.disk("/", max_percent=0),
        lambda: checks.redis("redis://localhost", timeout=0),
        lambda: checks.sqlalchemy("sqlite://"),
        lambda: checks.event_loop(max_lag=0),
        lambda: checks.worker_threads(max_share=2),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_bad_redis_url_is_refused_without_telling_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        checks.redis("http://:s3cr3t@cache")
    assert "s3cr3t" not in str(caught.value)


ABSENT = """
import sys
for name in ("redis", "sqlalchemy", "httpx", "anyio"):
    sys.modules[name] = None
from lbkit import checks
from lbkit.errors import MissingExtra
for make in (lambda: checks.redis("redis://x"), lambda: checks.sqlalchemy(None), lambda: checks.http("http://x"),
             checks.worker_threads):
    try:
        make()
    except MissingExtra as error:
        print(error.library, error.extra)
"""


def test_a_missing_library_is_named_with_its_extra() -> None:
    done = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["redis redis", "sqlalchemy checks", "httpx checks", "anyio starlette"]
    assert issubclass(MissingExtra, ImportError)


def test_importing_the_checks_imports_none_of_their_libraries() -> None:
    code = "import sys, lbkit.checks; print({'redis', 'sqlalchemy', 'httpx', 'anyio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
