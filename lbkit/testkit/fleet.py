"""An app of the test process, its replicas, and the doors through which a test client comes to one of them.

The first replica is the app that the test holds; the others are made by its recipe, each when it is first
needed. A door is what a client calls in place of the app.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from lbkit.asgi.lifespan import Lifespan
from lbkit.errors import StartupError
from lbkit.testkit.bringing import PARTS, Brought, bring
from lbkit.testkit.clone import remote
from lbkit.testkit.isolation import AsgiInside, WsgiInside
from lbkit.testkit.mirror import ABSENT
from lbkit.testkit.oracles.asking import Answer, ask_asgi, ask_wsgi, is_comparable
from lbkit.testkit.recipes import Recipe
from lbkit.testkit.spaces import Space
from lbkit.types import ASGIApp, Environ, Message, Receive, Scope, Send, StartResponse, WSGIApp

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit, Served
    from lbkit.testkit.oracles.difference import DifferentialGet

__all__ = ["AnyFleet", "AsgiDoor", "Clones", "Fleet", "Processes", "WsgiDoor"]

AnyFleet: TypeAlias = "Fleet | Clones | Processes"
STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class Clones:
    """One app whose other replicas are forked: nothing has to be known about how it was made."""

    def __init__(self, kit: Kit, app: Any, *, forget: Callable[[Any], object]) -> None:
        self.kit = kit
        self.spaces = kit.forked
        self._own = weakref.ref(app, forget)

    def app(self, index: int) -> Any:
        own = self._own()
        return own if index == 0 else remote(self.kit.nursery, self.spaces[index].name, own)

    def twin(self, own: Any, space: Space) -> Any:  # noqa: ARG002
        return ABSENT


class Processes:
    """One app whose replicas are interpreters that import it. A test of one replica asks the app itself."""

    def __init__(self, kit: Kit, app: Any, target: str, *, forget: Callable[[Any], object]) -> None:
        self.kit = kit
        self.target = target
        self._own = weakref.ref(app, forget)
        self.kit.interpreters.start(target)

    @property
    def spaces(self) -> list[Space]:
        return self.kit.forked if self.kit.turn.single else self.kit.apart

    def app(self, index: int) -> Any:
        own = self._own()
        return own if self.kit.turn.single else self.kit.interpreters.app(self.target, index, own)

    def twin(self, own: Any, space: Space) -> Any:  # noqa: ARG002
        return ABSENT


class Fleet:
    """One app, as several replicas. It does not keep the test's own app alive."""

    def __init__(self, kit: Kit, app: Any, recipe: Recipe, *, forget: Callable[[Any], object]) -> None:
        self.kit = kit
        self.recipe = recipe
        self.spaces = kit.spaces
        self.kind = type(app)
        self.brought = [Brought() for _ in kit.spaces]
        self._own = weakref.ref(app, forget)
        self._twins: list[Any] = [None] * len(kit.spaces)

    def app(self, index: int) -> Any:
        """The bare app of a replica, made when it was not yet. Raises StartupError."""
        own = self._own()
        if index == 0 or own is None:
            return own
        is_new = self._twins[index] is None
        if is_new:
            self._twins[index] = self._make(self.kit.spaces[index])
        bring(
            own,
            self._twins[index],
            self.brought[index],
            self._translate(self.kit.spaces[index]),
            self.kit.touched,
        )
        if is_new:
            self.kit.booted(self, self.kit.spaces[index], self._twins[index])
        return self._twins[index]

    def twin(self, own: Any, space: Space) -> Any:
        """What a replica has for the app or one of its parts, if that is what it is asked for."""
        app, twin = self._own(), self._twins[self.kit.spaces.index(space)]
        if app is None or twin is None:
            return ABSENT
        if own is app:
            return twin
        part = next((name for name in PARTS if getattr(app, name, None) is own), None)
        return getattr(twin, part, ABSENT) if part else ABSENT

    def _make(self, space: Space) -> Any:
        began_at = time.perf_counter()
        self.kit.making(self._own(), space)
        try:
            app = self.recipe.make(space, self._translate(space))
        except StartupError:
            # A registry that the test has cleared in its own process, or an import that failed half-way.
            space.modules.clear()
            app = self.recipe.make(space, self._translate(space))
        self.kit.report.boot_seconds += time.perf_counter() - began_at
        return app

    def _translate(self, space: Space) -> Callable[[Any], Any]:
        return lambda value: self.kit.mirror.translate(value, space)


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
