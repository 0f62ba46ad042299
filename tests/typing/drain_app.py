"""Never run, only type-checked: the drain as a user writes it, with everything that can be set."""

from __future__ import annotations

from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from typing_extensions import assert_type

from lbkit import Departure, DrainTimings, Health, Reject
from lbkit.asgi import DrainMiddleware
from lbkit.wsgi import DrainMiddleware as WSGIDrainMiddleware
from lbkit_fastapi import LBKit as FastAPILBKit
from lbkit_flask import LBKit as FlaskLBKit
from lbkit_starlette import LBKit as StarletteLBKit

departure = Departure(
    DrainTimings(pre_stop_delay=5.0, drain_timeout=20.0),
    reject=Reject.ALWAYS,
    accept_filter=True,
    in_workers=True,
)
flask = FlaskLBKit(Flask(__name__), drain=departure)
starlette = StarletteLBKit(Starlette(), drain=departure, health=Health(envoy=True))
fastapi = FastAPILBKit(FastAPI(), drain=departure)


def report() -> None:
    with flask.drain.hold("nightly report"):
        assert_type(flask.drain.event.wait(60.0), bool)
    assert_type(starlette.drain.is_draining(), bool)


async def consume() -> None:
    await fastapi.drain.event
    assert_type(fastapi.drain.view(), dict[str, object])


inner = Starlette()
asgi = DrainMiddleware(inner, departure)
wsgi = WSGIDrainMiddleware(Flask(__name__).wsgi_app, departure)
