"""Never run, only type-checked: sessions as users of Flask, Starlette and FastAPI write them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request

from lbkit.asgi import SessionMiddleware
from lbkit.asgi import Sessions as ASGISessions
from lbkit.asgi.sessions import Session
from lbkit.sessions import SessionEntry, SessionOptions
from lbkit.stores import MemoryStore
from lbkit.wsgi import Sessions as WSGISessions
from lbkit_fastapi import LBKit as FastAPILBKit
from lbkit_fastapi import session as loaded
from lbkit_flask import LBKit, RedisSessionInterface
from lbkit_starlette import LBKit as StarletteLBKit
from lbkit_starlette import session as session_of

KEYS = ["newest" * 4, b"older" * 4]
options = SessionOptions(
    idle=3600, absolute=None, watch=("user",), conflict="raise", same_site="Strict", tag_users=True
)

flask = Flask(__name__)
lbkit = LBKit(flask, sessions="redis://cache:6379/0", secret_keys=KEYS, session_options=options)
RedisSessionInterface(MemoryStore(), secret_keys=KEYS)


def log_out_elsewhere(user: int) -> list[SessionEntry]:
    ended: int = lbkit.sessions.revoke(user, except_current=True)
    left: list[SessionEntry] = lbkit.sessions.list(user)
    print(ended, [entry.ip for entry in left], lbkit.sessions.counts.get("created", 0))
    return [entry for entry in left if not lbkit.sessions.revoke_id(entry.handle, user=user)]


def checked_out(sessions: WSGISessions) -> bool:
    with sessions.open({}).lock(timeout=1.0) as session:
        session["stock"] = session.get("stock", 0) - 1
        session.incr("visits")
        session.expect("balance")
    session.rotate()
    return session.new


starlette = Starlette()
starlette.add_middleware(SessionMiddleware, store="redis://cache:6379/0", secret_keys=KEYS, load="lazy")
StarletteLBKit(Starlette(), sessions=ASGISessions("memory://", secret_keys=KEYS))


async def visits(request: Request) -> int:
    session = await session_of(request)
    session.incr("visits")
    count: int = session["visits"]
    return count


fastapi = FastAPI()
made = FastAPILBKit(fastapi, sessions="memory://", secret_keys=KEYS, lazy_sessions=True)


@fastapi.get("/cart")
async def cart(session: Annotated[Session, Depends(loaded)]) -> list[str]:
    async with session.lock() as held:
        held["seen"] = True
    await session.save()
    await made.sessions.revoke("alice")
    lines: list[str] = session.get("cart", [])
    return lines
