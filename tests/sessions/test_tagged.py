"""`tag_users=True`: a session lies beside the index of its user, and both are written as one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from lbkit.sessions import SessionOptions
from lbkit.sessions.cookie import SessionCookie, key_of_id
from lbkit.sessions.line import Flow
from lbkit.sessions.store import CREATED, TOUCHED, USER, Delta
from lbkit.stores import MemoryStore, store_from
from lbkit.wsgi import Sessions
from tests.redis_servers import Server
from tests.sessions.sight import Commands, Wall, keys
from tests.sessions.sites import KEYS, NAME, PATIENCE, Browser, site

TAGGED = SessionOptions(tag_users=True)
PLAIN = SessionOptions()


@pytest.fixture(params=["flask", "asgi"])
def gateway(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shop(gateway: str, redis_url: str) -> Iterator[Any]:
    with site(gateway, redis_url, options=TAGGED) as made:
        yield made


def sid(browser: Browser) -> str:
    return browser.cookie.partition(".")[0]


def tag(browser: Browser) -> str:
    return sid(browser)[43:]


# What it costs, and what it saves.


@pytest.mark.parametrize(
    ("options", "trips"),
    [
        (PLAIN, {"new": 2, "/read": 1, "/write?v=2": 2, "/login?user=bob": 5, "/rotate": 5, "/logout": 3}),
        (TAGGED, {"new": 1, "/read": 1, "/write?v=2": 2, "/login?user=bob": 3, "/rotate": 3, "/logout": 2}),
    ],
    ids=["without", "with"],
)
def test_a_login_needs_no_second_trip_for_the_index(
    gateway: str, redis_url: str, redis_server: Server, options: SessionOptions, trips: dict[str, int]
) -> None:
    with site(gateway, redis_url, options=options) as shop:
        for path in ("/login", "/rotate", "/logout"):  # the scripts are known, the connection is there
            Browser(shop).get(path)
        commands, browser, found = Commands(redis_server), Browser(shop), {}
        for path in trips:
            browser.get("/login" if path == "new" else path)
            told = commands.since()
            found[path] = told.get("hgetall", 0) + told.get("evalsha", 0)
            assert "eval" not in told
    assert found == trips


def test_only_who_is_logged_in_has_a_tag_and_it_is_the_users(shop: Any, redis_server: Server) -> None:
    browser, phone, bob = Browser(shop), Browser(shop), Browser(shop)
    browser.get("/nest?v=tea")
    assert tag(browser) == ""
    for each, user in ((browser, "alice"), (phone, "alice"), (bob, "bob")):
        each.get(f"/login?user={user}")
    assert tag(browser) == tag(phone) != tag(bob)
    assert len(tag(browser)) == 11
    assert {key for key in keys(redis_server) if ":s:" in key} == set()  # the id without a tag has ended
    hashed = {key_of_id(sid(each)).partition(".")[2] for each in (browser, phone)}
    index = SessionCookie(secret_keys=KEYS).users("alice")[0].removeprefix(tag(browser))
    ours = {f"lbkit:{{{tag(browser)}}}{rest}" for rest in (*(f"s:{each}" for each in hashed), f"u:{index}")}
    assert {key for key in keys(redis_server) if tag(browser) in key} == ours
    before = dict(browser.jar)
    browser.get("/login?user=bob")
    assert tag(browser) == tag(bob)
    assert Browser(shop, before).get("/dump").json() == {}
    browser.get("/logout?flash=1")
    assert (tag(browser), browser.get("/dump").json()) == ("", {"flash": "bye"})
    assert [len(shop.do("list", user)) for user in ("alice", "bob")] == [1, 1]
    phone.get("/logout")
    bob.get("/logout")
    assert keys(redis_server) == {f"lbkit:s:{key_of_id(sid(browser))}"}


def test_fifty_who_write_while_a_user_logs_in_and_fifty_after_it_lose_nothing(shop: Any) -> None:
    """All have read before the first one writes."""
    browser = Browser(shop)
    browser.get("/write")

    def all_write(name: str) -> None:
        together = threading.Barrier(50, timeout=20)
        with ThreadPoolExecutor(50) as pool:
            paths = [f"/write?k={name}{number}" for number in range(50)]
            jar = dict(browser.jar)
            replies = list(
                pool.map(lambda path: Browser(shop, jar).get(path, meanwhile=together.wait), paths)
            )
        assert [(reply.status, reply.set_cookies) for reply in replies] == [(200, [])] * 50

    browser.get("/login", meanwhile=lambda: all_write("during"))
    all_write("after")
    wrote = {f"{name}{number}" for name in ("during", "after") for number in range(50)}
    assert browser.get("/dump").json().keys() == wrote | {"n", "user_id"}
    assert len(shop.do("list", "alice")) == 1


def test_who_was_under_way_during_a_login_or_logout_gets_nothing_of_it(
    shop: Any, redis_server: Server
) -> None:
    browser = Browser(shop)
    browser.get("/write")
    before = dict(browser.jar)
    late = Browser(shop, dict(before))
    late.get("/write?k=late", meanwhile=lambda: browser.get("/login"))
    assert (late.jar, late.get("/dump").json()) == (before, {})
    before = dict(browser.jar)
    late = Browser(shop, dict(before))
    late.get("/rotate", meanwhile=lambda: browser.get("/logout"))
    assert (late.jar, late.get("/dump").json()) == (before, {})
    assert keys(redis_server) == set()


# On, off, and on again.


@pytest.mark.parametrize(
    "turns", [*itertools.product([TAGGED, PLAIN], repeat=2)], ids=["11", "10", "01", "00"]
)
def test_whether_it_was_on_or_off_nobody_is_hidden_or_logged_out(
    gateway: str, redis_url: str, turns: tuple[SessionOptions, SessionOptions]
) -> None:
    first, second = turns
    jars = []
    for options in (TAGGED, PLAIN, first):
        with site(gateway, redis_url, options=options) as shop:
            jars.append(Browser(shop))
            jars[-1].get("/login")
    with site(gateway, redis_url, options=second) as shop:
        phones = [Browser(shop, dict(browser.jar)) for browser in jars]
        assert [phone.get("/read?k=user_id").json() for phone in phones] == ["alice"] * 3
        assert [phone.jar for phone in phones] == [browser.jar for browser in jars]
        listed = shop.do("list", "alice")
        assert {entry.handle for entry in listed} == {key_of_id(sid(phone)) for phone in phones}
        tagged = next(entry.handle for entry in listed if "." in entry.handle)
        assert shop.do("revoke_id", tagged, user="bob") is False
        assert shop.do("revoke_id", tagged, user="alice") is True
        assert shop.do("revoke_id", tagged, user="alice") is False
        left = [phone for phone in phones if key_of_id(sid(phone)) != tagged]
        left[0].get("/rotate")
        assert bool(tag(left[0])) is second.tag_users
        assert shop.do("revoke", "alice") == 2
        assert [phone.get("/dump").json() for phone in phones] == [{}] * 3
        assert shop.do("list", "alice") == []


RENEWING = {tagging: SessionOptions(tag_users=tagging, renewal=600) for tagging in (False, True)}
TURNS = [(PLAIN, RENEWING[True]), (TAGGED, RENEWING[False]), (TAGGED, RENEWING[True])]


@contextmanager
def due(
    gateway: str, redis_url: str, before: SessionOptions, after: SessionOptions
) -> Iterator[tuple[Browser, Browser]]:
    """Twice the same browser, logged in under the options of before, whose id is due to be renewed."""
    wall = Wall()
    with site(gateway, redis_url, options=before, wall=wall) as shop:
        browser = Browser(shop)
        browser.get("/login")
    wall.now += 601
    with site(gateway, redis_url, options=after, wall=wall) as browser.site:
        yield browser, Browser(browser.site, dict(browser.jar))


@pytest.mark.parametrize("turn", TURNS, ids=["on", "off", "stays"])
def test_a_renewal_takes_on_the_kind_of_today_and_the_old_id_follows(
    gateway: str, redis_url: str, turn: tuple[SessionOptions, SessionOptions]
) -> None:
    with due(gateway, redis_url, *turn) as (browser, old):
        # Someone under way does not get lost either, and neither does one who comes with the old id later.
        old.get("/write?k=late", meanwhile=lambda: browser.get("/read"))
        assert bool(tag(browser)) is turn[1].tag_users
        assert old.get("/write?k=follows").set_cookies == []
        assert browser.get("/dump").json() == {"user_id": "alice", "late": "1", "follows": "1"}
        assert [entry.handle for entry in browser.site.do("list", "alice")] == [key_of_id(sid(browser))]


@pytest.mark.parametrize("turn", TURNS, ids=["on", "off", "stays"])
def test_a_logout_that_did_not_see_such_a_renewal_ends_the_session(
    gateway: str, redis_url: str, redis_server: Server, turn: tuple[SessionOptions, SessionOptions]
) -> None:
    with due(gateway, redis_url, *turn) as (browser, late):
        late.get("/logout", meanwhile=lambda: browser.get("/read"))
        assert browser.get("/dump").json() == {}
        assert browser.site.do("list", "alice") == []
    assert len(keys(redis_server)) == 1  # what leads from the old id to where there is nothing


# Keys that come and go. From here on without a gateway.

OLD, NEW = KEYS[0], "n" * 32


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    made = store_from(url, timeout=PATIENCE)
    yield made
    made.close()


def begun(sessions: Sessions, **values: Any) -> dict[str, Any]:
    """The environ of a browser whose session holds these."""
    session = sessions.open({})
    session.update(values)
    session.save()
    return {"HTTP_COOKIE": str(session._cookie_due).partition(";")[0]}


def used(sessions: Sessions, environ: dict[str, Any]) -> Any:
    """The session of one request. The environ is the browser's, which takes a cookie that it gets."""
    session = sessions.open(environ)
    dict(session)
    session.save()
    if session._cookie_due is not None:
        environ["HTTP_COOKIE"] = session._cookie_due.partition(";")[0]
    return session


def test_the_tag_of_an_older_key_is_good_until_a_newer_one_takes_its_place(store: Any) -> None:
    wall = Wall()
    make = [{"secret_keys": keys, "options": TAGGED, "wall": wall} for keys in ([OLD], [NEW, OLD], [NEW])]
    old, both, new = (Sessions(store, **named) for named in make)
    phone, laptop = begun(old, user_id="alice"), begun(old, user_id="alice")
    wall.now += 20  # a replica that has not got the new key yet may have just begun it: it is left alone
    before = used(both, phone)._key
    wall.now += 11
    session = used(both, phone)
    assert session._key is not None
    assert session._key.partition(".")[0] != str(before).partition(".")[0]
    assert used(both, phone)._key == session._key  # once is enough
    assert session == {"user_id": "alice"}
    assert len(both.list("alice")) == 2
    # The old key is gone: who did not come meanwhile could not be found to be revoked, and is logged out.
    assert used(new, phone) == {"user_id": "alice"}
    assert used(new, laptop) == {}
    assert [entry.handle for entry in new.list("alice")] == [session._key]
    assert new.revoke("alice") == 1


@pytest.mark.parametrize("tag_users", [False, True])
def test_who_has_come_with_the_new_key_is_found_when_the_old_one_is_gone(store: Any, tag_users: bool) -> None:
    wall, options = Wall(), SessionOptions(tag_users=tag_users)
    old, both, new = (
        Sessions(store, secret_keys=keys, options=options, wall=wall) for keys in ([OLD], [NEW, OLD], [NEW])
    )
    phone, laptop, nobody = begun(old, user_id="alice"), begun(old, user_id="alice"), begun(old, n=1)
    wall.now += 31
    for environ in (phone, nobody, phone):
        used(both, environ)
    assert (len(both.list("alice")), len(new.list("alice"))) == (2, 1)
    assert used(new, phone) == {"user_id": "alice"}
    assert used(new, nobody) == {"n": 1}
    assert used(new, laptop) == {}  # its cookie is nobody's by now
    assert new.revoke("alice") == 1
    assert used(new, phone) == {}


def test_a_websocket_that_an_old_key_has_let_in_is_not_noted_with_each_word(store: Any) -> None:
    environ = begun(Sessions(store, secret_keys=[OLD]), user_id="alice")
    session = Sessions(store, secret_keys=[NEW, OLD]).open(environ)
    noted, index = [], store.index
    store.index = lambda *user, **named: (noted.append(user), index(*user, **named))
    for word in range(5):
        session["word"] = word
        session.save()
        session._departed = True
    assert len(noted) == 1


@pytest.mark.parametrize(
    ("holder", "good"),
    [("alice", True), ("bob", False), (None, False)],
    ids=["its user", "another", "nobody"],
)
def test_a_session_whose_tag_is_not_its_users_is_none(store: Any, holder: str | None, good: bool) -> None:
    """Whatever wrote it: a revocation of that user would not find it."""
    sessions = Sessions(store, secret_keys=[NEW, OLD], options=TAGGED)
    for name in sessions.cookie.users("alice"):
        own = "A" * 43 + name[:11]
        fields = {CREATED: b"%d" % Wall().now, TOUCHED: b"%d" % Wall().now, b"n": b"1"}
        if holder is not None:
            fields[USER] = holder.encode()
        store.commit(key_of_id(own), Delta(60, sets=fields, create=True))
        environ = {"HTTP_COOKIE": f"{NAME}={sessions.cookie.sign(own, Wall().now)}"}
        assert dict(sessions.open(environ)) == ({"n": 1} if good else {})


@pytest.mark.parametrize("tag_users", [False, True])
def test_who_stays_logged_in_for_ever_stays_listed(store: Any, tag_users: bool) -> None:
    wall = Wall()
    options = SessionOptions(tag_users=tag_users, absolute=None, idle=1000, remember=1000)
    sessions = Sessions(store, secret_keys=[NEW, OLD], options=options, wall=wall)
    before = Sessions(store, secret_keys=[OLD], options=options, wall=wall)
    browsers = [begun(sessions, user_id="alice"), begun(before, user_id="alice")]
    for _ in range(12):
        wall.now += 290
        for number, environ in enumerate(browsers):
            session = sessions.open(environ)
            session["n"] = number
            session.save()
            if session._cookie_due is not None:
                environ["HTTP_COOKIE"] = session._cookie_due.partition(";")[0]
        assert len(sessions.list("alice")) == 2
    assert sessions.revoke("alice") == 2
    assert [dict(sessions.open(environ)) for environ in browsers] == [{}, {}]


@pytest.mark.parametrize("turn", [(False, True), (True, False), (True, True)], ids=["on", "off", "stays"])
def test_a_late_write_that_would_put_off_the_end_finds_a_session_that_was_renewed(
    store: Any, turn: tuple[bool, bool]
) -> None:
    """The index of the old id may lie elsewhere, and it needs no entry any more."""
    wall, lasts = Wall(), {"absolute": None, "idle": 1000, "remember": 1000, "renewal": 600}
    before, after = (
        Sessions(store, secret_keys=KEYS, options=SessionOptions(tag_users=each, **lasts), wall=wall)
        for each in turn
    )
    environ = begun(before, user_id="alice")
    wall.now += 601
    stream = after.open(environ)
    assert stream["user_id"] == "alice"
    stream._departed = True
    renewed = used(after, environ)
    stream["late"] = 1
    stream.save()
    assert dict(after.open(environ)) == {"user_id": "alice", "late": 1}
    assert [entry.handle for entry in after.list("alice")] == [renewed._key]


def test_a_user_may_be_called_anything(store: Any) -> None:
    sessions = Sessions(store, secret_keys=KEYS, options=TAGGED)
    for user in ("a.b", "", "x" * 5000, "ü}{:s:", "\ud800", 7, -1.5):
        environ = begun(sessions, user_id=user)
        assert sessions.open(environ)["user_id"] == user
        assert len(sessions.list(user)) == 1
        assert sessions.revoke(user) == 1
        assert dict(sessions.open(environ)) == {}


# Revocation, and whoever comes in between.


def drawn_out(flow: Flow[Any], store: Any) -> Iterator[None]:
    """One call to the store at a time."""
    try:
        call: Any = next(flow)
        while True:
            answer = call(store)
            yield
            call = flow.send(answer)
    except StopIteration:
        return


def schedules(one: int, other: int) -> Iterator[list[bool]]:
    """All orders in which two can make so many steps; True is a step of the first."""
    for places in itertools.combinations(range(one + other), one):
        yield [place in places for place in range(one + other)]


def rotate(session: Any) -> None:
    session.rotate()


def move(session: Any) -> None:
    session["n"] = 2
    session["user_id"] = "alice"


SCENES: dict[str, tuple[SessionOptions, SessionOptions, dict[str, Any] | None, Callable[[Any], None]]] = {
    f"{name}, {kind}": (before, after, held, act)
    for name, held, act in (
        ("a first login", None, move),
        ("a login", {"n": 1}, move),
        ("a rotation", {"user_id": "alice"}, rotate),
    )
    for kind, before, after in (
        ("without", PLAIN, PLAIN),
        ("with", TAGGED, TAGGED),
        ("turned on", PLAIN, TAGGED),
        ("turned off", TAGGED, PLAIN),
    )
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_revocation_finds_each_session_or_precedes_its_login_in_whatever_order(scene: str) -> None:
    """Every order of the steps of both. What lives on is listed, so that the next revocation finds it."""
    before, after, held, act = SCENES[scene]
    survived = set()
    for order in schedules(5, 5):
        store = MemoryStore()
        environ = {} if held is None else begun(Sessions(store, secret_keys=KEYS, options=before), **held)
        sessions = Sessions(store, secret_keys=KEYS, options=after)
        session = sessions.open(environ)
        act(session)
        dict(session)
        login = drawn_out(sessions.flows.save(session), store)
        revocation = drawn_out(sessions.flows.roster.revoke("alice", keep=None), store)
        for first in order:
            next(login if first else revocation, None)
        for _ in itertools.chain(login, revocation):
            pass
        living = {key for key in store.scan(limit=9) if USER in (store.load(key) or {})}
        assert {entry.handle for entry in sessions.list("alice")} == living
        survived.add(len(living))
    # Who was logged in before is not any more, under no id. Who logs in meanwhile may come before or after.
    assert survived == ({0} if act is rotate else {0, 1})


def test_a_revocation_looks_again_and_not_for_ever(store: Any) -> None:
    sessions = Sessions(store, secret_keys=KEYS, options=TAGGED)
    looks, sessions_of = [], store.sessions_of

    def seen(*users: str, now: float) -> Any:
        looks.append(users)
        begun(sessions, user_id="alice")
        return sessions_of(*users, now=now)

    store.sessions_of = seen
    assert sessions.revoke("alice") == len(looks) == 4
    store.sessions_of = sessions_of
    assert sessions.revoke("alice") == 0


def test_one_look_at_several_indexes_may_miss_a_session_that_moves_and_is_not_the_last(store: Any) -> None:
    """In a cluster they are on several servers, which do not answer at the same moment."""
    sessions = Sessions(store, secret_keys=KEYS, options=TAGGED)
    begun(sessions, user_id="alice")
    looks, sessions_of = [[]], store.sessions_of
    store.sessions_of = lambda *users, now: looks.pop() if looks else sessions_of(*users, now=now)
    assert sessions.revoke("alice") == 1
