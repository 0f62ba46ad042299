"""The doors through which a test client comes to one of the replicas: what it calls in place of its app."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from lbkit.errors import ReplicaFault
from lbkit.testkit.asgi import Watch, asked
from lbkit.testkit.danger import Danger
from lbkit.testkit.fleet import AnyFleet, Processes
from lbkit.testkit.isolation import AsgiInside, WsgiInside
from lbkit.testkit.lives import Lifespans
from lbkit.testkit.marks import ROW, WATCH
from lbkit.testkit.mortal import Mortal, Transfer, asgi_gateway, torn, wsgi_gateway
from lbkit.testkit.oracles.asking import Answer, ask_asgi, ask_wsgi, is_comparable
from lbkit.testkit.row import Row as TraceRow
from lbkit.testkit.turn import Served
from lbkit.testkit.wsgi import Watch as WsgiWatch
from lbkit.testkit.wsgi import path_of
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
        if (danger := self.kit.turn.danger) is not None:
            return self._in_danger(danger, fleet, environ, start_response)
        return self._ask(fleet, self.kit.pick(self.client), None, environ, start_response)

    def _in_danger(
        self, danger: Danger, fleet: AnyFleet, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        kit = self.kit
        row = kit.row_of(self.client, environ["REQUEST_METHOD"], path_of(environ))
        watch = WsgiWatch(row, start_response, kit.clock)
        danger.begin()

        def ask() -> Iterable[bytes]:
            index = kit.pick_up(danger, self.client, row)
            mortal = Mortal(kit, danger, index, partial(self._ask, fleet, index, row))
            return wsgi_gateway(mortal)({**environ, ROW: row}, watch.start)

        watch.begin(ask)
        return Transfer(self.client, watch)

    def _ask(
        self,
        fleet: AnyFleet,
        index: int,
        row: TraceRow | None,
        environ: Environ,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
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
            self.kit.end(served, row)
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

        self._lifespans = Lifespans(kit)

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
        if (danger := self.kit.turn.danger) is not None and on_asyncio():
            await self._in_danger(danger, fleet, scope, receive, send)
        else:
            await self._ask(fleet, self.kit.pick(self.client), None, scope, receive, send)

    async def _in_danger(
        self, danger: Danger, fleet: AnyFleet, scope: Scope, receive: Receive, send: Send
    ) -> None:
        kit = self.kit
        row = kit.row_of(self.client, scope.get("method", "WEBSOCKET"), scope["path"])
        watch = Watch(row, receive, send, kit.clock)
        danger.begin()

        def pick() -> ASGIApp:
            index = kit.pick_up(danger, self.client, row)
            return asgi_gateway(Mortal(kit, danger, index, partial(self._revived, fleet, index, row)))

        try:
            await asked(watch, {**scope, ROW: row, WATCH: watch}, pick)
        except ReplicaFault as error:
            raise torn(self.client, error) from None
        finally:
            row.done_at = kit.clock()
            self._lifespans.bury()

    async def _revived(
        self, fleet: AnyFleet, index: int, row: TraceRow, scope: Scope, receive: Receive, send: Send
    ) -> None:
        await self._lifespans.revive(fleet, index)
        await self._ask(fleet, index, row, scope, receive, send)

    async def _ask(
        self,
        fleet: AnyFleet,
        index: int,
        row: TraceRow | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
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
            self.kit.end(served, row)
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
        for index in range(len(fleet.spaces)):
            fleet.app(index)  # all are made before the first of them starts

        async def hears() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._lifespans.stop()
            return message

        async def answers(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self._lifespans.start(fleet, scope)
            await send(message)

        await AsgiInside(fleet.spaces[0], fleet.app(0))(scope, hears, answers)


class Managed:
    """What asgi-lifespan gives its clients: a door, with the state of the lifespan that it runs."""

    def __init__(self, door: AsgiDoor, state: dict[str, Any]) -> None:
        self.door = door
        self.state = state

    def of(self, client: object) -> Managed:
        return Managed(self.door.of(client), self.state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.door({**scope, "state": self.state}, receive, send)


def in_turn(first: int, count: int) -> list[int]:
    return [(first + step) % count for step in range(count)]


def on_asyncio() -> bool:
    """Whether this is a loop of asyncio: what goes wrong is made of its tasks and timers."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
