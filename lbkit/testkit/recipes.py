"""How to make an app of the test process once more, in the private modules of a replica.

An app is made where its framework's `__init__` runs. The frames above tell by what:

==========================================  =======================================================
made by                                     its recipe
==========================================  =======================================================
a function of the project                   call the replica's own one with the same arguments
a class of the project                      the same, for the class
importing a module of the project           the attribute of the replica's copy with the same name
a test, a fixture, a closure                none: the reason says so
==========================================  =======================================================

The outermost function counts, since it is what a server would call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any
from weakref import WeakKeyDictionary

from lbkit.errors import LbkitError, StartupError
from lbkit.testkit.first_party import FirstParty
from lbkit.testkit.spaces import SWITCH, Space, Visit, current, quiet

__all__ = ["NoRecipe", "Recipe", "Recipes", "by_the_test", "is_outside"]

ENDLESS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
MISSING: Any = object()

Translate = Callable[[Any], Any]


class NoRecipe(LbkitError):
    """This app cannot be made once more. The message says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """`module:path`, and whether it is called."""

    module: str
    path: str
    call: bool = False
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = "..." if self.args or self.kwargs else ""
        return f"{self.module}:{self.path}" + (f"({arguments})" if self.call else "")

    def target(self) -> str:
        """What another interpreter imports it by: `shop:create_app`. Raises NoRecipe."""
        if (self.args or self.kwargs) and not self._is_by_default():
            raise NoRecipe(f"{self} was called with arguments, which a new interpreter does not have")
        return f"{self.module}:{self.path}"

    def _is_by_default(self) -> bool:
        """Whether calling it without arguments is the same."""
        called = inspect.signature(_resolves(vars(sys.modules[self.module]), self.path))
        given = called.bind(*self.args, **self.kwargs).arguments
        return all(value is called.parameters[name].default for name, value in given.items())

    def make(self, space: Space, translate: Translate) -> Any:
        """The replica's own app. Raises StartupError."""
        found: Any = space.module(self.module)
        try:
            for part in self.path.split("."):
                found = getattr(found, part)
            if not self.call:
                return found
            args = [translate(each) for each in self.args]
            kwargs = {name: translate(each) for name, each in self.kwargs.items()}
            with Visit(space), quiet():
                return found(*args, **kwargs)
        except Exception as error:
            raise StartupError(space.name, f"{self} raised {type(error).__name__}: {error}") from error


class Recipes:
    """Watches apps being made."""

    def __init__(self, first_party: FirstParty) -> None:
        self.first_party = first_party
        self._known: WeakKeyDictionary[Any, Recipe | None] = WeakKeyDictionary()
        """None: made while a module was imported, so that it is an attribute of one."""

        self._reasons: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def watch(self, app: Any, frame: FrameType) -> None:
        """Called by a framework's `__init__`, with the frame that called it."""
        if current() is not None or app in self._known or app in self._reasons:
            return  # one of a replica, or a class that calls its parent's __init__
        frames = list(private_frames(frame, self.first_party))
        if not frames:
            self._reasons[app] = "it was made by the test itself, not by a function or module of the project"
        elif frames[-1].f_code.co_name == "<module>":
            self._known[app] = None
        else:
            self._remember(app, frames)

    def find(self, app: Any) -> Recipe:
        """Raises NoRecipe with the reason."""
        recipe = self._of(self._known, app)
        if recipe is not None and recipe is not MISSING:
            return recipe  # type: ignore[no-any-return]
        attribute = self._attribute(app)
        if attribute is not None:
            return attribute
        reason = self._of(self._reasons, app)
        if reason is MISSING:
            reason = "no module of the project has it as an attribute"
        raise NoRecipe(f"{type(app).__name__} cannot be made once more: {reason}")

    def _remember(self, app: Any, frames: list[FrameType]) -> None:
        for frame in reversed(frames):
            if (recipe := _callable(app, frame)) is not None:
                self._known[app] = recipe
                return
        outermost = frames[-1]
        self._reasons[app] = (
            f"{outermost.f_globals['__name__']}.{outermost.f_code.co_name} made it, which is no function "
            "or class that has a name to call it by"
        )

    def _attribute(self, app: Any) -> Recipe | None:
        modules = SWITCH.own_modules(self.first_party)
        for name, module in modules.items():
            for key, value in list(vars(module).items()):
                if value is app:
                    return Recipe(name, key)
        for name, module in modules.items():
            for key, value in list(vars(module).items()):
                if type(value).__module__ in self.first_party:
                    for inner, deep in _attributes(value):
                        if deep is app:
                            return Recipe(name, f"{key}.{inner}")
        return None

    @staticmethod
    def _of(known: WeakKeyDictionary[Any, Any], app: Any) -> Any:
        try:
            return known.get(app, MISSING)
        except TypeError:  # not hashable, or no weak references to it
            return MISSING


def private_frames(frame: FrameType | None, first_party: FirstParty) -> Iterator[FrameType]:
    """The project's frames that a test has called, the innermost first."""
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name in first_party:
            yield frame
        elif is_outside(name):
            return
        frame = frame.f_back


def by_the_test(first_party: FirstParty, frame: FrameType | None) -> bool:
    """Whether a test does this, rather than code of the project that a test or an import has called."""
    return next(private_frames(frame, first_party), None) is None


def is_outside(name: str) -> bool:
    """A frame of pytest: whatever is above has nothing to do with the test."""
    return name.startswith(("_pytest.", "pluggy.")) and name != "_pytest.monkeypatch"


def _callable(app: Any, frame: FrameType) -> Recipe | None:
    code, module = frame.f_code, frame.f_globals["__name__"]
    if code.co_flags & ENDLESS:
        return None
    args, kwargs = _arguments(frame)
    if code.co_name == "__init__" and args and args[0] is app:
        kind = type(app)
        if kind.__module__ == module and _resolves(frame.f_globals, kind.__qualname__) is kind:
            return Recipe(module, kind.__qualname__, True, tuple(args[1:]), kwargs)
        return None
    path = getattr(code, "co_qualname", code.co_name)
    found = _resolves(frame.f_globals, path)
    if _code(found) is not code:
        return None
    if inspect.ismethod(found):
        args = args[1:]  # the class itself
    return Recipe(module, path, True, tuple(args), kwargs)


def _arguments(frame: FrameType) -> tuple[list[Any], dict[str, Any]]:
    code, values = frame.f_code, frame.f_locals
    count, only = code.co_argcount, code.co_kwonlyargcount
    names = code.co_varnames
    args = [values[name] for name in names[:count] if name in values]
    kwargs = {name: values[name] for name in names[count : count + only] if name in values}
    rest = count + only
    if code.co_flags & inspect.CO_VARARGS:
        args += values.get(names[rest], ())
        rest += 1
    if code.co_flags & inspect.CO_VARKEYWORDS:
        kwargs |= values.get(names[rest], {})
    return args, kwargs


def _resolves(namespace: dict[str, Any], path: str) -> Any:
    first, *rest = path.split(".")
    found = namespace.get(first, MISSING)
    for part in rest:
        found = getattr(found, part, MISSING)
    return found


def _code(found: Any) -> CodeType | None:
    """The code of a function, behind decorators that keep `__wrapped__`."""
    found = getattr(found, "__func__", found)
    try:
        found = inspect.unwrap(found)
    except ValueError:
        return None
    code = getattr(found, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _attributes(value: Any) -> list[tuple[str, Any]]:
    try:
        return list(object.__getattribute__(value, "__dict__").items())
    except AttributeError:
        return []
