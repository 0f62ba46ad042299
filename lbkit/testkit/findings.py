"""What a run over replicas found out, as values: the terminal, JSON and other reports are made from them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Finding", "Oracle", "Report", "Row", "Verdict"]


class Oracle(Enum):
    """Who noticed."""

    ASSERTION = "assertion"
    """The suite's own assertions, with its requests spread over the replicas."""

    BOOT = "boot"
    """Replicas that were started alike and are not: secret keys, configuration."""

    STATE = "state"
    """Memory of one replica that changed while it served a request."""

    DIFFERENCE = "difference"
    """The same GET, answered differently by another replica."""

    DISK = "disk"
    """A file that one replica wrote and another one read."""


class Verdict(Enum):
    """What became of a test that failed over replicas, in fresh processes."""

    CLIENT = "passes with one replica and sticky: state per client, in one process"
    GLOBAL = "passes with one replica, fails sticky: state of all clients, in one process"
    INSIDE = "looks into the memory of one process, which a request to another one has changed"
    ALONE = "fails without replicas, too"
    HARNESS = "undecided: fails with one isolated replica (it looks into the process, or minds the copies)"
    PASSING = "undecided: passes over replicas in a fresh process (state that an earlier test left)"
    UNCONFIRMED = "not confirmed in fresh processes"

    @property
    def real(self) -> bool:
        """Whether this counts against the app."""
        return self in (Verdict.CLIENT, Verdict.GLOBAL, Verdict.INSIDE, Verdict.UNCONFIRMED)


@dataclass(frozen=True, slots=True)
class Row:
    """One request, as the balancer sent it."""

    test: str
    replica: str
    method: str
    path: str
    status: int | None
    at: float
    """Seconds since the run began."""

    seconds: float

    def __str__(self) -> str:
        return f"{self.replica} {self.method} {self.path} {'-' if self.status is None else self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that depends on which replica answers."""

    oracle: Oracle
    what: str
    """The object: `shop.cart.CARTS (dict, 0 -> 1)`, `app.config["SECRET_KEY"]`, a test's id, a path."""

    remedy: str
    where: str | None = None
    """`file:line` where the object is defined."""

    requests: tuple[str, ...] = ()
    """The requests that revealed it, such as `web2 POST /cart 201`."""

    tests: tuple[str, ...] = ()
    times: int = 1
    verdict: Verdict | None = None
    """Of a failed test."""

    state: tuple[str, ...] = ()
    """Of a failed test: the state that was written while it was served."""

    @property
    def key(self) -> str:
        """The same for the same thing, seen by two processes."""
        return self.what.partition(" ")[0] if self.oracle is Oracle.STATE else self.what


@dataclass(slots=True, kw_only=True)
class Report:
    """One run of a suite over replicas."""

    replicas: int
    isolation: str
    policy: str
    apps: dict[str, str] = field(default_factory=dict)
    """Each app, such as `shop:create_app`, and how it was isolated: `module`, `clone` or `none`, and why."""

    private: list[str] = field(default_factory=list)
    tests: int = 0
    spread: int = 0
    """How many tests reached two replicas or more."""

    boot_seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def of(self, oracle: Oracle) -> list[Finding]:
        return [finding for finding in self.findings if finding.oracle is oracle]

    def add(self, other: Report) -> None:
        """Put the report of another process, which ran other tests, to this one."""
        self.apps = {**other.apps, **self.apps}
        self.private = sorted({*self.private, *other.private})
        self.tests += other.tests
        self.spread += other.spread
        self.boot_seconds += other.boot_seconds
        self.rows += other.rows
        self.notes += [note for note in other.notes if note not in self.notes]
        for finding in other.findings:
            self._add(finding)

    def _add(self, finding: Finding) -> None:
        for number, known in enumerate(self.findings):
            if known.oracle is finding.oracle and known.key == finding.key:
                self.findings[number] = dataclasses.replace(known, times=known.times + finding.times)
                return
        self.findings.append(finding)

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=_plain, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        values: dict[str, Any] = json.loads(text)
        values["findings"] = [_finding(each) for each in values["findings"]]
        values["rows"] = [Row(**each) for each in values["rows"]]
        return cls(**values)


def _plain(value: object) -> object:
    if isinstance(value, Verdict):
        return value.name
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"cannot write {value!r} as JSON")


def _finding(values: dict[str, Any]) -> Finding:
    for name in ("requests", "tests", "state"):
        values[name] = tuple(values[name])
    values["verdict"] = Verdict[values["verdict"]] if values["verdict"] else None
    return Finding(**{**values, "oracle": Oracle(values["oracle"])})
