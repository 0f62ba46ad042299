"""Apps behind a proxy on this machine, with everything that the plugins put around them, for real servers."""

from __future__ import annotations

from flask import Flask, jsonify
from flask import request as asked
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import lbkit_flask
import lbkit_starlette
from lbkit import Sticky, TrustedProxies

STICKY = Sticky(secret_keys=["a key of the tests, 32 bytes long"], secure=False)
TRUSTED = TrustedProxies(["127.0.0.0/8", "unix"], hosts=["shop.example"])

flask_app = Flask(__name__)
lbkit_flask.LBKit(flask_app, sticky=STICKY, replica_id="web1", trusted=TRUSTED)


@flask_app.get("/who")
def who() -> Response:
    return jsonify([asked.remote_addr, asked.scheme, asked.host])  # type: ignore[return-value]


async def who_asks(request: Request) -> Response:
    assert request.client is not None
    return JSONResponse([request.client.host, request.url.scheme, request.url.netloc])


async def who_talks(socket: WebSocket) -> None:
    await socket.accept()
    assert socket.client is not None
    await socket.send_json([socket.client.host, socket.url.scheme])
    await socket.close()


starlette_app = Starlette(routes=[Route("/who", who_asks), WebSocketRoute("/ws", who_talks)])
lbkit_starlette.LBKit(starlette_app, sticky=STICKY, replica_id="web1", trusted=TRUSTED)
