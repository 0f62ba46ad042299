"""A chat over websockets and server-sent events, whose rooms span all replicas.

A connection is held by one replica for as long as it lives. What is said there goes into a file that
every replica tails (bus.py), so it comes out of every connection, whoever holds it.

======================================  ====================================================
GET /                                   the page
WebSocket /rooms/{room}/socket          ?name=&last=   text frames in, events as JSON out
GET /rooms/{room}/events                ?name=         the same events as text/event-stream
POST /rooms/{room}/messages             {"name": "ann", "text": "hello"}
GET /rooms/{room}/people                who is there, and which instance holds them
GET /whoami                             which instance answers
======================================  ====================================================
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from lbkit_starlette import LBKit

from .bus import Bus
from .store import Event, Store
from .words import Refused, read_id, read_name, read_room, read_text

HERE = Path(__file__).parent
LARGEST_BODY = 16 * 1024
AWAY = "the chat cannot reach its rooms for the moment"
# Websocket close codes, from RFC 6455 and the list at IANA.
POLICY_VIOLATION, SERVICE_RESTART, TRY_AGAIN_LATER = 1008, 1012, 1013


def create_app(path: Path | None = None, *, idle: float = 15.0) -> Starlette:
    """One replica. All that are to share their rooms need the same `path`, or CHAT_FILE.

    After `idle` seconds of silence an event stream gets a comment, so that no proxy thinks it dead.
    """
    file = path or Path(os.environ.get("CHAT_FILE") or HERE / "chat.sqlite3")
    chat = Chat(file, idle=idle)
    app = Starlette(lifespan=chat.lifespan, routes=chat.routes(), exception_handlers=HANDLERS)
    lbkit = LBKit(app, version="1.0.0")

    @lbkit.check("bus")
    def bus() -> None:
        chat.bus.store.check()

    return app


class Chat:
    """The endpoints of one instance. It has an own id, as it cannot know what a balancer calls it."""

    def __init__(self, file: Path, *, idle: float) -> None:
        self.file = file
        self.idle = idle
        self.instance = secrets.token_hex(2)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self.bus = Bus(await run_sync(self.open_store))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.bus.run)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self.bus.close()
                tasks.cancel_scope.cancel()
        await run_sync(self.bus.store.close)

    def open_store(self) -> Store:
        return Store(self.file, instance=self.instance)

    def routes(self) -> list[Route | WebSocketRoute | Mount]:
        return [
            Route("/", page),
            Route("/whoami", self.whoami),
            Route("/rooms/{room}/people", self.people),
            Route("/rooms/{room}/messages", self.say, methods=["POST"]),
            Route("/rooms/{room}/events", self.events),
            WebSocketRoute("/rooms/{room}/socket", self.socket),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]

    async def whoami(self, _request: Request) -> Response:
        return JSONResponse({"instance": self.instance}, headers={"cache-control": "no-store"})

    async def people(self, request: Request) -> Response:
        present = await self.bus.people(read_room(request.path_params["room"]))
        return JSONResponse([{"name": name, "via": via} for name, via in present])

    async def say(self, request: Request) -> Response:
        room, body = read_room(request.path_params["room"]), await read_json(request)
        event = await self.bus.say(room, read_name(body.get("name")), read_text(body.get("text")))
        return JSONResponse(asdict(event), 201)

    async def events(self, request: Request) -> Response:
        room, name = read_room(request.path_params["room"]), read_name(request.query_params.get("name"))
        # A browser sends the header when it reconnects by itself; the parameter is for the first time.
        last = read_id(request.headers.get("last-event-id") or request.query_params.get("last"))
        return EventStream(self, room, name, last)

    async def socket(self, socket: WebSocket) -> None:
        if not same_origin(socket):
            await socket.close(POLICY_VIOLATION)  # before the handshake: the browser sees a 403
            return
        await socket.accept()
        try:
            room, name = read_room(socket.path_params["room"]), read_name(socket.query_params.get("name"))
        except Refused as error:
            await socket.close(POLICY_VIOLATION, str(error)[:120])
            return
        last = read_id(socket.query_params.get("last"))
        try:
            async with self.bus.seat(room, name), anyio.create_task_group() as tasks:
                tasks.start_soon(self.send_events, socket, room, last, tasks.cancel_scope)
                await self.receive_messages(socket, room, name)
                tasks.cancel_scope.cancel()
        except sqlite3.Error:
            await socket.close(TRY_AGAIN_LATER, AWAY)

    async def send_events(
        self, socket: WebSocket, room: str, last: int | None, end: anyio.CancelScope
    ) -> None:
        try:
            await socket.send_json(self.hello())
            async for events in self.bus.follow(room, last=last, idle=self.idle):
                for event in events:
                    await socket.send_json(asdict(event))
            await socket.close(SERVICE_RESTART, "this replica goes, the room stays: come back")
        except sqlite3.Error:
            await socket.close(TRY_AGAIN_LATER, AWAY)
        except WebSocketDisconnect:
            pass  # left while we were sending
        end.cancel()

    async def receive_messages(self, socket: WebSocket, room: str, name: str) -> None:
        with suppress(WebSocketDisconnect):
            while (frame := await socket.receive())["type"] == "websocket.receive":
                try:
                    await self.bus.say(room, name, read_text(frame.get("text")))
                except Refused as error:
                    await socket.send_json({"kind": "refused", "text": str(error)})
                except sqlite3.Error:
                    await socket.send_json({"kind": "refused", "text": AWAY})

    def hello(self) -> dict[str, str]:
        return {"kind": "hello", "via": self.instance}


class EventStream(StreamingResponse):
    """A seat in the room for as long as the stream is sent, whether it ends, breaks or is cancelled."""

    def __init__(self, chat: Chat, room: str, name: str, last: int | None) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx: hand on at once
        super().__init__(self.lines(chat, room, last), media_type="text/event-stream", headers=headers)
        self.seat = chat.bus.seat(room, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.seat:
            await super().__call__(scope, receive, send)

    async def lines(self, chat: Chat, room: str, last: int | None) -> AsyncIterator[str]:
        # Come back after one second, and not all browsers' three to five, when the connection ends.
        yield f"retry: 1000\nevent: hello\ndata: {json.dumps(chat.hello())}\n\n"
        async for events in chat.bus.follow(room, last=last, idle=chat.idle):
            yield "".join(map(as_lines, events)) or ": still here\n\n"


def as_lines(event: Event) -> str:
    # JSON has no line break outside its strings, and none inside: one data line always suffices.
    return f"id: {event.id}\ndata: {json.dumps(asdict(event))}\n\n"


async def page(_request: Request) -> Response:
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    policy += "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    return FileResponse(HERE / "static" / "index.html", headers={"content-security-policy": policy})


async def read_json(request: Request) -> Mapping[str, Any]:
    # The type is required: with it, a browser asks us before it lets another site's page post here.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("need the content type application/json")
    sent = await read_body(request)
    try:
        body = json.loads(sent)
    except (ValueError, RecursionError):
        raise Refused("need a body of JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise Refused('need a JSON object: {"name": ..., "text": ...}')
    return body


async def read_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise Refused(f"need a body of at most {LARGEST_BODY} bytes")
    return body


def same_origin(socket: WebSocket) -> bool:
    """Browsers let any page open a websocket to any site, and say in Origin which page it was."""
    origin = socket.headers.get("origin")
    return origin is None or origin.partition("://")[2] == socket.headers.get("host")


async def refuse(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def unavailable(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": AWAY}, 503, {"retry-after": "1"})


HANDLERS = {Refused: refuse, sqlite3.Error: unavailable}
