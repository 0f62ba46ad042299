"""Places where a test changes the app by hand, beside attributes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from lbkit.testkit.mirror import ABSENT, Mirror, own_attributes
from lbkit.testkit.patches import Patches
from lbkit.testkit.spaces import Space, Visit, current

__all__ = ["follow_mock", "follow_monkeypatch", "follow_reload"]


def follow_reload(patches: Patches, mirror: Mirror) -> None:
    """`importlib.reload(shop.settings)` reloads the replicas' copies, too."""

    def make(reload: Any) -> Any:
        def reloaded(module: ModuleType) -> ModuleType:
            result: ModuleType = reload(module)
            for space in mirror.spaces:
                copy = space.modules.get(module.__name__)
                if copy is not None and current() is None:
                    with Visit(space):
                        reload(copy)
            return result

        return reloaded

    patches.when_imported("importlib", lambda module: patches.replace(module, "reload", make))


def follow_monkeypatch(patches: Patches, mirror: Mirror) -> None:
    """pytest's `monkeypatch`: what it has changed is read from the list of what it will undo."""

    def follow(module: ModuleType) -> None:
        kind = module.MonkeyPatch

        def changing(original: Any) -> Any:
            def method(self: Any, *args: Any, **kwargs: Any) -> Any:
                attributes, items = len(self._setattr), len(self._setitem)
                result = original(self, *args, **kwargs)
                for owner, name, before in self._setattr[attributes:]:
                    mirror.touch(owner, name, before if before is not NOT_SET else ABSENT)
                for owner, key, before in self._setitem[items:]:
                    mirror.touch(owner, key, before if before is not NOT_SET else ABSENT, item=True)
                return result

            return method

        def undoing(original: Any) -> Any:
            def undo(self: Any) -> None:
                attributes, items = list(self._setattr), list(self._setitem)
                original(self)
                for owner, name, before in attributes:
                    mirror.touch(owner, name, before if before is not NOT_SET else ABSENT)
                for owner, key, before in items:
                    mirror.touch(owner, key, before if before is not NOT_SET else ABSENT, item=True)

            return undo

        NOT_SET = getattr(module, "NOTSET", getattr(module, "notset", ABSENT))  # noqa: N806
        for name in ("setattr", "delattr", "setitem", "delitem"):
            patches.replace(kind, name, changing)
        patches.replace(kind, "undo", undoing)

    patches.when_imported("_pytest.monkeypatch", follow)


def follow_mock(patches: Patches, mirror: Mirror) -> None:
    """`unittest.mock.patch`, `patch.object` and `patch.dict`, and what is built on them."""

    def follow(module: ModuleType) -> None:
        def entering(original: Any) -> Any:
            def enter(self: Any) -> Any:
                target = self.getter()
                before = own_attributes(target).get(self.attribute, ABSENT)
                result = original(self)
                mirror.touch(self.target, self.attribute, before)
                return result

            return enter

        def leaving(original: Any) -> Any:
            def leave(self: Any, *exc_info: Any) -> Any:
                target = self.target
                before = own_attributes(target).get(self.attribute, ABSENT)
                result = original(self, *exc_info)
                mirror.touch(target, self.attribute, before)
                return result

            return leave

        patches.replace(module._patch, "__enter__", entering)
        patches.replace(module._patch, "__exit__", leaving)

        patches.replace(module._patch_dict, "_patch_dict", filling)
        patches.replace(module._patch_dict, "_unpatch_dict", emptying)

    def filling(original: Any) -> Any:
        def fill(self: Any) -> None:
            original(self)
            self._lbkit = [*_twins(self.in_dict, mirror)]
            for space, twin, _ in self._lbkit:
                if self.clear:
                    twin.clear()
                twin.update({key: mirror.translate(each, space) for key, each in self.values.items()})

        return fill

    def emptying(original: Any) -> Any:
        def empty(self: Any) -> None:
            original(self)
            for _, twin, before in self.__dict__.pop("_lbkit", ()):
                twin.clear()
                twin.update(before)

        return empty

    patches.when_imported("unittest.mock", follow)


def _twins(own: Any, mirror: Mirror) -> Iterator[tuple[Space, Any, Any]]:
    """The replicas' counterparts of a dict, and what is in them."""
    for space in mirror.spaces:
        twin = mirror.twin(own, space)
        if twin is not ABSENT and twin is not own:
            yield space, twin, twin.copy()
