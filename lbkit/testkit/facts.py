"""What has to be alike in all replicas of an app: its secrets, its configuration, its routes.

Values are told by a digest alone: two processes compare them, and a secret has no business in either's words.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

__all__ = ["Facts", "Value", "add_facts", "word_of"]

ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")
SECRET = re.compile(r"secret|salt|signing|csrf.*key|jwt.*key|token_key|encryption", re.IGNORECASE)
SHORTEST = 16
"""Characters below which a secret can be guessed."""

GUESSED = frozenset({"dev", "secret", "changeme", "change-me", "development", "password", "test", "key"})
PLAIN = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    kind: str
    """The name of its type."""

    digest: str | None
    """None for a secret that is not set."""

    secret: bool = False
    weak: str | None = None
    """Why it is easy to guess."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """Of one app in one process."""

    values: dict[str, Value] = field(default_factory=dict)
    """The app's configuration, and the plain values in its modules and their classes."""

    routes: list[str] = field(default_factory=list)

    @property
    def secrets(self) -> dict[str, Value]:
        return {name: value for name, value in self.values.items() if value.secret}

    @property
    def settings(self) -> dict[str, Value]:
        return {name: value for name, value in self.values.items() if not value.secret}


def add_facts(facts: Facts, app: Any, modules: Mapping[str, ModuleType]) -> None:
    """Look at an app, and at the modules that are its own."""
    facts.values |= {name: seen for name, value in _named(app, modules) if (seen := _seen(name, value))}
    facts.routes = sorted(_routes(app))


def word_of(name: str) -> str:
    """The last word of a value's name, such as SECRET_KEY of `app.config["SECRET_KEY"]`."""
    word = re.search(r"\w+(?=\W*$)", name.removesuffix("=...)"))
    return word[0] if word else name


def _named(app: Any, modules: Mapping[str, ModuleType]) -> Iterator[tuple[str, Any]]:
    config = getattr(app, "config", None)
    if isinstance(config, Mapping):
        yield from ((f'app.config["{key}"]', value) for key, value in config.items())
    yield from ((f"app.state.{key}", value) for key, value in _state(app).items())
    for each in getattr(app, "user_middleware", ()):
        name = getattr(each.cls, "__name__", "middleware")
        yield from ((f"{name}({key}=...)", value) for key, value in dict(each.kwargs).items())
    for name, module in modules.items():
        yield from _plain(name, vars(module))
        for key, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == name:
                yield from _plain(f"{name}.{key}", vars(value))


def _state(app: Any) -> Mapping[str, Any]:
    state = getattr(getattr(app, "state", None), "_state", {})
    return state if isinstance(state, Mapping) else {}


def _plain(prefix: str, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in list(names.items()):
        if isinstance(value, PLAIN) and not key.startswith("__"):
            yield f"{prefix}.{key}", value


def _seen(name: str, value: Any) -> Value | None:
    text, kind = _text(value), type(value).__name__
    if text is None:
        return None
    if SECRET.search(name) and isinstance(value, str | bytes | None):
        digest = _digest(text) if value else None
        return Value(kind=kind, digest=digest, secret=True, weak=_weakness(value))
    return Value(kind=kind, digest=_digest(text))


def _text(value: Any) -> str | None:
    """A text that is the same for equal values; None for what has none, such as an object with an address."""
    if type(value).__module__.partition(".")[0] not in sys.stdlib_module_names:
        return None  # to look at it may do anything: a query's repr asks its database
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
