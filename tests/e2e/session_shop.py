"""A shop that keeps everything in its session: who loses that loses something one can see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from lbkit.asgi import SessionMiddleware, Sessions
from lbkit.errors import SessionError
from lbkit.sessions import SessionOptions

__all__ = ["shop"]

KEYS = ["a key of the shop, of 32 bytes or more"]


async def view(request: Request) -> Response:
    return JSONResponse(dict(request.session))


async def put(request: Request) -> Response:
    """Set the keys of the query, and count."""
    session: Any = request.session
    session.update(request.query_params)
    session.incr("count")
    return PlainTextResponse("ok")


async def cart(request: Request) -> Response:
    """Change what the session holds in place, as everybody does."""
    for item, amount in request.query_params.items():
        request.session.setdefault("cart", {})[item] = amount
    return PlainTextResponse("ok")


async def log_in(request: Request) -> Response:
    request.session["_user_id"] = request.query_params["user"]
    return PlainTextResponse("ok")


async def log_out(request: Request) -> Response:
    request.session.clear()
    return PlainTextResponse("ok")


async def stream(request: Request) -> Response:
    """Set a key when the head of the answer has long left."""

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        request.session["late"] = request.query_params["late"]
        yield b"last"

    request.session.get("late")
    return StreamingResponse(body())


async def talk(socket: WebSocket) -> None:
    session: Any = socket.session
    session.get("said")
    await socket.accept()
    session["said"] = await socket.receive_text()
    try:
        await session.save()
        await socket.send_text("kept")
    except SessionError:  # Redis is away, or the session has ended: a new one would need a cookie
        await socket.send_text("not kept")
    await socket.close()


def shop(url: str, *, tag_users: bool = False) -> Starlette:
    """One replica. `app.state.sessions` are its sessions, with their counts."""
    options = SessionOptions(watch=("_user_id",), tag_users=tag_users)
    sessions = Sessions(url, secret_keys=KEYS, options=options)
    routes = [
        Route("/view", view),
        Route("/put", put),
        Route("/cart", cart),
        Route("/login", log_in),
        Route("/logout", log_out),
        Route("/stream", stream),
        WebSocketRoute("/talk", talk),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, store=sessions)])
    app.state.sessions = sessions
    return app
