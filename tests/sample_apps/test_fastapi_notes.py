"""The notes behind three replicas: written on one, read on the next, and honest when the database is away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from lbkit.asgi import Balancer
from sample_apps.fastapi_notes.app import create_app
from tests.sample_apps.live import LIMIT, replica, served


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "notes.sqlite3"


@pytest.fixture
def client(file: Path) -> Iterator[httpx.Client]:
    balancer = Balancer.from_factory(lambda: create_app(file), replicas=3)
    with served(balancer) as url, httpx.Client(base_url=url, timeout=LIMIT) as client:
        yield client


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """For what is refused, and so leaves no trace for the next test."""
    file = tmp_path_factory.mktemp("notes") / "notes.sqlite3"
    balancer = Balancer.from_factory(lambda: create_app(file), replicas=3)
    with served(balancer) as url, httpx.Client(base_url=url, timeout=LIMIT) as client:
        yield client


def write(client: httpx.Client, title: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/api/notes", json={"title": title, **more})
    assert answer.status_code == 201
    return cast(dict[str, Any], answer.json())


def titles(client: httpx.Client, **query: Any) -> list[str]:
    answer = client.get("/api/notes", params=query)
    assert answer.status_code == 200
    return [note["title"] for note in answer.json()["notes"]]


def test_a_note_is_written_read_changed_and_deleted_on_a_different_replica_each_time(
    client: httpx.Client,
) -> None:
    written = client.post("/api/notes", json={"title": "Shopping", "body": "Sencha"})
    here = written.headers["location"]
    read = client.get(here)
    changed = client.put(here, json={"title": "Shopping", "body": "Honey", "version": 1})
    read_again = client.get(here)
    deleted = client.delete(here)
    gone = client.get(here)
    answers = [written, read, changed, read_again, deleted, gone]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 200, 204, 404]
    assert [replica(answer) for answer in answers] == ["web1", "web2", "web3"] * 2
    assert read.json() == written.json()
    assert read_again.json() == changed.json()
    assert (changed.json()["body"], changed.json()["version"]) == ("Honey", 2)


def test_three_replicas_give_three_notes_three_ids(client: httpx.Client) -> None:
    assert [write(client, title)["id"] for title in "abc"] == [1, 2, 3]


def test_a_search_finds_part_of_a_title_or_text_in_any_case_and_takes_signs_as_they_are(
    client: httpx.Client,
) -> None:
    write(client, "Straße", body="Ährenfeld")
    write(client, "100 %", body="under_score")
    assert titles(client, q="STRASSE") == ["Straße"]
    assert titles(client, q="ähren") == ["Straße"]
    assert titles(client, q="%") == ["100 %"]
    assert titles(client, q="r_s") == ["100 %"]
    assert titles(client, q="'; DROP TABLE notes; --") == []
    assert len(titles(client)) == 2


def test_pinned_notes_come_first_then_the_latest_changed(client: httpx.Client) -> None:
    first = write(client, "first")
    write(client, "pinned", pinned=True)
    write(client, "third")
    client.put(f"/api/notes/{first['id']}", json={"title": "first", "version": 1})
    assert titles(client) == ["pinned", "first", "third"]


def test_a_long_list_comes_in_pages_that_say_how_many_there_are(client: httpx.Client) -> None:
    for title in "ecadb":
        write(client, title)
    pages = [client.get("/api/notes", params={"limit": 2, "offset": at}).json() for at in (0, 2, 4, 6)]
    assert [page["total"] for page in pages] == [5] * 4
    assert [[note["title"] for note in page["notes"]] for page in pages] == [
        ["b", "d"],
        ["a", "c"],
        ["e"],
        [],
    ]


def test_a_change_of_a_version_that_is_no_longer_the_latest_is_refused_and_shows_the_latest(
    client: httpx.Client,
) -> None:
    here = f"/api/notes/{write(client, 'mine')['id']}"
    assert client.put(here, json={"title": "theirs", "version": 1}).status_code == 200
    refused = client.put(here, json={"title": "mine again", "version": 1})
    assert refused.status_code == 409
    assert refused.json()["current"] == client.get(here).json()
    assert titles(client) == ["theirs"]


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("title", {}),
        ("title", {"title": ""}),
        ("title", {"title": "x" * 201}),
        ("title", {"title": "two\nlines"}),
        ("title", {"title": 1}),
        ("body", {"title": "x", "body": "x" * 20_001}),
        ("body", {"title": "x", "body": "\x00"}),
        ("pinned", {"title": "x", "pinned": "perhaps"}),
        ("colour", {"title": "x", "colour": "red"}),
    ],
)
def test_a_note_that_breaks_a_rule_is_refused_by_the_name_of_the_field(
    strict: httpx.Client, field: str, body: dict[str, Any]
) -> None:
    answer = strict.post("/api/notes", json=body)
    assert answer.status_code == 422
    assert [fault["loc"] for fault in answer.json()["detail"]] == [["body", field]]
    assert len(answer.content) < 1000  # it does not send the 20,001 characters back
    assert titles(strict) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"title": "half a pair \\ud800"}', 422),
        (b'{"title": "x", "\\ud800": 1}', 422),
        (b'{"title": "x", "version": 1e400}', 422),
        (b"{", 422),
        (b"[]", 422),
        (b"\xff", 400),
    ],
)
def test_a_body_that_no_client_of_ours_would_send_is_the_clients_mistake(
    strict: httpx.Client, body: bytes, status: int
) -> None:
    answer = strict.post("/api/notes", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/notes/0",
        "/api/notes/one",
        f"/api/notes/{2**63}",
        "/api/notes?limit=0",
        "/api/notes?limit=101",
        "/api/notes?offset=-1",
        f"/api/notes?offset={2**63}",
        f"/api/notes?q={'x' * 201}",
    ],
)
def test_an_address_outside_the_rules_is_refused(strict: httpx.Client, path: str) -> None:
    assert strict.get(path).status_code == 422


def test_what_is_not_there_is_not_found(client: httpx.Client) -> None:
    here = f"/api/notes/{2**63 - 1}"
    assert client.get(here).json() == {"detail": f"there is no note {2**63 - 1}"}
    assert client.put(here, json={"title": "x", "version": 1}).status_code == 404
    assert client.delete(here).status_code == 404


def test_the_notes_outlive_every_replica(file: Path) -> None:
    for title in ("before", "after"):
        with served(create_app(file)) as url, httpx.Client(base_url=url) as client:
            write(client, title)
    with served(create_app(file)) as url, httpx.Client(base_url=url) as client:
        assert titles(client) == ["after", "before"]


def test_while_the_database_is_away_health_says_so_and_the_api_answers_503(
    client: httpx.Client, file: Path
) -> None:
    write(client, "kept")
    away = file.rename(file.with_name("away"))
    assert [client.get("/health/ready").status_code for _ in range(3)] == [503] * 3
    detail = client.get("/health/detailed")
    assert (detail.status_code, detail.json()["status"]) == (503, "unhealthy")
    assert detail.json()["checks"]["database"]["status"] == "unhealthy"
    assert str(file) not in detail.text
    assert [client.get("/health").status_code for _ in range(3)] == [200] * 3
    refused = client.get("/api/notes")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert not file.exists()  # nobody has made a new, empty one

    away.rename(file)
    assert titles(client) == ["kept"]
    until_ready(client)


def until_ready(client: httpx.Client) -> None:
    """A failed check is asked again after a second; how long that takes is not ours to measure here."""
    deadline = time.monotonic() + LIMIT
    while {client.get("/health/ready").status_code for _ in range(3)} != {200}:
        assert time.monotonic() < deadline, client.get("/health/detailed").text
        time.sleep(0.05)


def test_the_openapi_schema_shows_the_notes_and_the_health_endpoints(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/api/notes", "/api/notes/{number}", "/health", "/health/detailed"} <= set(schema["paths"])
    assert "409" in schema["paths"]["/api/notes/{number}"]["put"]["responses"]
    assert client.get("/docs").status_code == 200
