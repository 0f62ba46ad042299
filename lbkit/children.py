"""Replicas in processes of their own: an app under its own uvicorn, at a unix socket or a loopback port.

    child = Child("shop:create_app", name="web1")
    child.start()       # returns when it answers; StartupError with its last words when it does not
    child.address       # "unix:/.../web1.sock": for `Upstream`, or any HTTP client
    child.stop()        # SIGTERM, and SIGKILL when it takes too long
    child.restart()     # a new process at the same address
    child.kill()        # SIGKILL: what it had inside is lost

These block: in an event loop they belong into a thread. A child whose parent dies ends itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lbkit.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from _typeshed import HasFileno

__all__ = ["Child"]

LOOK = 0.01
"""Seconds between two looks whether it answers."""

LAST_WORDS = 30
"""Lines of its stderr that are remembered."""


class Child:
    """One replica in a process of its own. `target` is what `lbkit serve` takes: `shop:create_app`.

    `port` puts it on 127.0.0.1 (0: a free port) and not on a unix socket. `env` is added to the environment,
    as is LBKIT_REPLICA_ID with its name (in a pool: the replica's, unless given). `patience`: how many
    seconds it may take to answer.
    """

    program = "lbkit.cli.child"
    """The module that its interpreter runs."""

    def __init__(
        self,
        target: str,
        *,
        name: str | None = None,
        factory: bool = False,
        app_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        patience: float = 30.0,
    ) -> None:
        if patience <= 0:
            raise ConfigError(f"need patience > 0, got patience={patience}")
        self.target = target
        self.name = name or "web1"
        self._unnamed = name is None
        self.factory = factory
        self.app_dir = app_dir
        self.env = dict(env or {})
        self.patience = patience
        self.process: subprocess.Popen[bytes] | None = None
        self.port = port
        """None for a unix socket; 0 until a free one has been found."""

        self._folder: str | None = None
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._reader: threading.Thread | None = None

    def called(self, name: str) -> None:
        """Take the name that a pool has for it, unless it was given one. Before its first start."""
        if self._unnamed and self.process is None and self._folder is None:
            self.name, self._unnamed = name, False

    @property
    def address(self) -> str:
        """Where it listens; the same after a restart."""
        if self.port is not None:
            return f"http://127.0.0.1:{self.port}"
        return f"unix:{self._socket_path()}"

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers. Raises StartupError with its last words when it does not."""
        if self.alive:
            return
        listener = self._listener()
        try:
            self.process = self._spawn(listener)
        finally:
            listener.close()  # only the child must hold it: else a dead child's port would not refuse
        self._listen_to(self.process)
        self._wait_until_it_answers(self.process)

    def stop(self, *, timeout: float = 10.0) -> int | None:
        """SIGTERM, SIGKILL after `timeout` seconds; its exit status, None when it was not running."""
        process = self.process
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            self._clean_up(process)

    def kill(self) -> None:
        """SIGKILL: as a crash, or the out-of-memory killer."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self._clean_up(self.process)

    def restart(self, *, timeout: float = 10.0) -> None:
        """Stop it, and start a new process at the same address."""
        self.stop(timeout=timeout)
        self.start()

    def send_signal(self, number: int) -> None:
        """Such as SIGSTOP and SIGCONT: a replica that hangs, and goes on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    # -- its socket

    def _socket_path(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="lbkit-")  # a unix socket's path has 107 bytes at most
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return Path(self._folder) / f"{self.name[:32]}.sock"

    def _listener(self) -> socket.socket:
        """Bound here, so that the address is known. The child listens, so that it refuses until then."""
        if self.port is None:
            path = self._socket_path()
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            return listener
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        return listener

    def _connects(self) -> bool:
        unix = self.port is None
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self._socket_path()) if unix else ("127.0.0.1", self.port))
            except OSError:
                return False
        return True

    # -- its process

    def _spawn(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        return self._run(self._command(listener), listener)

    def _command(self, listener: socket.socket) -> list[str]:
        command = [sys.executable, "-m", self.program, self.target, "--fd", str(listener.fileno())]
        command += ["--factory"] if self.factory else []
        command += ["--app-dir", str(self.app_dir)] if self.app_dir is not None else []
        return command

    def _run(self, command: Sequence[str], *passed: HasFileno) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - the app that we were asked to run
            command,
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stderr=subprocess.PIPE,
            pass_fds=[each.fileno() for each in passed],
            start_new_session=True,  # Ctrl-C is for us: we stop it when its requests are done
            env=self._environment(),
        )

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            # What we can import, it can: as `multiprocessing` does for a process that it spawns.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "LBKIT_REPLICA_ID": self.name,
            # Whoever stops it has taken it out of the pool before, so nobody waits for a balancer to notice.
            "LBKIT_PRE_STOP_DELAY": "0",
            **self.env,
        }

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.patience
        while not self._connects():
            if process.poll() is not None:
                self._clean_up(process)
                raise StartupError(self.name, self._last_words(f"it ended with status {process.returncode}"))
            if time.monotonic() > deadline:
                self.kill()
                raise StartupError(self.name, self._last_words(f"no answer within {self.patience:g} s"))
            time.sleep(LOOK)

    def _listen_to(self, process: subprocess.Popen[bytes]) -> None:
        self._words.clear()
        stderr = process.stderr
        if stderr is not None:
            self._reader = threading.Thread(target=self._read, args=(stderr,), daemon=True)
            self._reader.start()

    def _read(self, stderr: IO[bytes]) -> None:
        # Ours may be closed before theirs is, and theirs while a grandchild still holds it.
        with suppress(ValueError, OSError):
            for raw in stderr:
                line = raw.decode(errors="replace").rstrip()
                self._words.append(line)
                print(f"{self.name} | {line}", file=sys.stderr)

    def _last_words(self, otherwise: str) -> str:
        """The error that it ended with, in the one line that says what it was."""
        lines = [line for line in self._words if line and not line.startswith((" ", "Application startup"))]
        return lines[-1].removeprefix("Error: ") if lines else otherwise

    def _clean_up(self, process: subprocess.Popen[bytes]) -> None:
        if self._reader is not None:
            self._reader.join(timeout=1.0)
            self._reader = None
        for stream in (process.stdin, process.stderr):
            if stream is not None:
                stream.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
