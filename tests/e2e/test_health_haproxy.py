"""A real HAProxy asks: its HTTP check, as OPTIONS if nobody says otherwise, and its agent-check."""

from __future__ import annotations

import csv
import io
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lbkit import Departure
from lbkit.health import Outcome, Thresholds
from lbkit.monitor import Health
from lbkit.process import Process
from lbkit.service import Service
from lbkit.side_port import AgentPort, SidePort
from tests.e2e.servers import free_port
from tests.programs import program

LIMIT = 30.0

CONFIG = """
global
    stats socket {socket} mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 2s
    timeout server 2s
frontend web
    bind 127.0.0.1:{port}
    default_backend pool
backend pool
    {backend}
    server web1 127.0.0.1:{side} check inter 50ms fall 1 rise 1 {server}
"""


class HAProxy:
    def __init__(self, path: Path) -> None:
        self._socket = path

    def server(self) -> dict[str, str]:
        """What HAProxy itself says of web1: its status, its weight, and why."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket))
            connection.sendall(b"show stat\n")
            told = b""
            while piece := connection.recv(65536):
                told += piece
        rows = csv.DictReader(io.StringIO(told.decode().lstrip("# ")))
        return next(row for row in rows if row["svname"] == "web1")

    def until(self, status: str, *, weight: str | None = None, code: str | None = None) -> dict[str, str]:
        """Wait until it says so, and return all that it says."""
        deadline = time.monotonic() + LIMIT
        while True:
            server = self.server()
            wished = {"weight": weight or server["weight"], "check_code": code or server["check_code"]}
            if server["status"].startswith(status) and wished.items() <= server.items():
                return server
            assert time.monotonic() < deadline, server
            time.sleep(0.02)


def listens(path: Path) -> bool:
    """The file is there before anybody listens to it."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


@contextmanager
def haproxy(folder: Path, side: SidePort, *, backend: str = "", server: str = "") -> Iterator[HAProxy]:
    assert side.address is not None
    path = folder / f"haproxy-{side.address[1]}-{len(backend)}.sock"
    config = folder / "haproxy.cfg"
    places = {"socket": path, "port": free_port(), "side": side.address[1]}
    config.write_text(CONFIG.format(**places, backend=backend, server=server))
    process = subprocess.Popen(
        [program("haproxy"), "-db", "-f", str(config)], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + LIMIT
        while not listens(path):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield HAProxy(path)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def ports() -> tuple[SidePort, AgentPort]:
    return SidePort(0), AgentPort(0)


@pytest.fixture
def health(ports: tuple[SidePort, AgentPort]) -> Iterator[Health]:
    never = Thresholds(cpu=101, memory=101, disk=101)
    health = Health(Service(version="1.0.0"), thresholds=never, beside=ports)
    health.start()
    yield health
    health.stop()


def test_its_http_check_comes_as_options_and_is_answered(
    tmp_path: Path, health: Health, ports: tuple[SidePort, AgentPort]
) -> None:
    with haproxy(tmp_path, ports[0], backend="option httpchk") as proxy:
        # OPTIONS / is not ours, so the plain form is the app's matter; with our path it is answered.
        proxy.until("DOWN")
    with haproxy(tmp_path, ports[0], backend="option httpchk OPTIONS /health") as proxy:
        assert proxy.until("UP", code="204")["check_status"] == "L7OK"
    assert health.lifecycle.started


def test_a_draining_replica_is_taken_out_and_comes_back(
    tmp_path: Path, health: Health, ports: tuple[SidePort, AgentPort]
) -> None:
    with haproxy(tmp_path, ports[0], backend="option httpchk GET /health") as proxy:
        proxy.until("UP")
        health.lifecycle.drain()
        assert proxy.until("DOWN")["check_code"] == "503"
        health.lifecycle.resume()
        proxy.until("UP")


def test_404_while_draining_is_its_soft_stop(tmp_path: Path) -> None:
    side = SidePort(0)
    health = Health(Service(drain_status=404), beside=[side])
    health.start()
    backend = "option httpchk GET /health\n    http-check disable-on-404"
    try:
        with haproxy(tmp_path, side, backend=backend) as proxy:
            proxy.until("UP")
            health.lifecycle.drain()
            assert proxy.until("NOLB")["check_code"] == "404"
    finally:
        health.stop()


@pytest.mark.parametrize(("told_by", "state"), [("503", "DOWN"), ("404", "NOLB"), ("agent", "DRAIN")])
def test_an_operators_drain_is_seen_in_each_way_and_taken_back(
    told_by: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    side, agent, never = SidePort(0), AgentPort(0), Thresholds(cpu=101, memory=101, disk=101)
    service = Service(drain_status=404 if told_by == "404" else 503)
    health = Health(service, thresholds=never, beside=[side, agent])
    departure = Departure(environ={}, process=Process(environ={}))
    departure.speak_for(health)
    health.start()
    assert agent.address is not None
    backend = "option httpchk GET /health\n    http-check disable-on-404"
    words = f"agent-check agent-port {agent.address[1]} agent-inter 50ms"
    asked = {"server": words} if told_by == "agent" else {"backend": backend}
    try:
        with haproxy(tmp_path, side, **asked) as proxy:
            proxy.until("UP")
            departure.process.order(drain=True)
            proxy.until(state)
            departure.process.order(drain=False)
            proxy.until("UP")
    finally:
        health.stop()


def test_the_agent_s_words_set_its_state_and_its_weight(
    tmp_path: Path, health: Health, ports: tuple[SidePort, AgentPort]
) -> None:
    side, agent = ports
    assert agent.address is not None
    answers = [Outcome.healthy()]
    health.check("db", ttl=0, fail_ttl=0)(lambda: answers[-1])
    words = f"agent-check agent-port {agent.address[1]} agent-inter 50ms weight 100"
    with haproxy(tmp_path, side, server=words) as proxy:
        proxy.until("UP", weight="100")
        answers.append(Outcome.degraded())
        proxy.until("UP", weight="80")
        answers.append(Outcome.unhealthy())
        found = proxy.until("DOWN")
        assert "db" in found["last_agt"]
        answers.append(Outcome.healthy())
        proxy.until("UP", weight="100")
        health.lifecycle.drain()
        proxy.until("DRAIN")
        health.lifecycle.resume()
        proxy.until("UP", weight="100")
