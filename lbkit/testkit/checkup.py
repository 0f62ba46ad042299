"""What can be seen of an app in a fresh interpreter: `python -m lbkit.testkit.checkup TARGET FILE`.

It makes the app once, looks at it, asks its health endpoints, and writes what it saw as JSON to FILE. Two of
these files are compared.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.util import setup_testing_defaults

from lbkit.asgi.lifespan import Lifespan
from lbkit.cli.target import App, find, parse
from lbkit.errors import LbkitError, StartupError
from lbkit.interface import Interface, interface_of
from lbkit.testkit.facts import Facts, Value, add_facts
from lbkit.testkit.first_party import FirstParty
from lbkit.types import Message

__all__ = ["HEALTH", "Checkup", "checkup", "main"]

HEALTH = ("/health", "/health/ready", "/health/live")
OURS = ("__main__", "__mp_main__")
"""The names under which this very file runs."""


@dataclass(slots=True, kw_only=True)
class Checkup(Facts):
    """One boot."""

    name: str = ""
    interface: str = ""
    framework: str = ""
    seconds: float = 0.0
    error: str | None = None
    """Why there is no app; nothing else is known then."""

    health: dict[str, int | None] = field(default_factory=dict)
    lifespan: str | None = None
    """What its lifespan said when it failed."""

    sessions: str | None = None
    """Where they are kept, as far as the app's framework tells."""

    secure_cookies: bool | None = None
    modules: dict[str, str] = field(default_factory=dict)
    """The app's own modules and their files."""

    full: list[str] = field(default_factory=list)
    """Containers of these modules that were not empty after the boot: tables, not stores."""

    @classmethod
    def read(cls, path: Path) -> Checkup:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["values"] = {name: Value(**each) for name, each in values["values"].items()}
        return cls(**values)


def checkup(target: str, *, app_dir: Path | None = None, private: Iterable[str] = ()) -> Checkup:
    """Make the app, and look. What goes wrong is told in `error`."""
    seen = Checkup()
    began = time.perf_counter()
    try:
        source = find(parse(target, app_dir=app_dir))
        app = source.make()
    except LbkitError as error:
        seen.error = " ".join(str(error).split())
        return seen
    except Exception as error:
        seen.error = " ".join(f"making the app raised {type(error).__name__}: {error}".split())
        return seen
    seen.seconds = time.perf_counter() - began
    seen.name = source.name
    _look(seen, app, _modules(FirstParty(private)))
    _ask(seen, app)
    return seen


def _look(seen: Checkup, app: Any, modules: Mapping[str, ModuleType]) -> None:
    seen.interface = interface_of(app).value
    seen.framework = type(app).__module__.partition(".")[0]
    add_facts(seen, app, modules)
    for name, module in modules.items():
        seen.modules[name] = str(module.__file__)
        seen.full += [f"{name}.{key}" for key, value in vars(module).items() if _is_full(key, value)]
    _look_at_sessions(seen, app)


def _modules(first_party: FirstParty) -> dict[str, ModuleType]:
    """Those of the app that have a file, and are not this one."""
    named = {name: sys.modules[name] for name in first_party.loaded() if name not in OURS}
    return {name: module for name, module in named.items() if getattr(module, "__file__", None) is not None}


def _look_at_sessions(seen: Checkup, app: Any) -> None:
    interface = getattr(app, "session_interface", None)
    if interface is not None:
        name = type(interface).__name__
        where = {"SecureCookieSessionInterface": "a signed cookie"}.get(name, name)
        kind = str(app.config.get("SESSION_TYPE") or "")
        seen.sessions = f"{where} ({kind})" if kind else where
        seen.secure_cookies = bool(app.config.get("SESSION_COOKIE_SECURE"))
    for each in getattr(app, "user_middleware", ()):
        if getattr(each.cls, "__name__", "") == "SessionMiddleware":
            ours = each.cls.__module__.startswith("lbkit")
            seen.sessions = "lbkit's SessionMiddleware" if ours else "a signed cookie"
            seen.secure_cookies = bool(each.kwargs.get("https_only")) if not ours else None


def _is_full(name: str, value: Any) -> bool:
    return not name.startswith("__") and isinstance(value, dict | list | set) and bool(value)


def _ask(seen: Checkup, app: App) -> None:
    if interface_of(app) is Interface.WSGI:
        seen.health = {path: _wsgi_status(app, path) for path in HEALTH}
    else:
        seen.health, seen.lifespan = asyncio.run(_asgi_statuses(app))


def _wsgi_status(app: Any, path: str) -> int | None:
    environ: dict[str, Any] = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    told: list[str] = []

    def start_response(status: str, _: object, __: object = None) -> Callable[[bytes], object]:
        told.append(status)
        return bytes

    try:
        body = app(environ, start_response)
        for _ in body:
            pass
        if close := getattr(body, "close", None):
            close()
    except Exception:
        return None
    return int(told[0][:3]) if told else None


async def _asgi_statuses(app: Any) -> tuple[dict[str, int | None], str | None]:
    lifespan, failure = Lifespan("web1", app), None
    try:
        await lifespan.startup({"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}})
    except StartupError as error:
        failure = error.reason
    statuses = {path: await _asgi_status(app, path, lifespan.state) for path in HEALTH}
    if failure is None:
        failure = await lifespan.shutdown()
    return statuses, failure


async def _asgi_status(app: Any, path: str, state: dict[str, Any]) -> int | None:
    told: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            told.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "state": dict(state),
    }
    try:
        await app(scope, receive, send)
    except Exception:
        return told[0] if told else None
    return told[0] if told else None


def main(arguments: list[str]) -> None:
    target, file, app_dir, *private = arguments
    seen = checkup(target, app_dir=Path(app_dir) if app_dir else None, private=private)
    Path(file).write_text(json.dumps(asdict(seen)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
