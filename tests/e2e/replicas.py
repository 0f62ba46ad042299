"""Real servers with the drain, real balancers in front of them, and clients that retry nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.programs import program

__all__ = [
    "EXEC", "LIMIT", "LONG", "MASTER", "PYTHON", "SERVERS", "UVICORN", "WSGI", "Clients", "Replica",
    "balancer", "free_ports", "get", "lbkit", "until",
]  # fmt: skip

ROOT = Path(__file__).parent.parent.parent
CONF = Path(__file__).parent / "conf"
LIMIT = 60.0
"""Seconds after which a step counts as hung. Nothing waits this long unless it is."""

LONG = "3600"
"""Seconds: a delay that does not end by itself within a test."""

PYTHON = sys.executable
EXEC = [PYTHON, "-m", "lbkit", "exec", "--"]
MASTER = ["-c", "python:lbkit.gunicorn"]
ASGI, WSGI = "tests.e2e.draining:asgi", "tests.e2e.draining:wsgi"
UVICORN = [PYTHON, "-m", "uvicorn", ASGI, "--port={port}", "--no-access-log"]
HYPERCORN = [PYTHON, "-m", "hypercorn", ASGI, "--bind=127.0.0.1:{port}"]
GRANIAN = [PYTHON, "-m", "granian", "--port={port}"]
GUNICORN = [PYTHON, "-m", "gunicorn", "--bind=127.0.0.1:{port}", "--no-control-socket"]
SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn --workers 2": [*EXEC, *UVICORN, "--workers=2"],
    "hypercorn": [*EXEC, *HYPERCORN],
    "hypercorn -w 0": [*HYPERCORN, "-w0"],
    "granian asgi": [*EXEC, *GRANIAN, "--interface=asgi", ASGI],
    "granian wsgi": [*EXEC, *GRANIAN, "--interface=wsgi", "--blocking-threads=8", WSGI],
    "gunicorn uvicorn": [*GUNICORN, *MASTER, "-w2", "-kuvicorn_worker.UvicornWorker", ASGI],
    # One worker: this class forgets a SIGTERM that comes while it boots, and then takes graceful_timeout.
    "gunicorn asgi": [*GUNICORN, *MASTER, "-w1", "-kasgi", ASGI],
    "gunicorn gthread": [*GUNICORN, *MASTER, "-w2", "-kgthread", "--threads=8", WSGI],
    "gunicorn sync --preload": [*GUNICORN, *MASTER, "-w3", "--preload", WSGI],
    "waitress": [PYTHON, "-m", "waitress", "--listen=127.0.0.1:{port}", "--threads=8", WSGI],
}
"""Each with the hook that takes its SIGTERM."""


BALANCERS = {
    "envoy": (
        "drain_envoy.yaml",
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "-l",
        "warn",
        "-c",
        "{conf}",
    ),
    "haproxy": ("drain_haproxy.cfg", "-db", "-f", "{conf}"),
    "nginx": ("drain_nginx.conf", "-p", "{folder}/", "-c", "{conf}"),
}


class Replica:
    """A server in a process group of its own."""

    def __init__(self, command: list[str], port: int, folder: Path, **settings: str) -> None:
        self.port = port
        self.log = folder / f"replica-{port}.log"
        path = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
        places = {"XDG_RUNTIME_DIR": str(folder), "GATE": str(folder / "gate")}
        environ = {**os.environ, "PYTHONPATH": path, **places, **settings}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [word.format(port=port) for word in command],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        until(lambda: self.process.poll() is not None or self.health() == 200, self)
        assert self.process.poll() is None, self

    def health(self, path: str = "/health") -> int:
        return get(self.port, path)[0]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until it has ended. Returns its exit code, negative for a signal."""
        return self.process.wait(LIMIT)

    def kill(self) -> None:
        """Whatever is left of it, workers as well."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()

    def __str__(self) -> str:
        return f"exit code {self.process.poll()}\n{self.log.read_text()}"


class Clients:
    """Threads that keep their connections, send GET and POST, and note what was not answered in full."""

    def __init__(self, port: int, *, paths: tuple[str, ...] = ("/fast", "/fast", "/fast", "/slow")) -> None:
        self.port = port
        self.lost: list[str] = []
        self.answered = 0
        self.pids: set[str] = set()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(path,)) for path in paths]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(LIMIT)

    def wait_for_a_new_process(self, known: set[str]) -> None:
        until(lambda: bool(self.pids - known) or bool(self.lost), self.lost)

    def _work(self, path: str) -> None:
        connection, number = HTTPConnection("127.0.0.1", self.port, timeout=LIMIT), 0
        while not self._stopped.wait(0.02):
            number += 1
            method = "POST" if number % 2 else "GET"
            try:
                connection.request(method, f"{path}?id={number}", body=b"x" if method == "POST" else None)
                answer = connection.getresponse()
                text = answer.read().decode()
            except (OSError, HTTPException) as error:
                self.lost.append(f"{method} {path}: {error!r}")
                connection.close()
                continue
            if answer.status != 200 or not text.startswith(f"ok {number} "):
                self.lost.append(f"{method} {path}: {answer.status} {text[:80]}")
                continue
            self.answered += 1
            self.pids.add(text.split()[2])
        connection.close()


@contextmanager
def balancer(kind: str, ports: list[int], folder: Path) -> Iterator[int]:
    """A real one before these replicas. Yields its port once it answers."""
    (front,) = free_ports(1)
    name, *arguments = BALANCERS[kind]
    conf = folder / name
    text = (CONF / name).read_text().replace("@DIR@", str(folder))
    for place, port in zip(("@PORT@", "@WEB1@", "@WEB2@", "@WEB3@"), [front, *ports], strict=True):
        text = text.replace(place, str(port))
    conf.write_text(text)
    arguments = [word.format(conf=conf, folder=folder) for word in arguments]
    with (folder / f"{kind}.log").open("ab") as log, ExitStack() as stack:
        process = subprocess.Popen([program(kind), *arguments], stdout=log, stderr=log)
        stack.callback(process.wait, LIMIT)
        stack.callback(process.terminate)
        until(lambda: get(front, "/health")[0] == 200, folder)
        yield front


def get(port: int, path: str, *, method: str = "GET") -> tuple[int, str]:
    """Status and body; 0 when there is no answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request(method, path, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, HTTPException):
        return 0, ""
    finally:
        connection.close()


def lbkit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of ours, for the apps of that folder."""
    command = [sys.executable, "-m", "lbkit", *arguments]
    environ = {"XDG_RUNTIME_DIR": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT, check=False)


def until(condition: Callable[[], bool], witness: object) -> None:
    """Look until it is so. Fails with what the witness has to say."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"still not so after {LIMIT} s: {witness}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
