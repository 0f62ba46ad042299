"""The apps of test_streams.py, for `uvicorn tests.e2e.streaming:asgi` (or `:wsgi`), three replicas each.

GET /events     an endless stream of server-sent events
GET /count      how many such streams were opened and closed, and what each replica holds
POST /sum       the length and the SHA-256 of the body, read piece by piece
GET /bytes      BLOCKS blocks, made one by one
websocket /     echo (ASGI only)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from threading import Event

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from lbkit.asgi import Balancer
from lbkit.types import Environ, StartResponse

BLOCK = bytes(range(256)) * 256
BLOCKS = 800
SIZE = len(BLOCK) * BLOCKS
"""50 MiB in all."""

TICK = b"data: tick\n\n"
streams = Counter(opened=0, closed=0)


def counts(balancer: Balancer) -> dict[str, object]:
    active = [state.active for state in balancer.pool.states]
    return {**streams, "active": active, "pid": os.getpid()}


async def events(_: Request) -> StreamingResponse:
    async def ticks() -> AsyncIterator[bytes]:
        streams["opened"] += 1
        try:
            while True:
                yield TICK
                await asyncio.sleep(0.02)
        finally:
            streams["closed"] += 1

    return StreamingResponse(ticks(), media_type="text/event-stream")


async def count(_: Request) -> JSONResponse:
    return JSONResponse(counts(asgi))


async def add_up(request: Request) -> JSONResponse:
    size, digest = 0, hashlib.sha256()
    async for piece in request.stream():
        size += len(piece)
        digest.update(piece)
    return JSONResponse([size, digest.hexdigest()])


async def blocks(_: Request) -> StreamingResponse:
    async def made() -> AsyncIterator[bytes]:
        for _ in range(BLOCKS):
            yield BLOCK

    return StreamingResponse(made(), media_type="application/octet-stream")


async def echo(socket: WebSocket) -> None:
    await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        if message.get("text") == "bye":
            await socket.close(4001, "as you wish")
            return
        await socket.send({**message, "type": "websocket.send"})


def old(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The same as a WSGI app."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    if environ["PATH_INFO"] == "/events":
        return old_ticks()
    if environ["PATH_INFO"] == "/bytes":
        return (BLOCK for _ in range(BLOCKS))
    if environ["PATH_INFO"] == "/sum":
        return [json.dumps(old_sum(environ)).encode()]
    return [json.dumps(counts(wsgi)).encode()]


def old_ticks() -> Iterator[bytes]:
    streams["opened"] += 1
    try:
        while True:
            yield TICK
            Event().wait(0.02)
    finally:
        streams["closed"] += 1


def old_sum(environ: Environ) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while piece := environ["wsgi.input"].read(65536):
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


def new() -> Starlette:
    return Starlette(
        routes=[
            Route("/events", events),
            Route("/count", count),
            Route("/sum", add_up, methods=["POST"]),
            Route("/bytes", blocks),
            WebSocketRoute("/", echo),
        ]
    )


asgi = Balancer.from_factory(new, replicas=3)
wsgi = Balancer([old] * 3)
