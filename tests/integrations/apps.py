"""The same small site in each framework, closed to everybody: it knows one host, wants https and a login.

Health must be answered all the same. `make(name)` builds one; a real server is pointed at `flask_app`,
`starlette_app` or `fastapi_app`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from flask import Flask, abort, redirect, request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from lbkit.health import Thresholds
from lbkit.monitor import Health
from lbkit.service import Service

SECRET = "s3cr3t-dsn"
HOST = "shop.example.org"


def site_health(**options: Any) -> Health:
    # The figures of the machine that runs the tests are not under test.
    never = Thresholds(cpu=101, memory=101, disk=101)
    return Health(Service(version="1.0.0", kubernetes=True), thresholds=never, **options)


def add_checks(lbkit: Any) -> None:
    @lbkit.check("database")
    def database() -> None:
        return None

    @lbkit.check("cache")
    async def cache() -> bool:
        return True

    @lbkit.check("search", critical=False)
    def search() -> None:
        raise ConnectionError(f"redis://admin:{SECRET}@search:6379/0 refused")


def make_flask(health: Health | None = None) -> Flask:
    from lbkit_flask import LBKit

    app = Flask(__name__)
    app.config["TRUSTED_HOSTS"] = [HOST]
    add_checks(LBKit(app, health=health or site_health()))

    @app.before_request
    def only_https_and_known_users() -> Any:
        if request.scheme != "https":
            return redirect(f"https://{HOST}/")
        return abort(401)

    @app.get("/")
    def index() -> str:
        return "the app"

    return app


def make_starlette(health: Health | None = None) -> Starlette:
    from lbkit_starlette import LBKit

    async def index(_: Request) -> PlainTextResponse:
        return PlainTextResponse("the app")

    app = Starlette(
        routes=[Route("/", index)], middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST])]
    )
    add_checks(LBKit(app, health=health or site_health()))
    app.add_middleware(HTTPSRedirectMiddleware)  # added later, and still inside
    return app


def make_fastapi(health: Health | None = None) -> FastAPI:
    from lbkit_fastapi import LBKit

    def login() -> None:
        raise HTTPException(status_code=401)

    app = FastAPI(dependencies=[Depends(login)])
    add_checks(LBKit(app, health=health or site_health()))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST])
    app.add_middleware(HTTPSRedirectMiddleware)

    @app.get("/")
    def index() -> str:
        return "the app"

    return app


MAKERS: dict[str, Callable[[Health | None], Any]] = {
    "flask": make_flask,
    "starlette": make_starlette,
    "fastapi": make_fastapi,
}


def flask_app() -> Flask:
    return make_flask()


def starlette_app() -> Starlette:
    return make_starlette()


def fastapi_app() -> FastAPI:
    return make_fastapi()
