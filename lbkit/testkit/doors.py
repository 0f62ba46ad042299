"""The doors through which a test client comes to one of the replicas: what it calls in place of its app."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lbkit.asgi.lifespan import Lifespan
from lbkit.testkit.fleet import AnyFleet, Processes
from lbkit.testkit.isolation import AsgiInside, WsgiInside
from lbkit.testkit.oracles.asking import Answer, ask_asgi, ask_wsgi, is_comparable
from lbkit.testkit.turn import Served
from lbkit.types import ASGIApp, Environ, Message, Receive, Scope, Send, StartResponse, WSGIApp

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit
    from lbkit.testkit.oracles.difference import DifferentialGet

__all__ = ["AsgiDoor", "Managed", "WsgiDoor"]

STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class WsgiDoor:
    """A WSGI app that hands each request to one of the replicas."""

    def __init__(self, kit: Kit, app: WSGIApp, client: object) -> None:
        self.kit = kit
        self.app = app
        self.client = client

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        fleet = self.kit.fleet(self.app)
        if fleet is None:
            return self.app(environ, start_response)
        index = self.kit.pick(self.client)
        app = fleet.app(index)
        space = fleet.spaces[index]
        served = self.kit.begin(space, app, self.app, environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))

        def started(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            served.status = int(status[:3])
            served.headers = headers
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        try:
            return WsgiInside(space, app)(environ, started)
        finally:
            self.kit.end(served)
            if self.kit.differ is not None and is_comparable(served):
                self._compare(fleet, index, served, environ, self.kit.differ)

    def _compare(
        self, fleet: AnyFleet, index: int, served: Served, environ: Environ, differ: DifferentialGet
    ) -> None:
        def answer(number: int) -> Answer:
            return ask_wsgi(WsgiInside(fleet.spaces[number], fleet.app(number)), environ)

        order = in_turn(index, self.kit.count)
        differ.compare(served, {fleet.spaces[n].name: answer(n) for n in order}, answer(index))


class AsgiDoor:
    """An ASGI app that hands each request to one of the replicas, and a lifespan to all of them."""

    def __init__(self, kit: Kit, app: ASGIApp, client: object) -> None:
        self.kit = kit
        self.app = app
        self.client = client
        self.open: list[Served] = []
        """Websockets that are open now."""

        self._lifespans: dict[int, Lifespan] = {}

    def of(self, client: object) -> AsgiDoor:
        """The same replicas, with the same lifespans, for another client."""
        door = AsgiDoor(self.kit, self.app, client)
        door.open, door._lifespans = self.open, self._lifespans
        return door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fleet = self.kit.fleet(self.app)
        if fleet is None or (isinstance(fleet, Processes) and scope["type"] == "lifespan"):
            await self.app(scope, receive, send)  # a process lives its own lifespan, as its server does
        elif scope["type"] == "lifespan":
            await self._live(fleet, scope, receive, send)
        else:
            await self._serve(fleet, scope, receive, send)

    async def _serve(self, fleet: AnyFleet, scope: Scope, receive: Receive, send: Send) -> None:
        index = self.kit.pick(self.client)
        app, space = fleet.app(index), fleet.spaces[index]
        if (lifespan := self._lifespans.get(index)) is not None:
            scope = {**scope, "state": lifespan.state.copy()}
        served = self.kit.begin(space, app, self.app, scope.get("method", "WEBSOCKET"), scope["path"])
        if scope["type"] == "websocket":
            self.open.append(served)

        async def seen(message: Message) -> None:
            if message["type"] in STARTS:
                served.status = message.get("status", 101)
                served.headers = message.get("headers", ())
                # What is put in here and taken out at the end, such as a room of websockets, shows now only.
                self.kit.look(served)
            await send(message)

        async def awaited() -> Message:
            self.kit.look(served)  # a connection that waits may be on a list by now
            return await receive()

        hears = awaited if scope["type"] == "websocket" else receive
        try:
            await AsgiInside(space, app)(scope, hears, seen)
        finally:
            if scope["type"] == "websocket":
                self.open.remove(served)
            self.kit.end(served)
        if self.kit.differ is not None and is_comparable(served):
            await self._compare(fleet, index, served, scope, self.kit.differ)

    async def _compare(
        self, fleet: AnyFleet, index: int, served: Served, scope: Scope, differ: DifferentialGet
    ) -> None:
        async def answer(number: int) -> Answer:
            lifespan = self._lifespans.get(number)
            state = {} if lifespan is None else {"state": lifespan.state.copy()}
            inside = AsgiInside(fleet.spaces[number], fleet.app(number))
            return await ask_asgi(inside, {**scope, **state})

        order = in_turn(index, self.kit.count)
        answers = {fleet.spaces[number].name: await answer(number) for number in order}
        differ.compare(served, answers, await answer(index))

    async def _live(self, fleet: AnyFleet, scope: Scope, receive: Receive, send: Send) -> None:
        """The first replica talks to the client itself; the others start after it and stop before it."""
        others = {
            index: Lifespan(space.name, AsgiInside(space, fleet.app(index)))
            for index, space in enumerate(fleet.spaces)
            if index
        }

        async def asked() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._lifespans.clear()
                for other in others.values():
                    await other.shutdown()
            return message

        async def answered(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await started(scope, others.values())
                self._lifespans.update(others)
            await send(message)

        await AsgiInside(fleet.spaces[0], fleet.app(0))(scope, asked, answered)


class Managed:
    """What asgi-lifespan gives its clients: a door, with the state of the lifespan that it runs."""

    def __init__(self, door: AsgiDoor, state: dict[str, Any]) -> None:
        self.door = door
        self.state = state

    def of(self, client: object) -> Managed:
        return Managed(self.door.of(client), self.state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.door({**scope, "state": self.state}, receive, send)


async def started(scope: Scope, lifespans: Iterable[Lifespan]) -> None:
    """Start one after the other. When one fails, those before it are stopped again."""
    running: list[Lifespan] = []
    for lifespan in lifespans:
        try:
            await lifespan.startup(scope)
        except BaseException:
            for each in running:
                await each.shutdown()
            raise
        running.append(lifespan)


def in_turn(first: int, count: int) -> list[int]:
    return [(first + step) % count for step in range(count)]
