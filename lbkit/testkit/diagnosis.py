"""What two boots of an app, and its source, say about running it as replicas. It decides, and boots none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from lbkit.testkit.checkup import Checkup
from lbkit.testkit.facts import Value, word_of
from lbkit.testkit.module_state import State

__all__ = ["Diagnosis", "Level", "Remark", "diagnose"]

RANDOM = re.compile(r"urandom|token_(hex|bytes|urlsafe)|uuid[14]\(|randbytes|SystemRandom|random\.")

FLASK_KEY = 'app.config["SECRET_KEY"]'
SHARED_SECRET = "read it from the environment, and give all replicas the same one"  # noqa: S105 (advice)
SHARED_STATE = "keep it in Redis or a database, in the session, or bind clients with a sticky cookie"


class Level(Enum):
    WRONG = "wrong"
    """Replicas will disagree, or the balancer cannot see how they are."""

    NOTE = "note"
    """Worth knowing; often meant so."""

    FINE = "fine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    level: Level
    about: str
    """`replicas`, `memory`, `health`, or `sessions`."""

    what: str
    where: str | None = None
    """`file:line`."""

    remedy: str | None = None


@dataclass(slots=True, kw_only=True)
class Diagnosis:
    name: str
    interface: str
    framework: str
    seconds: tuple[float, float]
    remarks: list[Remark] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.of(Level.WRONG)

    def of(self, level: Level) -> list[Remark]:
        return [remark for remark in self.remarks if remark.level is level]

    def about(self, subject: str) -> list[Remark]:
        return [remark for remark in self.remarks if remark.about == subject]


def diagnose(
    first: Checkup, second: Checkup, *, states: Sequence[State], sources: Mapping[str, str]
) -> Diagnosis:
    """`sources`: the text of each of the app's own modules."""
    found = Diagnosis(
        name=first.name,
        interface=first.interface,
        framework=first.framework,
        seconds=(first.seconds, second.seconds),
    )
    places = Places(first.modules, sources)
    found.remarks += _replicas(first, second, places)
    found.remarks += _memory(first, states, places)
    found.remarks += _health(first)
    found.remarks += _sessions(first)
    return found


class Places:
    """Where something is written in the source."""

    def __init__(self, files: Mapping[str, str], sources: Mapping[str, str]) -> None:
        self._files = files
        self._sources = sources

    def of(self, module: str, line: int) -> str:
        return f"{self._files.get(module, module)}:{line}"

    def of_secret(self, name: str) -> str | None:
        """The line that names it, best one that also makes something random."""
        word = word_of(name)
        lines = [
            (module, number, line)
            for module, text in self._sources.items()
            for number, line in enumerate(text.splitlines(), start=1)
            if re.search(rf"\b{re.escape(word)}\b", line)
        ]
        lines.sort(key=lambda each: not RANDOM.search(each[2]))
        return self.of(*lines[0][:2]) if lines else None


def _replicas(first: Checkup, second: Checkup, places: Places) -> Iterator[Remark]:
    seen = False
    for name, secret in first.secrets.items():
        other = second.secrets.get(name)
        if other is not None and other.digest != secret.digest:
            seen = True
            yield Remark(
                level=Level.WRONG,
                about="replicas",
                what=f"{name} differs: each process makes its own",
                where=places.of_secret(name),
                remedy=SHARED_SECRET,
            )
        elif (weak := _weak(name, secret, places)) is not None:
            yield weak
    for name, value in first.settings.items():
        if second.values.get(name, value) != value:
            seen = True
            yield Remark(
                level=Level.NOTE,
                about="replicas",
                what=f"{name} differs from boot to boot",
                where=places.of_secret(name),
                remedy="fine for an id or a start time; nothing that a client gets may depend on it",
            )
    if first.routes != second.routes:
        seen = True
        odd = sorted(set(first.routes) ^ set(second.routes))
        yield Remark(level=Level.WRONG, about="replicas", what=f"routes differ: {', '.join(odd[:5])}")
    if not seen:
        counted = f"{len(first.secrets)} secrets, {len(first.settings)} settings, {len(first.routes)} routes"
        yield Remark(level=Level.FINE, about="replicas", what=f"{counted}: the same in both boots")


def _weak(name: str, secret: Value, places: Places) -> Remark | None:
    if secret.weak is None:
        return None
    return Remark(
        level=Level.NOTE,
        about="replicas",
        what=f"{name} is weak: {secret.weak}",
        where=places.of_secret(name),
        remedy="whoever guesses it can write any session",
    )


def _memory(first: Checkup, states: Sequence[State], places: Places) -> Iterator[Remark]:
    if not states:
        yield Remark(level=Level.FINE, about="memory", what="no function writes to the memory of a module")
    for state in states:
        name = f"{state.module}.{state.name}"
        if state.kind == "cache":
            what, level = f"{name} caches in each process", Level.NOTE
            remedy = "fine for what never changes; else it is stale in all replicas but one"
        elif name in first.full:
            what, level = f"{name} ({state.kind}) is filled at the start", Level.NOTE
            remedy = "fine for a registry; wrong if requests write to it"
        else:
            what, level, remedy = f"{name} ({state.kind}) is each replica's own", Level.WRONG, SHARED_STATE
        if state.written is not None:
            what += f", written at {places.of(*state.written)}"
        yield Remark(
            level=level, about="memory", what=what, where=places.of(state.module, state.line), remedy=remedy
        )


def _health(first: Checkup) -> Iterator[Remark]:
    if first.lifespan is not None:
        yield Remark(level=Level.NOTE, about="health", what=f"its lifespan failed here: {first.lifespan}")
    missing = [path for path, status in first.health.items() if status in (404, 405)]
    answers = [f"{path} {status or 'raised'}" for path, status in first.health.items() if path not in missing]
    if "/health" in missing:
        yield Remark(
            level=Level.WRONG,
            about="health",
            what="no /health: a balancer cannot tell a replica that starts, hangs or leaves",
            remedy=f"{_plugin(first)}(app, version=...) adds it",
        )
    elif answers:
        bad = any((status or 500) >= 500 for status in first.health.values() if status != 404)
        yield Remark(level=Level.NOTE if bad else Level.FINE, about="health", what=", ".join(answers))


def _plugin(first: Checkup) -> str:
    known = first.framework in ("flask", "starlette", "fastapi")
    return f"lbkit_{first.framework}.LBKit" if known else f"lbkit.{first.interface.lower()}.HealthMiddleware"


def _sessions(first: Checkup) -> Iterator[Remark]:
    if first.sessions is None:
        yield Remark(level=Level.FINE, about="sessions", what="none that its framework tells of")
        return
    local = re.search(r"filesystem|cachelib|memory", first.sessions, re.IGNORECASE)
    yield Remark(
        level=Level.WRONG if local else Level.FINE,
        about="sessions",
        what=f"kept in {first.sessions}",
        remedy="a session that one replica keeps is lost on the others: keep it in Redis" if local else None,
    )
    unset = [name for name, secret in first.secrets.items() if secret.digest is None and name == FLASK_KEY]
    if unset and first.framework == "flask":
        yield Remark(
            level=Level.NOTE, about="sessions", what=f"{unset[0]} is not set: there are no sessions at all"
        )
    if first.secure_cookies is False:
        yield Remark(level=Level.NOTE, about="sessions", what="their cookie is sent over plain http, too")
