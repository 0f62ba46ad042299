"""Two small apps with sessions in the Redis of SESSION_URL, to be run by real servers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from flask import Flask
from flask import session as flask_session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import lbkit_flask
import lbkit_starlette
from lbkit.sessions import SessionOptions
from lbkit.stores import astore_from, store_from

URL = os.environ.get("SESSION_URL", "memory://")
PATIENCE = 10.0
SETTINGS: dict[str, Any] = {
    "secret_keys": ["k" * 32],
    "session_options": SessionOptions(secure=False),
}


def answer(session: Any) -> dict[str, Any]:
    return {"pid": os.getpid(), "session": dict(session)}


flask_app = Flask(__name__)
lbkit_flask.LBKit(flask_app, sessions=store_from(URL, timeout=PATIENCE), **SETTINGS)


@flask_app.get("/visit")
def visit() -> Any:
    session: Any = flask_session
    session.incr("visits")
    return answer(session)


async def avisit(request: Request) -> Any:
    session: Any = request.session
    session.incr("visits")
    return JSONResponse(answer(session))


async def slow(request: Request) -> Any:
    """Its client has left before it writes."""
    await asyncio.sleep(0.2)
    request.session["slow"] = "kept"
    return JSONResponse(answer(request.session))


async def look(request: Request) -> Any:
    return JSONResponse(answer(request.session))


async def talk(websocket: WebSocket) -> None:
    websocket.session["greeted"] = True
    await websocket.accept()
    websocket.session["said"] = await websocket.receive_text()
    await websocket.send_text(f"you said {websocket.session['said']}")
    await websocket.close()


starlette_app = Starlette(
    routes=[
        Route("/visit", avisit),
        Route("/slow", slow),
        Route("/look", look),
        WebSocketRoute("/talk", talk),
    ]
)
lbkit_starlette.LBKit(starlette_app, sessions=astore_from(URL, timeout=PATIENCE), **SETTINGS)
