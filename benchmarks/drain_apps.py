"""The apps that a rolling restart is tried with: `asgi` and `wsgi`, with the endpoints of a drain check.

GET /health comes from the plugins, and so does all of the drain. /fast takes 20 ms and /slow 2 s, or $SLOW;
each writes "ID METHOD PID" to $EXEC_LOG before it answers, so that what was executed can be counted, and
executed twice as well. /sse and /ws go on until somebody ends them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator

from flask import Flask, Response, request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lbkit import Health, Service
from lbkit.health import Thresholds
from lbkit.side_port import AgentPort
from lbkit_flask import LBKit as FlaskLBKit
from lbkit_starlette import LBKit as StarletteLBKit

SECONDS = {"fast": 0.02, "slow": float(os.environ.get("SLOW", "2"))}


def health() -> Health:
    status = 404 if os.environ.get("DRAIN_STATUS") == "404" else 503
    agent = os.environ.get("AGENT_PORT")
    # A machine that is busy with load must not look ill.
    never = Thresholds(cpu=101, memory=101, disk=101)
    return Health(
        Service(version="1.0.0", drain_status=status),
        thresholds=never,
        envoy=os.environ.get("ENVOY") == "1",
        beside=[AgentPort(int(agent))] if agent else [],
    )


def executed(method: str, id_: str) -> str:
    if path := os.environ.get("EXEC_LOG"):
        with open(path, "a") as log:
            log.write(f"{id_} {method} {os.getpid()}\n")
    return f"ok {id_} {os.getpid()}\n"


async def work(request: Request) -> PlainTextResponse:
    await request.body()
    await asyncio.sleep(SECONDS[request.url.path[1:]])
    return PlainTextResponse(executed(request.method, request.query_params.get("id", "-")))


async def sse(_: Request) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        while True:
            yield "data: tick\n\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(events(), media_type="text/event-stream")


async def ws(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        return


asgi = Starlette(
    routes=[
        Route("/fast", work, methods=["GET", "POST"]),
        Route("/slow", work, methods=["GET", "POST"]),
        Route("/sse", sse),
        WebSocketRoute("/ws", ws),
    ]
)
StarletteLBKit(asgi, health=health())

wsgi = Flask(__name__)
FlaskLBKit(wsgi, health=health())


@wsgi.route("/fast", methods=["GET", "POST"])
@wsgi.route("/slow", methods=["GET", "POST"])
def flask_work() -> Response:
    request.get_data()
    time.sleep(SECONDS[request.path[1:]])
    return Response(executed(request.method, request.args.get("id", "-")), mimetype="text/plain")


@wsgi.route("/sse")
def flask_sse() -> Response:
    def events() -> Iterator[str]:
        while True:
            yield "data: tick\n\n"
            time.sleep(0.1)

    return Response(events(), mimetype="text/event-stream")
