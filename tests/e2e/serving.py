"""A real `lbkit serve`, or another real server, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

__all__ = ["LIMIT", "Process", "lbkit_serve", "served", "started"]

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60.0
"""Seconds after which a step counts as hung. Nothing waits this long unless it is."""


SETTINGS = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # Werkzeug writes a set into the header Allow
}


class Process:
    """A running command whose lines can be waited for."""

    def __init__(self, command: Sequence[str], *, cwd: Path | None = None) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
        self._popen = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, **SETTINGS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own: Ctrl-C reaches a reloader and its child alike
        )
        self._lines: Queue[str | None] = Queue()
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            Thread(target=self._read, args=each, daemon=True)
            for each in ((self._popen.stdout, self.out), (self._popen.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line, of either stream, in which the pattern is found."""
        while True:
            try:
                line = self._lines.get(timeout=LIMIT)
            except Empty:
                raise AssertionError(f"no line with {pattern} in {LIMIT} s: {self}") from None
            if line is None:
                raise AssertionError(f"ended without a line with {pattern}: {self}")
            if match := re.search(pattern, line):
                return match

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def interrupt(self) -> int:
        """Press Ctrl-C. Returns the exit code."""
        os.killpg(self._popen.pid, signal.SIGINT)
        return self.end()

    def end(self) -> int:
        """Wait until it ends. Returns the exit code."""
        code = self._popen.wait(LIMIT)
        for reader in self._readers:
            reader.join(LIMIT)
        return code

    def kill(self) -> None:
        """Whatever is left of it, children as well."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self.end()
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()

    def __str__(self) -> str:
        return "\n".join(["--- stdout", *self.out, "--- stderr", *self.err])

    def _read(self, stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))
            self._lines.put(lines[-1])
        self._lines.put(None)


@contextmanager
def started(command: Sequence[str], *, cwd: Path | None = None) -> Iterator[Process]:
    process = Process(command, cwd=cwd)
    try:
        yield process
    finally:
        process.kill()


def lbkit_serve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lbkit", "serve", "--port", "0", *arguments]


@contextmanager
def served(*arguments: str, cwd: Path | None = None) -> Iterator[tuple[Process, str]]:
    """`lbkit serve` with these arguments, on a free port, and its URL once it answers there."""
    with started(lbkit_serve(*arguments), cwd=cwd) as process:
        yield process, process.wait_for(r"http://\S+").group()
