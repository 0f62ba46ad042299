"""Private copies of the first-party modules: what a second process would have, without the process.

`sys.modules` is one for the whole interpreter, so it shows the modules of one replica at a time. Who runs
for a replica enters its `Space`: for a WSGI call the whole of it, for a coroutine each of its steps. An
`import` statement is answered by whose code it stands in, so that threads and stray tasks are right too.

==================================  ======================================================
runs                                sees in `sys.modules`
==================================  ======================================================
a replica                           its own copies
the test, no replica is running     the process's own modules
the test, a coroutine is waiting    the replica's (pickle in a worker thread needs them);
                                    its `import` statements get the process's own
==================================  ======================================================

`SWITCH` is the one global: `sys.modules` is one, too. It hooks `builtins.__import__` and
`importlib.import_module` from the first space to `SWITCH.remove()`.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import types
import warnings
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from lbkit.errors import StartupError
from lbkit.testkit.first_party import FirstParty

__all__ = ["SWITCH", "Space", "Visit", "current", "in_steps", "quiet"]

T = TypeVar("T")

CURRENT: ContextVar[Space | None] = ContextVar("lbkit_replica", default=None)


def current() -> Space | None:
    """The space of the replica that this code runs for; None on the test's side."""
    return CURRENT.get()


class Space:
    """The private modules of one replica. With `own` it sees the process's own: a replica without copies."""

    def __init__(self, name: str, first_party: FirstParty, *, own: bool = False) -> None:
        self.name = name
        self.first_party = first_party
        self.own = own
        self.modules: dict[str, ModuleType] = {}
        self.on_load: list[Callable[[Space, list[ModuleType]], object]] = []
        """Called with the modules that were new to this space, after they were imported."""

        SWITCH.install()

    def __repr__(self) -> str:
        return f"<Space {self.name}>"

    def module(self, name: str) -> ModuleType:
        """The replica's copy of a module, imported if it was not. Raises StartupError when that fails."""
        found = sys.modules.get(name) if self.own and SWITCH.shown is None else self.modules.get(name)
        return found if found is not None else self._import(name)

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function inside this replica."""
        with Visit(self):
            return function(*args, **kwargs)

    def forget(self, name: str) -> None:
        """Drop a module, so that the next import makes it anew."""
        self.modules.pop(name, None)

    def clear(self) -> list[ModuleType]:
        """Drop them all: this replica is dead, and the next import begins its next life."""
        with SWITCH.showing(None):
            SWITCH.forget(self)
            dropped = list(self.modules.values())
            self.modules.clear()
            return dropped

    def _import(self, name: str) -> ModuleType:
        with Visit(self), quiet():
            try:
                return importlib.import_module(name)
            except Exception as error:
                reason = f"importing {name} again raised {type(error).__name__}: {error}"
                raise StartupError(self.name, reason) from error


@contextmanager
def quiet() -> Generator[None, None, None]:
    """No warnings: the process itself has had them, when it made the same for the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Switch:
    """Shows the modules of one space in `sys.modules`, and routes `import` to the right one."""

    def __init__(self) -> None:
        self.shown: Space | None = None
        """None: the process's own modules."""

        self._lock = RLock()
        self._running = 0
        self._own: dict[str, ModuleType] = {}
        self._length = 0
        self._by_globals: dict[int, Space] = {}
        self._undo: list[Callable[[], None]] = []

    def enter(self, space: Space) -> None:
        with self._lock:
            self._running += 1
            self.show(space)

    def leave(self, space: Space | None, back: Space | None) -> None:
        """A visit is over. With the last one the process's own modules come back."""
        with self._lock:
            if space is not None:
                self.show(space)  # take note of what it imported
            self._running -= 1
            if back is not None or not self._running:
                self.show(back)

    def show(self, space: Space | None) -> None:
        wanted = None if space is None or space.own else space
        with self._lock:
            if wanted is not self.shown:
                if self.shown is not None:
                    self._put_away(self.shown)
                if wanted is not None:
                    self._put_in_place(wanted)
            elif wanted is not None and len(sys.modules) != self._length:
                self._absorb(wanted)

    @contextmanager
    def showing(self, space: Space | None) -> Generator[None, None, None]:
        with self._lock:
            before = self.shown
            self.show(space)
            try:
                yield
            finally:
                self.show(before)

    def own_modules(self, first_party: FirstParty) -> dict[str, ModuleType]:
        """The process's own private modules, whoever is shown."""
        with self.showing(None):
            return {name: sys.modules[name] for name in first_party.loaded()}

    def forget(self, space: Space) -> None:
        """The namespaces of a space are no more: others may get their ids."""
        for module in space.modules.values():
            self._by_globals.pop(id(module.__dict__), None)

    def _put_in_place(self, space: Space) -> None:
        modules = sys.modules
        self._own = {name: modules[name] for name in space.first_party.loaded()}
        for name in self._own.keys() - space.modules.keys():
            del modules[name]
        modules.update(space.modules)
        self._length = len(modules)
        self.shown = space

    def _put_away(self, space: Space) -> None:
        modules = sys.modules
        if len(modules) != self._length:
            self._absorb(space)
        self.shown = None
        for name in space.modules.keys() - self._own.keys():
            modules.pop(name, None)
        modules.update(self._own)

    def _absorb(self, space: Space) -> None:
        """Take note of modules that were imported while the space was shown."""
        with self._lock:
            new = {
                name: module
                for name, module in sys.modules.copy().items()
                if space.modules.get(name) is not module and space.first_party.copies(name, module)
            }
            for name, module in new.items():
                self._by_globals[id(module.__dict__)] = space
                space.modules[name] = module
            for name in [name for name in space.modules if name not in sys.modules]:
                del space.modules[name]
            self._length = len(sys.modules)
        if new:
            for listener in space.on_load:
                listener(space, list(new.values()))

    @property
    def installed(self) -> bool:
        return bool(self._undo)

    def install(self) -> None:
        if self._undo:
            return
        statement, function = builtins.__import__, importlib.import_module

        def import_statement(
            name: str,
            globals: Any = None,  # noqa: A002 - the builtin's own names, which callers use
            locals: Any = None,  # noqa: A002
            fromlist: Any = (),
            level: int = 0,
        ) -> ModuleType:
            space = CURRENT.get() if globals is None else self._whose(globals)
            if (None if space is None or space.own else space) is self.shown:
                return statement(name, globals, locals, fromlist, level)
            if not self._concerned(space, name, globals, level):
                return statement(name, globals, locals, fromlist, level)
            with self.showing(space):
                return statement(name, globals, locals, fromlist, level)

        def import_module(name: str, package: str | None = None) -> ModuleType:
            space = CURRENT.get()
            if (None if space is None or space.own else space) is self.shown:
                return function(name, package)
            with self.showing(space):
                return function(name, package)

        builtins.__import__, importlib.import_module = import_statement, import_module

        def undo() -> None:
            # Somebody who has hooked in after us keeps a hook that only passes on.
            if builtins.__import__ is import_statement:
                builtins.__import__ = statement
            if importlib.import_module is import_module:
                importlib.import_module = function

        self._undo.append(undo)

    def remove(self) -> None:
        """Show the process's own modules and take the hooks out."""
        self.show(None)
        while self._undo:
            self._undo.pop()()

    def _whose(self, namespace: dict[str, Any]) -> Space | None:
        space = self._by_globals.get(id(namespace))
        return CURRENT.get() if space is None else space

    def _concerned(self, space: Space | None, name: str, namespace: Any, level: int) -> bool:
        first_party = (space or self.shown).first_party  # type: ignore[union-attr]
        return (str(namespace.get("__package__") or "") if level else name) in first_party


SWITCH = Switch()


class Visit:
    """A with block that runs inside a space. May be nested, and may be used once."""

    __slots__ = ("_back", "_space", "_token")

    def __init__(self, space: Space) -> None:
        self._space = space

    def __enter__(self) -> None:
        self._back = CURRENT.get()
        self._token = CURRENT.set(self._space)
        SWITCH.enter(self._space)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        CURRENT.reset(self._token)
        SWITCH.leave(self._space, self._back)


@types.coroutine
def in_steps(space: Space, awaitable: Awaitable[T], *, lasting: bool = False) -> Generator[Any, Any, T]:
    """Await something, each of its steps inside the space; between them the loop and the test are outside.

    What is `lasting`, a lifespan or a websocket, does not keep its modules in `sys.modules` while it waits.
    """
    steps = awaitable.__await__()
    value: Any = None
    error: BaseException | None = None
    if not lasting:
        SWITCH.enter(space)
    try:
        while True:
            try:
                with Visit(space):
                    waits_for = steps.send(value) if error is None else steps.throw(error)
                error = None
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                value = yield waits_for
            except GeneratorExit:
                raise
            except BaseException as thrown:
                error = thrown
    finally:
        try:
            if (close := getattr(steps, "close", None)) is not None:
                close()
        finally:
            if not lasting:
                SWITCH.leave(None, CURRENT.get())
