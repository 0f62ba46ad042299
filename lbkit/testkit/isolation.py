"""Several replicas of one app in this process, each with memory of its own, as far as that goes.

===========  ==============================================================  ========================
isolation    a replica is                                                    shares with the others
===========  ==============================================================  ========================
`module`     the app, made from private copies of the first-party modules    libraries, os.environ, cwd
`clone`      the test process, forked when it is first asked something       what was there before the fork
`process`    the app in an interpreter of its own, on a unix socket          files
`none`       the app, made once more by its factory                          all of its modules, too
===========  ==============================================================  ========================
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from lbkit.errors import ConfigError, StartupError
from lbkit.interface import Interface, interface_of
from lbkit.testkit.clone import Nursery, need_fork, remote
from lbkit.testkit.first_party import FirstParty
from lbkit.testkit.interpreter import Interpreter
from lbkit.testkit.spaces import SWITCH, Space, Visit, in_steps
from lbkit.types import ASGIApp, Environ, Receive, Scope, Send, StartResponse, WSGIApp
from lbkit.wsgi.replica import ChildApp

if TYPE_CHECKING:
    from lbkit.cli.target import Target

__all__ = [
    "ISOLATIONS",
    "AsgiInside",
    "IsolatedReplica",
    "ModuleReplica",
    "ProcessReplica",
    "WsgiInside",
    "inside",
    "replicas",
]

ISOLATIONS = ("module", "clone", "process", "none")


class IsolatedReplica(Protocol):
    """One replica, however it is isolated."""

    name: str
    interface: Interface

    @property
    def app(self) -> ASGIApp | WSGIApp:
        """Call it as any app: it runs inside the replica."""

    def module(self, name: str) -> ModuleType:
        """Look into the replica: its copy of a module."""

    def run(self, target: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function inside the replica: `shop.cache:clear`, or one of yours."""

    def close(self) -> None:
        """Give back what it holds. It cannot be called afterwards."""


def replicas(
    target: str,
    n: int = 3,
    *,
    isolation: str = "module",
    private: Iterable[str] = (),
    first_party: FirstParty | None = None,
    watch: bool = False,
) -> list[IsolatedReplica]:
    """N replicas web1, web2, ... of TARGET, such as `shop:create_app` or `shop:app`.

    `private` names the top-level packages of which each replica gets a copy; by default those that are not
    installed. With `watch` one in a process of its own watches itself. Raises ConfigError for a wrong value,
    and StartupError, which names the replica.
    """
    if n < 1:
        raise ConfigError(f"need at least 1 replica, got {n}")
    if isolation not in ISOLATIONS:
        raise ConfigError(f"need an isolation of {', '.join(ISOLATIONS)}, got {isolation!r}")
    # Imported where it is used: it comes with the command line, which a test run may be without.
    from lbkit.cli.target import parse

    place = parse(target)
    if str(place.root) not in sys.path:
        sys.path.insert(0, str(place.root))
    names = [f"web{number}" for number in range(1, n + 1)]
    if isolation == "process":
        return processes(target, names, private=private, watch=watch)
    if isolation == "clone":
        return clones(place, names)
    owned = first_party or FirstParty(private)
    spaces = [Space(name, owned, own=isolation == "none") for name in names]
    return [ModuleReplica(space, place) for space in spaces]


class ModuleReplica:
    """A replica that lives in a `Space`."""

    def __init__(self, space: Space, target: Target) -> None:
        self.name = space.name
        self.space = space
        self.inner = made(space, target)
        """The bare app. Whoever calls it is outside the replica; call `app`."""

        self.interface = interface_of(self.inner)
        self.app = inside(space, self.inner)

    def module(self, name: str) -> ModuleType:
        return self.space.module(name)

    def run(self, target: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.space.run(resolved(self.space, target), *args, **kwargs)

    def close(self) -> None:
        """Nothing is held but memory."""


class Outside:
    """What a replica in another process cannot do."""

    def module(self, name: str) -> ModuleType:
        raise ConfigError(f"cannot look at {name} in another process: isolation module can")

    def run(self, target: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        raise ConfigError(f"cannot run {target} in another process: isolation module can")


class CloneReplica(Outside):
    """A replica that is forked from this process when it is first asked something."""

    def __init__(self, name: str, app: ASGIApp | WSGIApp, nursery: Nursery) -> None:
        self.name = name
        self.interface = interface_of(app)
        self._nursery = nursery
        self.app = remote(nursery, name, app)

    def close(self) -> None:
        self._nursery.close(force=True)


class ProcessReplica(Outside):
    """A replica in an interpreter of its own. Whatever the app is, it is called as WSGI, from any thread."""

    interface = Interface.WSGI

    def __init__(self, child: Interpreter) -> None:
        self.name = child.name
        self.child = child
        self.app = ChildApp(self.child, read_timeout=None)
        self.app.start()

    def close(self) -> None:
        self.app.close()


def processes(target: str, names: list[str], *, private: Iterable[str], watch: bool) -> list[IsolatedReplica]:
    """All of them, or none: those before one that does not start are stopped again."""
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError(
            f"isolation process needs unix sockets, which {sys.platform} does not have: use module"
        )
    started: list[IsolatedReplica] = []
    try:
        for name in names:
            started.append(ProcessReplica(Interpreter(target, name=name, private=private, watch=watch)))
    except BaseException:
        for each in started:
            each.close()
        raise
    return started


def clones(target: Target, names: list[str]) -> list[IsolatedReplica]:
    """Replicas that share what is there when they are forked, all at the same time."""
    from lbkit.cli.target import find

    need_fork()
    app, nursery = find(target).make(), Nursery(names)
    return [CloneReplica(name, app, nursery) for name in names]


def made(space: Space, target: Target) -> ASGIApp | WSGIApp:
    """The app of a target, imported and made inside the space."""
    from lbkit.cli.target import find

    with Visit(space):
        try:
            return find(target).make()
        except ConfigError as error:
            raise StartupError(space.name, str(error)) from error
        except Exception as error:
            raise StartupError(space.name, f"{type(error).__name__}: {error}") from error


def resolved(space: Space, target: str | Callable[..., Any]) -> Callable[..., Any]:
    """A function of the replica's own copy, when it is named as `module:function`."""
    if callable(target):
        return target
    module, colon, path = target.partition(":")
    if not colon:
        raise ConfigError(f"need module:function, got {target!r}")
    found: Any = space.module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return cast("Callable[..., Any]", found)


def inside(space: Space, app: ASGIApp | WSGIApp) -> ASGIApp | WSGIApp:
    """The app as one that runs inside the space, whoever calls it."""
    if interface_of(app) is Interface.WSGI:
        return WsgiInside(space, cast("WSGIApp", app))
    return AsgiInside(space, cast("ASGIApp", app))


class AsgiInside:
    """An ASGI app, each step of it inside its space."""

    def __init__(self, space: Space, app: ASGIApp) -> None:
        self.space = space
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lasting = scope["type"] != "http"
        await in_steps(self.space, self._call(scope, receive, send), lasting=lasting)

    def _call(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # A coroutine function may be a plain function that returns an awaitable: it is called inside, too.
        async def call() -> None:
            try:
                await self.app(scope, receive, send)
            except Exception as error:
                told_outside(error, self.space)
                raise error

        return call()


class WsgiInside:
    """A WSGI app inside its space, until its body is closed."""

    def __init__(self, space: Space, app: WSGIApp) -> None:
        self.space = space
        self.app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with Visit(self.space):
            try:
                body = self.app(environ, start_response)
            except Exception as error:
                told_outside(error, self.space)
                raise error
        return body if type(body) is list else Body(body, self.space)


class Body:
    """A response body whose parts are made, and which is closed, inside the space."""

    def __init__(self, body: Iterable[bytes], space: Space) -> None:
        self._body = body
        self._space = space
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with Visit(self._space):
            if self._parts is None:
                self._parts = iter(self._body)
            try:
                return next(self._parts)
            except StopIteration:
                raise
            except Exception as error:
                told_outside(error, self._space)
                raise error

    def close(self) -> None:
        if (close := getattr(self._body, "close", None)) is not None:
            with Visit(self._space):
                close()


def told_outside(error: BaseException, space: Space) -> None:
    """Give an exception of a private class the process's own class, so that `pytest.raises` knows it.

    To be raised anew by its name: before Python 3.11 a bare `raise` remembers the class from before.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        chain += [each.__cause__, each.__context__]
        own = own_class(type(each), space)
        if own is not None:
            try:
                each.__class__ = own
            except TypeError:  # another layout: better the replica's class than none
                continue


def own_class(kind: type, space: Space) -> type | None:
    """The process's own twin of a class that a private copy defines."""
    if kind.__module__ not in space.first_party or space.own:
        return None
    found: Any = SWITCH.own_modules(space.first_party).get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and found is not kind else None
