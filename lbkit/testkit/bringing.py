"""What a test does to its app object, done to the app of a replica as well, before it is asked.

====================================  ============================================================
the test                              how it is noticed
====================================  ============================================================
`app.config[...] = `, `app.x = `,     recorded when it happens (`Touched`), since the app's own
`app.state.x = `                      code does the same
`app.add_url_rule(...)`, `@app.get`   calls of Flask are recorded and made again; the routes that
in Flask                              the test's Starlette app has too many are shared
`dependency_overrides[a] = b`         compared with what was brought before, and translated
====================================  ============================================================
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lbkit.testkit.mirror import ABSENT

__all__ = ["PARTS", "Brought", "Touched", "bring"]

PARTS = ("config", "state", "router", "dependency_overrides", "view_functions", "extensions")
"""The parts of an app that a test takes into its hands."""

Translate = Callable[[Any], Any]


class Touched:
    """What tests have done to app objects, in the order they did it."""

    def __init__(self) -> None:
        self.count = 0
        self._by_id: dict[int, tuple[weakref.ref[Any], list[tuple[int, Deed]]]] = {}

    def note(self, owner: Any, deed: Deed) -> None:
        self.count += 1
        known = self._by_id.get(id(owner))
        if known is None or known[0]() is not owner:
            number = id(owner)
            known = (weakref.ref(owner, lambda _: self._by_id.pop(number, None)), [])
            self._by_id[number] = known
        known[1].append((self.count, deed))

    def since(self, owner: Any, count: int) -> list[Deed]:
        known = self._by_id.get(id(owner))
        if known is None or known[0]() is not owner:
            return []
        return [deed for number, deed in known[1] if number > count]


@dataclass(frozen=True, slots=True)
class Deed:
    """`owner.name = value`, `owner[name] = value` or `owner.name(*args, **kwargs)`."""

    kind: str
    name: Any
    value: Any = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def repeat(self, owner: Any, translate: Translate) -> None:
        if self.kind == "call":
            self._call(owner, translate)
        elif self.kind == "item":
            if self.value is not ABSENT:
                owner[self.name] = translate(self.value)
            else:
                owner.pop(self.name, None)
        elif self.value is not ABSENT:
            setattr(owner, self.name, translate(self.value))
        elif hasattr(owner, self.name):
            delattr(owner, self.name)

    def _call(self, app: Any, translate: Translate) -> None:
        args = [translate(each) for each in self.value]
        kwargs = {name: translate(each) for name, each in self.kwargs.items()}
        # Flask refuses setup calls after the first request; the test made this one before its own first one.
        began, app._got_first_request = getattr(app, "_got_first_request", False), False
        try:
            getattr(app, self.name)(*args, **kwargs)
        finally:
            app._got_first_request = began


@dataclass(slots=True)
class Brought:
    """How far one replica's app is in step."""

    count: int = -1
    overrides: dict[Any, Any] | None = field(default_factory=dict)
    routes: list[Any] = field(default_factory=list)


def bring(own: Any, twin: Any, brought: Brought, translate: Translate, touched: Touched) -> None:
    """Bring what the test has done to `own` to `twin`. Costs next to nothing when that is nothing."""
    if brought.count != touched.count:
        _repeat(own, twin, brought.count, translate, touched)
        brought.count = touched.count
    overrides = getattr(own, "dependency_overrides", ABSENT)
    if overrides is not ABSENT and overrides != brought.overrides:
        brought.overrides = overrides and dict(overrides)
        _override(twin, overrides, translate)
    if (router := getattr(own, "router", None)) is not None and hasattr(twin, "router"):
        _share_routes(router, twin.router, brought)
        _share_middleware(own, twin)


def _repeat(own: Any, twin: Any, count: int, translate: Translate, touched: Touched) -> None:
    pairs = [(own, twin)]
    for part in ("config", "state"):
        if (each := getattr(own, part, None)) is not None and hasattr(twin, part):
            pairs.append((each, getattr(twin, part)))
    for owner, other in pairs:
        for deed in touched.since(owner, count):
            deed.repeat(other, translate)


def _override(twin: Any, overrides: dict[Any, Any] | None, translate: Translate) -> None:
    if overrides is None:  # a test has set it to None, to be rid of them all
        twin.dependency_overrides = None
    else:
        # A new dict: FastAPI asks its app for it each time.
        twin.dependency_overrides = {translate(key): translate(each) for key, each in overrides.items()}


def _share_routes(own: Any, twin: Any, brought: Brought) -> None:
    routes, others = own.routes, twin.routes
    if len(routes) == len(others):
        return
    for route in brought.routes:
        others[:] = [other for other in others if other is not route]
    brought.routes = list(routes[len(others) :])
    others.extend(brought.routes)


def _share_middleware(own: Any, twin: Any) -> None:
    wanted, have = getattr(own, "user_middleware", ()), getattr(twin, "user_middleware", ())
    handlers, others = getattr(own, "exception_handlers", {}), getattr(twin, "exception_handlers", {})
    if len(wanted) > len(have):
        twin.user_middleware[:0] = wanted[: len(wanted) - len(have)]
        twin.middleware_stack = None
    if len(handlers) > len(others):
        others.update({key: value for key, value in handlers.items() if key not in others})
        twin.middleware_stack = None
