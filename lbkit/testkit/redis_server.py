"""A real redis-server for tests: a process of its own on a free port, with nothing on disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lbkit.errors import ConfigError

__all__ = ["RedisServer", "redis_server"]

LIMIT = 10.0
"""Seconds in which it answers, or never will."""


class RedisServer:
    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"

    def ask(self, command: str) -> bytes:
        """Send one inline command; the first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.makefile("rb").readline().strip()

    def flush(self) -> None:
        self.ask("FLUSHALL")


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Started, and answering. Raises ConfigError when there is no redis-server to start."""
    program = shutil.which("redis-server")
    if program is None:
        raise ConfigError("need redis-server on PATH, such as from the package redis-server of Debian")
    server = RedisServer(_free_port())
    command = [program, "--port", str(server.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        _wait_for(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(LIMIT)


def _wait_for(server: RedisServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ConfigError(f"redis-server ended with exit code {process.returncode}")
        try:
            if server.ask("PING") == b"+PONG":
                return
        except OSError:
            time.sleep(0.01)
    raise ConfigError(f"redis-server did not answer in {LIMIT:g} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
