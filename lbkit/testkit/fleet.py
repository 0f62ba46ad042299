"""An app of the test process and its replicas, however they are isolated.

The first replica is the app that the test holds; the others are made by its recipe, each when it is first
needed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from lbkit.errors import StartupError
from lbkit.testkit.bringing import PARTS, Brought, bring
from lbkit.testkit.clone import remote
from lbkit.testkit.mirror import ABSENT
from lbkit.testkit.recipes import Recipe
from lbkit.testkit.spaces import Space

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit

__all__ = ["AnyFleet", "Clones", "Fleet", "Processes"]

AnyFleet: TypeAlias = "Fleet | Clones | Processes"


class Clones:
    """One app whose other replicas are forked: nothing has to be known about how it was made."""

    def __init__(self, kit: Kit, app: Any, *, forget: Callable[[Any], object]) -> None:
        self.kit = kit
        self.spaces = kit.forked
        self._own = weakref.ref(app, forget)

    def app(self, index: int) -> Any:
        own = self._own()
        return own if index == 0 else remote(self.kit.nursery, self.spaces[index].name, own)

    def kill(self, index: int) -> None:
        """SIGKILL; the first one is the test process, which lives on."""
        if index:
            self.kit.nursery.kill(self.spaces[index].name)

    def twin(self, own: Any, space: Space) -> Any:  # noqa: ARG002
        return ABSENT


class Processes:
    """One app whose replicas are interpreters that import it. A test of one replica asks the app itself."""

    def __init__(self, kit: Kit, app: Any, target: str, *, forget: Callable[[Any], object]) -> None:
        self.kit = kit
        self.target = target
        self._own = weakref.ref(app, forget)
        self.kit.interpreters.start(target)

    @property
    def spaces(self) -> list[Space]:
        return self.kit.forked if self.kit.turn.single else self.kit.apart

    def app(self, index: int) -> Any:
        own = self._own()
        return own if self.kit.turn.single else self.kit.interpreters.app(self.target, index, own)

    def kill(self, index: int) -> None:
        """SIGKILL; it is started again when it is asked again."""
        if not self.kit.turn.single:
            self.kit.interpreters.kill(self.target, index)

    def twin(self, own: Any, space: Space) -> Any:  # noqa: ARG002
        return ABSENT


class Fleet:
    """One app, as several replicas. It does not keep the test's own app alive."""

    def __init__(self, kit: Kit, app: Any, recipe: Recipe, *, forget: Callable[[Any], object]) -> None:
        self.kit = kit
        self.recipe = recipe
        self.spaces = kit.spaces
        self.kind = type(app)
        self.brought = [Brought() for _ in kit.spaces]
        self._own = weakref.ref(app, forget)
        self._twins: list[Any] = [None] * len(kit.spaces)

    def app(self, index: int) -> Any:
        """The bare app of a replica, made when it was not yet. Raises StartupError."""
        own = self._own()
        if index == 0 or own is None:
            return own
        is_new = self._twins[index] is None
        if is_new:
            self._twins[index] = self._make(self.kit.spaces[index])
        bring(
            own,
            self._twins[index],
            self.brought[index],
            self._translate(self.kit.spaces[index]),
            self.kit.touched,
        )
        if is_new:
            self.kit.booted(self, self.kit.spaces[index], self._twins[index])
        return self._twins[index]

    def kill(self, index: int) -> Any:
        """Forget the app of a replica, and return it. The test's own one cannot be made anew."""
        if not index:
            return None
        app, self._twins[index] = self._twins[index], None
        self.brought[index] = Brought()
        return app

    def twin(self, own: Any, space: Space) -> Any:
        """What a replica has for the app or one of its parts, if that is what it is asked for."""
        app, twin = self._own(), self._twins[self.kit.spaces.index(space)]
        if app is None or twin is None:
            return ABSENT
        if own is app:
            return twin
        part = next((name for name in PARTS if getattr(app, name, None) is own), None)
        return getattr(twin, part, ABSENT) if part else ABSENT

    def _make(self, space: Space) -> Any:
        began_at = time.perf_counter()
        self.kit.making(self._own(), space)
        try:
            app = self.recipe.make(space, self._translate(space))
        except StartupError:
            # A registry that the test has cleared in its own process, or an import that failed half-way.
            self.kit.mirror.forget(space)
            space.clear()
            app = self.recipe.make(space, self._translate(space))
        self.kit.report.boot_seconds += time.perf_counter() - began_at
        return app

    def _translate(self, space: Space) -> Callable[[Any], Any]:
        return lambda value: self.kit.mirror.translate(value, space)
