"""An app with a check that never ends, and thread pools of one thread, which it must not take."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from lbkit_fastapi import LBKit
from tests.integrations.apps import site_health


@asynccontextmanager
async def lifespan(_: Any) -> Any:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    yield


app = FastAPI(lifespan=lifespan)
lbkit = LBKit(app, health=site_health(budget=0.1))


@lbkit.check("database", timeout=0.2)
def database() -> None:
    threading.Event().wait()


@app.get("/plain")
def plain() -> PlainTextResponse:
    return PlainTextResponse("plain")


@app.get("/lookup")
async def lookup() -> PlainTextResponse:
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    return PlainTextResponse("looked up")
