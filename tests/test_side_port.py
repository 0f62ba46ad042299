"""The ports beside the app: real sockets, and a real HAProxy in e2e/test_health_haproxy.py."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lbkit.errors import ConfigError
from lbkit.health import Outcome, State, Status, Thresholds
from lbkit.health.agent import agent_line
from lbkit.health.report import Endpoint, Facts, report
from lbkit.monitor import Health
from lbkit.service import Service
from lbkit.side_port import AgentPort, SidePort
from tests.health_gateways import running_loop
from tests.test_health import seen


def until(happens: Callable[[], object], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def side() -> SidePort:
    return SidePort(0)


@pytest.fixture
def agent() -> AgentPort:
    return AgentPort(0)


@pytest.fixture
def health(side: SidePort, agent: AgentPort) -> Iterator[Health]:
    never = Thresholds(cpu=101, memory=101, disk=101)
    health = Health(Service(version="1.0.0"), thresholds=never, beside=[side, agent], watchdog=0.2)
    yield health
    health.stop()


def url(port: SidePort) -> str:
    assert port.address is not None
    return f"http://127.0.0.1:{port.address[1]}"


def words(port: AgentPort) -> str:
    assert port.address is not None
    with socket.create_connection(port.address, timeout=10) as connection:
        told = b""
        while piece := connection.recv(1000):
            told += piece
    assert told.endswith(b"\n")
    return told.decode().strip()


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"state": State.STARTING}, "down #starting"),
        ({"state": State.READY}, "ready up 100%"),
        ({"state": State.DRAINING}, "drain"),
        ({"state": State.STOPPED}, "drain"),
        ({"state": State.READY, "views": (seen(Status.UNHEALTHY, False),)}, "ready up 80%"),
        ({"state": State.READY, "views": (seen(Status.UNHEALTHY, name="db"),)}, "down #db"),
        ({"state": State.READY, "views": (seen(Status.UNKNOWN, name="db"),)}, "down #db"),
        ({"state": State.DRAINING, "views": (seen(Status.UNHEALTHY),)}, "drain"),
        (
            {"state": State.READY, "views": tuple(seen(Status.UNHEALTHY, name=n) for n in "dcba")},
            "down #d,c,b",
        ),
    ],
)
def test_the_agent_s_words(facts: Any, line: str) -> None:
    assert agent_line(report(Endpoint.READY, Facts(**facts), Service())) == f"{line}\n"


def test_the_side_port_answers_as_the_endpoints_do(health: Health, side: SidePort) -> None:
    health.check("database")(lambda: None)
    health.check("search", critical=False)(lambda: False)
    health.start()
    with httpx.Client(base_url=url(side)) as client:
        assert set(client.get("/health").json()) == {"status", "timestamp", "version"}
        assert client.get("/health/ready").json()["status"] == "degraded"
        assert client.get("/health/detailed").json()["checks"]["database"]["status"] == "healthy"
        head = client.head("/health/ready")
        assert (head.status_code, head.content) == (200, b"")
        assert client.options("/health").status_code == 204
        assert client.post("/health").status_code == 405
        assert client.get("/").status_code == 404
        assert "<!doctype html>" in client.get("/health", headers={"Accept": "text/html"}).text
        health.lifecycle.drain()
        assert client.get("/health").status_code == 503


def test_the_agent_answers_each_connection_with_its_line(health: Health, agent: AgentPort) -> None:
    answers: list[Outcome] = [Outcome.healthy()]
    health.check("database", ttl=0, fail_ttl=0)(lambda: answers[-1])
    health.start()
    assert words(agent) == "ready up 100%"
    answers.append(Outcome.unhealthy("no route to host"))
    until(lambda: words(agent) == "down #database")
    health.lifecycle.drain()
    assert words(agent) == "drain"
    health.lifecycle.resume()
    answers.append(Outcome.degraded())
    until(lambda: words(agent) == "ready up 80%")


def test_the_ports_end_with_the_app_and_begin_again(health: Health, side: SidePort) -> None:
    for _ in range(2):
        health.start()
        assert httpx.get(f"{url(side)}/health").status_code == 200
        address = side.address
        health.stop()
        assert side.address is None
        assert address is not None
        until(lambda address=address: refused(address))  # type: ignore[misc]


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return True
    return False


def test_of_two_workers_the_first_has_the_port_and_the_other_takes_over() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    first, second = (Health(Service(version=str(each)), beside=[SidePort(port)]) for each in (1, 2))
    first.start()
    second.start()

    def version() -> str | None:
        try:
            return str(httpx.get(f"http://127.0.0.1:{port}/health").json()["version"])
        except httpx.TransportError:
            return None

    try:
        assert version() == "1"
        first.stop()
        until(lambda: version() == "2")
    finally:
        first.stop()
        second.stop()


def test_a_wedged_event_loop_fails_liveness_at_the_side_port_and_recovers(
    health: Health, side: SidePort
) -> None:
    import threading

    async def serve() -> None:
        health.start()

    hold, held = threading.Event(), threading.Event()

    def wedge() -> None:
        held.set()
        hold.wait(20)

    with running_loop() as loop:
        asyncio.run_coroutine_threadsafe(serve(), loop).result(timeout=5)
        assert httpx.get(f"{url(side)}/health/live").status_code == 200
        loop.call_soon_threadsafe(wedge)
        held.wait(5)
        until(lambda: httpx.get(f"{url(side)}/health/live").status_code == 503)
        assert httpx.get(f"{url(side)}/health/live").json()["error"] == "event-loop"
        hold.set()
        until(lambda: httpx.get(f"{url(side)}/health/live").status_code == 200)


def test_a_client_that_says_nothing_or_nonsense_holds_nothing_up(health: Health, side: SidePort) -> None:
    health.start()
    assert side.address is not None
    silent = [socket.create_connection(side.address) for _ in range(8)]
    try:
        with socket.create_connection(side.address) as rude:
            rude.sendall(b"\x00\xff nonsense\r\n\r\n")
            assert b"400" in rude.recv(1000)
        assert httpx.get(f"{url(side)}/health").status_code == 200
    finally:
        for each in silent:
            each.close()


@pytest.mark.parametrize(
    "make", [lambda: SidePort(-1), lambda: SidePort(70000), lambda: AgentPort(9000, degraded_percent=0)]
)
def test_ports_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_watchdog_needs_a_time() -> None:
    with pytest.raises(ConfigError):
        Health(watchdog=0)
