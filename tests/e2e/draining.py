"""The apps of benchmarks/drain_apps.py and one endpoint more: `uvicorn tests.e2e.draining:asgi` (or `:wsgi`).

GET /held answers when the file $GATE is there, so that a test says when a request ends.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from flask import Response
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from benchmarks.drain_apps import asgi, executed, wsgi

__all__ = ["asgi", "wsgi"]


def closed() -> bool:
    return not Path(os.environ["GATE"]).exists()


async def held(_: Request) -> PlainTextResponse:
    while closed():  # noqa: ASYNC110 (the gate is a file: nobody sets an event)
        await asyncio.sleep(0.02)
    return PlainTextResponse(executed("GET", "held"))


asgi.router.routes.append(Route("/held", held))


@wsgi.get("/held")
def wsgi_held() -> Response:
    while closed():
        time.sleep(0.02)
    return Response(executed("GET", "held"))
