"""What can be seen of an app in a fresh interpreter: `python -m lbkit.testkit.checkup TARGET FILE`.

It makes the app once, looks at it, asks its health endpoints, and writes what it saw as JSON to FILE. Values
are told by a digest alone: two of these files are compared, and a secret has no business in either.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

from lbkit.asgi.lifespan import Lifespan
from lbkit.cli.target import App, find, parse
from lbkit.errors import LbkitError, StartupError
from lbkit.interface import Interface, interface_of
from lbkit.testkit.first_party import FirstParty
from lbkit.types import Message

__all__ = ["HEALTH", "Checkup", "Secret", "checkup", "main"]

HEALTH = ("/health", "/health/ready", "/health/live")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")
SECRET = re.compile(r"secret|salt|signing|csrf.*key|jwt.*key|token_key|encryption", re.IGNORECASE)
SHORTEST = 16
"""Characters below which a secret can be guessed."""

GUESSED = frozenset({"dev", "secret", "changeme", "change-me", "development", "password", "test", "key"})
OURS = ("__main__", "__mp_main__")
"""The names under which this very file runs."""

PLAIN = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    digest: str | None
    """None when it is not set."""

    weak: str | None = None
    """Why it is easy to guess."""


@dataclass(slots=True, kw_only=True)
class Checkup:
    """One boot."""

    name: str = ""
    interface: str = ""
    framework: str = ""
    seconds: float = 0.0
    error: str | None = None
    """Why there is no app; nothing else is known then."""

    secrets: dict[str, Secret] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    """Digests of the app's configuration, and of the plain values in its modules."""

    routes: list[str] = field(default_factory=list)
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
        values["secrets"] = {name: Secret(**each) for name, each in values["secrets"].items()}
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
    _look(seen, app)
    _look_at_modules(seen, FirstParty(private))
    _ask(seen, app)
    return seen


def _look(seen: Checkup, app: Any) -> None:
    seen.interface = interface_of(app).value
    seen.framework = type(app).__module__.partition(".")[0]
    config = getattr(app, "config", None)
    if isinstance(config, Mapping):
        _add(seen, ((f'app.config["{key}"]', value) for key, value in config.items()))
    _add(seen, ((f"app.state.{key}", value) for key, value in _state(app).items()))
    for each in getattr(app, "user_middleware", ()):
        name = getattr(each.cls, "__name__", "middleware")
        _add(seen, ((f"{name}({key}=...)", value) for key, value in dict(each.kwargs).items()))
    seen.routes = sorted(_routes(app))
    _look_at_sessions(seen, app)


def _state(app: Any) -> Mapping[str, Any]:
    state = getattr(getattr(app, "state", None), "_state", {})
    return state if isinstance(state, Mapping) else {}


def _add(seen: Checkup, values: Iterable[tuple[str, Any]]) -> None:
    for name, value in values:
        text = _text(value)
        if text is None:
            continue
        if SECRET.search(name) and isinstance(value, str | bytes | None):
            seen.secrets[name] = Secret(digest=_digest(text) if value else None, weak=_weakness(value))
        else:
            seen.config[name] = _digest(text)


def _text(value: Any) -> str | None:
    """A text that is the same for equal values; None for what has none, such as an object with an address."""
    if isinstance(value, set | frozenset):
        value = sorted(map(repr, value))
    try:
        text = repr(value)
    except Exception:
        return None
    return None if ADDRESS.search(text) else text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _weakness(value: str | bytes | None) -> str | None:
    if not value:
        return None
    word = value.decode("latin-1") if isinstance(value, bytes) else value
    if word.lower() in GUESSED:
        return "it is the first word that anybody would try"
    return f"it has {len(word)} characters; take {SHORTEST} or more" if len(word) < SHORTEST else None


def _routes(app: Any) -> Iterator[str]:
    rules = getattr(getattr(app, "url_map", None), "iter_rules", None)
    if rules is not None:
        yield from (f"{rule.rule} {','.join(sorted(rule.methods or ()))}" for rule in rules())
        return
    for route in getattr(app, "routes", None) or ():
        if isinstance(path := getattr(route, "path", None), str):
            methods = ",".join(sorted(getattr(route, "methods", None) or ()))
            yield f"{path} {methods}".strip()
        else:  # FastAPI's way to hold a router that was included
            yield from _routes(getattr(route, "original_router", None))


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


def _look_at_modules(seen: Checkup, first_party: FirstParty) -> None:
    for name in first_party.loaded():
        if name in OURS:
            continue
        module = sys.modules[name]
        file = getattr(module, "__file__", None)
        if file is None:
            continue
        seen.modules[name] = file
        values = [(key, value) for key, value in vars(module).items() if not key.startswith("__")]
        _add(seen, ((f"{name}.{key}", value) for key, value in values if isinstance(value, PLAIN)))
        seen.full += [f"{name}.{key}" for key, value in values if _is_full(value)]


def _is_full(value: Any) -> bool:
    return isinstance(value, dict | list | set) and bool(value)


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
