"""Boot diff: replicas that were started alike, and what is not alike in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lbkit.testkit.facts import Facts, Value, add_facts, word_of
from lbkit.testkit.findings import Finding, Oracle, Report
from lbkit.testkit.first_party import projects_own
from lbkit.testkit.oracles.source import file_of, place, where
from lbkit.testkit.said import Booted, Said
from lbkit.testkit.spaces import SWITCH, Space
from lbkit.testkit.turn import Turn, Watcher

if TYPE_CHECKING:
    from lbkit.testkit.fleet import Fleet
    from lbkit.testkit.kit import Kit

__all__ = ["BootDiff", "is_secret"]

SECRET = re.compile(r"secret|(^|_)key(s)?($|_)|token|salt|csrf|password|signing|(^|_)iv($|_)", re.IGNORECASE)
RANDOM = re.compile(r"urandom|token_(bytes|hex|urlsafe)|uuid[14]\(|generate_key|getrandbits|randbytes")
NAME = re.compile(r"[\w.]+")
"""Of a module's or a class's, or of `app.state`: not one of a configuration."""

TEXTS = frozenset({"str", "bytes"})
SCALARS = TEXTS | {"bool", "int", "float"}
PLAIN = SCALARS | {"NoneType", "tuple", "list", "dict", "set", "frozenset"}
REMEDY = "one value for all replicas: from the environment or a secret store, made once"


class BootDiff(Watcher):
    """Compares each replica, when it has booted, with the first one."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.differs: dict[str, tuple[str | None, list[str]]] = {}
        self._compared: set[tuple[str, str]] = set()
        self._first: dict[str, Facts] = {}

    def booted(self, fleet: Fleet, space: Space, app: Any) -> None:
        key = (str(fleet.recipe), space.name)
        if key not in self._compared:
            own = self._facts(fleet.app(0), SWITCH.own_modules(self.kit.first_party))
            self._compare(key, own, self._facts(app, space.modules))

    def heard(self, replica: str, said: Said, _turn: Turn) -> None:
        if isinstance(said, Booted) and (said.target, replica) not in self._compared:
            self._compare((said.target, replica), self._first.setdefault(said.target, said.facts), said.facts)

    def _facts(self, app: Any, modules: Mapping[str, ModuleType]) -> Facts:
        facts = Facts()
        add_facts(facts, app, projects_own(modules))
        return facts

    def _compare(self, key: tuple[str, str], one: Facts, other: Facts) -> None:
        self._compared.add(key)
        for name in differences(one, other):
            if not self.kit.allows(name):
                self.differs.setdefault(name, (self._where(name), []))[1].append(key[1])

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

    def _where(self, name: str) -> str | None:
        modules = SWITCH.own_modules(self.kit.first_party)
        owner = max((each for each in modules if name.startswith(f"{each}.")), key=len, default="")
        if owner and NAME.fullmatch(name):
            return where(file_of(modules[owner]), name[len(owner) + 1 :])
        word = word_of(name)
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


def differences(one: Facts, other: Facts) -> Iterator[str]:
    """What is not alike in two replicas and should be, by its name."""
    for name, value in one.values.items():
        twin = other.values.get(name)
        if twin is not None and twin.digest != value.digest and matters(name, value, twin):
            yield name
    if one.routes != other.routes:
        yield "app: the routes"


def matters(name: str, one: Value, other: Value) -> bool:
    """Secrets, and settings of one plain type. What is made anew for each replica, such as a folder, differs
    on purpose; so may what a module calculates."""
    secret, alike = is_secret(word_of(name)), one.kind == other.kind
    if NAME.fullmatch(name):
        return secret and alike and one.kind in TEXTS
    return {one.kind, other.kind} <= PLAIN if secret else alike and one.kind in SCALARS


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
