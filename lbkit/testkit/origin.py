"""Where the app of a replica comes from, at its first start and at each one after that.

============================  ===========================================================
given                         each start of a replica makes
============================  ===========================================================
`"shop:create_app()"`         an app from its own copies of the first-party modules
... with isolation="none"     what the factory returns, from the modules of this process
... with "process"            a process of its own, with its own server, at a unix socket
a function                    what it returns
an app                        nothing: that very object again, with its memory
============================  ===========================================================
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from lbkit.asgi.replica import ChildApp
from lbkit.balancer.members import name_of, named
from lbkit.errors import ConfigError
from lbkit.testkit.first_party import FirstParty
from lbkit.testkit.interpreter import Interpreter
from lbkit.testkit.isolation import ModuleReplica
from lbkit.testkit.spaces import SWITCH, Space
from lbkit.types import ASGIApp, WSGIApp

__all__ = [
    "HOOKS",
    "App",
    "Apps",
    "Factory",
    "Made",
    "Object",
    "Origin",
    "Process",
    "Recipe",
    "origin_of",
    "origins",
]

PROCESS = "process"
IN_PROCESS = ("module", "none")

App: TypeAlias = "ASGIApp | WSGIApp"
Apps: TypeAlias = "str | Callable[[], App] | Mapping[str, App] | Iterable[App]"


@dataclass(frozen=True, slots=True)
class Made:
    """One app, made for one replica."""

    app: App
    """What is called: it runs inside the replica."""

    inner: Any
    """The bare app, with the attributes that its framework gives it."""

    isolated: ModuleReplica | None = None
    process: Interpreter | None = None


class Hooks:
    """The hooks of spaces, which route `import`, for as long as a cluster needs them."""

    def __init__(self) -> None:
        self._users = 0
        self._ours = False

    def enter(self) -> None:
        if not self._users:
            self._ours = not SWITCH.installed  # else a run over replicas has put them in, and takes them out
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if not self._users and self._ours:
            SWITCH.remove()


HOOKS = Hooks()


class Origin(Protocol):
    def make(self, name: str) -> Made:
        """An app for the replica of that name."""
        ...


class Recipe:
    """`"shop:create_app()"`, `"shop:app"`, `"shop/app.py"`: see `lbkit serve`."""

    def __init__(self, text: str, *, isolation: str, private: Iterable[str]) -> None:
        from lbkit.cli.target import parse

        if isolation not in IN_PROCESS:
            known = ", ".join([*IN_PROCESS, PROCESS])
            raise ConfigError(f"need an isolation of {known}, got {isolation!r}")
        self.target = parse(text.removesuffix("()"))
        self.isolation = isolation
        if str(self.target.root) not in sys.path:
            sys.path.insert(0, str(self.target.root))
        self.first_party = FirstParty(private)

    def make(self, name: str) -> Made:
        space = Space(name, self.first_party, own=self.isolation == "none")
        replica = ModuleReplica(space, self.target)
        return Made(replica.app, replica.inner, replica)


class Process:
    """The same recipe, for processes."""

    def __init__(self, text: str, *, private: Iterable[str]) -> None:
        self.text = text.removesuffix("()")
        self.private = tuple(private)

    def make(self, name: str) -> Made:
        child = Interpreter(self.text, name=name, private=self.private)
        app = ChildApp(child)
        return Made(app, app, process=child)


class Factory:
    def __init__(self, function: Callable[[], App]) -> None:
        self.function = function

    def make(self, name: str) -> Made:  # noqa: ARG002 (one function makes them all)
        app = self.function()
        return Made(app, app)


class Object:
    def __init__(self, app: App) -> None:
        self.app = app

    def make(self, name: str) -> Made:  # noqa: ARG002
        return Made(self.app, self.app)


def origins(
    app: Apps, replicas: int, *, isolation: str, private: Iterable[str]
) -> tuple[dict[str, Origin], Origin | None]:
    """The origin of each replica, and that of the replicas to come; None when no more can be made."""
    if replicas < 1:
        raise ConfigError(f"need replicas >= 1, got replicas={replicas}")
    if not isinstance(app, str) and not callable(app):
        return {name: Object(each) for name, each in named(app).items()}, None
    origin = origin_of(app, isolation=isolation, private=private)
    return {name_of(number): origin for number in range(1, replicas + 1)}, origin


def origin_of(app: object, *, isolation: str, private: Iterable[str]) -> Origin:
    """Of a recipe or a factory."""
    if isinstance(app, str) and isolation == PROCESS:
        return Process(app, private=private)
    if isinstance(app, str):
        return Recipe(app, isolation=isolation, private=private)
    if callable(app) and _takes_nothing(app):
        return Factory(app)
    raise ConfigError(
        f"need a recipe such as 'shop:create_app()', a factory of no arguments, or [app] * 3, got {app!r}"
    )


def _takes_nothing(app: Callable[..., object]) -> bool:
    try:
        inspect.signature(app).bind()
    except (TypeError, ValueError):
        return False
    return True
