"""The other side of `clone`: what a forked process does until its parent is gone."""

from __future__ import annotations

import asyncio
import contextvars
import io
import os
import pickle
import signal
import sys
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from lbkit.types import Message

__all__ = ["multiply", "serve"]


def serve(pipe: Connection, apps: list[Any]) -> None:
    """Answer until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # In a context and a thread state of its own: the parent may have been forked from inside its event loop.
    contextvars.Context().run(run, pipe, apps)


def multiply(pipe: Connection, apps: list[Any]) -> None:
    """Fork a child for each pipe that comes, and tell its number. Ends with an EOFError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        handle = reduction.recv_handle(pipe)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pipe.close()
            serve(Connection(handle), apps)
            os._exit(0)
        os.close(handle)
        pipe.send(pid)


def run(pipe: Connection, apps: list[Any]) -> None:
    asyncio._set_running_loop(None)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    server = Server(pipe, apps, loop)
    loop.add_reader(pipe.fileno(), server.readable)
    loop.run_forever()


class Server:
    """Runs the exchanges that the parent opens."""

    def __init__(self, pipe: Connection, apps: list[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.pipe = pipe
        self.apps = apps
        self.loop = loop
        self.states: dict[int, dict[str, Any]] = {}
        """What each app's lifespan has put into its state."""

        self._hears: dict[int, asyncio.Queue[Message]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def readable(self) -> None:
        try:
            number, kind, what = self.pipe.recv()
        except (EOFError, OSError):
            self.loop.stop()
            return
        if kind == "wsgi":
            self.say(number, *self.wsgi(*what))
        elif kind == "asgi":
            self._hears[number] = asyncio.Queue()
            self._tasks[number] = self.loop.create_task(self.asgi(number, *what))
        elif kind == "receive" and number in self._hears:
            self._hears[number].put_nowait(what)
        elif kind == "leave":
            self._hears.pop(number, None)
            if (task := self._tasks.pop(number, None)) is not None:
                task.cancel()

    def say(self, number: int, kind: str, what: Any) -> None:
        self.pipe.send((number, kind, what))

    def wsgi(self, app: int, environ: dict[str, Any], body: bytes, keep: bool) -> tuple[str, Any]:
        kept: list[Any] = []
        own: dict[str, Any] = {"wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr}
        if keep:
            own["werkzeug.debug.preserve_context"] = kept.append
        said: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> Any:
            said[:] = [status, [(str(name), str(value)) for name, value in headers]]
            return said.append

        try:
            parts = self.apps[app]({**environ, **own}, start_response)
            try:
                content = list(parts)
            finally:
                if (close := getattr(parts, "close", None)) is not None:
                    close()
        except Exception as error:
            return "error", portable(error)
        return "done", (*said[:2], content, looked_into(kept) if keep else None)

    async def asgi(self, number: int, app: int, scope: dict[str, Any]) -> None:
        hears = self._hears[number]
        if scope["type"] == "lifespan":
            scope["state"] = self.states[app] = {}
        elif app in self.states:
            scope["state"] = self.states[app].copy()

        async def receive() -> Message:
            self.say(number, "ask", None)
            return await hears.get()

        async def send(message: Message) -> None:
            try:
                self.say(number, "send", dict(message))
            except (pickle.PicklingError, TypeError, AttributeError):
                return  # a test client's own extension, such as the template that was rendered

        try:
            await self.apps[app](scope, receive, send)
        except Exception as error:
            self.say(number, "error", portable(error))
        else:
            self.say(number, "done", None)


def looked_into(contexts: list[Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """`session` and `g` of the contexts that Flask's client wants to keep, as far as they can be sent."""
    session: dict[str, Any] = {}
    g: dict[str, Any] = {}
    for context in contexts:
        session |= getattr(context, "session", None) or {}
        for owner in [context, *(each for _, each in getattr(context, "_cv_tokens", ()) if each is not None)]:
            g |= vars(owner.g) if hasattr(owner, "g") else {}  # Flask 3.2 has one context, before it had two
    return {key: sent(value) for key, value in session.items()}, {
        key: sent(value) for key, value in g.items()
    }


def sent(value: Any) -> Any:
    """The value, or what a test would look at of it: a row of a database is no more than a dict elsewhere."""
    if hasattr(value, "keys") and not isinstance(value, dict):
        value = {key: value[key] for key in value.keys()}  # noqa: SIM118 - a row iterates over values
    try:
        pickle.dumps(value)
    except Exception:
        return None
    return value


def portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
