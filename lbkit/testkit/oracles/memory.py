"""A picture of the memory that the project's own modules hold, and what has changed in it.

It looks at what the project defines: globals, attributes of its classes and instances, closures, default
arguments, `lru_cache`s; and into dicts, lists and sets there, however deep. It does not look into objects of
libraries, except for stores that are known to count or keep (`KNOWN_STORES`): a framework remembers a lot.

A change is told by identity: the picture holds on to what was there.

===============================  =====================================================
from                             to                             is
===============================  =====================================================
a number, a text                 another one                    a change
a dict, a list, a set            with other contents            a change
nothing, None                    an object of a library         lazy, and no change
False                            True                           lazy, and no change
an object                        another one                    no change
===============================  =====================================================
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import is_
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

from lbkit.testkit.first_party import FirstParty

__all__ = ["Change", "Picture"]

SCALARS = (
    str,
    bytes,
    int,
    float,
    complex,
    tuple,
    frozenset,
    datetime.date,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
CONTAINER_MODULES = frozenset({"builtins", "collections", "cachetools", "expiringdict", "weakref"})
KNOWN_STORES = {
    ("limits.storage.memory", "MemoryStorage"): ("storage", "expirations", "events", "sliding_window"),
    ("cachelib.simple", "SimpleCache"): ("_cache",),
    ("flask_caching.backends.simplecache", "SimpleCache"): ("_cache",),
    ("aiocache.backends.memory", "SimpleMemoryCache"): ("_cache",),
}
MOST_NODES = 20_000
MOST_ITEMS = 2_000
DEEPEST = 8
ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is not as it was."""

    module: str
    path: str
    how: str
    """`dict, 0 → 1`"""

    @property
    def name(self) -> str:
        return f"{self.module}.{self.path}"


class Picture:
    """The memory of one replica, as it was at the last look."""

    def __init__(
        self,
        first_party: FirstParty,
        modules: Callable[[], dict[str, ModuleType]],
        apps: Callable[[], Iterable[Any]] = lambda: (),
    ) -> None:
        self.first_party = first_party
        self._modules = modules
        self._apps = apps
        self._nodes: list[Node] = []
        self._seen: dict[int, Any] = {}

    def take(self) -> None:
        """Forget what was, and look again."""
        self._nodes, self._seen = [], {}
        modules = self._modules()
        for name, module in modules.items():
            self._add(Names(name, "", module.__dict__))
            for key, value in list(module.__dict__.items()):
                if not key.startswith("__"):
                    self._visit(value, name, key, 0)
        for app in self._apps():
            for function in functions_of(app):
                self._visit_function(function, *named(function), 0)
            for module_name, path, part in parts_of(app):
                self._visit(part, module_name, path, 0)

    def changes(self) -> list[Change]:
        """What has changed since the last look, which this one replaces."""
        changed = [node for node in self._nodes if node.has_changed()]
        if not changed:
            return []
        found = [change for node in changed for change in node.told()]
        self.take()
        return unique(found)

    def _add(self, node: Node) -> None:
        self._nodes.append(node)

    def _visit(self, value: Any, module: str, path: str, depth: int) -> None:
        kind = type(value)
        if kind in PLAIN or depth > DEEPEST or len(self._nodes) > MOST_NODES or id(value) in self._seen:
            return
        if issubclass(kind, (dict, list, set, deque, bytearray)):
            if kind.__module__.partition(".")[0] in CONTAINER_MODULES or kind.__module__ in self.first_party:
                self._seen[id(value)] = value
                self._visit_container(value, module, path, depth)
        elif kind is FunctionType or kind is MethodType:
            self._visit_function(value, module, path, depth)
        elif kind in WRAPPERS:
            self._visit(value.__func__ if kind is not property else value.fget, module, path, depth)
        elif hasattr(kind, "cache_info") and hasattr(kind, "cache_parameters"):
            self._seen[id(value)] = value
            self._add(Cache(module, path, value))
        elif issubclass(kind, type):
            if value.__module__ == module and value.__module__ in self.first_party:
                self._seen[id(value)] = value
                self._visit_names(vars(value), module, path, depth)
        elif kind.__module__ in self.first_party:
            self._seen[id(value)] = value
            self._visit_names(attributes(value), module, path, depth)
        elif kind.__module__.partition(".")[0] in HOLDERS:
            self._visit_holder(value, module, path, 0)

    def _visit_container(self, value: Any, module: str, path: str, depth: int) -> None:
        self._add(Container(module, path, value))
        items = value.values() if isinstance(value, dict) else value
        if isinstance(value, bytearray):
            return
        for number, item in enumerate(list(items)):
            if number > MOST_ITEMS:
                return
            self._visit(item, module, path, depth + 1)

    def _visit_names(self, names: Any, module: str, path: str, depth: int) -> None:
        if names is None:
            return
        self._add(Names(module, path, names))
        for key, value in list(names.items()):
            if isinstance(key, str) and not key.startswith("__"):
                self._visit(value, module, f"{path}.{key}", depth + 1)

    def _visit_function(self, function: Any, module: str, path: str, depth: int) -> None:
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType) or id(function) in self._seen:
            return
        if function.__module__ not in self.first_party:
            return
        self._seen[id(function)] = function
        if function.__dict__:
            self._visit_names(function.__dict__, module, path, depth)
        for value in [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]:
            self._visit(value, module, path, depth + 1)
        if function.__closure__:
            names = function.__code__.co_freevars
            self._add(Cells(module, path, names, function.__closure__))
            for name, cell in zip(names, function.__closure__, strict=True):
                self._visit(content(cell), module, f"{path}.{name}", depth + 1)

    def _visit_holder(self, value: Any, module: str, path: str, depth: int) -> None:
        """A library's object that may hold a store that we know."""
        if id(value) in self._seen or depth > 4:
            return
        self._seen[id(value)] = value
        kind = type(value)
        names = attributes(value) or {}
        if (stores := KNOWN_STORES.get((kind.__module__, kind.__name__))) is not None:
            for name in stores:
                if isinstance(names.get(name), dict):
                    self._add(Container(module, path, names[name], label=f"{kind.__name__} in memory"))
            return
        for each in list(names.values()):
            if type(each).__module__.partition(".")[0] in HOLDERS:
                self._visit_holder(each, module, path, depth + 1)


class Node:
    """One place in memory, with a copy of what was in it."""

    def __init__(self, module: str, path: str) -> None:
        self.module = module
        self.path = path

    def has_changed(self) -> bool:
        raise NotImplementedError

    def told(self) -> Iterator[Change]:
        raise NotImplementedError


class Container(Node):
    """A dict, a list, a set, a deque, a bytearray."""

    def __init__(self, module: str, path: str, value: Any, *, label: str | None = None) -> None:
        super().__init__(module, path)
        self.value = value
        self.label = label or type(value).__name__
        self._keys, self._values = snapshot(value)

    def has_changed(self) -> bool:
        return not same(self.value, self._keys, self._values)

    def told(self) -> Iterator[Change]:
        if self._is_equal():
            return
        before, after = len(self._values), len(self.value)
        sizes = f"{before} → {after}" if before != after else f"{after}, changed"
        yield Change(self.module, self.path, f"{self.label}, {sizes}")

    def _is_equal(self) -> bool:
        """Other objects of the same value: a text that was written again."""
        keys, values = snapshot(self.value)
        return len(values) == len(self._values) and all(
            old is new or (type(old) is type(new) and isinstance(old, PLAIN_TYPES) and old == new)
            for old, new in zip([*self._keys, *self._values], [*keys, *values], strict=True)
        )


class Names(Node):
    """A namespace: of a module, a class, an instance, a function."""

    def __init__(self, module: str, path: str, names: Any) -> None:
        super().__init__(module, path)
        self.names = names
        self._keys, self._values = snapshot(names)

    def has_changed(self) -> bool:
        return not same(self.names, self._keys, self._values)

    def told(self) -> Iterator[Change]:
        before = dict(zip(self._keys, self._values, strict=True))
        for key, value in list(self.names.items()):
            old = before.get(key, ABSENT)
            if old is value or not isinstance(key, str) or key.startswith(("__", "_abc_")):
                continue
            if (how := rebound(old, value)) is not None:
                yield Change(self.module, f"{self.path}.{key}".lstrip("."), how)


class Cells(Node):
    """What a closure holds: a `nonlocal` counter."""

    def __init__(self, module: str, path: str, names: tuple[str, ...], cells: tuple[CellType, ...]) -> None:
        super().__init__(module, path)
        self.names = names
        self.cells = cells
        self._values = [content(cell) for cell in cells]

    def has_changed(self) -> bool:
        return not all(map(is_, self._values, map(content, self.cells)))

    def told(self) -> Iterator[Change]:
        for name, old, cell in zip(self.names, self._values, self.cells, strict=True):
            if (value := content(cell)) is not old and (how := rebound(old, value)) is not None:
                yield Change(self.module, f"{self.path}.{name}", how)


class Cache(Node):
    """A function behind `lru_cache`. One without parameters only remembers what it was made of."""

    def __init__(self, module: str, path: str, function: Any) -> None:
        super().__init__(module, path)
        self.function = function
        self._size: int = function.cache_info().currsize
        self._takes = getattr(getattr(function, "__wrapped__", None), "__code__", None)

    def has_changed(self) -> bool:
        size: int = self.function.cache_info().currsize
        return size != self._size

    def told(self) -> Iterator[Change]:
        size = self.function.cache_info().currsize
        arguments = getattr(self._takes, "co_argcount", 1) + getattr(self._takes, "co_kwonlyargcount", 0)
        if arguments and size > self._size:
            yield Change(self.module, self.path, f"lru_cache, {self._size} → {size}")


def rebound(old: Any, new: Any) -> str | None:
    """How a name that means something else now is told; None when that is no state."""
    if is_mock(old) or is_mock(new):
        return None
    if old is None or old is ABSENT:
        return (
            None
            if not isinstance(new, (int, float, str, bytes)) or new is True
            else f"{kind(old)} → {short(new)}"
        )
    if isinstance(old, bool) or isinstance(new, bool):
        return None if new is not False or not isinstance(old, bool) else f"{old} → {new}"
    if isinstance(old, (dict, list, set, deque)) and isinstance(new, (dict, list, set, deque)):
        return None if equal(old, new) else f"{type(new).__name__}, {len(old)} → {len(new)}"
    if isinstance(old, SCALARS) and (new is None or isinstance(new, SCALARS)):
        return None if equal(old, new) else f"{short(old)} → {short(new)}"
    return None


def snapshot(value: Any) -> tuple[list[Any], list[Any]]:
    if isinstance(value, (set, frozenset)):
        return [], sorted(value, key=id)
    for _ in range(3):
        try:
            # Some mappings, such as a class's, are no dict, and some change while a thread is at work.
            return (list(value), list(value.values())) if hasattr(value, "values") else ([], list(value))
        except RuntimeError:
            continue
    return [], []


def same(value: Any, keys: list[Any], values: list[Any]) -> bool:
    if len(value) != len(values):
        return False
    try:
        if hasattr(value, "values"):
            return all(map(is_, values, value.values())) and all(map(is_, keys, value))
        if isinstance(value, (set, frozenset)):
            return all(map(is_, values, sorted(value, key=id)))
        return all(map(is_, values, value))
    except RuntimeError:
        return False


def equal(old: Any, new: Any) -> bool:
    try:
        return bool(type(old) is type(new) and old == new)
    except Exception:  # what cannot be compared has changed
        return False


def attributes(value: Any) -> dict[str, Any] | None:
    """An instance's own attributes, as they are: no property runs, no proxy wakes."""
    try:
        names: dict[str, Any] = object.__getattribute__(value, "__dict__")
        return names
    except AttributeError:
        return None


def content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty as yet
        return ABSENT


def named(function: Any) -> tuple[str, str]:
    path = str(getattr(function, "__qualname__", "?")).replace(".<locals>", "")
    return str(getattr(function, "__module__", "?")), path


def functions_of(app: Any) -> Iterator[Any]:
    """The views of an app: a factory's closures are reachable from there alone."""
    yield from list(getattr(app, "view_functions", {}).values())
    for table in ("before_request_funcs", "after_request_funcs"):
        for functions in list(getattr(app, table, {}).values()):
            yield from functions
    for route in list(getattr(getattr(app, "router", None), "routes", None) or ()):
        if (endpoint := getattr(route, "endpoint", None)) is not None:
            yield endpoint


def parts_of(app: Any) -> Iterator[tuple[str, str, Any]]:
    state = attributes(getattr(app, "state", None))
    if state is not None and isinstance(state.get("_state"), dict):
        yield type(app).__module__.partition(".")[0], "app.state", state["_state"]
    # Flask-Caching keeps its stores here, and has none itself.
    caches = getattr(app, "extensions", {}).get("cache")
    for cache in list(caches.values()) if isinstance(caches, dict) else ():
        if type(cache).__module__.partition(".")[0] in HOLDERS:
            yield type(app).__module__.partition(".")[0], 'app.extensions["cache"]', cache


def unique(changes: list[Change]) -> list[Change]:
    """One of each name: a dict in a dict that has changed is told once."""
    by_name: dict[str, Change] = {}
    for change in changes:
        by_name.setdefault(change.name, change)
    return list(by_name.values())


def is_mock(value: Any) -> bool:
    return type(value).__module__ == "unittest.mock"


def kind(value: Any) -> str:
    return "None" if value is None else "unset"


def short(value: Any) -> str:
    if isinstance(value, (str, bytes)):
        return f"a text of {len(value)}" if isinstance(value, str) else f"{len(value)} bytes"
    text = repr(value)
    return text if len(text) <= 30 else f"{type(value).__name__}"


PLAIN = frozenset({str, bytes, int, float, complex, bool, type(None), ModuleType, BuiltinFunctionType})
PLAIN_TYPES = (str, bytes, int, float, complex, bool, type(None))
WRAPPERS = frozenset({staticmethod, classmethod, property})
HOLDERS = frozenset({"limits", "slowapi", "flask_limiter", "cachelib", "flask_caching", "aiocache"})
