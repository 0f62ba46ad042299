"""What a test changes by hand, it changes for all replicas: `monkeypatch`, `mock.patch`, `shop.LIMIT = 3`.

A changed place is a `Slot`: an owner of the test process and an attribute or a key of it. While the value
there differs from what it was at first, each replica's counterpart has the translated value; when it is back,
each replica's own value is back, too. So setting, undoing and restoring need no code of their own.

A private function, class or module is translated to the replica's copy of it. Anything else stays as it is:
a mock that counts calls counts those of all replicas.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

from lbkit.testkit.first_party import FirstParty
from lbkit.testkit.recipes import by_the_test
from lbkit.testkit.spaces import SWITCH, Space, current

__all__ = ["ABSENT", "Mirror", "Slot"]

ABSENT: Any = object()


class Slot:
    """An attribute or an item, what it was at first, and what it was in each replica."""

    def __init__(self, owner: Any, key: Any, *, item: bool, before: Any) -> None:
        self.owner = owner
        self.key = key
        self.item = item
        self.before = before
        self.twins: dict[Space, Any] = {}

    def read(self, owner: Any) -> Any:
        if not self.item:
            return own_attributes(owner).get(self.key, ABSENT)
        try:
            return owner[self.key]
        except (LookupError, TypeError):
            return ABSENT

    def write(self, owner: Any, value: Any) -> None:
        if value is not ABSENT:
            owner.__setitem__(self.key, value) if self.item else setattr(owner, self.key, value)
        elif self.read(owner) is not ABSENT:
            owner.__delitem__(self.key) if self.item else delattr(owner, self.key)


class Mirror:
    """Keeps the replicas' modules in step with what the test does to the process's own ones."""

    def __init__(self, first_party: FirstParty) -> None:
        self.first_party = first_party
        self.spaces: list[Space] = []
        self._slots: dict[tuple[int, bool, Any], Slot] = {}
        self.finders: list[Callable[[Any, Space], Any]] = []
        """Know more counterparts, such as those of apps. They return ABSENT for others."""

        self._watched: list[ModuleType] = []
        self._origins: dict[tuple[Space, str], ModuleType | None] = {}

    def add(self, space: Space) -> None:
        """Keep the copies of this replica in step, too."""
        self.spaces.append(space)
        space.on_load.append(self._loaded)

    def watch(self) -> None:
        """Notice `module.name = value` on each private module that is there by now."""
        mirror = self

        class Watched(ModuleType):
            def __setattr__(self, name: str, value: Any) -> None:
                before = self.__dict__.get(name, ABSENT)
                super().__setattr__(name, value)
                mirror.changed(self, name, before, sys._getframe(1))

            def __delattr__(self, name: str) -> None:
                before = self.__dict__.get(name, ABSENT)
                super().__delattr__(name)
                mirror.changed(self, name, before, sys._getframe(1))

        for module in SWITCH.own_modules(self.first_party).values():
            if type(module) is ModuleType:
                module.__class__ = Watched
                self._watched.append(module)

    def remove(self) -> None:
        for module in self._watched:
            module.__class__ = ModuleType
        for space in self.spaces:
            space.on_load.remove(self._loaded)

    def forget(self, space: Space) -> None:
        """Its copies are gone: new ones have their own values, and get the test's when they are imported."""
        for slot in self._slots.values():
            slot.twins.pop(space, None)

    def refresh(self) -> None:
        """Forget copies of modules that a test has thrown out of `sys.modules` and imported again."""
        own = SWITCH.own_modules(self.first_party)
        for (space, name), origin in list(self._origins.items()):
            if origin is not None and own.get(name, origin) is not origin:
                space.forget(name)
                del self._origins[space, name]

    def changed(self, module: ModuleType, name: str, before: Any, frame: Any) -> None:
        """An attribute of a module was set. Imports and the app's own code do so, too: that is not ours."""
        value = module.__dict__.get(name)
        if name.startswith("__") or isinstance(value, ModuleType) or current() is not None:
            return
        if by_the_test(self.first_party, frame):
            self.touch(module, name, before)

    def touch(self, owner: Any, key: Any, before: Any, *, item: bool = False) -> None:
        """A place has changed: bring it to every replica."""
        try:
            slot = self._slots.setdefault((id(owner), item, key), Slot(owner, key, item=item, before=before))
        except TypeError:  # a key that cannot be hashed
            return
        for space in self.spaces:
            self._sync(slot, space)
        if slot.read(owner) is slot.before and not slot.twins:
            del self._slots[id(owner), item, key]

    def translate(self, value: Any, space: Space) -> Any:
        """The replica's own counterpart of a value of the test process, or the value itself."""
        if isinstance(value, MethodType):
            owner = self.twin(value.__self__, space)
            return value if owner is ABSENT else getattr(owner, value.__func__.__name__, value)
        twin = self.twin(value, space)
        return value if twin is ABSENT else twin

    def twin(self, own: Any, space: Space) -> Any:
        """What a replica has in place of an object of the test process; ABSENT when it is no such object."""
        if isinstance(own, ModuleType):
            return space.modules.get(own.__name__, ABSENT)
        if isinstance(own, (str, bytes, int, float, bool, type(None))):
            return ABSENT
        for finder in self.finders:
            if (found := finder(own, space)) is not ABSENT:
                return found
        module, path = self._home(own)
        if module not in space.modules:
            return ABSENT
        found = space.modules[module]
        for part in path:
            found = own_attributes(found).get(part, ABSENT)
            if found is ABSENT:
                return ABSENT
        return found

    def _home(self, own: Any) -> tuple[str, list[str]]:
        """The module and the path by which an object is found."""
        name, path = _name_of(own, "__module__"), _name_of(own, "__qualname__")
        if isinstance(name, str) and isinstance(path, str):
            if name in self.first_party and "<locals>" not in path:
                return name, path.split(".")
            return "", []
        for name, module in SWITCH.own_modules(self.first_party).items():
            for key, value in list(vars(module).items()):
                if value is own:
                    return name, [key]
                if isinstance(value, type) and value.__module__ == name:
                    for inner, deep in list(vars(value).items()):
                        if deep is own:
                            return name, [key, inner]
        return "", []

    def _sync(self, slot: Slot, space: Space) -> None:
        twin = self.twin(slot.owner, space)
        if twin is ABSENT or twin is slot.owner:
            return
        value = slot.read(slot.owner)
        if value is slot.before:
            if space in slot.twins:
                slot.write(twin, slot.twins.pop(space))
            return
        if space not in slot.twins:
            slot.twins[space] = slot.read(twin)
        other = value if value is ABSENT else self.translate(value, space)
        # A value that is found at the very place where it was put is the test's own.
        slot.write(twin, value if other is slot.twins[space] else other)

    def _loaded(self, space: Space, modules: list[ModuleType]) -> None:
        """Copies were imported while the test's changes are in force."""
        own = SWITCH.own_modules(self.first_party)
        for module in modules:
            self._origins[space, module.__name__] = own.get(module.__name__)
        for slot in list(self._slots.values()):
            if space not in slot.twins:
                self._sync(slot, space)


def _name_of(own: Any, which: str) -> Any:
    try:
        return getattr(own, which, None)
    except Exception:  # a proxy that is bound to nothing
        return None


def own_attributes(owner: Any) -> Any:
    """The object's own attributes, as they are: no property runs, no proxy wakes."""
    try:
        return object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return {}
