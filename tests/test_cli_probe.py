"""`lbkit probe URL`, as Docker runs it: a process, its exit code, and its one line."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lbkit.health import Thresholds
from lbkit.healthcheck import ask
from lbkit.monitor import Health
from lbkit.service import Service
from lbkit.side_port import SidePort


@pytest.fixture
def served() -> Iterator[tuple[Health, str]]:
    port = SidePort(0)
    never = Thresholds(cpu=101, memory=101, disk=101)
    health = Health(Service(version="1.0.0"), thresholds=never, beside=[port])
    health.start()
    assert port.address is not None
    yield health, f"http://127.0.0.1:{port.address[1]}"
    health.stop()


def probe(*arguments: str, prelude: str = "") -> tuple[int, str, str]:
    run = "import sys\nfrom lbkit.__main__ import main\nsys.argv = ['lbkit', 'probe', *sys.argv[1:]]\nmain()"
    code = f"{prelude}\n{run}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_healthy_answer_is_0_and_a_failing_one_1_with_its_reason(served: tuple[Health, str]) -> None:
    health, url = served
    assert probe(f"{url}/health/ready") == (0, "200 healthy\n", "")
    health.check("database")(lambda: False)
    assert probe(f"{url}/health/ready") == (1, "503 unhealthy, database: failed\n", "")
    assert probe("--quiet", f"{url}/health/ready") == (1, "", "")


def test_it_needs_nothing_but_the_core(served: tuple[Health, str]) -> None:
    absent = (
        "import sys\nfor name in ('click', 'rich', 'uvicorn', 'httpx', 'flask'): sys.modules[name] = None"
    )
    assert probe(f"{served[1]}/health", prelude=absent) == (0, "200 healthy\n", "")


def test_the_command_is_listed_with_the_others() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lbkit", "--help"], capture_output=True, text=True, check=True
    )
    assert "probe" in done.stdout


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """A server that sends these bytes to whoever connects, and then holds the connection open."""
    over = threading.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                over.wait(20)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/health"
        finally:
            over.set()
            thread.join()


def test_a_server_that_never_answers_is_a_timeout() -> None:
    with answering() as url:
        assert ask(url, timeout=0.1).text == "no answer: timeout"


def test_a_server_that_never_finishes_is_a_timeout() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"{") as url:
        verdict = ask(url, timeout=0.2)
    assert (verdict.healthy, verdict.text) == (False, "no answer: timeout")


def test_nonsense_is_no_answer() -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n\r\n") as url:
        assert not ask(url, timeout=5).healthy


def test_a_redirect_is_not_healthy() -> None:
    head = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://example.org/\r\nContent-Length: 0\r\n\r\n"
    with answering(head) as url:
        assert ask(url, timeout=5).text == "307"


def test_a_port_where_nobody_listens_is_not_healthy() -> None:
    with socket.socket() as probe_:
        probe_.bind(("127.0.0.1", 0))
        port = probe_.getsockname()[1]
    verdict = ask(f"http://127.0.0.1:{port}/health")
    assert not verdict.healthy
    assert "ConnectionRefusedError" in verdict.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["127.0.0.1:8000/health"],
        ["ftp://127.0.0.1/"],
        ["http://127.0.0.1:99999/"],
        ["http://127.0.0.1/", "--timeout", "0"],
        ["http://127.0.0.1/", "--timeout", "soon"],
        ["http://127.0.0.1/", "--nonsense"],
        [],
    ],
)
def test_a_mistake_is_2_and_one_line(arguments: list[str]) -> None:
    code, out, error = probe(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
