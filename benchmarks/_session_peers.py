"""The same small app with the sessions of lbkit, of each peer, and with none: what it would cost without.

    /untouched   answers, and does not look at its session
    /read        reads one key
    /write       sets one key
    /fill        makes it a session of 1 KB

Peers are as their documentation sets them up; none is asked for more than a session in Redis.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

__all__ = ["ASGI", "DJANGO", "WSGI"]

KEYS = ["a key of the benchmark, 32 bytes"]
PAD = "x" * 900

Opened = Callable[[], MutableMapping[str, Any]]


def view(path: str, session: Opened) -> str:
    if path == "/read":
        return str(session().get("n"))
    if path == "/write":
        session()["n"] = 2
    if path == "/fill":
        session()["n"] = 1
        session()["pad"] = PAD
    return "ok"


# -- WSGI ------------------------------------------------------------------------------------------------


def flask(session: Opened, prepare: Callable[[Any], None] = lambda _: None) -> Any:
    from flask import Flask, request

    app = Flask("peer")
    app.secret_key = KEYS[0]
    prepare(app)

    @app.route("/<name>")
    def any_(name: str) -> str:  # noqa: ARG001
        return view(request.path, session)

    return app


def flask_alone(_: str) -> Any:
    return flask(dict)


def flask_cookie(_: str) -> Any:
    from flask import session

    return flask(lambda: session)


def flask_lbkit(url: str) -> Any:
    from flask import session

    from lbkit_flask import RedisSessionInterface

    def prepare(app: Any) -> None:
        app.session_interface = RedisSessionInterface(url, secret_keys=KEYS)

    return flask(lambda: session, prepare)


def flask_session(url: str) -> Any:
    import redis
    from flask import session
    from flask_session import Session

    def prepare(app: Any) -> None:
        app.config.update(SESSION_TYPE="redis", SESSION_REDIS=redis.Redis.from_url(url))
        Session(app)

    return flask(lambda: session, prepare)


def flask_beaker(url: str) -> Any:
    from beaker.middleware import SessionMiddleware
    from flask import request

    app = flask(lambda: request.environ["beaker.session"])
    options = {"session.type": "ext:redis", "session.url": url, "session.auto": True, "session.timeout": 3600}
    app.wsgi_app = SessionMiddleware(app.wsgi_app, options)
    return app


def django_alone(url: str) -> Any:
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings

    configure_django(url)
    with override_settings(MIDDLEWARE=[]):
        return WSGIHandler()


def django_cache(url: str) -> Any:
    from django.core.handlers.wsgi import WSGIHandler

    configure_django(url)
    return WSGIHandler()


def configure_django(url: str) -> None:
    """Its settings belong to the process, and are made once."""
    import django
    from django.conf import settings
    from django.urls import re_path

    if settings.configured:
        return
    settings.configure(
        SECRET_KEY=KEYS[0],
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
        INSTALLED_APPS=["django.contrib.sessions"],
        CACHES={"default": {"BACKEND": REDIS_CACHE, "LOCATION": url}},
        LOGGING_CONFIG=None,
    )
    django.setup()
    globals()["urlpatterns"] = [re_path(r"^(?P<name>\w+)$", django_view)]


REDIS_CACHE = "django.core.cache.backends.redis.RedisCache"


def django_view(request: Any, name: str) -> Any:
    from django.http import HttpResponse

    return HttpResponse(view(f"/{name}", lambda: getattr(request, "session", {})))


# -- ASGI ------------------------------------------------------------------------------------------------


def starlette(load: Any, middleware: list[Any]) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def any_(request: Request) -> PlainTextResponse:
        if request.url.path != "/untouched":
            await load(request)
        return PlainTextResponse(view(request.url.path, lambda: request.scope.get("session", {})))

    return Starlette(routes=[Route("/{name}", any_)], middleware=middleware)


async def _nothing(_: Any) -> None: ...


def starlette_alone(_: str) -> Any:
    return starlette(_nothing, [])


def starlette_cookie(_: str) -> Any:
    from starlette.middleware import Middleware
    from starlette.middleware.sessions import SessionMiddleware

    return starlette(_nothing, [Middleware(SessionMiddleware, secret_key=KEYS[0])])


def starlette_lbkit(url: str) -> Any:
    from starlette.middleware import Middleware

    from lbkit.asgi import SessionMiddleware

    lazy = Middleware(SessionMiddleware, store=url, secret_keys=KEYS, load="lazy")
    return starlette(lambda request: request.session.load(), [lazy])


def starlette_lbkit_redis_py(url: str) -> Any:
    return starlette_lbkit(f"{url}?client_name=bench")  # an option, which the pipe leaves to redis-py


def starsessions(url: str) -> Any:
    from redis.asyncio import Redis
    from starlette.middleware import Middleware
    from starsessions import SessionMiddleware, load_session
    from starsessions.stores.redis import RedisStore

    store = RedisStore(connection=Redis.from_url(url))
    middleware = Middleware(SessionMiddleware, store=store, lifetime=3600, cookie_https_only=False)
    return starlette(load_session, [middleware])


WSGI: dict[str, Callable[[str], Any]] = {
    "Flask alone": flask_alone,
    "lbkit": flask_lbkit,
    "Flask's cookie": flask_cookie,
    "Flask-Session": flask_session,
    "Beaker": flask_beaker,
}
DJANGO: dict[str, Callable[[str], Any]] = {"Django alone": django_alone, "Django cache": django_cache}
ASGI: dict[str, Callable[[str], Any]] = {
    "Starlette alone": starlette_alone,
    "lbkit": starlette_lbkit,
    "lbkit, redis-py": starlette_lbkit_redis_py,
    "Starlette's cookie": starlette_cookie,
    "starsessions": starsessions,
}
