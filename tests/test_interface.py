"""ASGI or WSGI, told by the signature. Nothing that is asked about is ever called."""

# ruff: noqa: ARG001, ARG002, ARG003, ARG005  (the parameters are the point, and nobody calls)

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import fastapi
import flask
import pytest
import starlette.applications
import starlette.staticfiles
from a2wsgi import ASGIMiddleware, WSGIMiddleware
from hypothesis import given
from hypothesis import strategies as st

from lbkit.errors import ConfigError
from lbkit.interface import RULE, Interface, interface_of


async def asgi_function(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("interface_of must not call")


def asgi_plain(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
    raise AssertionError("interface_of must not call")


async def asgi_with_default(scope: Any, receive: Any, send: Any, debug: bool = False) -> None: ...


async def asgi_anything(*args: Any) -> None: ...


async def asgi_configured(config: Any, scope: Any, receive: Any, send: Any) -> None: ...


def wsgi_function(environ: Any, start_response: Any) -> list[bytes]:
    raise AssertionError("interface_of must not call")


def wsgi_configured(config: Any, environ: Any, start_response: Any) -> list[bytes]:
    return []


def wsgi_with_default(environ: Any, start_response: Any, exc_info: Any = None) -> list[bytes]:
    return []


def wsgi_positional_only(environ: Any, start_response: Any, /) -> list[bytes]:
    return []


class Asgi:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...

    @staticmethod
    async def static(scope: Any, receive: Any, send: Any) -> None: ...


class AsgiReturning:
    """As Starlette's `Mount` or uvicorn's middleware of old: a plain call that gives the awaitable."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        raise AssertionError("interface_of must not call")


class Wsgi:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def method(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    @classmethod
    def of_class(cls, environ: Any, start_response: Any) -> list[bytes]:
        return []


class Asgi2:
    """The old protocol: called with the scope, it gives a callable of two."""

    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


def asgi2_function(scope: Any) -> Any: ...


def logged(app: Any) -> Any:
    @functools.wraps(app)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return app(*args, **kwargs)

    return wrapper


def unwrapped(app: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return app(*args, **kwargs)

    return wrapper


ASGI_APPS: dict[str, object] = {
    "a coroutine function": asgi_function,
    "a plain function of three": asgi_plain,
    "a function with a default more": asgi_with_default,
    "a coroutine function of *args": asgi_anything,
    "a partial": functools.partial(asgi_configured, "config"),
    "a partial of a partial": functools.partial(functools.partial(asgi_configured), "config"),
    "a partial of an instance": functools.partial(Asgi()),
    "an instance": Asgi(),
    "an instance with a plain call": AsgiReturning(),
    "a bound method": Asgi().method,
    "a static method": Asgi.static,
    "a decorated function": logged(asgi_function),
    "a lambda": lambda scope, receive, send: None,
    "Starlette": starlette.applications.Starlette(),
    "FastAPI": fastapi.FastAPI(),
    "a FastAPI router": fastapi.APIRouter(),
    "static files": starlette.staticfiles.StaticFiles(directory=".", check_dir=False),
    "a WSGI app in a2wsgi": WSGIMiddleware(wsgi_function),  # type: ignore[arg-type]
}
WSGI_APPS: dict[str, object] = {
    "a function": wsgi_function,
    "a function with a default more": wsgi_with_default,
    "a function of positional parameters": wsgi_positional_only,
    "a partial": functools.partial(wsgi_configured, "config"),
    "an instance": Wsgi(),
    "a bound method": Wsgi().method,
    "a class method": Wsgi.of_class,
    "a decorated function": logged(wsgi_function),
    "a lambda": lambda environ, start_response: [],
    "Flask": flask.Flask(__name__),
    "Flask's wsgi_app": flask.Flask(__name__).wsgi_app,
    "an ASGI app in a2wsgi": ASGIMiddleware(asgi_function),
}
NO_APPS: dict[str, object] = {
    "None": None,
    "a string": "shop:app",
    "a module": flask,
    "a list of apps": [wsgi_function],
    "a class of ASGI apps": Asgi,
    "a class of WSGI apps": Wsgi,
    "a Flask class": flask.Flask,
    "an ASGI 2 class": Asgi2,
    "an ASGI 2 function": asgi2_function,
    "a factory": lambda: wsgi_function,
    "a function of four": lambda a, b, c, d: None,
    "a coroutine function of two": Asgi2(None),
    "a function of *args, which could be both": lambda *args: None,
    "a decorated function without functools.wraps": unwrapped(wsgi_function),
    "a function that wants a keyword": lambda environ, start_response, *, config: [],
    "print": print,
    "len": len,
    "a builtin without a signature": max,
    "the builtin type": type,
}


@pytest.mark.parametrize("app", ASGI_APPS.values(), ids=ASGI_APPS.keys())
def test_it_is_asgi(app: object) -> None:
    assert interface_of(app) is Interface.ASGI


@pytest.mark.parametrize("app", WSGI_APPS.values(), ids=WSGI_APPS.keys())
def test_it_is_wsgi(app: object) -> None:
    assert interface_of(app) is Interface.WSGI


@pytest.mark.parametrize("app", NO_APPS.values(), ids=NO_APPS.keys())
def test_it_is_refused_with_the_rule(app: object) -> None:
    with pytest.raises(ConfigError) as caught:
        interface_of(app)
    assert RULE in str(caught.value) or "is a class: give an instance of it" in str(caught.value)


def with_parameters(names: list[str], defaults: int, *, is_async: bool) -> Callable[..., object]:
    plain = len(names) - defaults
    signature = ", ".join([*names[:plain], *(f"{name}=None" for name in names[plain:])])
    space: dict[str, Any] = {}
    exec(f"{'async ' if is_async else ''}def app({signature}): ...", space)
    app: Callable[..., object] = space["app"]
    return app


@given(needed=st.integers(0, 6), optional=st.integers(0, 4), is_async=st.booleans())
def test_the_answer_follows_from_the_parameters(needed: int, optional: int, is_async: bool) -> None:
    app = with_parameters([f"p{number}" for number in range(needed + optional)], optional, is_async=is_async)
    takes_two, takes_three = needed <= 2 <= needed + optional, needed <= 3 <= needed + optional
    if takes_three and (is_async or needed == 3):
        assert interface_of(app) is Interface.ASGI
    elif takes_two and not is_async and needed == 2:
        assert interface_of(app) is Interface.WSGI
    else:
        with pytest.raises(ConfigError):
            interface_of(app)
