"""The same question, "are you well?", asked of lbkit and of each peer: one app for each, with one check.

`check` is what the check does: nothing, or a dependency that takes a while. An app is named as in the tables.
The module is also what the servers of the load test import.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from lbkit import Health, Service, asgi, wsgi
from lbkit.health import Thresholds
from lbkit.types import ASGIApp, Environ, Receive, Scope, Send, StartResponse, WSGIApp

__all__ = ["ASGI", "PATHS", "WSGI"]

BODY = b'{"status":"healthy","timestamp":1767225600.000,"version":"1.0.0","padding":"' + b"x" * 120 + b'"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
NEVER = Thresholds(cpu=101, memory=101, disk=101)

Check = Callable[[], None]

PATHS = {
    "raw": "/",
    "lbkit /health": "/health",
    "lbkit detailed": "/health/detailed",
    "Starlette async route": "/health",
    "Starlette def route": "/health",
    "FastAPI async route": "/health",
    "FastAPI def route": "/health",
    "fastapi-health": "/health",
    "dockerflow": "/__heartbeat__",
    "Flask route": "/health",
    "py-healthcheck": "/health",
    "django-health-check": "/health",
}


async def raw_asgi(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    if scope["type"] != "http":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


def raw_wsgi(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:  # noqa: ARG001
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))]
    start_response("200 OK", headers)
    return [BODY]


def health(check: Check, **options: Any) -> Health:
    made = Health(Service(version="1.0.0"), thresholds=NEVER)
    made.check("database", **options)(check)
    return made


def asgi_lbkit(check: Check, **options: Any) -> ASGIApp:
    return asgi.HealthMiddleware(raw_asgi, health(check, **options))


def wsgi_lbkit(check: Check, **options: Any) -> WSGIApp:
    return wsgi.HealthMiddleware(raw_wsgi, health(check, **options))


def starlette_async(check: Check) -> Any:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def view(_: Request) -> JSONResponse:
        if check is not nothing:
            await run_in_threadpool(check)
        return JSONResponse({"status": "healthy"})

    return Starlette(routes=[Route("/health", view)])


def starlette_def(check: Check) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def view(_: Request) -> JSONResponse:
        check()
        return JSONResponse({"status": "healthy"})

    return Starlette(routes=[Route("/health", view)])


def fastapi_async(check: Check) -> Any:
    from fastapi import FastAPI
    from starlette.concurrency import run_in_threadpool

    app = FastAPI()

    @app.get("/health")
    async def view() -> dict[str, str]:
        if check is not nothing:
            await run_in_threadpool(check)
        return {"status": "healthy"}

    return app


def fastapi_def(check: Check) -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/health")
    def view() -> dict[str, str]:
        check()
        return {"status": "healthy"}

    return app


def fastapi_health(check: Check) -> Any:
    from fastapi import FastAPI
    from fastapi_health import health as endpoint

    def database() -> bool:
        check()
        return True

    app = FastAPI()
    app.add_api_route("/health", endpoint([database]))
    return app


def dockerflow_asgi(check: Check) -> Any:
    from dockerflow.fastapi import router
    from fastapi import FastAPI

    register_dockerflow(check)
    app = FastAPI()
    app.include_router(router)
    return app


def dockerflow_wsgi(check: Check) -> Any:
    from dockerflow.flask import Dockerflow
    from flask import Flask

    app = Flask(__name__)
    Dockerflow(app)
    register_dockerflow(check)
    return app


def register_dockerflow(check: Check) -> None:
    from dockerflow import checks

    checks.clear_checks()  # they are the process's, not the app's

    @checks.register
    def database() -> list[Any]:
        check()
        return []


def flask_route(check: Check) -> Any:
    from flask import Flask

    app = Flask(__name__)

    @app.get("/health")
    def view() -> dict[str, str]:
        check()
        return {"status": "healthy"}

    return app


def py_healthcheck(check: Check) -> Any:
    from flask import Flask
    from healthcheck import HealthCheck

    def database() -> tuple[bool, str]:
        check()
        return True, "ok"

    app = Flask(__name__)
    # Its cache of 27 s is switched off, or the check would not be measured.
    endpoint = HealthCheck(success_ttl=None, failed_ttl=None)
    endpoint.add_check(database)
    app.add_url_rule("/health", "health", view_func=lambda: endpoint.run())
    return app


def django_wsgi(check: Check) -> Any:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from health_check.base import HealthCheck

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            ROOT_URLCONF=__name__,
            INSTALLED_APPS=["health_check"],
            SECRET_KEY="x" * 50,
        )
        django.setup()
    from django.urls import clear_url_caches, path
    from health_check.views import HealthCheckView

    class Database(HealthCheck):
        def run(self) -> None:  # type: ignore[override]
            check()

    clear_url_caches()
    globals()["urlpatterns"] = [path("health", HealthCheckView.as_view(checks=[Database]))]
    return get_wsgi_application()


def nothing() -> None:
    return None


ASGI: dict[str, Callable[[Check], Any]] = {
    "raw": lambda _: raw_asgi,
    "lbkit /health": asgi_lbkit,
    "lbkit detailed": asgi_lbkit,
    "Starlette async route": starlette_async,
    "Starlette def route": starlette_def,
    "FastAPI async route": fastapi_async,
    "FastAPI def route": fastapi_def,
    "fastapi-health": fastapi_health,
    "dockerflow": dockerflow_asgi,
}
WSGI: dict[str, Callable[[Check], Any]] = {
    "raw": lambda _: raw_wsgi,
    "lbkit /health": wsgi_lbkit,
    "lbkit detailed": wsgi_lbkit,
    "Flask route": flask_route,
    "py-healthcheck": py_healthcheck,
    "dockerflow": dockerflow_wsgi,
    "django-health-check": django_wsgi,
}


def __getattr__(name: str) -> Any:
    """`app` is what the server of a load test imports, with a dependency that takes 50 ms and counts."""
    if name != "app":
        raise AttributeError(name)
    kind, _, way = os.environ["LBKIT_BENCH_APP"].partition(":")
    calls = os.environ["LBKIT_BENCH_CALLS"]

    def dependency() -> None:
        with open(calls, "a") as log:
            log.write("x")
        time.sleep(0.05)

    if way.startswith("lbkit"):
        return (asgi_lbkit if kind == "asgi" else wsgi_lbkit)(dependency, ttl=1.0)
    return (ASGI if kind == "asgi" else WSGI)[way](dependency)
