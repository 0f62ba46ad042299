"""Which modules belong to the app, so that each replica needs a copy of its own.

========================================  ============================================================
a module                                  is
========================================  ============================================================
of a package that was named               private, wherever it is installed
of the project: not installed, no test    private, when nothing was named
on the list AUTO_PRIVATE                  private: it registers what the app's modules define
a test, a conftest, `tests.*`             shared: the test process owns it
one compiled extension                    shared: most cannot be loaded twice
lbkit's, pytest's, any other              shared
========================================  ============================================================
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from types import ModuleType

from lbkit.errors import ConfigError

__all__ = ["AUTO_PRIVATE", "FirstParty", "projects_own"]

AUTO_PRIVATE = frozenset(
    {
        # They keep a registry of what is defined with them, and refuse or confuse the second definition.
        "sqlmodel",
        "prometheus_client",
        "marshmallow",
        "mongoengine",
        # These hold on to the ones above.
        "flask_marshmallow",
        "marshmallow_sqlalchemy",
        "prometheus_fastapi_instrumentator",
        "prometheus_flask_exporter",
        "starlette_exporter",
    }
)
COMPILED = tuple(EXTENSION_SUFFIXES)
NEVER = frozenset({"__main__", "builtins", "conftest", "_pytest", "pytest", "lbkit"})
TEST_NAMES = frozenset({"conftest", "test", "tests", "testing"})


class FirstParty:
    """Says of a module's name whether each replica has a copy of its own."""

    def __init__(self, packages: Iterable[str] = ()) -> None:
        self.named = frozenset(packages)
        self.tests: set[str] = set()
        """Names of test modules that are not called so."""

        self._tops: dict[str, bool] = {}
        self._seen = -1
        self._loaded: list[str] = []
        self._names: frozenset[str] = frozenset()
        for name in sorted(self.named):
            self._check(name)

    def __contains__(self, name: str) -> bool:
        top, _, rest = name.partition(".")
        known = self._tops.get(top)
        if known is None:
            known = self._decide(top)
        return known and name not in self.tests and not (rest and self._is_test(rest))

    def exclude(self, file: str) -> None:
        """This file, told from the root, is a test module: under whichever name it is imported."""
        parts = file.removesuffix(".py").split(os.sep)
        self.tests |= {".".join(parts[start:]) for start in range(len(parts))}

    def loaded(self) -> list[str]:
        """Names of the private modules that are in `sys.modules` now."""
        # Looked through again only when something was imported: a scan costs more than a whole dispatch.
        if len(sys.modules) != self._seen or not self._names <= sys.modules.keys():
            self._loaded = [name for name, module in sys.modules.copy().items() if self.copies(name, module)]
            self._names = frozenset(self._loaded)
            self._seen = len(sys.modules)
        return self._loaded

    def copies(self, name: str, module: object) -> bool:
        """Whether this module is one that each replica has a copy of. A compiled one is shared."""
        if name not in self or not isinstance(module, ModuleType):
            return False
        return not (getattr(module, "__file__", None) or "").endswith(COMPILED)

    def packages(self) -> list[str]:
        """The top-level packages that turned out to be private so far, the app's own ones."""
        return sorted({name.partition(".")[0] for name in self.loaded()} - AUTO_PRIVATE)

    def _decide(self, top: str) -> bool:
        if top in AUTO_PRIVATE:
            private = True
        elif top in NEVER or top.startswith(("lbkit_", "__")):
            private = False
        elif self.named:
            private = top in self.named
        else:
            places = _places(top)
            if places is None:
                return False  # not importable yet: ask again later
            private = bool(places) and not _is_test_name(top) and not any(map(_is_installed, places))
        self._tops[top] = private
        return private

    @staticmethod
    def _is_test(rest: str) -> bool:
        return any(map(_is_test_name, rest.split(".")))

    @staticmethod
    def _check(name: str) -> None:
        if not name.isidentifier():
            raise ConfigError(f"need the name of a top-level package such as shop, got {name!r}")
        if name in NEVER or name in sys.stdlib_module_names:
            raise ConfigError(f"{name} cannot be private to a replica: all of them run on it")
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ConfigError(f"there is no package {name} to copy for each replica: {_searched()}")


def projects_own(modules: Mapping[str, ModuleType]) -> dict[str, ModuleType]:
    """Without the libraries that are private only because they keep a registry."""
    return {name: each for name, each in modules.items() if name.partition(".")[0] not in AUTO_PRIVATE}


def _places(top: str) -> list[str] | None:
    """The files or folders that a top-level module comes from; None when there is no such module."""
    module = sys.modules.get(top)
    if module is not None and getattr(module, "__spec__", None) is None and not hasattr(module, "__file__"):
        return []
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        file = getattr(module, "__file__", None)
        return [file] if file else None
    return _of_spec(spec)


def _of_spec(spec: ModuleSpec) -> list[str]:
    folders = list(spec.submodule_search_locations or ())
    if folders:
        return folders
    return [spec.origin] if spec.has_location and spec.origin else []


def _is_installed(path: str) -> bool:
    path = os.path.abspath(path)
    parts = path.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts or path.endswith(COMPILED):
        return True
    return path.startswith(tuple(os.path.join(each, "") for each in INSTALLED)) or not os.path.exists(path)


def _is_test_name(part: str) -> bool:
    return part in TEST_NAMES or part.startswith("test_") or part.endswith("_test")


def _searched() -> str:
    return f"looked for it in {', '.join(path or '.' for path in sys.path[:4])}, ..."


INSTALLED = {
    os.path.abspath(path)
    for path in [
        *(sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    ]
}
