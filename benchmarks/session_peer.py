"""lbkit's sessions, as a peer of the session checks: `make_flask` and `make_asgi`.

The checks live outside of the project. Each function returns a Peer of theirs: the same app as every other
library gets, with our sessions in it.
"""

from __future__ import annotations

from typing import Any

SECRET_KEYS = ["s" * 40]


def make_flask() -> Any:
    from peers import Peer, flask_app

    def make(url: str, *, tuned: bool = False) -> Any:  # noqa: ARG001  # ours are short timeouts in any case
        return _flask(flask_app, url)

    return Peer("lbkit-flask", "wsgi", make, "__Host-sid", _forge)


def make_asgi() -> Any:
    from peers import Peer, starlette_app

    def make(url: str, *, tuned: bool = False) -> Any:  # noqa: ARG001
        return _starlette(starlette_app, url)

    return Peer("lbkit-asgi", "asgi", make, "__Host-sid", _forge)


def _forge(_: str) -> None:
    """Nobody without the key can make a cookie."""


def _flask(build: Any, url: str) -> Any:
    from flask import Flask, session

    from lbkit_flask import RedisSessionInterface

    app = Flask("peer")
    app.session_interface = RedisSessionInterface(url, secret_keys=SECRET_KEYS)
    # The object itself, as the other peers' apps have it: Flask's proxy stands before it in any case.
    return build(lambda: session, lambda: session.rotate(), lambda: session.clear(), app=app)  # type: ignore[attr-defined]


def _starlette(build: Any, url: str) -> Any:
    from starlette.middleware import Middleware

    from lbkit.asgi import SessionMiddleware

    middleware = Middleware(SessionMiddleware, store=url, secret_keys=SECRET_KEYS, load="lazy")
    return build(
        lambda connection: connection.session.load(),
        lambda connection: connection.session,
        lambda connection: connection.session.rotate(),
        lambda connection: connection.session.clear(),
        [middleware],
    )
