"""The patch points: under the test clients of Flask, werkzeug, Starlette, FastAPI, httpx and httpx2.

No framework is imported here. Each is patched when somebody imports it, for the time of the run.

==================================  ===========================================================
patched                             so that
==================================  ===========================================================
werkzeug Client.run_wsgi_app        a request goes to one of the replicas
starlette TestClient                the same, and a lifespan goes to all of them
httpx, httpx2 ASGITransport,        the same, when they are given an app that can be made again
WSGITransport
asgi_lifespan LifespanManager       a lifespan goes to all of them
WebSocketTestSession.receive        a message that another replica got is not waited for for ever
Flask, Starlette, FastAPI __init__  we know what made an app
flask Config, Flask, State          we know what a test has changed
==================================  ===========================================================
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import TimeoutError as Timeout
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any

from lbkit.testkit.bringing import Deed
from lbkit.testkit.client import read_out
from lbkit.testkit.doors import AsgiDoor, Managed
from lbkit.testkit.kit import Kit
from lbkit.testkit.mirror import ABSENT
from lbkit.testkit.recipes import by_the_test
from lbkit.testkit.spaces import current

__all__ = ["put_under"]

SETUP = (
    "add_url_rule",
    "register_blueprint",
    "register_error_handler",
    "before_request",
    "after_request",
    "teardown_request",
    "teardown_appcontext",
    "context_processor",
    "add_template_filter",
    "add_template_global",
)
"""Flask's setup methods; its decorators call these."""


def put_under(kit: Kit) -> None:
    """Put the kit under every test client that is imported, now or later."""
    for module, do in {
        "werkzeug.test": _werkzeug,
        "starlette.testclient": _starlette_client,
        "httpx._transports.asgi": _transport("ASGITransport", wsgi=False),
        "httpx._transports.wsgi": _transport("WSGITransport", wsgi=True),
        "httpx2._transports.asgi": _transport("ASGITransport", wsgi=False),
        "httpx2._transports.wsgi": _transport("WSGITransport", wsgi=True),
        "asgi_lifespan._manager": _lifespan_manager,
        "flask.app": _flask,
        "flask.config": _flask_config,
        "starlette.applications": _made("Starlette"),
        "starlette.datastructures": _starlette_state,
        "fastapi.applications": _made("FastAPI"),
    }.items():
        kit.patches.when_imported(module, _bound(do, kit))


def _bound(do: Callable[[Kit, ModuleType], None], kit: Kit) -> Callable[[ModuleType], None]:
    return lambda module: do(kit, module)


def _werkzeug(kit: Kit, module: ModuleType) -> None:
    def make(original: Any) -> Any:
        @wraps(original)
        def run_wsgi_app(self: Any, environ: Any, *args: Any, **kwargs: Any) -> Any:
            app = self.application
            self.application = kit.door(app, self, wsgi=True)
            try:
                answer = original(self, environ, *args, **kwargs)
                # Else nobody would learn that a transfer broke, unless the test happens to look at its end.
                return read_out(*answer) if kit.turn.danger is not None else answer
            finally:
                self.application = app

        return run_wsgi_app

    kit.patches.replace(module.Client, "run_wsgi_app", make)


def _starlette_client(kit: Kit, module: ModuleType) -> None:
    def init(original: Any) -> Any:
        @wraps(original)
        def __init__(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            if not module._is_asgi3(app):
                original(self, app, *args, **kwargs)
                return
            door = kit.door(app, self, wsgi=False)
            original(self, door, *args, **kwargs)
            # Tests read `client.app`; the client itself calls its transport's, and this one for lifespans.
            self.app, self._lbkit_door = app, door

        return __init__

    def lifespan(original: Any) -> Any:
        @wraps(original)
        async def live(self: Any) -> None:
            door = self.__dict__.get("_lbkit_door", self.app)
            await original(
                SimpleNamespace(
                    app=door,
                    app_state=getattr(self, "app_state", {}),
                    stream_receive=self.stream_receive,
                    stream_send=self.stream_send,
                )
            )

        return live

    kit.patches.replace(module.TestClient, "__init__", init)
    kit.patches.replace(module.TestClient, "lifespan", lifespan)
    kit.patches.replace(module.WebSocketTestSession, "receive", _limited(kit))


def _limited(kit: Kit) -> Callable[[Any], Any]:
    """A websocket's `receive` that gives up."""

    def make(original: Any) -> Any:
        def receive(self: Any) -> Any:
            app = self.app
            limit = kit.settings.receive_timeout
            if not isinstance(app, AsgiDoor) or not hasattr(self, "_send_rx") or not limit:
                return original(self)
            future = self.portal.start_task_soon(self._send_rx.receive)
            try:
                return future.result(limit)
            except Timeout:
                future.cancel()
                held = ", ".join(str(each) for each in app.open) or "no replica"
                # None: what was raised by then is a timeout of ours, which tells nobody anything.
                raise AssertionError(
                    f"no websocket message within {limit:g} s; open are: {held}. "
                    "A message that another replica sent to its own clients never comes here"
                ) from None

        return receive

    return make


def _transport(name: str, *, wsgi: bool) -> Callable[[Kit, ModuleType], None]:
    def patch(kit: Kit, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            @wraps(original)
            def __init__(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
                original(self, app, *args, **kwargs)
                self.app = kit.door(app, self, wsgi=wsgi)

            return __init__

        kit.patches.replace(getattr(module, name), "__init__", make)

    return patch


def _lifespan_manager(kit: Kit, module: ModuleType) -> None:
    def make(original: Any) -> Any:
        @wraps(original)
        def __init__(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            door = kit.door(app, self, wsgi=False)
            original(self, door, *args, **kwargs)
            if isinstance(door, AsgiDoor) and self.app is not door:
                self.app = Managed(door, self._state)

        return __init__

    kit.patches.replace(module.LifespanManager, "__init__", make)


def _made(name: str) -> Callable[[Kit, ModuleType], None]:
    """Notice what makes an app, and what the test sets on it."""

    def patch(kit: Kit, module: ModuleType) -> None:
        kind = getattr(module, name)

        def make(original: Any) -> Any:
            @wraps(original)
            def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
                kit.recipes.watch(self, sys._getframe(1))
                if current() is None:
                    kit.made(self)
                original(self, *args, **kwargs)

            return __init__

        kit.patches.replace(kind, "__init__", make)

    return patch


def _flask(kit: Kit, module: ModuleType) -> None:
    kind = module.Flask
    _made("Flask")(kit, module)
    repeating: list[str] = []

    def calling(original: Any) -> Any:
        name = original.__name__

        @wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if repeating or not _is_the_tests(kit):
                return original(self, *args, **kwargs)
            repeating.append(name)  # what it calls in turn is not to be repeated
            try:
                result = original(self, *args, **kwargs)
            finally:
                repeating.pop()
            kit.touched.note(self, Deed("call", name, args, kwargs))
            return result

        return method

    for name in SETUP:
        kit.patches.replace(kind, name, calling)
    kit.patches.replace(kind, "__setattr__", _setting(kit, lambda name: not name.startswith("_")))


def _flask_config(kit: Kit, module: ModuleType) -> None:
    kind = module.Config

    def setting(original: Any) -> Any:
        def __setitem__(self: Any, key: Any, value: Any) -> None:  # noqa: N807
            original(self, key, value)
            note(self, key, value)

        return __setitem__

    def deleting(original: Any) -> Any:
        def __delitem__(self: Any, key: Any) -> None:  # noqa: N807
            original(self, key)
            note(self, key, ABSENT)

        return __delitem__

    def updating(original: Any) -> Any:
        def update(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            for key, value in dict(*args, **kwargs).items():
                note(self, key, value)

        return update

    def note(config: Any, key: Any, value: Any) -> None:
        if _is_the_tests(kit):
            kit.touched.note(config, Deed("item", key, value))

    kit.patches.replace(kind, "__setitem__", setting)
    kit.patches.replace(kind, "__delitem__", deleting)
    kit.patches.replace(kind, "update", updating)


def _starlette_state(kit: Kit, module: ModuleType) -> None:
    kit.patches.replace(module.State, "__setattr__", _setting(kit, lambda name: not name.startswith("_")))


def _setting(kit: Kit, counts: Callable[[str], bool]) -> Callable[[Any], Any]:
    def make(original: Any) -> Any:
        def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
            original(self, name, value)
            if counts(name) and _is_the_tests(kit):
                kit.touched.note(self, Deed("attribute", name, value))

        return __setattr__

    return make


def _is_the_tests(kit: Kit) -> bool:
    """Whether the function that was called, two frames up, was called by a test."""
    return current() is None and by_the_test(kit.first_party, sys._getframe(2))
