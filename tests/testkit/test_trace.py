"""The trace: rows, filters, a table for people and JSON lines for programs."""

from __future__ import annotations

import json
from pathlib import Path

from lbkit.testkit.row import Attempt, Row
from lbkit.testkit.trace import Trace


def row(trace: Trace, path: str, *attempts: tuple[str, int | None, str | None], client: str = "ann") -> Row:
    made = trace.begin(1.0, client=client, method="GET", path=path)
    for replica, status, fault in attempts:
        attempt = Attempt(replica, 1.0)
        attempt.status, attempt.fault, attempt.ended_at = status, fault, 1.002
        made.attempts.append(attempt)
    made.status = made.attempts[-1].status if attempts else 503
    made.first_byte_at = made.last_byte_at = made.done_at = 1.004
    return made


def shop() -> Trace:
    trace = Trace()
    row(trace, "/cart", ("web2", None, "refused"), ("web1", 200, None))
    row(trace, "/products/1", ("web1", 404, None), client="bob")
    row(trace, "/cart", ("web3", 200, None), client="bob")
    return trace


def test_rows_are_found_by_what_they_are() -> None:
    trace = shop()
    assert [each.id for each in trace.by(path="/cart")] == [1, 3]
    assert [each.id for each in trace.by(path="/products/*")] == [2]
    assert [each.id for each in trace.by(client="bob", status=200)] == [3]
    assert [each.id for each in trace.by(method="post")] == []
    assert [each.id for each in trace.by(replica="web2")] == [1]  # it was asked, though another one answered
    assert trace.counts() == {"web1": 2, "web3": 1}


def test_the_table_names_every_attempt() -> None:
    lines = shop().table().splitlines()
    assert lines[0].split() == ["#", "client", "request", "replica", "status", "attempts", "ms", "in/out"]
    assert "web2 refused, web1 200" in lines[1]
    assert lines[1].split()[:5] == ["1", "ann", "GET", "/cart", "web1"]
    assert shop().table(last=1).splitlines()[0] == "... 2 earlier"


def test_a_request_cannot_write_into_the_terminal() -> None:
    trace = Trace()
    row(trace, "/\x1b[31m\n", ("web1", 200, None))
    assert "\x1b" not in trace.table()
    assert len(trace.table().splitlines()) == 2


def test_json_lines_hold_what_the_table_shows(tmp_path: Path) -> None:
    shop().write(tmp_path / "trace.jsonl")
    first = json.loads((tmp_path / "trace.jsonl").read_text().splitlines()[0])
    assert first["replica"] == "web1"
    assert [each["fault"] for each in first["attempts"]] == ["refused", None]
    assert first["app_done_ms"] == 4.0


def test_what_counts_as_lost() -> None:
    trace = Trace()
    fine = row(trace, "/", ("web1", 404, None))
    failed = row(trace, "/", ("web1", 502, None))
    cut = row(trace, "/", ("web1", 200, None))
    cut.last_byte_at = None
    left = row(trace, "/", ("web1", 200, None))
    left.last_byte_at, left.disconnected = None, True
    assert [each.lost for each in (fine, failed, cut, left)] == [False, True, True, False]


def test_a_long_run_keeps_the_newest_rows() -> None:
    trace = Trace(most=10)
    for _ in range(25):
        row(trace, "/")
    assert len(trace) <= 10
    assert trace[-1].id == 25
