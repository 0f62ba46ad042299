"""TARGET, the argument of `lbkit serve`: where an app is, or a function that makes one.

=======================  ====================================================================
TARGET                   the app is
=======================  ====================================================================
`package.module:name`    that attribute; `name` may have dots
`package.module`         its `app`, else its `application`, else its `create_app`
`folder/file.py:name`    that attribute of the file; imports of its package work as they do elsewhere
`folder/file.py`         the file's `app`, `application` or `create_app`
=======================  ====================================================================

A plain function or a class that needs no arguments is a factory: each replica gets an app of its own from it.
An app always needs arguments, so the two cannot be confused. What goes wrong is a TargetError of one line.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, cast

from lbkit.errors import ConfigError, TargetError
from lbkit.interface import interface_of
from lbkit.types import ASGIApp, WSGIApp

__all__ = ["App", "Source", "Target", "find", "one_line", "parse", "where"]

App: TypeAlias = "ASGIApp | WSGIApp"

USUAL_NAMES = ("app", "application", "create_app")


@dataclass(frozen=True)
class Target:
    """TARGET, taken apart; nothing is imported yet."""

    module: str
    root: Path
    """The folder that goes to the front of `sys.path`."""

    name: str | None = None
    file: Path | None = None

    def __str__(self) -> str:
        return f"{self.module}:{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Source:
    """What TARGET turned out to be."""

    name: str
    """In full, such as `shop.web:create_app`."""

    factory: bool
    make: Callable[[], App]
    """The app for the next replica: a new one from a factory, else the same one again."""


def parse(text: str, *, app_dir: Path | None = None) -> Target:
    """Take TARGET apart. Modules are looked for in `app_dir` (the working directory), files are not."""
    place, colon, name = text.rpartition(":") if ":" in text else (text, "", "")
    if colon and not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"need a name such as app after the colon, got {name!r} in {text!r}")
    if place.endswith(".py") or "/" in place or os.sep in place:
        return _in_file(Path(place), name or None)
    if not all(part.isidentifier() for part in place.split(".")):
        raise TargetError(f"need package.module:app or a path to a .py file, got {text!r}")
    return Target(place, (app_dir or Path()).resolve(), name or None)


def find(target: Target, *, factory: bool = False) -> Source:
    """Import the module and find the app in it. `factory` says that it is a function that makes one."""
    name, found = _attribute(_module(target), target)
    if factory or _is_factory(found):
        return Source(name, True, _checked(name, found))
    try:
        interface_of(found)
    except ConfigError as error:
        raise TargetError(f"{name} is not an app: {one_line(error)}") from error
    return Source(name, False, lambda: cast(App, found))


def where(error: BaseException) -> str:
    """`file:line` where it was raised, or the last place before it that is not in an installed library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_installed(frame.filename)]
    frame = (own or frames)[-1]
    return f"{_short(frame.filename)}:{frame.lineno}"


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def _in_file(path: Path, name: str | None) -> Target:
    file = path.resolve()
    if file.is_dir() and (file / "__init__.py").is_file():
        file /= "__init__.py"
    if file.is_dir():
        raise TargetError(f"{path} is a folder without __init__.py: need a .py file")
    if file.suffix != ".py":
        raise TargetError(f"need a path to a .py file, got {path}")
    if not file.is_file():
        raise TargetError(f"there is no file {path}")
    root, parts = file.parent, [] if file.stem == "__init__" else [file.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    if "." in file.stem:
        raise TargetError(f"need a file name that Python can import, without another dot, got {path}")
    return Target(".".join(parts), root, name, file)


def _module(target: Target) -> ModuleType:
    root = str(target.root)
    if root in sys.path:
        sys.path.remove(root)
    sys.path.insert(0, root)
    module = _imported(target)
    taken = getattr(module, "__file__", None)
    if target.file and (taken is None or Path(taken).resolve() != target.file):
        raise TargetError(
            f"need a file name that is not taken: {target.module} is {_short(taken or 'built into Python')}"
        )
    return module


def _imported(target: Target) -> ModuleType:
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{target.module}.".startswith(f"{missing}."):
            raise TargetError(_no_module(missing, target)) from error
        raise TargetError(
            f"{target.module} needs the module {missing}, which is not installed ({where(error)})"
        ) from error
    except SyntaxError as error:
        place = f"{_short(error.filename or target.module)}:{error.lineno}"
        raise TargetError(f"{type(error).__name__} in {place}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"importing {target.module} raised {_told(error)}") from error


def _no_module(missing: str, target: Target) -> str:
    parent, _, child = missing.rpartition(".")
    folders = getattr(sys.modules.get(parent), "__path__", []) if parent else [str(target.root)]
    place = f"the package {parent}" if parent else f"{target.root} or among the installed packages"
    names = (module.name for module in pkgutil.iter_modules(folders))
    return f"there is no module {child} in {place}{_perhaps(child, names)}"


def _attribute(module: ModuleType, target: Target) -> tuple[str, object]:
    """The attribute and its full name."""
    if target.name is None:
        return _usual(module)
    found: object = module
    path = module.__name__
    for part in target.name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            hint = _perhaps(part, (name for name in dir(found) if not name.startswith("_")))
            raise TargetError(f"{path} has no attribute {part}{hint}") from error
        path = f"{path}.{part}"
    return f"{module.__name__}:{target.name}", found


def _usual(module: ModuleType) -> tuple[str, object]:
    for name in USUAL_NAMES:
        if hasattr(module, name):
            return f"{module.__name__}:{name}", getattr(module, name)
    apps = [name for name, value in vars(module).items() if _is_app_object(value)]
    hint = f"; perhaps you mean {module.__name__}:{apps[0]}" if apps else ""
    raise TargetError(f"{module.__name__} has no app, application or create_app{hint}")


def _checked(name: str, factory: object) -> Callable[[], App]:
    """The factory, as one whose result is known to be an app."""
    if not callable(factory):
        raise TargetError(f"{name} is not callable: a factory is a function that returns an app")
    if not _takes_nothing(factory):
        raise TargetError(
            f"{name}{inspect.signature(factory)} is no factory: need one without required parameters"
        )

    def make() -> App:
        try:
            app = factory()
        except SystemExit as error:  # it would end us without a word
            raise RuntimeError(f"SystemExit: {error}") from error
        try:
            interface_of(app)
        except ConfigError as error:
            raise TargetError(f"{name}() returned no app: {one_line(error)}") from error
        return cast(App, app)

    return make


def _is_factory(found: object) -> bool:
    return callable(found) and not inspect.iscoroutinefunction(found) and _takes_nothing(found)


def _takes_nothing(found: Callable[..., object]) -> bool:
    try:
        inspect.signature(found).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature: calling it will tell
        return True
    return True


def _is_app_object(value: object) -> bool:
    if inspect.isroutine(value) or inspect.isclass(value):
        return False  # any imported function of two parameters would pass for a WSGI app
    try:
        interface_of(value)
    except ConfigError:
        return False
    return True


def _told(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}") + f" ({where(error)})"


def _perhaps(wrong: str, names: Iterable[str]) -> str:
    close = get_close_matches(wrong, names, n=3)
    return f"; perhaps you mean {' or '.join(close)}" if close else ""


def _is_installed(filename: str) -> bool:
    places = {key: sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = str(Path(__file__).parent.parent)
    return filename.startswith(("<", ours, *(place for place in places.values() if place)))


def _short(filename: str) -> str:
    """Relative to the working directory, when it is inside."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
