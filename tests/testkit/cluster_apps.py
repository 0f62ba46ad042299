"""One small shop, as a WSGI and as an ASGI app: what the tests of a cluster ask for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import flask
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

OUTSIDE: ContextVar[str] = ContextVar("outside", default="unset")


class Notes:
    """What the apps tell the tests: the world outside of the replicas."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.go = threading.Event()

    def tell(self, what: str) -> None:
        self.told.append(what)

    async def gone(self) -> None:
        while not self.go.is_set():  # noqa: ASYNC110 (a thread sets it)
            await asyncio.sleep(0.002)


def flask_shop(notes: Notes) -> flask.Flask:
    app = flask.Flask("shop")
    app.secret_key = "one-for-all"
    hits: list[str] = []

    @app.route("/", methods=["GET", "POST", "PUT"])
    def page() -> dict[str, Any]:
        hits.append(flask.request.method)
        notes.tell(f"{flask.request.method} ran")
        return {"hits": len(hits), "outside": OUTSIDE.get(), "body": flask.request.get_data(as_text=True)}

    @app.get("/session")
    def session() -> dict[str, int]:
        flask.session["count"] = flask.session.get("count", 0) + 1
        return {"count": flask.session["count"]}

    @app.get("/stream")
    def stream() -> flask.Response:
        def body() -> Iterator[bytes]:
            try:
                yield b"one"
                notes.go.wait(20)
                yield b"two"
            finally:
                notes.tell("stream closed")

        return flask.Response(body())

    @app.get("/slow")
    def slow() -> str:
        notes.tell("slow began")
        notes.go.wait(20)
        return "done"

    @app.get("/fail")
    def fail() -> str:
        raise RuntimeError("out of tea")

    return app


def starlette_shop(notes: Notes) -> Starlette:
    hits: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        notes.tell("startup")
        yield {"pool": object()}
        notes.tell("shutdown")

    async def page(request: Request) -> Response:
        hits.append(request.method)
        notes.tell(f"{request.method} ran")
        body = (await request.body()).decode()
        return JSONResponse({"hits": len(hits), "outside": OUTSIDE.get(), "body": body})

    async def slow(_: Request) -> Response:
        notes.tell("slow began")
        try:
            await notes.gone()
        except asyncio.CancelledError:
            notes.tell("slow cancelled")
            raise
        return PlainTextResponse("done")

    async def stream(_: Request) -> Response:
        async def body() -> Any:
            yield b"one"
            await notes.gone()
            yield b"two"

        return StreamingResponse(body())

    async def later(_: Request) -> Response:
        async def work() -> None:
            await notes.gone()
            notes.tell("background done")

        return PlainTextResponse("at once", background=BackgroundTask(work))

    async def block(_: Request) -> Response:
        if "blocked" not in notes.told:
            notes.tell("blocked")
            notes.go.wait(20)  # as code does that is not meant for a loop
        return PlainTextResponse("free")

    async def pool(request: Request) -> Response:
        return PlainTextResponse(str(id(request.state.pool)))

    async def fail(_: Request) -> Response:
        raise RuntimeError("out of tea")

    async def room(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(f"echo {await socket.receive_text()}")
        except WebSocketDisconnect as left:
            notes.tell(f"left with {left.code}")

    return Starlette(
        routes=[
            Route("/", page, methods=["GET", "POST", "PUT"]),
            Route("/slow", slow),
            Route("/stream", stream),
            Route("/later", later),
            Route("/pool", pool),
            Route("/block", block),
            Route("/fail", fail),
            WebSocketRoute("/room", room),
        ],
        lifespan=lifespan,
    )
