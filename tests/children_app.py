"""What the replicas in processes of their own run in the tests: each says who it is, and who asked."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from lbkit.types import Environ, StartResponse


async def who(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(
        {
            "pid": os.getpid(),
            "replica": os.environ["LBKIT_REPLICA_ID"],
            "client": request.client.host if request.client else None,
            "path": request.scope["raw_path"].decode(),
            "query": request.url.query,
            "headers": dict(request.headers),
            "method": request.method,
            "size": len(body),
        }
    )


async def stream(request: Request) -> Response:
    """Chunk after chunk, each one only when the client asks for the next by its own pace."""

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(int(request.query_params.get("chunks", "3"))):
            yield f"{number}\n".encode()
            await asyncio.sleep(float(request.query_params.get("every", "0")))

    return StreamingResponse(chunks())


async def upload(request: Request) -> Response:
    """Counts the body's pieces as they come in."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return JSONResponse({"size": size})


async def cut(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        os._exit(1)

    return StreamingResponse(chunks(), headers={"content-length": "100"})


async def die(_: Request) -> Response:
    os._exit(1)


async def hang(_: Request) -> Response:
    await asyncio.sleep(60)
    return Response("late")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"{os.environ['LBKIT_REPLICA_ID']} {websocket.headers.get('x-forwarded-for')}")
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())
        if text == "bye":
            await websocket.close(4001, "as asked")
            return


EVERY = ["GET", "POST", "PUT", "DELETE"]


def create_app() -> Starlette:
    return Starlette(
        routes=[
            Route("/stream", stream),
            Route("/upload", upload, methods=EVERY),
            Route("/cut", cut),
            Route("/die", die, methods=EVERY),
            Route("/hang", hang),
            WebSocketRoute("/echo", echo),
            Route("/{path:path}", who, methods=EVERY),
        ]
    )


def wsgi_app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    who = {
        "pid": os.getpid(),
        "replica": os.environ["LBKIT_REPLICA_ID"],
        "client": environ.get("REMOTE_ADDR"),
    }
    body = json.dumps(who).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


@asynccontextmanager
async def no_database(_: Starlette) -> AsyncIterator[None]:
    raise RuntimeError("no database")
    yield


def create_broken() -> Starlette:
    return Starlette(lifespan=no_database)
