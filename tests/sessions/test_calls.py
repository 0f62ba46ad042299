"""What an app can ask of its session besides reading and writing: lock, reload, save, incr, expect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.asyncio

from lbkit.asgi import Sessions as ASGISessions
from lbkit.errors import (
    ConfigError,
    SessionConflict,
    SessionError,
    SessionLocked,
    SessionNotLoaded,
    SessionTypeError,
)
from lbkit.sessions import SessionOptions
from lbkit.sessions.store import ROOT
from lbkit.stores import MemoryStore, astore_from, store_from
from lbkit.wsgi import Sessions
from tests.redis_servers import Server
from tests.sessions.sites import KEYS, NAME, PATIENCE


@pytest.fixture(params=["memory://", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    made = store_from(url, timeout=PATIENCE)
    yield made
    made.close()


@pytest.fixture
def sessions(store: Any) -> Sessions:
    return Sessions(store, secret_keys=KEYS)


def begun(sessions: Sessions, **values: Any) -> dict[str, Any]:
    """The environ of a browser whose session holds these."""
    session = sessions.open({})
    session.update(values)
    session.save()
    return {"HTTP_COOKIE": str(session._cookie_due).partition(";")[0]}


def test_save_keeps_at_once_and_the_cookie_is_due(sessions: Sessions) -> None:
    environ = begun(sessions, n=1)
    one, other = sessions.open(environ), sessions.open(environ)
    assert not one.new
    one["n"] = 2
    one.save()
    assert other["n"] == 2
    assert environ["HTTP_COOKIE"].startswith(f"{NAME}=")


def test_reload_shows_what_others_wrote_and_spares_what_is_changed_here(sessions: Sessions) -> None:
    environ = begun(sessions, theirs=1, mine=1, gone=1, cart=["a"])
    one, other = sessions.open(environ), sessions.open(environ)
    one["mine"] = 2
    one["cart"].append("b")
    other.update(theirs=5, mine=5, new=5)
    del other["gone"]
    other.save()
    assert one["theirs"] == 1
    one.reload()
    assert dict(one) == {"theirs": 5, "mine": 2, "new": 5, "cart": ["a", "b"]}
    one.save()
    assert dict(sessions.open(environ)) == {"theirs": 5, "mine": 2, "new": 5, "cart": ["a", "b"]}


def test_a_lock_makes_read_change_write_one(sessions: Sessions) -> None:
    environ = begun(sessions, n=0)

    def count() -> None:
        for _ in range(5):
            with sessions.open(environ).lock(timeout=20) as session:
                session["n"] += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sessions.open(environ)["n"] == 20


def test_a_lock_that_is_taken_is_told_after_the_timeout_and_is_given_back_by_an_error(
    sessions: Sessions,
) -> None:
    environ = begun(sessions, n=0)

    def fail_inside() -> None:
        with sessions.open(environ).lock() as session:
            with (
                pytest.raises(SessionLocked, match=r"was not free within 0\.05 s"),
                sessions.open(environ).lock(timeout=0.05),
            ):
                pass
            session["n"] = 1
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    with sessions.open(environ).lock(timeout=0.05) as session:
        assert session["n"] == 0
    with sessions.open({}).lock() as new:  # nobody else can have it
        new["n"] = 1


def test_expect_raises_in_save(sessions: Sessions) -> None:
    environ = begun(sessions, n=0)
    one, other = sessions.open(environ), sessions.open(environ)
    one.expect("n")
    one["m"] = 1
    other["n"] = 1
    other.save()
    with pytest.raises(SessionConflict, match=r"session\['n'\] was changed by another request") as caught:
        one.save()
    assert caught.value.key == "n"
    one.reload()
    one.save()
    assert dict(sessions.open(environ)) == {"n": 1, "m": 1}


def test_expect_holds_through_a_rotation(sessions: Sessions) -> None:
    environ = begun(sessions, n=0)
    one, other = sessions.open(environ), sessions.open(environ)
    one.expect("n")
    one.rotate()
    other["n"] = 1
    other.save()
    with pytest.raises(SessionConflict):
        one.save()
    assert sessions.open(environ)["n"] == 1


def test_incr_refuses_what_is_no_counter(sessions: Sessions) -> None:
    session = sessions.open(begun(sessions, text="a", flag=True, n=5))
    for key, by, message in (
        ("text", 1, "a counter beside a str"),
        ("flag", 1, "a counter beside a bool"),
        ("n", 1.5, r"a step of 1\.5"),
        ("n", True, "a step of True"),
        ("n", 2**60, "a step of"),
    ):
        with pytest.raises(SessionTypeError, match=message):
            session.incr(key, by)  # type: ignore[arg-type]
    session.incr("n", -7)
    session.incr("fresh")
    assert (session["n"], session["fresh"]) == (-2, 1)
    session["n"] = 10
    session.incr("n")
    session.save()
    assert (session["n"], session["fresh"]) == (11, 1)


@pytest.mark.parametrize("other", ["", None, [], "text", False])
def test_a_counter_does_not_overwrite_what_another_request_has_put_in_its_place(
    sessions: Sessions, other: Any
) -> None:
    """Neither by a delta nor by a new id, which carries everything over."""
    for part in (False, True):
        environ = begun(sessions, n=0)
        one, two = sessions.open(environ), sessions.open(environ)
        one.incr("hits")
        two["hits"] = other
        two.save()
        if part:
            one.rotate()
        with pytest.raises(SessionTypeError, match="counter"):
            one.save()
        assert sessions.open(environ)["hits"] == other


def test_it_is_a_mapping_with_a_dicts_manners(sessions: Sessions) -> None:
    session = sessions.open(begun(sessions, a=1, b=[1]))
    assert session == {"a": 1, "b": [1]}
    assert (len(session), bool(session), "a" in session, 5 in session) == (2, True, True, False)
    assert session.get("none", 7) == 7
    assert session.pop("a") == 1
    assert session.setdefault("c", []) == []
    session |= {"d": None}
    assert session.copy() == {"b": [1], "c": [], "d": None}
    assert "d" in session
    with pytest.raises(KeyError, match="a"):
        session["a"]
    for key in (5, "\0c"):
        with pytest.raises(SessionTypeError):
            session[key] = 1  # type: ignore[index]
    assert repr(session) == "<Session, 3 keys>"
    assert not sessions.open({})


def test_a_template_finds_the_keys_of_the_app(sessions: Sessions) -> None:
    """`{{ session.device }}` asks for an attribute first, so there are as few as the work allows."""
    public = {name for name in dir(sessions.open({})) if not name.startswith("_")}
    assert public - set(dir(dict)) == {
        "accessed", "available", "expect", "incr", "lock", "modified", "new", "permanent", "reload",
        "rotate", "save",
    }  # fmt: skip


def test_modified_sees_nested_changes_and_reading_is_none(sessions: Sessions) -> None:
    session = sessions.open(begun(sessions, cart={"lines": [1]}, n=1))
    assert (session.accessed, session.modified, session.new) == (False, False, False)
    assert session["cart"]["lines"] == [1]
    assert (session.accessed, session.modified) == (True, False)
    session["cart"]["lines"].append(2)
    assert session.modified
    session.save()
    assert not session.modified


def test_a_new_session_is_available_and_new(sessions: Sessions) -> None:
    session = sessions.open({})
    assert (session.new, session.available, session.permanent) == (True, True, False)
    session.clear()
    session.rotate()
    session.save()
    assert session._cookie_due is None  # nothing was there, nothing is


@pytest.mark.parametrize("tag_users", [False, True])
def test_encrypted_values_can_be_read_by_the_cookie_alone(store: Any, tag_users: bool) -> None:
    options = SessionOptions(encrypt=True, tag_users=tag_users)
    sessions = Sessions(store, secret_keys=KEYS, options=options)
    environ = begun(sessions, word="tea for three", cart=["tea"])
    session = sessions.open(environ)
    assert session == {"word": "tea for three", "cart": ["tea"]}
    session["cart"].append("milk")
    session["user_id"] = "alice"  # a new id: everything is encrypted anew
    session.save()
    environ = {"HTTP_COOKIE": str(session._cookie_due).partition(";")[0]}
    found = sessions.open(environ)
    assert found["cart"] == ["tea", "milk"]
    assert found["word"] == "tea for three"
    assert b"tea" not in b"".join(store.load(found._key).values())
    assert not sessions.open(environ).modified
    with pytest.raises(SessionTypeError, match="the store cannot add to what is encrypted"):
        found.incr("n")


@pytest.mark.parametrize("tag_users", [False, True])
def test_an_encrypted_session_that_is_renewed_can_be_followed_by_the_old_id(
    store: Any, tag_users: bool
) -> None:
    now = 1_800_000_000.0
    options = SessionOptions(encrypt=True, renewal=600, renewal_grace=60, tag_users=tag_users)
    sessions = Sessions(store, secret_keys=KEYS, options=options, wall=lambda: now)
    cookies = [begun(sessions, word="tea for three", user_id="alice")]
    for renewal in range(3):
        now += 601
        session = sessions.open(cookies[-1])
        session["n"] = renewal
        session.save()
        cookies.append({"HTTP_COOKIE": str(session._cookie_due).partition(";")[0]})
        for cookie in cookies:
            follower = sessions.open(cookie)
            assert follower == {"word": "tea for three", "user_id": "alice", "n": renewal}
            assert not follower.modified
        follower = sessions.open(cookies[0])
        follower["from"] = f"the first id, {renewal}"
        follower.save()
        assert follower._cookie_due is None
        newest = sessions.open(cookies[-1])
        assert newest.pop("from") == f"the first id, {renewal}"
        newest.save()
    for key in store.scan(limit=9):
        assert b"tea" not in b"".join((store.load(key) or {}).values())
    last = sessions.open(cookies[-1])
    last.rotate()  # and here they all end
    last.save()
    assert [dict(sessions.open(cookie)) for cookie in cookies] == [{}] * 4
    rotated = sessions.open({"HTTP_COOKIE": str(last._cookie_due).partition(";")[0]})
    assert rotated["word"] == "tea for three"
    assert rotated._key is not None
    assert ROOT not in store.load(rotated._key)


def test_except_current_spares_the_session_of_the_request_alone(sessions: Sessions) -> None:
    from lbkit.wsgi import SessionMiddleware

    phone = begun(sessions, user_id="alice")
    laptop = begun(sessions, user_id="alice")
    told: list[Any] = []

    def app(_: Any, start_response: Any) -> list[bytes]:
        told.append([entry.current for entry in sessions.list("alice")])
        told.append(sessions.revoke("alice", except_current=True))
        start_response("200 OK", [])
        return []

    ask = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", **phone}
    list(SessionMiddleware(app, store=sessions)(ask, lambda *_: lambda _: None))
    assert sorted(told[0]) == [False, True]
    assert told[1] == 1
    assert sessions.open(phone)["user_id"] == "alice"
    assert "user_id" not in sessions.open(laptop)
    with pytest.raises(SessionError, match="except_current=True is for a request"):
        sessions.revoke("alice", except_current=True)


def test_a_user_who_logged_in_under_an_older_key_is_found(store: Any) -> None:
    old, new = Sessions(store, secret_keys=KEYS), Sessions(store, secret_keys=["n" * 32, *KEYS])
    environ = begun(old, user_id=7)
    begun(new, user_id=7)
    assert len(new.list(7)) == 2
    assert new.revoke(7) == 2
    assert "user_id" not in new.open(environ)


# ASGI.


def scope_of(environ: dict[str, str]) -> Any:
    cookie = environ.get("HTTP_COOKIE", "").encode()
    return {"type": "http", "headers": [(b"cookie", cookie)] if cookie else []}


def drive(store: Any, test: Callable[[ASGISessions], Any]) -> None:
    """Run an asynchronous test on the sessions that the blocking ones are in, too."""

    async def main() -> None:
        awaited = ASGISessions(store, secret_keys=KEYS)
        try:
            await test(awaited)
        finally:
            await awaited.close()

    asyncio.run(main())


def test_asgi_must_load_where_there_is_something_to_wait_for(redis_url: str) -> None:
    environ = begun(Sessions(store_from(redis_url, timeout=PATIENCE), secret_keys=KEYS), n=1)

    async def test(sessions: ASGISessions) -> None:
        fresh = sessions.open(scope_of({}))
        assert fresh.get("n") is None  # without a cookie there is nothing to wait for
        session = sessions.open(scope_of(environ))
        with pytest.raises(SessionNotLoaded, match=r"await request.session.load\(\)"):
            session["n"]
        assert (await session.load()) is session
        assert (await session.load())["n"] == 1
        async with sessions.open(scope_of(environ)).lock() as locked:
            locked["n"] += 1
            with pytest.raises(SessionLocked):
                async with session.lock(timeout=0.05):
                    pass
        await session.reload()
        assert session["n"] == 2

    drive(astore_from(redis_url, timeout=PATIENCE), test)


@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize("client", [False, True], ids=["pipe", "redis-py"])
def test_a_client_that_leaves_does_not_undo_what_is_being_kept(
    redis_server: Server, redis_url: str, client: bool, login: bool
) -> None:
    """Redis is held until the request has been cancelled, and does what it was asked all the same."""
    blocking = Sessions(store_from(redis_url, timeout=PATIENCE), secret_keys=KEYS)
    environ = begun(blocking, n=1)

    async def test() -> None:
        library = redis.asyncio.Redis.from_url(redis_url)
        store = library if client else astore_from(redis_url, timeout=PATIENCE)
        sessions = ASGISessions(store, secret_keys=KEYS)
        session = await sessions.open(scope_of(environ)).load()
        session["n"] = 2
        if login:
            session["user_id"] = "alice"
        redis_server.hold()
        request = asyncio.create_task(session.save())
        for _ in range(5):
            await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        redis_server.resume()
        await sessions.close()  # whoever drains waits for it
        await library.aclose()

    asyncio.run(test())
    if login:
        assert [entry.ip for entry in blocking.list("alice")] == [None]
        assert "n" not in blocking.open(environ)
    else:
        assert blocking.open(environ)["n"] == 2


def test_a_commit_that_hangs_is_cut_at_the_deadline(redis_url: str) -> None:
    environ = begun(Sessions(store_from(redis_url, timeout=PATIENCE), secret_keys=KEYS), n=1)

    async def main() -> None:
        options = SessionOptions(commit_deadline=0.05)
        store = astore_from(redis_url, timeout=PATIENCE)
        sessions = ASGISessions(store, secret_keys=KEYS, options=options)
        session = await sessions.open(scope_of(environ)).load()

        async def never(*_: Any) -> Any:
            await asyncio.Event().wait()

        sessions.store.commit = never  # type: ignore[method-assign]
        sessions.store.detached = False
        session["n"] = 2
        with pytest.raises(SessionError, match="before the deadline"):
            await session.save()
        await sessions.close()

    asyncio.run(main())


def test_a_store_of_the_other_colour_is_refused() -> None:
    with pytest.raises(ConfigError, match="need a store that is awaited for an ASGI app"):
        ASGISessions(store_from("redis://127.0.0.1:1/0"), secret_keys=KEYS)
    with pytest.raises(ConfigError, match="need a store that blocks for a WSGI app"):
        Sessions(astore_from("redis://127.0.0.1:1/0"), secret_keys=KEYS)
    ASGISessions(MemoryStore(), secret_keys=KEYS)  # this one can be both
