"""`lbkit sessions`: an operator lists, inspects and revokes, on a real Redis, and sees no value unasked."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from lbkit.cli import main
from lbkit.sessions import SessionOptions
from lbkit.sessions.codec import encode
from lbkit.sessions.store import CREATED, DEVICE, FORWARD, TOUCHED, USER, Delta, SyncStore
from lbkit.stores import store_from
from lbkit.wsgi import Sessions
from tests.redis_servers import Server, server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def store(running: Server) -> Iterator[SyncStore]:
    with running.client() as client:
        client.flushall()
    store = store_from(running.url)
    yield store
    store.close()


def begin(store: SyncStore, key: str, user: str | None, **values: object) -> None:
    fields = {CREATED: b"1790000000", TOUCHED: b"1790000060"}
    if user is not None:
        fields[USER] = user.encode()
        fields[DEVICE] = encode("device", {"ip": "192.0.2.7", "agent": "Firefox\x1b[2J"})
    fields |= {name.encode(): encode(name, value) for name, value in values.items()}
    store.commit(key, Delta(60, sets=fields, create=True))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["sessions", *arguments])


def test_list_shows_who_is_logged_in_since_when_and_from_where(store: SyncStore, running: Server) -> None:
    begin(store, "one", "alice", card="4111")
    begin(store, "two", None)
    store.commit("three", Delta(60, sets={FORWARD: b"one"}, create=True))
    result = run("list", "--store", running.url)
    assert result.exit_code == 0
    assert sorted(result.output.splitlines()) == [
        "one  alice  2026-09-21T14:13:20Z  2026-09-21T14:14:20Z  192.0.2.7  Firefox?[2J",
        "two  -  2026-09-21T14:13:20Z  2026-09-21T14:14:20Z",
    ]


def test_list_keeps_to_a_user_and_to_a_limit(store: SyncStore, running: Server) -> None:
    for number in range(5):
        begin(store, f"a{number}", "alice")
    begin(store, "b", "bob")
    found = run("list", "--store", running.url, "--user", "bob")
    assert [line.split()[0] for line in found.output.splitlines()] == ["b"]
    found = run("list", "--store", running.url, "--limit", "2")
    assert len(found.stdout.splitlines()) == 2
    assert found.stderr == "there are more than 2; --limit shows them\n"
    assert run("list", "--store", running.url, "--prefix", "other:").output == ""


def test_inspect_shows_values_only_to_who_asks(store: SyncStore, running: Server) -> None:
    begin(store, "one", "alice", cart=["tea"], card="4111")
    store.commit("one", Delta(sets={b"sealed": b"\x01\xff\xfe"}))
    result = run("inspect", "--store", running.url, "one")
    assert result.output.splitlines() == [
        "handle   one",
        "user     alice",
        "created  2026-09-21T14:13:20Z",
        "seen     2026-09-21T14:14:20Z",
        "ip       192.0.2.7",
        "agent    Firefox?[2J",
        "  card  6 bytes",
        "  cart  7 bytes",
        "  sealed  3 bytes",
    ]
    assert run("inspect", "--store", running.url, "one", "--values").output.splitlines()[-3:] == [
        "  card  6 bytes  '4111'",
        "  cart  7 bytes  ['tea']",
        "  sealed  3 bytes  (encrypted, or not readable)",
    ]


def test_inspect_follows_a_renewed_session_by_name(store: SyncStore, running: Server) -> None:
    store.commit("old", Delta(60, sets={FORWARD: b"new"}, create=True))
    assert run("inspect", "--store", running.url, "old").output == "renewed: it goes on as new\n"


def test_revoke_ends_the_sessions_of_a_user_and_no_other(store: SyncStore, running: Server) -> None:
    for key, user in (("one", "alice"), ("two", "alice"), ("three", "bob")):
        begin(store, key, user)
    assert run("revoke", "--store", running.url, "--user", "alice").output == "ended 2 sessions\n"
    assert [store.load(key) is None for key in ("one", "two", "three")] == [True, True, False]
    assert run("revoke", "--store", running.url, "three", "none").output == "ended 1 session\n"
    assert store.load("three") is None


@pytest.mark.parametrize("handle", ["-one", "-values", "--one", "--values-", "-tag.one"])
def test_a_handle_may_begin_with_a_dash(store: SyncStore, running: Server, handle: str) -> None:
    begin(store, handle, "alice")
    shown = run("inspect", "--store", running.url, handle, "--values").output
    assert shown.splitlines()[0] == f"handle   {handle}"
    assert run("revoke", handle, "--store", running.url).output == "ended 1 session\n"


def test_sessions_with_a_tag_are_seen_and_ended_like_any_other(store: SyncStore, running: Server) -> None:
    tagged = Sessions(running.url, secret_keys=["k" * 32], options=SessionOptions(tag_users=True))
    for user in ("alice", "alice", "bob"):
        session = tagged.open({})
        session["user_id"] = user
        session.save()
    begin(store, "plain", "alice")
    (bobs,) = (entry.handle for entry in tagged.list("bob"))
    handles = {entry.handle for entry in tagged.list("alice")} | {"plain"}
    found = run("list", "--store", running.url, "--user", "alice")
    assert {line.split()[0] for line in found.output.splitlines()} == handles
    shown = run("inspect", "--store", running.url, bobs).output.splitlines()
    assert (shown[0], shown[1], shown[-1]) == (f"handle   {bobs}", "user     bob", "  user_id  5 bytes")
    assert run("revoke", "--store", running.url, "--user", "alice").output == "ended 3 sessions\n"
    assert run("revoke", "--store", running.url, bobs).output == "ended 1 session\n"
    assert run("list", "--store", running.url).output == ""
    assert tagged.list("bob") == []
    tagged.close()


def test_the_store_may_come_from_the_environment(
    store: SyncStore, running: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(store, "one", "alice")
    monkeypatch.setenv("LBKIT_SESSIONS", running.url)
    assert run("list").output.startswith("one  alice")


def test_what_is_wrong_is_one_line_and_exit_code_2(running: Server) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = f"redis://:secret@127.0.0.1:{nobody.getsockname()[1]}"
        mistakes = {
            ("list",): "Missing option '--store'",
            ("list", "--store", "http://x"): "need sessions as a URL that begins with",
            ("list", "--store", "memory://"): "need a Redis URL",
            ("list", "--store", dead): "Connection refused",
            ("inspect", "--store", running.url, "none"): "there is no session with the handle none",
            ("revoke", "--store", running.url): "need handles or --user, and not both",
            ("revoke", "--store", running.url, "one", "--user", "alice"): "need handles or --user",
        }
        for arguments, message in mistakes.items():
            result = run(*arguments)
            assert result.exit_code == 2, arguments
            assert message in result.stderr
            assert result.stderr.count("\n") == 1
            assert "secret" not in result.output
