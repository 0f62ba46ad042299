"""What a run over replicas found out, as values: the terminal, JSON and other reports are made from them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from lbkit.testkit.row import Row as TraceRow

__all__ = ["Finding", "Oracle", "Report", "Row", "Struck", "Verdict"]


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
    FAULT = "passes with the same replicas and clients when none of them fails"
    PASSING = "undecided: passes over replicas in a fresh process (state that an earlier test left)"
    UNCONFIRMED = "not confirmed in fresh processes"

    @property
    def real(self) -> bool:
        """Whether this counts against the app."""
        return self in (
            Verdict.CLIENT,
            Verdict.GLOBAL,
            Verdict.INSIDE,
            Verdict.FAULT,
            Verdict.UNCONFIRMED,
        )


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
    attempts: tuple[str, ...] = ()
    """Who was asked, and what came of it, such as `web2 refused (kill)`; when something went wrong."""

    @classmethod
    def told(cls, test: str, row: TraceRow, *, now: float, origin: float) -> Row:
        """What the trace has of a request: its instants are those of the clock that also says `now`."""
        struck = row.retried or any(attempt.injected for attempt in row.attempts)
        return cls(
            test,
            row.replica or "-",
            row.method,
            row.path,
            row.status,
            round(row.began_at - origin, 6),
            round((row.last_byte_at or row.done_at or now) - row.began_at, 6),
            tuple(map(str, row.attempts)) if struck else (),
        )

    def __str__(self) -> str:
        told = f"{self.replica} {self.method} {self.path} {'-' if self.status is None else self.status}"
        return f"{told} [{', '.join(self.attempts)}]" if self.attempts else told


@dataclass(slots=True, kw_only=True)
class Struck:
    """What was made to go wrong in a run, and what became of it."""

    rates: dict[str, float]
    seed: int
    hits: dict[str, int] = field(default_factory=dict)
    """How often each fault has struck."""

    requests: int = 0
    """How many requests were hit."""

    elsewhere: int = 0
    """How many of them another replica answered."""

    lost: int = 0
    """How many got no answer of a replica, or half of one."""

    def count(self, hits: Mapping[str, int], rows: Iterable[TraceRow]) -> None:
        """Add what has happened in a test."""
        self.hits = dict(Counter(self.hits) + Counter(hits))
        for row in rows:
            self.requests += any(attempt.injected for attempt in row.attempts)
            self.elsewhere += row.retried and not row.failed
            self.lost += row.failed

    def add(self, other: Struck) -> None:
        self.hits = dict(Counter(self.hits) + Counter(other.hits))
        self.requests += other.requests
        self.elsewhere += other.elsewhere
        self.lost += other.lost


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

    faults: tuple[str, ...] = ()
    """Of a failed test: what went wrong with its requests; of one that minds that, what it minds."""

    again: str | None = None
    """The command under which the same goes wrong again."""

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
    shared_databases: int = 0
    """SQLite databases in memory that the replicas of an app had in common."""

    compared: int = 0
    """Pages that were asked of every replica."""

    volatile: int = 0
    """Those among them that say something else each time."""

    rows: list[Row] = field(default_factory=list)
    struck: Struck | None = None
    """None when nothing was made to go wrong."""

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
        if self.struck is not None and other.struck is not None:
            self.struck.add(other.struck)
        else:
            self.struck = self.struck or other.struck
        self.shared_databases += other.shared_databases
        self.compared += other.compared
        self.volatile += other.volatile
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
        values["rows"] = [Row(**{**each, "attempts": tuple(each["attempts"])}) for each in values["rows"]]
        values["struck"] = Struck(**values["struck"]) if values["struck"] else None
        return cls(**values)


def _plain(value: object) -> object:
    if isinstance(value, Verdict):
        return value.name
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"cannot write {value!r} as JSON")


def _finding(values: dict[str, Any]) -> Finding:
    for name in ("requests", "tests", "state", "faults"):
        values[name] = tuple(values[name])
    values["verdict"] = Verdict[values["verdict"]] if values["verdict"] else None
    return Finding(**{**values, "oracle": Oracle(values["oracle"])})
