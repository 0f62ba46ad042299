"""A replica in an interpreter of its own that says what it is, and what its requests change in its memory."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Lock
from typing import TypeVar

from lbkit.children import Child
from lbkit.errors import ConfigError
from lbkit.testkit.said import Changed, Looked, Said, Skewed

__all__ = ["Interpreter"]

Asked = TypeVar("Asked", Skewed, Looked)

PATIENCE = 10.0
"""Seconds that it has to answer."""


class Interpreter(Child):
    """A child with a pipe beside its socket. `watch`: it looks at its memory and files while it serves."""

    program = "lbkit.testkit.interpreter_child"

    def __init__(self, target: str, *, name: str, private: Iterable[str] = (), watch: bool = False) -> None:
        super().__init__(target, name=name)
        self._private = tuple(private)
        self._watch = watch
        self._pipe: Connection | None = None
        self._said: list[Said] = []
        self._lock = Lock()

    def heard(self) -> list[Said]:
        """What it has said since it was asked last. All that a request did by its last byte is in there."""
        with self._lock:
            self._listen()
            said, self._said = self._said, []
        return said

    def set_clock(self, seconds: float) -> None:
        """Have its clock so many seconds off, and wait until it is."""
        self._ask(Skewed(seconds))

    def changed(self) -> tuple[Changed, ...]:
        """What has changed in its memory since this was asked for the first time, which takes note of it."""
        return self._ask(Looked()).changed

    def _ask(self, asked: Asked) -> Asked:
        """Say it, and wait for the answer, which is of the same kind."""
        with self._lock:
            try:
                return self._answered(asked)
            except (EOFError, ConnectionError) as error:
                raise ConfigError(f"need a process that runs, but that of {self.name} has ended") from error

    def _answered(self, asked: Asked) -> Asked:
        if self._pipe is None:
            raise EOFError
        self._pipe.send(asked)
        while self._pipe.poll(PATIENCE):
            if isinstance(said := self._pipe.recv(), type(asked)):
                return said
            self._said.append(said)
        raise TimeoutError(f"the process of {self.name} has not answered within {PATIENCE:g} s")

    def _listen(self) -> None:
        try:
            while self._pipe is not None and self._pipe.poll():
                self._said.append(self._pipe.recv())
        except (EOFError, OSError):
            self._hang_up()  # it is gone, and has said what it had to

    def _hang_up(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _spawn(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        self._hang_up()
        self._pipe, theirs = Pipe()
        command = [*self._command(listener), "--pipe", str(theirs.fileno())]
        command += ["--watch"] if self._watch else []
        command += [f"--private={name}" for name in self._private]
        try:
            return self._run(command, listener, theirs)
        finally:
            theirs.close()

    def _connects(self) -> bool:
        with self._lock:
            self._listen()  # it may have much to say before it answers
        return super()._connects()

    def _clean_up(self, process: subprocess.Popen[bytes]) -> None:
        super()._clean_up(process)
        with self._lock:
            self._listen()
            self._hang_up()
