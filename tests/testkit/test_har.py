"""A trace as an HTTP archive: what the specification requires, and what a person finds in a network panel."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lbkit.testkit import Cluster, Trace
from tests.testkit.cluster_apps import Notes, starlette_shop

NUMBER, STAMP, TEXT = (int, float), "a time with its zone", str
REQUIRED: dict[str, Any] = {
    # As HAR 1.2 has it, without what it calls optional.
    "log": {"version": TEXT, "creator": {"name": TEXT, "version": TEXT}, "entries": list},
    "entry": {
        "startedDateTime": STAMP,
        "time": NUMBER,
        "request": {
            "method": TEXT,
            "url": TEXT,
            "httpVersion": TEXT,
            "cookies": list,
            "headers": list,
            "queryString": list,
            "headersSize": int,
            "bodySize": int,
        },
        "response": {
            "status": int,
            "statusText": TEXT,
            "httpVersion": TEXT,
            "cookies": list,
            "headers": list,
            "content": {"size": int, "mimeType": TEXT},
            "redirectURL": TEXT,
            "headersSize": int,
            "bodySize": int,
        },
        "cache": {},
        "timings": {"send": NUMBER, "wait": NUMBER, "receive": NUMBER},
    },
}
OPTIONAL = {"pages", "blocked", "dns", "connect", "ssl"}


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Of a cluster that was asked well, while a replica hung, by a websocket, and when all were down."""
    with Cluster([starlette_shop(Notes()) for _ in range(3)], timeout=0.5) as cluster:
        client = cluster.client()
        client.post("/", content=b"12345")
        cluster["web2"].hang(path="/session")
        client.get("/session")
        with client.ws("/room"):
            pass
        for replica in cluster:
            replica.kill()
        client.get("/a b")
        return cluster.trace


def test_every_object_has_what_is_required_and_names_its_own_fields_with_an_underscore(trace: Trace) -> None:
    archive = trace.har()
    assert list(archive) == ["log"]
    check(archive["log"], REQUIRED["log"])
    assert len(archive["log"]["entries"]) > 4
    for entry in archive["log"]["entries"]:
        check(entry, REQUIRED["entry"])
        timings = {name: entry["timings"][name] for name in ("send", "wait", "receive")}
        assert min(timings.values()) >= 0
        assert entry["time"] == sum(timings.values())


def check(found: dict[str, Any], required: dict[str, Any]) -> None:
    assert required.keys() <= found.keys()
    own = found.keys() - required.keys() - OPTIONAL
    assert all(name.startswith("_") for name in own), own
    for name, kind in required.items():
        if isinstance(kind, dict):
            check(found[name], kind)
        elif kind is STAMP:
            assert datetime.fromisoformat(found[name]).tzinfo is not None
        else:
            assert isinstance(found[name], kind), name


def test_there_is_an_entry_for_each_attempt_and_its_host_is_the_replica(trace: Trace) -> None:
    entries: dict[int, list[Any]] = {}
    for entry in trace.har()["log"]["entries"]:
        entries.setdefault(entry["_dispatch"], []).append(entry)
    post, hung, socket, refused = (entries[row.id] for row in trace)
    assert [each["request"]["url"] for each in post] == ["http://web1/"]
    assert (post[0]["response"]["status"], post[0]["_outcome"]) == (200, "answered")
    assert post[0]["request"]["bodySize"] == 5
    assert post[0]["response"]["bodySize"] == post[0]["response"]["content"]["size"] == trace[0].bytes_out

    silent, answered = hung
    assert (silent["_replica"], silent["_outcome"]) == ("web2", "retried")
    assert (silent["_injected"], silent["_fault"]) == ("hang()", "timeout")
    assert (silent["response"]["status"], silent["response"]["statusText"]) == (0, "timeout")
    assert silent["timings"]["wait"] >= 500
    assert (answered["_replica"], answered["_attempt"], answered["_attempts"]) == ("web3", 2, 2)
    assert {each["_client_status"] for each in hung} == {answered["response"]["status"]}

    assert socket[0]["request"]["url"] == "ws://web1/room"
    assert (socket[0]["_resourceType"], socket[0]["response"]["status"]) == ("websocket", 101)
    assert {each["_outcome"] for each in refused} == {"retried", "lost"}
    assert refused[0]["request"]["url"].endswith("/a%20b")


def test_a_request_that_no_replica_was_asked_is_the_balancers(tmp_path: Path) -> None:
    trace = Trace(epoch=1_000_000_000.0)
    row = trace.begin(1.5, client="ann", method="GET", path="/cart")
    row.status, row.first_byte_at, row.last_byte_at, row.done_at = 503, 1.502, 1.503, 1.503
    trace.where(lambda _: True).write(tmp_path / "trace.har")
    (entry,) = json.loads((tmp_path / "trace.har").read_text("utf-8"))["log"]["entries"]
    assert entry["startedDateTime"] == "2001-09-09T01:46:41.500000+00:00"
    assert (entry["request"]["url"], entry["response"]["status"]) == ("http://balancer/cart", 503)
    assert (entry["timings"]["wait"], entry["timings"]["receive"], entry["time"]) == (2.0, 1.0, 3.0)


def test_the_times_of_an_archive_are_those_of_the_day(trace: Trace) -> None:
    stamps = [datetime.fromisoformat(entry["startedDateTime"]) for entry in trace.har()["log"]["entries"]]
    assert stamps == sorted(stamps)
    assert time.time() - 60 <= stamps[0].timestamp() <= stamps[-1].timestamp() <= time.time()
