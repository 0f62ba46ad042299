"""Replicas that are forked from the test process, when an app cannot be made once more.

A child has every app that there was when it was forked, whatever made it. It is forked when a test first asks
it something, and ends with the test, or with the lifespan that runs in it. What the test changes after that
it does not see; a secret that was made before, it shares, as under `gunicorn --preload`.

Both sides speak in numbered exchanges over a pipe: `open` with a scope or an environ, then the messages of
ASGI in both directions, then `done`. A WSGI call is one message each way.
"""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from lbkit.errors import ConfigError
from lbkit.interface import Interface, interface_of
from lbkit.testkit.clone_child import multiply, serve
from lbkit.types import Environ, Receive, Scope, Send, StartResponse

__all__ = ["Child", "Nursery", "RemoteAsgi", "RemoteWsgi", "need_fork", "remote"]

PATIENCE = 60.0
"""Seconds that a WSGI answer may take."""


def need_fork() -> None:
    """Raises ConfigError where there is no fork."""
    if not hasattr(os, "fork"):
        raise ConfigError(f"isolation clone needs os.fork, which {sys.platform} does not have: use module")


class Nursery:
    """The forked replicas of a run, and the apps that they know."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.apps: list[Any] = []
        self.children: dict[str, Child] = {}
        self.mortal = False
        """Whether one of them may be killed, and has to come back."""

        self._spare: Spare | None = None

    def number(self, app: Any) -> int:
        """The app's number in parent and children."""
        for number, known in enumerate(self.apps):
            if known is app:
                return number
        self.apps.append(app)
        return len(self.apps) - 1

    def child(self, name: str, app: Any) -> Child:
        """The child of that name; all are forked anew when they do not know the app yet."""
        number = self.number(app)
        if name not in self.children and self._spare is not None:
            self.children[name] = self._spare.fork(name)
        child = self.children.get(name)
        if child is None or not child.knows(number):
            self._end()
            self._fork()
        return self.children[name]

    def kill(self, name: str) -> None:
        """SIGKILL. When it is asked again it is what it was when it was forked."""
        child = self.children.pop(name, None)
        if child is not None:
            child.end()

    def close(self, *, force: bool = False) -> None:
        """The test is over. Children in which a lifespan runs are kept for the tests that share it."""
        if force or not any(child.lasting for child in self.children.values()):
            self._end()
            self.apps.clear()

    def _end(self) -> None:
        for child in self.children.values():
            child.end()
        self.children.clear()
        if self._spare is not None:
            self._spare.end()
            self._spare = None

    def _fork(self) -> None:
        if self.mortal:
            self._spare = Spare(self.apps)
        pipes = {name: multiprocessing.Pipe() for name in self.names}
        for name, (ours, theirs) in pipes.items():
            pid = fork()
            if pid == 0:
                with suppress(BaseException):
                    only(theirs, pipes.values())
                    serve(theirs, self.apps)
                os._exit(0)
            theirs.close()
            self.children[name] = Child(name, pid, ours, len(self.apps))
        for child in self.children.values():
            child.listen()


class Spare:
    """A process that is forked with the replicas and asked nothing.

    A replica that was killed is forked from it: with the memory of the beginning, and not with what the test
    process has by now.
    """

    def __init__(self, apps: list[Any]) -> None:
        self._apps = len(apps)
        self._pipe, theirs = multiprocessing.Pipe()
        self._pid = fork()
        if self._pid == 0:
            with suppress(BaseException):
                self._pipe.close()
                multiply(theirs, apps)
            os._exit(0)
        theirs.close()

    def fork(self, name: str) -> Child:
        ours, theirs = multiprocessing.Pipe()
        reduction.send_handle(self._pipe, theirs.fileno(), self._pid)
        theirs.close()
        child = Child(name, self._pipe.recv(), ours, self._apps)
        child.listen()
        return child

    def end(self) -> None:
        end(self._pid)
        self._pipe.close()


class Child:
    """One forked process, as the parent sees it."""

    def __init__(self, name: str, pid: int, pipe: Connection, apps: int) -> None:
        self.name = name
        self.pid = pid
        self.lasting = 0
        """How many lifespans run in it."""

        self._pipe = pipe
        self._apps = apps
        self._numbers = count(1)
        self._sinks: dict[int, Callable[[Any], object]] = {}
        self._lock = threading.Lock()

    def knows(self, app: int) -> bool:
        return app < self._apps

    def listen(self) -> None:
        threading.Thread(target=self._listen, name=f"lbkit {self.name}", daemon=True).start()

    @contextmanager
    def exchange(self, sink: Callable[[Any], object]) -> Iterator[Callable[[str, Any], None]]:
        """Open an exchange: what the child says goes to `sink`, what is said to it to what this yields."""
        number = next(self._numbers)
        self._sinks[number] = sink

        def say(kind: str, what: Any) -> None:
            with self._lock:
                self._pipe.send((number, kind, what))

        try:
            yield say
        finally:
            self._sinks.pop(number, None)

    def end(self) -> None:
        end(self.pid)

    def _listen(self) -> None:
        try:
            while True:
                number, kind, what = self._pipe.recv()
                if (sink := self._sinks.get(number)) is not None:
                    sink((kind, what))
        except (EOFError, OSError):
            for sink in list(self._sinks.values()):
                sink(("error", ConnectionError(f"the process of {self.name} is gone")))
        finally:
            self._pipe.close()


class RemoteWsgi:
    """A WSGI app that runs in a child."""

    def __init__(self, child: Callable[[], Child], app: Any, number: Callable[[], int]) -> None:
        self._child = child
        self._app = app
        self._number = number

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        child = self._child()
        answers: queue.Queue[Any] = queue.Queue()
        kept = environ.get("werkzeug.debug.preserve_context")
        question = (self._number(), plain(environ), environ["wsgi.input"].read(), kept is not None)
        with child.exchange(answers.put) as say:
            say("wsgi", question)
            kind, what = answers.get(timeout=PATIENCE)
        if kind == "error":
            raise what
        status, headers, body, context = what
        if kept is not None and context is not None:
            kept(Context(self._app, environ, *context))
        start_response(status, headers)
        parts: list[bytes] = body
        return parts


class Context:
    """`session` and `g` as they were in the child, for a test that looks at them."""

    def __init__(self, app: Any, environ: Environ, session: dict[str, Any], g: dict[str, Any]) -> None:
        self._app = app
        self._environ = {**environ, "wsgi.input": io.BytesIO()}
        self._session = session
        self._g = g

    def __enter__(self) -> None:
        self._context = self._app.request_context(self._environ)
        self._context.push()
        self._context.session.clear()
        self._context.session.update(self._session)
        for name, value in self._g.items():
            setattr(sys.modules["flask"].g, name, value)

    def __exit__(self, *exc_info: object) -> None:
        self._context.pop()


class RemoteAsgi:
    """An ASGI app that runs in a child."""

    def __init__(self, child: Callable[[], Child], number: Callable[[], int]) -> None:
        self._child = child
        self._number = number

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        child, loop = self._child(), asyncio.get_running_loop()
        said: asyncio.Queue[Any] = asyncio.Queue()
        lasting = scope["type"] == "lifespan"
        child.lasting += lasting
        with child.exchange(lambda each: loop.call_soon_threadsafe(said.put_nowait, each)) as say:
            say("asgi", (self._number(), plain(scope)))
            hearing: list[asyncio.Task[None]] = []
            try:
                while (answer := await said.get())[0] in ("send", "ask"):
                    if answer[0] == "send":
                        await send(answer[1])
                    else:  # the app waits for a message; it may do so and send others meanwhile
                        hearing.append(asyncio.create_task(self._hear(receive, say)))
            finally:
                for task in hearing:
                    task.cancel()
                child.lasting -= lasting
                with suppress(OSError):  # it may have been killed meanwhile
                    say("leave", None)
        if answer[0] == "error":
            raise answer[1]

    @staticmethod
    async def _hear(receive: Receive, say: Callable[[str, Any], None]) -> None:
        say("receive", dict(await receive()))


def remote(nursery: Nursery, name: str, app: Any) -> Any:
    """An app of this process as the child of that name runs it."""
    if interface_of(app) is Interface.WSGI:
        return RemoteWsgi(lambda: nursery.child(name, app), app, lambda: nursery.number(app))
    return RemoteAsgi(lambda: nursery.child(name, app), lambda: nursery.number(app))


def only(mine: Connection, pipes: Iterable[tuple[Connection, Connection]]) -> None:
    """Close what a child has of the others' pipes: else nobody notices when they end."""
    for pipe in chain.from_iterable(pipes):
        if pipe is not mine:
            pipe.close()


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # one that a spare has forked is not our own
        os.waitpid(pid, 0)


def fork() -> int:
    """Fork without the warning about threads: they are ours and pytest's, and hold no lock of the app's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def plain(values: Any) -> dict[str, Any]:
    """What can be sent."""
    return {key: value for key, value in values.items() if sendable(value)}


def sendable(value: Any) -> bool:
    if isinstance(value, (str, bytes, int, float, bool, type(None))):
        return True
    if hasattr(value, "read") or callable(value):
        return False
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
