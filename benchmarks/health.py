"""What a health probe costs, alone and in a crowd, next to what it costs with other people's checks.

    python -m benchmarks.health [--rounds N] [--seconds S] [--only SECTION]

Sections: cost, crowd, hung, load. Each prints lbkit and its peers in turn, as ratios and counts.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks._health_peers import ASGI, PATHS, WSGI, asgi_lbkit, health, nothing, raw_asgi, raw_wsgi
from benchmarks._load import load
from benchmarks._measure import Batch, compare
from lbkit import asgi, wsgi
from lbkit.metrics import SHORTEST_WINDOW

HEADERS = [(b"host", b"10.1.2.3:8000"), (b"user-agent", b"kube-probe/1.30"), (b"accept", b"*/*")]
SLOW = 0.05
"""Seconds that the dependency takes where it takes any."""

CROWD = 64
PAIRS = 3


def scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": HEADERS,
        "client": ("127.0.0.1", 4711),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


def environ(path: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "10.1.2.3:8000",
        "HTTP_USER_AGENT": "kube-probe/1.30",
        "HTTP_ACCEPT": "*/*",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


async def empty_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def ask_asgi(app: Any, path: str) -> list[dict[str, Any]]:
    """As a server calls an app: a scope of its own, and somebody who takes the messages."""
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await app(scope(path), empty_body, send)
    return messages


def ask_wsgi(app: Any, path: str) -> list[Any]:
    started: list[Any] = []
    body = app(environ(path), lambda *head: started.append(head))
    try:
        started.extend(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return started


class Empty:
    """The least that a middleware can be: what this machine asks for one more call."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


# What one probe costs.


def cost(rounds: int) -> None:
    print("\none probe over ASGI, no-op check, in process")
    loop = asyncio.new_event_loop()
    ways = {name: asgi_batch(loop, make(nothing), PATHS[name]) for name, make in ASGI.items()}
    found = compare(ways, rounds=rounds)
    print(found.table())
    goal("of raw, /health", found.ratio("lbkit /health"), 4, "x")
    goal("of raw, detailed", found.ratio("lbkit detailed"), 4, "x")
    passing = {
        "raw": raw_asgi,
        "behind an empty middleware": Empty(raw_asgi),
        "behind lbkit": asgi.HealthMiddleware(raw_asgi, health(nothing)),
    }
    print("  another path")
    found = compare({name: asgi_batch(loop, app, "/shop") for name, app in passing.items()}, rounds=rounds)
    print(found.table())
    goal("added to another path over ASGI", found.added("behind lbkit"), 0.6, "us")
    loop.close()

    print("\none probe over WSGI, no-op check, in process")
    ways = {name: wsgi_batch(make(nothing), PATHS[name]) for name, make in WSGI.items()}
    found = compare(ways, rounds=rounds)
    print(found.table())
    goal("of raw, /health", found.ratio("lbkit /health"), 4, "x")
    goal("of raw, detailed", found.ratio("lbkit detailed"), 4, "x")
    others = {"raw": raw_wsgi, "behind lbkit": wsgi.HealthMiddleware(raw_wsgi, health(nothing))}
    found = compare({name: wsgi_batch(app, "/shop") for name, app in others.items()}, rounds=rounds)
    goal("added to another path over WSGI", found.added("behind lbkit"), 1.0, "us")


def asgi_batch(loop: asyncio.AbstractEventLoop, app: Any, path: str) -> Batch:
    async def many(calls: int) -> None:
        for _ in range(calls):
            await ask_asgi(app, path)

    return lambda calls: loop.run_until_complete(many(calls))


def wsgi_batch(app: Any, path: str) -> Batch:
    def many(calls: int) -> None:
        for _ in range(calls):
            ask_wsgi(app, path)

    return many


# Many probes at once, and nothing known yet.


class Dependency:
    """Takes a while, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        time.sleep(SLOW)


def crowd(_: int) -> None:
    """The first probes of an app that is as old as the time over which CPU is measured, 0.25 s.

    Whoever asks a younger one for details waits for the rest of that time.
    """
    print(f"\n{CROWD} probes at once, cold, the dependency takes {SLOW * 1000:.0f} ms")
    for name, make in ASGI.items():
        if name not in ("raw", "lbkit /health"):
            dependency = Dependency()
            app = make(dependency)
            time.sleep(SHORTEST_WINDOW)
            seconds, lag = asyncio.run(rush(lambda app=app, name=name: ask_asgi(app, PATHS[name])))
            worst = f"the loop at worst {lag * 1000:.1f} ms late"
            print(f"    ASGI {name:24} {dependency.calls:3} calls {seconds * 1000:7.0f} ms   {worst}")
    for name, make in WSGI.items():
        if name not in ("raw", "lbkit /health"):
            dependency = Dependency()
            app = make(dependency)
            time.sleep(SHORTEST_WINDOW)
            began = time.perf_counter()
            with ThreadPoolExecutor(CROWD) as pool:
                for answer in [pool.submit(ask_wsgi, app, PATHS[name]) for _ in range(CROWD)]:
                    answer.result()
            seconds = time.perf_counter() - began
            print(f"    WSGI {name:24} {dependency.calls:3} calls {seconds * 1000:7.0f} ms")


async def rush(ask: Callable[[], Any]) -> tuple[float, float]:
    """CROWD probes at once: how long they took, and how late the loop came to a timer meanwhile."""
    lag = 0.0

    async def watch() -> None:
        nonlocal lag
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            lag = max(lag, time.perf_counter() - before - 0.001)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(CROWD)))
    seconds = time.perf_counter() - began
    watcher.cancel()
    return seconds, lag


# A dependency that does not come back.


def hung(_: int) -> None:
    print("\na check that hangs, timeout 1 s")
    release = threading.Event()

    def hang() -> None:
        release.wait(30)

    try:
        for name, answered in (("ASGI", hung_asgi(hang)), ("WSGI", hung_wsgi(hang))):
            goal(f"the first answer over {name}", answered[0], 1.1, "s")
            goal(f"threads for 16 probes over {name}", answered[1], 1, "more")
        for what, milliseconds in asyncio.run(collateral(hang)).items():
            goal(what, milliseconds, 20, "ms")
    finally:
        release.set()
    goal("exit of the server, from Ctrl-C", exit_seconds(), 0.5, "s")


def hung_asgi(hang: Callable[[], None]) -> tuple[float, int]:
    async def scenario() -> tuple[float, int]:
        app = asgi_lbkit(hang)
        before, began = threading.active_count(), time.perf_counter()
        await ask_asgi(app, "/health/ready")
        seconds = time.perf_counter() - began
        await asyncio.gather(*(ask_asgi(app, "/health/ready") for _ in range(16)))
        return seconds, threading.active_count() - before

    return asyncio.run(scenario())


def hung_wsgi(hang: Callable[[], None]) -> tuple[float, int]:
    app = wsgi.HealthMiddleware(raw_wsgi, health(hang))
    before, began = threading.active_count(), time.perf_counter()
    ask_wsgi(app, "/health/ready")
    seconds = time.perf_counter() - began
    for _ in range(16):
        ask_wsgi(app, "/health/ready")
    return seconds, threading.active_count() - before


async def collateral(hang: Callable[[], None]) -> dict[str, float]:
    """What else in the process waits while a crowd asks a check that hangs: nothing should."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def plain(_: Request) -> PlainTextResponse:
        return PlainTextResponse("plain")

    app = asgi.HealthMiddleware(Starlette(routes=[Route("/plain", plain)]), health(hang))
    await ask_asgi(app, "/plain")
    probes = [asyncio.create_task(ask_asgi(app, "/health/ready")) for _ in range(CROWD)]
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    await ask_asgi(app, "/plain")
    route = time.perf_counter() - began
    began = time.perf_counter()
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    lookup = time.perf_counter() - began
    await asyncio.gather(*probes)
    return {"another def route meanwhile": route * 1000, "getaddrinfo meanwhile": lookup * 1000}


def exit_seconds() -> float:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "tests.e2e.health_hung:app",
        f"--port={port}",
        "--log-level=error",
    ]
    server = subprocess.Popen(command, env=with_path(), stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=10)
        began = time.perf_counter()
        server.send_signal(signal.SIGINT)
        server.wait(30)
        return time.perf_counter() - began
    finally:
        server.kill()
        server.wait()


# A crowd that does not go away.

SERVERS = {
    "asgi": [
        "uvicorn",
        "benchmarks._health_peers:app",
        "--port={port}",
        "--log-level=error",
        "--no-access-log",
    ],
    "wsgi": ["gunicorn", "benchmarks._health_peers:app", "-kgthread", "--threads=8", "-b127.0.0.1:{port}"],
}
BESIDE = {"asgi": ("Starlette def route", "fastapi-health"), "wsgi": ("Flask route",)}
SHARES = {"asgi": 0.75, "wsgi": 0.85}


def under_load(_: int, seconds: float = 2.0) -> None:
    print(f"\n{CROWD} connections, {SLOW * 1000:.0f} ms dependency, {PAIRS} x {seconds:g} s each")
    for kind, share in SHARES.items():
        ways = ["raw", "lbkit detailed", *BESIDE[kind]]
        # In turn, so that a slow moment of the machine is a slow moment for all of them.
        rounds = [{way: served(kind, way, PATHS[way], seconds) for way in ways} for _ in range(PAIRS)]
        for way in ways:
            per_second = median(each[way][0] for each in rounds)
            of_raw = median(each[way][0] / each["raw"][0] for each in rounds)
            calls = max(each[way][1] for each in rounds)
            print(f"    {kind} {way:24}{per_second:7.0f} /s  {of_raw:5.2f} of raw  {calls:5} calls at most")
            if way.startswith("lbkit"):
                goal("share of raw, at least", of_raw, share, "", at_least=True)
                goal("calls", calls, 5, "")


def served(kind: str, name: str, path: str, seconds: float) -> tuple[float, int]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder, "calls")
        calls.touch()
        variables = {"LBKIT_BENCH_APP": f"{kind}:{name}", "LBKIT_BENCH_CALLS": str(calls)}
        command = [sys.executable, "-m", *(word.format(port=port) for word in SERVERS[kind])]
        server = subprocess.Popen(command, env=with_path() | variables, stderr=subprocess.DEVNULL)
        try:
            wait_for(port)
            httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10)  # the first result is not under test
            found = asyncio.run(load(port, path, connections=CROWD, seconds=seconds))
            if found.failures:
                print(f"    {found.failures} of {found.answers} answers were no success")
            return found.per_second, len(calls.read_bytes())
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def with_path() -> dict[str, str]:
    root = Path(__file__).parent.parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "integrations")])}


def goal(what: str, value: float, limit: float, unit: str, *, at_least: bool = False) -> None:
    kept = value >= limit if at_least else value <= limit
    print(f"    {'ok ' if kept else 'NOT'} {what}: {value:.2f} {unit} (goal {limit:g})")


SECTIONS = {"cost": cost, "crowd": crowd, "hung": hung, "load": under_load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", choices=SECTIONS)
    asked = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs")
    for name, section in SECTIONS.items():
        if asked.only in (None, name):
            section(asked.rounds)


if __name__ == "__main__":
    main()
