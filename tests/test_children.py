"""Replicas in processes of their own: real processes, real signals, real sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lbkit.balancer.address import Address
from lbkit.children import Child
from lbkit.errors import ConfigError, StartupError

APP = "tests.children_app"


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(child: Child, path: str = "/") -> httpx.Response:
    address = Address.parse(child.address)
    transport = httpx.HTTPTransport(uds=address.path or None)
    with httpx.Client(transport=transport, base_url=f"http://{address.host}:{address.port}") as client:
        return client.get(path)


def refuses(child: Child) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(Address.parse(child.address).path) != 0


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child(f"{APP}:create_app", name="web7", env={"COLOUR": "blue"})
    child.start()
    yield child
    child.stop()


def test_a_child_answers_when_start_returns_and_knows_its_name(child: Child) -> None:
    told = ask(child).json()
    assert (told["pid"], told["replica"]) == (child.pid, "web7")
    assert child.pid != os.getpid()
    child.start()  # it runs already
    assert ask(child).json()["pid"] == told["pid"]


def test_a_child_that_is_stopped_refuses_and_a_restarted_one_is_new_at_the_same_address(child: Child) -> None:
    before, address = child.pid, child.address
    assert child.stop() == -signal.SIGTERM
    assert refuses(child)
    child.restart()
    assert child.address == address
    assert ask(child).json()["pid"] == child.pid != before


def test_a_killed_child_is_gone_at_once(child: Child) -> None:
    child.kill()
    assert not child.alive
    assert refuses(child)
    child.start()
    assert ask(child).status_code == 200


def test_a_wsgi_app_on_a_port_is_a_child_too() -> None:
    child = Child(f"{APP}:wsgi_app", port=0)
    child.start()
    try:
        first = child.address
        assert ask(child).json()["pid"] == child.pid
        child.restart()
        assert child.address == first
        assert ask(child).json()["pid"] == child.pid
    finally:
        child.stop()


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (f"{APP}:create_broken", "RuntimeError: no database"),
        (f"{APP}:nothing", f"{APP} has no attribute nothing"),
        ("tests.no_such_module", "no_such_module"),
    ],
)
def test_a_child_that_cannot_start_says_why_in_one_line(target: str, why: str) -> None:
    child = Child(target, name="web1")
    with pytest.raises(StartupError, match="replica web1 failed to start") as caught:
        child.start()
    assert why in caught.value.reason
    assert not child.alive


def test_a_child_that_does_not_answer_in_time_is_killed() -> None:
    child = Child(f"{APP}:create_app", patience=0.01)
    with pytest.raises(StartupError, match=r"no answer within 0\.01 s"):
        child.start()
    assert not child.alive


def test_a_child_that_ignores_sigterm_is_killed_when_its_time_is_over(child: Child) -> None:
    child.send_signal(signal.SIGSTOP)
    assert child.stop(timeout=0.05) == -signal.SIGKILL
    child.start()


def test_children_end_when_their_parent_was_killed(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    code = (
        "import sys, time, pathlib\n"
        "from lbkit.children import Child\n"
        f"child = Child('{APP}:create_app'); child.start()\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{child.pid}.')\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(said)])
    until(lambda: said.exists() and said.read_text().endswith("."))
    pid = int(said.read_text()[:-1])
    parent.kill()
    parent.wait()
    until(
        lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    )


def test_a_patience_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="need patience > 0, got patience=0"):
        Child("app", patience=0)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://10.0.0.1:8000", Address("http", "10.0.0.1", 8000)),
        ("http://shop.internal/", Address("http", "shop.internal", 80)),
        ("https://[::1]", Address("https", "::1", 443)),
        ("unix:/run/web1.sock", Address("http", "localhost", 80, "/run/web1.sock")),
    ],
)
def test_an_address_is_a_url_or_a_unix_socket(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "web1", "ftp://x", "http://", "http://x/shop", "http://x?a", "http://u@x", "http://x:a", "unix:"],
)
def test_an_address_that_is_none_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ConfigError, match=r"need a URL such as http://10\.0\.0\.11:8000 or unix:/run"):
        Address.parse(text)


def test_nothing_of_a_stopped_child_stays_behind() -> None:
    child = Child(f"{APP}:create_app")
    child.start()
    path = Path(Address.parse(child.address).path)
    assert path.is_socket()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    child.stop()
    assert not path.parent.exists()
