"""Boot diff: replicas that were started alike, and what is not alike in them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from lbkit.testkit.findings import Finding, Oracle, Report
from lbkit.testkit.first_party import AUTO_PRIVATE
from lbkit.testkit.oracles.source import place, where
from lbkit.testkit.spaces import SWITCH, Space
from lbkit.testkit.turn import Watcher

if TYPE_CHECKING:
    from lbkit.testkit.fleet import Fleet
    from lbkit.testkit.kit import Kit

__all__ = ["BootDiff", "is_secret"]

SECRET = re.compile(r"secret|(^|_)key(s)?($|_)|token|salt|csrf|password|signing|(^|_)iv($|_)", re.IGNORECASE)
RANDOM = re.compile(r"urandom|token_(bytes|hex|urlsafe)|uuid[14]\(|generate_key|getrandbits|randbytes")
PLAIN = (str, bytes, int, float, bool, type(None), tuple, list, dict, set, frozenset)
REMEDY = "one value for all replicas: from the environment or a secret store, made once"


class BootDiff(Watcher):
    """Compares each replica, when it has booted, with the first one."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.differs: dict[str, tuple[str | None, list[str]]] = {}
        self._compared: set[tuple[str, Space]] = set()
        self._own: WeakSet[Any] = WeakSet()

    def booted(self, fleet: Fleet, space: Space, app: Any) -> None:
        key = (str(fleet.recipe), space)
        if key in self._compared:
            return
        self._compared.add(key)
        own = fleet.app(0)
        for name, one, other in [*of_apps(own, app), *self._of_modules(space)]:
            if one != other and not self.kit.allows(name):
                self._note(name, space)

    def report(self, report: Report) -> None:
        seen: set[str] = set()
        for name, (line, spaces) in self.differs.items():
            if line is not None and line in seen:
                continue  # one random value, under the name of a module and under that of a configuration
            seen.add(line or "")
            report.findings.append(
                Finding(
                    oracle=Oracle.BOOT,
                    what=f"{name} differs on {', '.join(['web1', *spaces])}",
                    where=line,
                    times=len(spaces),
                    remedy=REMEDY,
                )
            )

    def _note(self, name: str, space: Space) -> None:
        self.differs.setdefault(name, (self._where(name), []))[1].append(space.name)

    def _of_modules(self, space: Space) -> Iterator[tuple[str, Any, Any]]:
        """Secrets that are globals of a module or attributes of a class there."""
        own = SWITCH.own_modules(self.kit.first_party)
        for name, module in list(space.modules.items()):
            if name in own and name.partition(".")[0] not in AUTO_PRIVATE:
                yield from of_names(name, vars(own[name]), vars(module), self._classes(own[name]))

    @staticmethod
    def _classes(module: ModuleType) -> Callable[[Any], bool]:
        return lambda value: isinstance(value, type) and value.__module__ == module.__name__

    def _where(self, name: str) -> str | None:
        match = re.search(r"\[['\"](\w+)", name)
        modules = SWITCH.own_modules(self.kit.first_party)
        if match is None and not name.startswith("app"):
            owner = max((each for each in modules if name.startswith(f"{each}.")), key=len, default="")
            return where(modules.get(owner), name[len(owner) + 1 :])
        word = match.group(1) if match else name.rpartition(".")[2]
        pattern = re.compile(rf"\b{re.escape(word)}\b['\"]?\]?\s*[=:,]", re.IGNORECASE)
        lines = [line for module in modules.values() for line in lines_of(module)]
        dice = [each for each in lines if RANDOM.search(each[1])]
        named = [each for each in lines if pattern.search(each[1])]
        both = [each for each in dice if each in named]
        # A die cast where the name is; else any in the project, when it is about a secret; else the name.
        best = both or (dice if is_secret(word) else []) or named
        return best[0][0] if best else None


def is_secret(name: str) -> bool:
    return SECRET.search(name) is not None


def of_apps(own: Any, twin: Any) -> Iterator[tuple[str, Any, Any]]:
    """What two apps have in common and could differ: name, the one's, the other's."""
    config, other = getattr(own, "config", None), getattr(twin, "config", None)
    if isinstance(config, dict) and isinstance(other, dict):
        for key, value in config.items():
            if isinstance(value, PLAIN) and (is_secret(str(key)) or is_fixed(value, other.get(key))):
                yield f'app.config["{key}"]', value, other.get(key)
    for one, two in zip(
        getattr(own, "user_middleware", ()), getattr(twin, "user_middleware", ()), strict=False
    ):
        if getattr(one, "cls", None) is getattr(two, "cls", ...):
            for key, value in getattr(one, "kwargs", {}).items():
                if isinstance(value, (str, bytes)):
                    yield f'app: {one.cls.__name__}["{key}"]', value, two.kwargs.get(key)
    yield "app: the routes", sorted(rules(own)), sorted(rules(twin))


def is_fixed(one: Any, other: Any) -> bool:
    """Plain values of one type. What is made anew for each replica, such as a folder, differs on purpose."""
    return type(one) is type(other) and isinstance(one, (bool, int, float, str, bytes))


def of_names(
    prefix: str, own: Any, twin: Any, is_class: Callable[[Any], bool]
) -> Iterator[tuple[str, Any, Any]]:
    for key, value in list(own.items()):
        if key.startswith("__") or key not in twin:
            continue
        if isinstance(value, (str, bytes)) and type(twin[key]) is type(value):
            if is_secret(key):
                yield f"{prefix}.{key}", value, twin[key]
        elif is_class(value) and inspect.isclass(twin[key]):
            yield from of_names(f"{prefix}.{key}", vars(value), vars(twin[key]), lambda _: False)


def rules(app: Any) -> Iterator[str]:
    if (url_map := getattr(app, "url_map", None)) is not None:
        yield from (str(rule) for rule in url_map.iter_rules())
    for route in getattr(getattr(app, "router", None), "routes", None) or ():
        yield str(getattr(route, "path", type(route).__name__))


def lines_of(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Each line of a module's source, with its place."""
    file = getattr(module, "__file__", None) or ""
    try:
        with open(file, encoding="utf-8") as source:
            lines = source.readlines()
    except (OSError, ValueError):
        return
    for number, line in enumerate(lines, 1):
        yield place(file, number), line
