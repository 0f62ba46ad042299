"""What a test says of a cluster. Each failure prints the rows of the trace that prove it.

They raise AssertionError, whatever `python -O` does to the word assert.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lbkit.errors import ConfigError
from lbkit.testkit.client import Visitor, visitor_of
from lbkit.testkit.replica import ClusterReplica
from lbkit.testkit.row import Row
from lbkit.testkit.trace import Trace

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = [
    "assert_at_most_once",
    "assert_drained",
    "assert_failover",
    "assert_no_local_files",
    "assert_no_lost_requests",
    "assert_rebalanced",
    "assert_same_everywhere",
    "assert_spread",
    "assert_stateless",
    "assert_sticky",
    "assert_survives",
]

MOST_ROWS = 20
PATIENCE = 5.0
"""Seconds that requests under way have to end before they count as lost."""


def assert_spread(cluster: Cluster, *, tolerance: float = 0.2) -> None:
    """Each replica has answered its share of the requests: the mean, give or take `tolerance` of it.

    One request more or less is always within it. Fewer requests than replicas prove nothing, and fail.
    """
    counts = {replica.name: 0 for replica in cluster} | cluster.trace.counts()
    mean = sum(counts.values()) / len(counts)
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    if sum(counts.values()) < len(counts):
        _fail(f"need at least {len(counts)} requests to see a spread, got {told}", cluster.trace)
    allowed = max(1.0, tolerance * mean)
    if off := [name for name, count in counts.items() if abs(count - mean) > allowed]:
        rule = f"{mean:.1f} requests each, give or take {allowed:.1f}"
        _fail(f"need {rule}, got {told}", cluster.trace.where(lambda row: row.replica in off))


def assert_sticky(client: object) -> None:
    """All requests of this client were answered by one replica."""
    rows = _rows_of(visitor_of(client))
    if len(rows) < 2:
        _fail(f"need at least 2 requests of this client to see whether it stays, got {len(rows)}", rows)
    if len(homes := list(rows.counts())) > 1:
        _fail(f"need one replica for all requests of {rows[0].client}, got {', '.join(homes)}", rows)


def assert_rebalanced(client: object, *, after: str | ClusterReplica) -> None:
    """This client was on that replica, and since it left, stays on another one."""
    visitor = visitor_of(client)
    replica = visitor.cluster[after if isinstance(after, str) else after.name]
    gone_at = _gone_at(replica)
    rows = _rows_of(visitor)
    before = rows.where(lambda row: row.began_at < gone_at)
    since = rows.where(lambda row: row.began_at >= gone_at)
    if not before or before[-1].replica != replica.name:
        _fail(f"need {visitor.name} on {replica.name} before that left", rows)
    homes = list(since.counts())
    if len(homes) != 1 or homes[0] == replica.name:
        got = ", ".join(homes) or "no request"
        _fail(
            f"need one other replica for {visitor.name} since {replica.name} left, got {got}", since or rows
        )


def assert_no_lost_requests(cluster: Cluster) -> None:
    """Every request has its whole answer, and no answer is a 5xx. A client that left has lost nothing.

    Requests that are under way get 5 seconds to end.
    """
    _settle(cluster)
    if not cluster.trace:
        _fail("need at least one request, got none", cluster.trace)
    if lost := cluster.trace.where(lambda row: row.lost):
        _fail(f"lost {len(lost)} of {len(cluster.trace)} requests", lost)


def assert_failover(cluster: Cluster, *, frm: str, max_ms: float | None = None) -> None:
    """Since replica `frm` went down, or failed a request, others have answered in its place.

    None of these requests was lost, and none took longer than `max_ms`.
    """
    replica = cluster[frm]
    rows = cluster.trace.where(lambda row: _after_failure(row, replica))
    if not rows:
        _fail(f"need a request since {frm} went down or failed, got none", cluster.trace)
    if bad := rows.where(lambda row: row.lost or row.replica == frm):
        _fail(f"{len(bad)} of {len(rows)} requests were not answered in place of {frm}", bad)
    if max_ms is not None and (late := rows.where(lambda row: (row.ms or 0.0) > max_ms)):
        _fail(f"need an answer in {max_ms:g} ms, {len(late)} of {len(rows)} took longer", late)


def _after_failure(row: Row, replica: ClusterReplica) -> bool:
    if replica.down_at is not None and row.began_at >= replica.down_at:
        return True
    return any(attempt.replica == replica.name and attempt.fault is not None for attempt in row.attempts)


def assert_drained(replica: ClusterReplica, *, dropped: int = 0) -> None:
    """It has left: it was drained, nothing is inside, and no more than `dropped` requests were cut."""
    gone_at = _gone_at(replica)
    rows = replica.cluster.trace.by(replica=replica.name)
    if replica.active:
        inside = rows.where(lambda row: row.open)
        _fail(f"need nothing inside {replica.name}, got {replica.active} requests", inside)
    cut = rows.where(lambda row: any(_cut_by(attempt, replica, gone_at) for attempt in row.attempts))
    if max(len(cut), replica.dropped) > dropped:
        got = max(len(cut), replica.dropped)
        _fail(f"need at most {dropped} requests dropped by {replica.name}, got {got}", cut or rows)


def _cut_by(attempt: Any, replica: ClusterReplica, gone_at: float) -> bool:
    at_the_end = attempt.ended_at is not None and attempt.began_at <= gone_at <= attempt.ended_at
    return bool(attempt.replica == replica.name and attempt.fault == "reset" and at_the_end)


def assert_at_most_once(cluster: Cluster, method: str, path: str) -> None:
    """No request of this kind was given to an app twice: a retry after it was sent may do it twice."""
    rows = cluster.trace.by(method=method, path=path)
    if not rows:
        _fail(f"need a request {method} {path}, got none", cluster.trace)
    if twice := rows.where(lambda row: sum(attempt.ran for attempt in row.attempts) > 1):
        _fail(f"{len(twice)} of {len(rows)} requests {method} {path} ran more than once", twice)


def assert_same_everywhere(client: Any, path: str, *, ignore: str | None = None) -> None:
    """Every replica answers this GET of this client alike.

    Words that differ between two answers of one replica (a clock, a nonce) are left out, and so is what
    matches the regular expression `ignore`.
    """
    cluster = visitor_of(client).cluster
    answers: dict[str, Answer] = {}
    for replica in [each for each in cluster if each.listens]:
        with client.on(replica.name):
            answers[replica.name] = Answer(client.get(path), client.get(path), ignore)
    mask = frozenset[int]().union(*(answer.volatile for answer in answers.values()))
    first, *others = answers
    for name in others:
        if difference := answers[first].against(answers[name], mask):
            rows = cluster.trace[-2 * len(answers) :]
            _fail(
                f"GET {path} is not the same everywhere: {first} {difference[0]}, {name} {difference[1]}",
                rows,
            )


class Answer:
    """What one replica said to the same question, twice."""

    def __init__(self, one: Any, two: Any, ignore: str | None) -> None:
        self.status = one.status_code
        self.words, again = (_words(_text(each), ignore) for each in (one, two))
        pairs = enumerate(zip(self.words, again, strict=False))
        self.volatile = {place for place, (word, other) in pairs if word != other}

    def against(self, other: Answer, mask: frozenset[int]) -> tuple[str, str] | None:
        """What each says where they differ; None when they do not."""
        if self.status != other.status:
            return f"answers {self.status}", f"answers {other.status}"
        for place in range(max(len(self.words), len(other.words))):
            mine, theirs = self.words[place : place + 1], other.words[place : place + 1]
            if place not in mask and mine != theirs:
                return f"says {self.around(place)!r}", f"says {other.around(place)!r}"
        return None

    def around(self, place: int) -> str:
        return "".join(self.words[max(0, place - 6) : place + 7])


def _words(text: str, ignore: str | None) -> list[str]:
    return re.split(r"(\W)", re.sub(ignore, "", text) if ignore else text)


def _text(answer: Any) -> str:
    """Of a Flask or of an httpx response."""
    text = answer.text
    return text if isinstance(text, str) else str(text())


def assert_stateless(cluster: Cluster, *, allow: Iterable[str] = ()) -> None:
    """No request has changed the memory of a replica; names that match `allow` may change.

    The cluster must be one of a recipe, so that each replica has modules or a process of its own.
    """
    allowed = list(allow)
    found = [line for replica in cluster for line in _written_in(replica, allowed)]
    if found:
        told = "\n    ".join(found)
        _fail(f"requests have changed memory that other replicas do not see:\n    {told}", cluster.trace)


def _written_in(replica: ClusterReplica, allowed: Sequence[str]) -> Iterator[str]:
    if replica.memory is None:
        rule = "need a recipe such as 'shop:create_app()', in module or process isolation"
        raise ConfigError(f"{rule}, to look into the memory of {replica.name}")
    for change in replica.memory.changes():
        if not any(fnmatchcase(change.name, pattern) for pattern in allowed):
            place = replica.memory.where(change)
            yield f"{replica.name}: {change.name} ({change.how})" + (f"  {place}" if place else "")


def assert_no_local_files(cluster: Cluster, *, allow: Iterable[str] = ()) -> None:
    """No replica has read a file that another one wrote: on two machines it would not be there.

    Paths that match `allow` are left out. The cluster must be one of a recipe.
    """
    if any(replica.space is None for replica in cluster):
        raise ConfigError(
            "need a recipe such as 'shop:create_app()', in this process, to know who opens a file"
        )
    allowed = list(allow)
    found = [
        seen
        for seen in cluster.files.found.values()
        if not any(fnmatchcase(seen.path, pattern) for pattern in allowed)
    ]
    if found:
        lines = [f"{seen.reader} read {seen.path}, which {seen.writer} wrote" for seen in found]
        told = "\n    ".join(lines)
        _fail(
            f"files that are on one machine only:\n    {told}", [row for seen in found for row in seen.rows]
        )


def assert_survives(
    cluster: Cluster,
    scenario: Callable[..., object],
    *,
    faults: Sequence[str] = ("kill", "drain", "restart"),
    reset: Callable[[], object] | None = None,
) -> None:
    """The scenario passes with each of these faults before each of its requests but the first.

    It is called with a new client each time, and makes its own assertions. What is hit is the replica that
    has just answered. `reset` is called before each run, to empty what the replicas share.
    """
    if unknown := sorted(set(faults) - VERBS.keys()):
        raise ConfigError(f"need faults of {', '.join(VERBS)}, got {', '.join(unknown)}")
    steps = len(_run(cluster, scenario, reset))
    for fault in faults:
        for step in range(2, steps + 1):
            _run(cluster, scenario, reset, fault=fault, step=step)


VERBS = {"kill": "akill", "drain": "adrain", "restart": "arestart", "stop": "astop"}


def _run(
    cluster: Cluster,
    scenario: Callable[..., object],
    reset: Callable[[], object] | None,
    *,
    fault: str | None = None,
    step: int = 0,
) -> Trace:
    if reset is not None:
        reset()
    client = cluster.client()
    blow = Blow(cluster, visitor_of(client).name, fault, step)
    cluster.hooks.append(blow)
    try:
        scenario(client)
    except Exception as error:
        when = f"with {fault} of {blow.replica} before request {step}" if fault else "without any fault"
        message = f"the scenario does not survive {when}: {type(error).__name__}: {error}"
        raise AssertionError(_with_rows(message, blow.rows)) from error
    finally:
        cluster.hooks.remove(blow)
        cluster.heal()
    return blow.rows


class Blow:
    """Hits the replica that has just answered, before request number `step` of this client."""

    def __init__(self, cluster: Cluster, client: str, fault: str | None, step: int) -> None:
        self._cluster = cluster
        self._client = client
        self._fault = fault
        self._step = step
        self._began_after = cluster.trace[-1].id if cluster.trace else 0
        self.replica: str | None = None

    @property
    def rows(self) -> Trace:
        return self._cluster.trace.where(
            lambda row: row.client == self._client and row.id > self._began_after
        )

    async def __call__(self, row: Row) -> None:
        rows = self.rows
        if self._fault is None or row.client != self._client or len(rows) != self._step:
            return
        self.replica = rows[-2].replica
        if self.replica is not None and self._cluster[self.replica].listens:
            await getattr(self._cluster[self.replica], VERBS[self._fault])()


def _rows_of(visitor: Visitor) -> Trace:
    return visitor.cluster.trace.by(client=visitor.name)


def _gone_at(replica: ClusterReplica) -> float:
    if replica.down_at is None:
        raise AssertionError(f"need {replica.name} to be down, but it is {replica.state}")
    return replica.down_at


def _settle(cluster: Cluster) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(row.open and row.status != 101 for row in cluster.trace) and time.monotonic() < deadline:
        time.sleep(0.002)


def _fail(message: str, rows: Iterable[Row]) -> None:
    raise AssertionError(_with_rows(message, Trace(rows)))


def _with_rows(message: str, rows: Trace) -> str:
    return f"{message}\n{rows.table(last=MOST_ROWS)}" if rows else message
