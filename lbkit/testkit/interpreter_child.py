"""The process of a `lbkit.testkit.interpreter.Interpreter`: a child that watches itself while it serves.

python -m lbkit.testkit.interpreter_child TARGET --fd N --pipe M [--watch] [--private PACKAGE]...

It says what it sees before the client gets the last byte of the answer: whoever has that has it all. What a
background task changes after that is said when the task is done.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import click

from lbkit.asgi.replica import as_asgi
from lbkit.cli.child import serve
from lbkit.cli.target import App
from lbkit.testkit.facts import Facts, add_facts
from lbkit.testkit.first_party import FirstParty, projects_own
from lbkit.testkit.opened import hook_in, watching
from lbkit.testkit.oracles.memory import Change, Picture
from lbkit.testkit.oracles.source import file_of
from lbkit.testkit.said import Booted, Changed, Looked, Opened, Said, Skewed
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["main"]

STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})

LOOKING: ContextVar[Looking] = ContextVar("lbkit_looking")
"""The request that this code runs for, in whichever thread."""


@click.command()
@click.argument("target")
@click.option("--fd", required=True, type=int)
@click.option("--pipe", required=True, type=int)
@click.option("--watch", is_flag=True)
@click.option("--private", multiple=True)
def main(target: str, fd: int, pipe: int, watch: bool, private: tuple[str, ...]) -> None:
    connection, first_party = Connection(pipe), FirstParty(private)
    mouth, memory = Mouth(connection), Memory(first_party)
    threading.Thread(target=obey, args=(connection, mouth, memory), daemon=True).start()

    def around(app: App) -> ASGIApp:
        memory.app = app
        facts = Facts()
        add_facts(facts, app, modules_of(first_party))
        mouth.say(Booted(target, facts))
        return Watched(app, first_party, mouth.say) if watch else as_asgi(app)

    serve(target, fd=fd, around=around)


def modules_of(first_party: FirstParty) -> dict[str, ModuleType]:
    return projects_own({name: sys.modules[name] for name in first_party.loaded()})


def obey(pipe: Connection, mouth: Mouth, memory: Memory) -> None:
    """Do what the test process asks for, until it hangs up."""
    clock = Clock()
    with suppress(EOFError, OSError):
        while True:
            asked = pipe.recv()
            if isinstance(asked, Skewed):
                clock.skew(asked.seconds)
                mouth.say(asked)
            elif isinstance(asked, Looked):
                mouth.say(Looked(memory.changed()))


class Memory:
    """What has changed since somebody asked first."""

    app: App

    def __init__(self, first_party: FirstParty) -> None:
        self._picture = Picture(first_party, lambda: modules_of(first_party), lambda: [self.app])
        self._begun = False

    def changed(self) -> tuple[Changed, ...]:
        if not self._begun:
            self._picture.take()
            self._begun = True
        return tuple(told(change, "") for change in self._picture.changes())


class Clock:
    """The wall clock of this process."""

    def __init__(self) -> None:
        self._travel: Any = None

    def skew(self, seconds: float) -> None:
        travel, self._travel = self._travel, None
        if travel is not None:
            travel.stop()
        if seconds:
            import time_machine  # an extra, and only for those who ask for it

            self._travel = time_machine.travel(time.time() + seconds, tick=True)
            self._travel.start()


class Mouth:
    """Says things in their order, from any thread, and never waits until somebody listens."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._unsaid: deque[Said] = deque()
        self._lock = threading.RLock()  # a message may have to import something, and that opens a file

    def say(self, said: Said) -> None:
        with self._lock:
            self._unsaid.append(said)
            # A pipe that takes anything takes a small message whole.
            while self._unsaid and select.select([], [self._pipe], [], 0)[1]:
                self._pipe.send(self._unsaid.popleft())


class Watched:
    """The app, whose memory is looked at before it serves, when it answers, and when it is done."""

    def __init__(self, app: App, first_party: FirstParty, say: Callable[[Said], None]) -> None:
        self._app = as_asgi(app)
        self._picture = Picture(first_party, lambda: modules_of(first_party), lambda: [app])
        self._picture.take()
        self._say = say
        hook_in()
        watching.append(self)

    def opened(self, path: str, *, writes: bool) -> None:
        if (looking := LOOKING.get(None)) is not None:
            self._say(Opened(os.path.abspath(path), writes, looking.request))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        self._picture.changes()  # by nobody's request: a scheduler, another request's thread
        looking = Looking(self._picture, self._say, scope)
        LOOKING.set(looking)

        async def sending(message: Message) -> None:
            if message["type"] in STARTS:
                looking.status = message.get("status", 101)
                looking.look()
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                looking.look()
            await send(message)

        async def receiving() -> Message:
            looking.look()  # a connection that waits may be on a list by now
            return await receive()

        try:
            await self._app(scope, receiving if scope["type"] == "websocket" else receive, sending)
        finally:
            looking.look()


class Looking:
    """One request, and what it has changed."""

    status: int | None = None

    def __init__(self, picture: Picture, say: Callable[[Said], None], scope: Scope) -> None:
        self._picture = picture
        self._say = say
        self.request = f"{scope.get('method', 'WEBSOCKET')} {scope['path']}"

    def look(self) -> None:
        for change in self._picture.changes():
            self._say(told(change, f"{self.request} {self.status or '-'}"))


def told(change: Change, request: str) -> Changed:
    return Changed(change, file_of(sys.modules.get(change.module)), request)


if __name__ == "__main__":
    main()
