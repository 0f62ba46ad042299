"""Putting ourselves under other people's functions for the time of a run, and taking ourselves out again.

This is the one place where lbkit patches what it did not make. Nothing is imported for it: a module that is
not there yet is patched when somebody imports it.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["Patches"]

MISSING: Any = object()


class Patches:
    """Replaced attributes, and what they were."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._finder: OnImport | None = None

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Set an attribute to `make(what it was)`. One that is not there is left alone."""
        before = vars(owner).get(name, MISSING)
        was = getattr(owner, name, MISSING) if before is MISSING else before
        if was is MISSING:
            return
        after = make(was)
        setattr(owner, name, after)

        def undo() -> None:
            if vars(owner).get(name) is not after:
                return  # somebody has patched it after us, and still holds ours
            if before is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(undo)

    def add(self, undo: Callable[[], None]) -> None:
        """Something else to do at the end."""
        self._undo.append(undo)

    def when_imported(self, module: str, do: Callable[[ModuleType], None]) -> None:
        """Call `do` with a module: now, or as soon as it is imported."""
        if (found := sys.modules.get(module)) is not None and not _is_half_imported(found):
            do(found)
            return
        if self._finder is None:
            self._finder = OnImport()
            sys.meta_path.insert(0, self._finder)
        self._finder.wanted.setdefault(module, []).append(do)

    def remove(self) -> None:
        """Put everything back, the last one first."""
        while self._undo:
            self._undo.pop()()
        if self._finder is not None and self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._finder = None


class OnImport(MetaPathFinder):
    """Finds nothing itself: it lets the others find a module, and is called when it has been run."""

    def __init__(self) -> None:
        self.wanted: dict[str, list[Callable[[ModuleType], None]]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.wanted:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            if (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = Followed(spec.loader, self.wanted.pop(name))
                return spec
        return None


class Followed(Loader):
    """Another loader, and what to do with the module after it was run."""

    def __init__(self, loader: Loader, then: list[Callable[[ModuleType], None]]) -> None:
        self._loader = loader
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for each in self._then:
            each(module)


def _is_half_imported(module: ModuleType) -> bool:
    spec: importlib.machinery.ModuleSpec | None = getattr(module, "__spec__", None)
    return bool(getattr(spec, "_initializing", False))
