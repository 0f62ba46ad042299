"""Replicas in interpreters of their own, for a run that asks for them: `--replica-isolation process`.

They import the app themselves, so it must have a name to import it by: `shop:app`, or `shop:create_app` when
that needs no arguments. They have the environment and the files of their start. What a test does by hand is
done in the test process, where they cannot see it. What their requests change there, they say themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, cast

from lbkit.asgi.exchange import inner_scope
from lbkit.asgi.upstream import Upstream
from lbkit.interface import Interface, interface_of
from lbkit.testkit.isolation import ProcessReplica, replicas
from lbkit.testkit.said import Said
from lbkit.types import Environ, Receive, Scope, Send, StartResponse
from lbkit.wsgi.environ import inner_environ

__all__ = ["Interpreters"]


class Interpreters:
    """The interpreters of a run. Those of one target serve each app that it names."""

    def __init__(self, count: int, *, private: Iterable[str] = (), watch: bool = False) -> None:
        self.count = count
        self._private = tuple(private)
        self._watch = watch
        self._running: dict[str, list[ProcessReplica]] = {}
        self._killed: set[tuple[str, int]] = set()

    def start(self, target: str) -> None:
        """Start those of a target, unless they run. Raises StartupError."""
        if target not in self._running:
            started = replicas(
                target, self.count, isolation="process", private=self._private, watch=self._watch
            )
            self._running[target] = cast("list[ProcessReplica]", started)

    def app(self, target: str, index: int, own: Any) -> Any:
        """What asks one of them, as the same kind of app that the test process has."""
        self.start(target)
        replica = self._running[target][index]
        if (target, index) in self._killed:
            self._killed.discard((target, index))
            replica.app.start()
        if interface_of(own) is Interface.WSGI:
            return ElsewhereWsgi(replica)
        return ElsewhereAsgi(replica.child.address)

    def heard(self, name: str | None = None) -> Iterator[tuple[str, Said]]:
        """What the interpreters, or those of one name, have said since they were asked last."""
        for started in self._running.values():
            for each in started:
                if name in (None, each.name):
                    yield from ((each.name, said) for said in each.child.heard())

    def kill(self, target: str, index: int) -> None:
        """SIGKILL one; it is started anew when it is asked again."""
        if target in self._running:
            replica = self._running[target][index]
            replica.child.kill()
            replica.app.close()  # its idle connections
            self._killed.add((target, index))

    def close(self) -> None:
        for started in self._running.values():
            for each in started:
                each.close()
        self._running.clear()
        self._killed.clear()


class ElsewhereWsgi:
    """A WSGI app that runs in an interpreter of its own."""

    def __init__(self, replica: ProcessReplica) -> None:
        self._replica = replica

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return self._replica.app(inner_environ(environ), start_response)


class ElsewhereAsgi:
    """An ASGI app that runs in an interpreter of its own."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = asyncio.create_task(self._exchange(scope, receive, send))
        try:
            await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.cancel()
            await ended(exchange)
            raise

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        upstream = Upstream(self._address)  # a test client may have a new loop for each request
        try:
            await upstream(inner_scope(scope, {}), receive, send)
        finally:
            await upstream.aclose()


async def ended(task: asyncio.Task[None]) -> None:
    """Wait for it, however often we are cancelled (anyio does so in each step): it has a socket to close."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # nobody is left who would want to know
