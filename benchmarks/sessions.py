"""What a session in Redis costs a request, alone and with 32 in flight, next to other people's.

    python -m benchmarks.sessions [--rounds N] [--only SECTION]

Sections: flask, django, starlette (CPU time of one request, as a ratio to the framework alone, the session
1 KB), and flight (requests a second with 32 in flight). It starts a redis-server of its own. CPU time has
noise in one direction only, so the least of the rounds counts.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, NamedTuple

from benchmarks._measure import Batch, compare
from benchmarks._session_peers import ASGI, DJANGO, WSGI
from lbkit.testkit.redis_server import RedisServer, redis_server

SCENARIOS = {"untouched": "/untouched", "read": "/read", "write": "/write", "new": "/write"}
FLASK_GOALS = {"untouched": 1.05, "read": 2.2, "write": 3.2, "new": 2.6}
PIPE_GOALS = {"untouched": 1.3, "read": 6.5, "write": 9.5}
REDIS_PY_GOALS = {"untouched": 1.3, "read": 10.0, "write": 16.0}
IN_FLIGHT = 32
THREADS = 8
READS = 10_000
GAIN = 1.5
SECONDS = 0.4


# -- asking ----------------------------------------------------------------------------------------------


def environ(path: str, cookie: str) -> dict[str, Any]:
    found = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "shop.example",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    return found | {"HTTP_COOKIE": cookie} if cookie else found


def ask_wsgi(app: Any, path: str, cookie: str) -> tuple[int, list[str]]:
    """The status, and the cookies that were set."""
    head: list[Any] = []
    body = app(environ(path, cookie), lambda status, headers, _=None: head.extend((status, headers)))
    try:
        for _ in body:
            pass
    finally:
        if hasattr(body, "close"):
            body.close()
    return int(head[0][:3]), [value for name, value in head[1] if name.lower() == "set-cookie"]


def scope(path: str, cookie: str) -> dict[str, Any]:
    headers = [(b"host", b"shop.example")]
    if cookie:
        headers.append((b"cookie", cookie.encode()))
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
        "headers": headers,
        "client": ("127.0.0.1", 4711),
        "server": ("shop.example", 80),
    }


async def empty_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def ask_asgi(app: Any, path: str, cookie: str) -> tuple[int, list[str]]:
    messages: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await app(scope(path, cookie), empty_body, send)
    headers = messages[0]["headers"]
    return messages[0]["status"], [value.decode() for name, value in headers if name == b"set-cookie"]


Ask = Callable[[Any, str, str], tuple[int, list[str]]]


def filled(ask: Ask, app: Any) -> str:
    """The Cookie header of a client with a session of 1 KB, and none from an app without sessions."""
    _, cookies = ask(app, "/fill", "")
    header = "; ".join(cookie.partition(";")[0] for cookie in cookies)
    for path in SCENARIOS.values():
        assert ask(app, path, header)[0] == 200, path
    return header


# -- what one request costs ------------------------------------------------------------------------------


def flask(server: RedisServer, rounds: int) -> None:
    print("\nFlask, CPU time of one request")
    for scenario, found in costs(server, WSGI, batch_wsgi, ask_wsgi, rounds):
        goal(f"{scenario}, of Flask alone", found["lbkit"], FLASK_GOALS[scenario], "x")


def django(server: RedisServer, rounds: int) -> None:
    print("\nDjango, CPU time of one request")
    for _ in costs(server, DJANGO, batch_wsgi, ask_wsgi, rounds):
        pass


def starlette(server: RedisServer, rounds: int) -> None:
    print("\nStarlette, CPU time of one request")
    loop = asyncio.new_event_loop()

    def ask(app: Any, path: str, cookie: str) -> tuple[int, list[str]]:
        return loop.run_until_complete(ask_asgi(app, path, cookie))

    def batch(app: Any, path: str, cookie: str) -> Batch:
        return batch_asgi(loop, app, path, cookie)

    for scenario, found in costs(server, ASGI, batch, ask, rounds):
        for way, goals in (("lbkit", PIPE_GOALS), ("lbkit, redis-py", REDIS_PY_GOALS)):
            if scenario in goals:
                goal(f"{scenario}, {way}, of Starlette alone", found[way], goals[scenario], "x")
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def costs(
    server: RedisServer,
    makers: dict[str, Callable[[str], Any]],
    batch: Callable[[Any, str, str], Batch],
    ask: Ask,
    rounds: int,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Scenario after scenario: what each way costs, as a ratio to the first."""
    server.flush()
    apps = {name: make(server.url) for name, make in makers.items()}
    cookies = {name: filled(ask, app) for name, app in apps.items()}
    for scenario, path in SCENARIOS.items():
        ways = {
            name: batch(app, path, "" if scenario == "new" else cookies[name]) for name, app in apps.items()
        }
        print(f"  {scenario}")
        found = compare(ways, rounds=rounds, clock=time.process_time)
        least = {way: min(each[way] for each in found.rounds) for way in ways}
        alone = least[found.ways[0]]
        for way, cost in least.items():
            print(f"    {way:24} {cost:9.2f} us  {cost / alone:7.2f} x")
        yield scenario, {way: cost / alone for way, cost in least.items()}


def batch_wsgi(app: Any, path: str, cookie: str) -> Batch:
    def run(calls: int) -> None:
        for _ in range(calls):
            ask_wsgi(app, path, cookie)

    return run


def batch_asgi(loop: asyncio.AbstractEventLoop, app: Any, path: str, cookie: str) -> Batch:
    async def asked(calls: int) -> None:
        for _ in range(calls):
            await ask_asgi(app, path, cookie)

    return lambda calls: loop.run_until_complete(asked(calls))


# -- many at once ----------------------------------------------------------------------------------------


class Rate(NamedTuple):
    """Requests, by the clock and by the CPU time of this process: where others use the machine, too, the
    second is what there would be without them."""

    a_second: float
    a_cpu_second: float


def flight(server: RedisServer, rounds: int) -> None:
    print(f"\nrequests a second: {IN_FLIGHT} tasks of one loop over ASGI, {THREADS} threads over WSGI")
    server.flush()
    loop = asyncio.new_event_loop()

    def ask(app: Any, path: str, cookie: str) -> tuple[int, list[str]]:
        return loop.run_until_complete(ask_asgi(app, path, cookie))

    asgi = {name: (app := make(server.url), filled(ask, app)) for name, make in ASGI.items()}
    wsgi = {name: (app := make(server.url), filled(ask_wsgi, app)) for name, make in (WSGI | DJANGO).items()}
    ways: dict[str, Callable[[str], Rate]] = {
        f"ASGI {name}": lambda path, app=app, cookie=cookie: tasks(loop, app, path, cookie)
        for name, (app, cookie) in asgi.items()
    }
    ways |= {
        f"WSGI {name}": lambda path, app=app, cookie=cookie: threads(app, path, cookie)
        for name, (app, cookie) in wsgi.items()
    }
    for scenario in ("read", "write"):
        print(f"  {scenario}")
        found = [
            {way: rate(SCENARIOS[scenario]) for way, rate in ways.items()}
            for _ in range(max(3, rounds // 10))
        ]
        best = {way: Rate(*map(max, zip(*(each[way] for each in found), strict=True))) for way in ways}
        for way, rate in best.items():
            print(f"    {way:24} {rate.a_second:9,.0f} /s  {rate.a_cpu_second:9,.0f} in a second of CPU time")
        if scenario == "read":
            goal("reads a second", best["ASGI lbkit"].a_second, READS, "/s", at_least=True)
            gain = median(
                each["ASGI lbkit"].a_second / each["ASGI lbkit, redis-py"].a_second for each in found
            )
            goal("of lbkit over redis-py", gain, GAIN, "x", at_least=True)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def tasks(loop: asyncio.AbstractEventLoop, app: Any, path: str, cookie: str) -> Rate:
    async def ask_on(until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            for _ in range(5):
                await ask_asgi(app, path, cookie)
            count += 5
        return count

    async def together() -> Rate:
        began, used = time.perf_counter(), time.process_time()
        counts = await asyncio.gather(*(ask_on(began + SECONDS) for _ in range(IN_FLIGHT)))
        return Rate(sum(counts) / (time.perf_counter() - began), sum(counts) / (time.process_time() - used))

    return loop.run_until_complete(together())


def threads(app: Any, path: str, cookie: str) -> Rate:
    began, used = time.perf_counter(), time.process_time()

    def ask_on(_: int) -> int:
        count = 0
        while time.perf_counter() < began + SECONDS:
            for _ in range(5):
                ask_wsgi(app, path, cookie)
            count += 5
        return count

    with ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(ask_on, range(THREADS)))
    return Rate(sum(counts) / (time.perf_counter() - began), sum(counts) / (time.process_time() - used))


def goal(what: str, value: float, limit: float, unit: str, *, at_least: bool = False) -> None:
    kept = value >= limit if at_least else value <= limit
    print(f"    {'ok ' if kept else 'NOT'} {what}: {value:,.2f} {unit} (goal {limit:,g})")


SECTIONS = {"flask": flask, "django": django, "starlette": starlette, "flight": flight}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", choices=SECTIONS)
    asked = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs")
    with redis_server() as server:
        for name, section in SECTIONS.items():
            if asked.only in (None, name):
                section(server, asked.rounds)


if __name__ == "__main__":
    main()
