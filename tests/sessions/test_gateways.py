"""What sessions do, in one scenario each, through every gateway, over a real Redis."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbkit.sessions import SessionOptions
from lbkit.sessions.cookie import SessionCookie, key_of_id
from tests.redis_servers import Server
from tests.sessions.sight import Commands, Wall, keys
from tests.sessions.sites import KEYS, NAME, SITES, Browser, site


@pytest.fixture(params=SITES)
def gateway(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shop(gateway: str, redis_url: str) -> Iterator[Any]:
    with site(gateway, redis_url) as made:
        yield made


@pytest.fixture
def browser(shop: Any) -> Browser:
    return Browser(shop)


# What it costs.


def test_a_request_asks_redis_no_more_than_it_must(browser: Browser, redis_server: Server) -> None:
    browser.get("/write")
    browser.get("/write")  # the script is known, the connection is there
    commands = Commands(redis_server)
    browser.get("/untouched")
    assert commands.since() == {}
    browser.get("/read")
    assert commands.since() == {"hgetall": 1}
    browser.get("/write?v=2")
    assert commands.since() == {"hgetall": 1, "evalsha": 1}
    Browser(browser.site).get("/write")
    assert commands.since() == {"evalsha": 1}
    Browser(browser.site).get("/read")
    assert commands.since() == {}


def test_only_a_new_session_sends_a_cookie_and_every_use_says_vary(browser: Browser) -> None:
    assert browser.get("/untouched").headers == browser.get("/untouched").headers
    assert browser.get("/untouched").all("vary") == []
    assert browser.get("/read").set_cookies == []
    first = browser.get("/write")
    (line,) = first.set_cookies
    assert line.startswith(f"{NAME}=")
    assert line.endswith("; Path=/; Secure; HttpOnly; SameSite=Lax")
    assert "private" in first.all("cache-control")[0]
    for path in ("/read", "/write?v=2", "/dump"):
        reply = browser.get(path)
        assert (reply.set_cookies, reply.all("vary")) == ([], ["Cookie"])


def test_what_one_replica_writes_another_reads(gateway: str, shop: Any, redis_url: str) -> None:
    browser = Browser(shop)
    browser.get("/nest?v=tea")
    with site(gateway, redis_url) as replica:
        assert Browser(replica, browser.jar).get("/read?k=cart").json() == {"lines": ["tea"]}


# Two requests at once.


def test_writers_of_different_keys_lose_nothing(browser: Browser) -> None:
    """Fifty deep: each is let go on when all that came later are done."""
    browser.get("/write")

    def others(left: int) -> None:
        if left:
            browser.get(f"/write?k=k{left}", meanwhile=lambda: others(left - 1))

    others(50)
    assert {f"k{number}" for number in range(1, 51)} <= browser.get("/dump").json().keys()


def test_the_last_writer_of_a_key_wins_and_a_plain_counter_counts_once(browser: Browser) -> None:
    browser.get("/write")
    browser.get("/write?v=early", meanwhile=lambda: browser.get("/write?v=late"))
    assert browser.get("/read").json() == "early"
    browser.get("/add", meanwhile=lambda: browser.get("/add"))
    assert browser.get("/read?k=hits").json() == 1


def test_incr_counts_every_request(browser: Browser) -> None:
    browser.get("/write")
    reply = browser.get("/incr", meanwhile=lambda: [browser.get("/incr?by=3") for _ in range(4)])
    assert reply.json() == 1  # what this request can know
    assert browser.get("/read?k=hits").json() == 13
    browser.get("/write?k=hits&v=text")
    assert browser.get("/incr").status == 500
    assert browser.get("/read?k=hits").json() == "text"


def test_a_reader_undoes_no_writer(browser: Browser) -> None:
    browser.get("/write?v=old")
    browser.get("/nest?v=1")
    browser.get("/read?k=cart", meanwhile=lambda: [browser.get("/nest?v=2"), browser.get("/write?v=new")])
    assert browser.get("/dump").json() == {"n": "new", "cart": {"lines": ["1", "2"]}}


def test_expect_refuses_with_409_and_keeps_the_other_ones_word(browser: Browser) -> None:
    browser.get("/write?v=0")
    reply = browser.get("/expecting?v=mine", meanwhile=lambda: browser.get("/write?v=theirs"))
    assert reply.status == 409
    assert browser.get("/read").json() == "theirs"
    assert browser.get("/expecting?v=mine").status == 200


def test_conflict_raise_refuses_the_second_writer_of_a_key(gateway: str, redis_url: str) -> None:
    with site(gateway, redis_url, options=SessionOptions(conflict="raise")) as shop:
        browser = Browser(shop)
        browser.get("/write?v=0")
        assert browser.get("/write?v=1", meanwhile=lambda: browser.get("/write?v=2")).status == 409
        assert browser.get("/write?v=1", meanwhile=lambda: browser.get("/write?k=other")).status == 200
        assert browser.get("/dump").json() == {"n": "1", "other": "1"}
        # A login is no way around it.
        assert browser.get("/login", meanwhile=lambda: browser.get("/login?user=bob")).status == 200
        assert browser.get("/read?k=user_id").json() == "bob"
        browser.get("/switch", meanwhile=lambda: browser.get("/write?v=3"))
        assert browser.get("/dump").json() == {"n": "3", "other": "1", "user_id": "bob"}


# Login, logout, and who comes late.


def test_a_login_changes_the_id_keeps_the_cart_and_ends_the_old_id(
    browser: Browser, redis_server: Server
) -> None:
    browser.get("/nest?v=tea")
    before = dict(browser.jar)
    assert len(browser.get("/login").set_cookies) == 1
    assert browser.jar != before
    assert browser.get("/dump").json() == {"cart": {"lines": ["tea"]}, "user_id": "alice"}
    assert Browser(browser.site, before).get("/dump").json() == {}
    assert len([key for key in keys(redis_server) if ":s:" in key]) == 1
    assert browser.get("/login").set_cookies == []  # the same user again: nothing has changed
    assert len(browser.get("/login?user=bob").set_cookies) == 1
    assert len(browser.get("/rotate").set_cookies) == 1
    assert browser.get("/dump").json() == {"cart": {"lines": ["tea"]}, "user_id": "bob"}


@pytest.mark.parametrize("late", ["/read", "/write?k=late", "/nest", "/incr"])
def test_who_was_under_way_during_a_login_neither_undoes_it_nor_gets_in(browser: Browser, late: str) -> None:
    browser.get("/write?v=7")
    before = dict(browser.jar)
    reply = Browser(browser.site, before).get(late, meanwhile=lambda: browser.get("/login"))
    assert (reply.status, reply.set_cookies) == (200, [])
    assert browser.get("/dump").json() == {"n": "7", "user_id": "alice"}
    assert Browser(browser.site, before).get("/dump").json() == {}


@pytest.mark.parametrize("late", ["/read", "/write?k=late", "/login", "/rotate", "/nest", "/logout"])
def test_a_logout_cannot_be_undone(browser: Browser, redis_server: Server, late: str) -> None:
    browser.get("/login")
    before = dict(browser.jar)
    reply = Browser(browser.site, before).get(late, meanwhile=lambda: browser.get("/logout"))
    assert reply.status == 200
    assert not any(line for line in reply.set_cookies if "Max-Age=0" not in line)
    assert browser.jar == {}
    assert Browser(browser.site, before).get("/dump").json() == {}
    assert [key for key in keys(redis_server) if ":s:" in key] == []


def test_what_is_put_in_after_a_logout_begins_another_session(browser: Browser) -> None:
    browser.get("/login")
    before = dict(browser.jar)
    browser.get("/logout?flash=1")
    assert browser.jar != before
    assert browser.get("/dump").json() == {"flash": "bye"}
    assert Browser(browser.site, before).get("/dump").json() == {}


def test_a_write_during_a_login_that_came_first_is_carried_over(browser: Browser) -> None:
    browser.get("/write")
    browser.get("/login", meanwhile=lambda: browser.get("/nest?v=tea"))
    assert browser.get("/dump").json() == {"n": "1", "cart": {"lines": ["tea"]}, "user_id": "alice"}


# Cookies that are not ours.


def test_no_id_is_adopted_and_a_forged_one_costs_redis_nothing(
    browser: Browser, redis_server: Server
) -> None:
    sid = "A" * 43
    browser.get("/write")
    genuine = browser.cookie
    commands = Commands(redis_server)
    forged = (
        sid,
        f"{sid}.aRr2dg.{'x' * 43}",
        genuine[:-1],
        genuine[:50],
        "",
        "x" * 5000,
        "\xe9\xff",
        '"a',
        "*",
    )
    for value in forged:
        assert browser.get("/read", cookie=f"{NAME}={value}").json() is None
    assert commands.since() == {}
    reply = browser.get("/write", cookie=f"{NAME}={sid}")
    assert sid not in reply.set_cookies[0]
    assert not any(sid in key or key_of_id(sid) in key for key in keys(redis_server))
    assert browser.get("/read", cookie=f"{NAME}={genuine[:-1]}; {NAME}={genuine}").json() == "1"


def test_an_id_that_has_expired_is_never_used_again(browser: Browser, redis_server: Server) -> None:
    browser.get("/write")
    before = browser.cookie
    with redis_server.client() as client:
        client.flushdb()
    reply = browser.get("/read")
    assert (reply.json(), reply.set_cookies) == (None, [])
    browser.get("/write?v=2")
    assert browser.cookie != before
    assert browser.get("/read").json() == "2"


def test_the_store_holds_no_id(browser: Browser, redis_server: Server) -> None:
    browser.get("/login")
    sid = browser.cookie.partition(".")[0]
    with redis_server.client() as client:
        assert f"lbkit:s:{key_of_id(sid)}" in keys(redis_server)
        everything = repr([client.hgetall(key) for key in client.keys("lbkit:s:*")]) + repr(client.keys("*"))
    assert sid not in everything


def test_a_new_key_signs_again_what_the_old_one_has_signed(browser: Browser) -> None:
    browser.get("/write")
    before = browser.cookie
    newer = SessionCookie(secret_keys=["n" * 32, *KEYS])
    shop: Any = browser.site
    shop.sessions.cookie = shop.sessions.flows.cookie = newer
    assert browser.get("/untouched").set_cookies == []
    assert browser.get("/read").json() == "1"
    assert browser.cookie != before
    assert browser.cookie.partition(".")[0] == before.partition(".")[0]
    assert browser.get("/read").set_cookies == []


# What is in Redis may be anything.


def test_a_pickle_in_redis_is_never_run_and_the_session_recovers(
    browser: Browser, redis_server: Server, tmp_path: Path
) -> None:
    mark = tmp_path / "run"

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    for payload in (pickle.dumps(Evil()), b"\x80", b"{", b"[1", b"\xff\xfe"):
        for spared in ((), (b"\0c", b"\0t")):
            browser.get("/write")
            with redis_server.client() as client:
                for key in client.keys("lbkit:s:*"):
                    for field in set(client.hkeys(key)) - set(spared):
                        client.hset(key, field, payload)
            assert browser.get("/read").json() is None
            assert browser.get("/dump").json() == {}
            assert browser.get("/write?v=5").status == 200
            assert browser.get("/read").json() == "5"
    assert not mark.exists()


def test_something_else_under_the_key_is_no_session(browser: Browser, redis_server: Server) -> None:
    browser.get("/write")
    with redis_server.client() as client:
        (key,) = client.keys("lbkit:s:*")
        client.set(key, b"text")
    assert browser.get("/read").json() is None
    assert browser.get("/write?v=2").status == 200
    assert browser.get("/read").json() == "2"


# Values, nesting, sizes.


def test_a_change_inside_of_a_list_is_kept(browser: Browser) -> None:
    for item in ("a", "b", "c"):
        browser.get(f"/nest?v={item}")
    assert browser.get("/read?k=cart").json() == {"lines": ["a", "b", "c"]}


def test_what_cannot_be_held_is_refused_by_name_and_nothing_is_stored(
    browser: Browser, redis_server: Server
) -> None:
    assert browser.get("/bad").status == 500
    assert keys(redis_server) == set()
    browser.get("/write?v=7")
    assert browser.get("/bad").status == 500
    assert browser.get("/read").json() == "7"
    assert browser.get("/read?k=cart").json() is None


def test_a_session_that_is_too_large_is_refused_before_the_network(
    browser: Browser, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    browser.get("/write")
    assert browser.get(f"/big?bytes={100 * 1024}").status == 200
    assert "'big': 102405" in caplog.text
    commands = Commands(redis_server)
    assert browser.get(f"/big?bytes={3 * 1024 * 1024}").status == 500
    assert commands.since() == {"hgetall": 1}
    assert "lost_late" not in browser.site.sessions.counts  # refused once is enough
    assert browser.get("/read").json() == "1"


# Time.


def test_a_session_lasts_from_its_last_use_and_no_longer_than_its_absolute_age(
    gateway: str, redis_url: str, redis_server: Server
) -> None:
    wall = Wall()
    options = SessionOptions(idle=3600, absolute=7200)
    with site(gateway, redis_url, options=options, wall=wall) as shop, redis_server.client() as client:
        browser = Browser(shop)
        browser.get("/write")
        (key,) = client.keys("lbkit:s:*")
        assert 3590 < client.ttl(key) <= 3600
        client.expire(key, 1000)
        wall.now += 30
        browser.get("/read")  # not each reader has to write
        assert client.ttl(key) <= 1000
        wall.now += 40
        browser.get("/untouched")
        assert client.ttl(key) <= 1000
        reply = browser.get("/read")
        assert reply.set_cookies == []
        assert 3590 < client.ttl(key) <= 3600
        wall.now += 7100 - 70
        browser.get("/write")
        assert 90 < client.ttl(key) <= 100
        wall.now += 101
        assert browser.get("/read").json() is None


def test_a_permanent_session_has_a_cookie_that_lasts(
    gateway: str, redis_url: str, redis_server: Server
) -> None:
    wall = Wall()
    options = SessionOptions(idle=60, remember=86400)
    with site(gateway, redis_url, options=options, wall=wall) as shop, redis_server.client() as client:
        browser = Browser(shop)
        browser.get("/write")
        (line,) = browser.get("/permanent").set_cookies
        assert line.endswith("; Max-Age=86400")
        (key,) = client.keys("lbkit:s:*")
        assert 86390 < client.ttl(key) <= 86400
        wall.now += 86400 / 4 - 10
        assert browser.get("/read").set_cookies == []
        wall.now += 20
        assert browser.get("/read").set_cookies[0].endswith("; Max-Age=86400")
        assert browser.get("/read").set_cookies == []
        assert "Max-Age" not in browser.get("/permanent?v=0").set_cookies[0]


def test_a_renewed_id_leads_to_the_session_for_a_while_and_is_not_told_the_new_one(
    gateway: str, redis_url: str, redis_server: Server
) -> None:
    wall = Wall()
    options = SessionOptions(renewal=600, renewal_grace=20)
    with site(gateway, redis_url, options=options, wall=wall) as shop, redis_server.client() as client:
        browser = Browser(shop)
        browser.get("/login")
        old = dict(browser.jar)
        old_key = f"lbkit:s:{key_of_id(browser.cookie.partition('.')[0])}"
        wall.now += 599
        assert browser.get("/read").set_cookies == []
        wall.now += 2
        # One that is under way does not get lost either.
        late = Browser(shop, dict(old)).get("/write?k=late", meanwhile=lambda: browser.get("/read"))
        assert browser.jar != old
        assert late.set_cookies == []
        follower = Browser(shop, dict(old))
        assert follower.get("/read?k=late").json() == "1"
        assert follower.get("/write?v=follows").set_cookies == []
        assert browser.get("/dump").json() == {"user_id": "alice", "late": "1", "n": "follows"}
        assert client.hkeys(old_key) == [b"\0r"]
        assert 0 < client.ttl(old_key) <= 20
        follower.get("/logout")
        assert browser.get("/dump").json() == {}


def test_who_follows_an_old_id_is_not_told_the_new_one_by_another_renewal(
    gateway: str, redis_url: str
) -> None:
    """A thief of the old id has its grace, and no more."""
    wall = Wall()
    with site(gateway, redis_url, options=SessionOptions(renewal=10, renewal_grace=30), wall=wall) as shop:
        browser = Browser(shop)
        browser.get("/login")
        follower = Browser(shop, dict(browser.jar))
        for _ in range(2):
            wall.now += 11
            assert len(browser.get("/read").set_cookies) == 1
        wall.now += 11
        for path in ("/read?k=user_id", "/write", "/read?k=user_id"):
            assert follower.get(path).set_cookies == []
        assert follower.get("/read?k=user_id").json() == "alice"
        assert len(browser.get("/read").set_cookies) == 1


def test_a_logout_by_one_who_did_not_see_the_renewal_ends_the_session(gateway: str, redis_url: str) -> None:
    wall = Wall()
    with site(gateway, redis_url, options=SessionOptions(renewal=600), wall=wall) as shop:
        browser = Browser(shop)
        browser.get("/login")
        late = Browser(shop, dict(browser.jar))
        wall.now += 601
        late.get("/logout", meanwhile=lambda: browser.get("/read"))
        assert browser.get("/dump").json() == {}


# After the head, and without one.


def test_what_is_written_while_the_body_is_sent_is_kept(browser: Browser) -> None:
    browser.get("/write")
    assert browser.get("/stream").body == "ab"
    assert browser.get("/read?k=late").json() == 1


def test_a_session_cannot_begin_when_the_head_has_left(
    browser: Browser, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    reply = browser.get("/stream")
    assert (reply.status, reply.body, reply.set_cookies) == (200, "ab", [])
    assert keys(redis_server) == set()
    assert "after the answer's head" in caplog.text
    assert browser.site.sessions.counts["lost_late"] == 1


@pytest.mark.parametrize("save_on_error", [True, False])
def test_what_a_request_has_put_in_before_it_failed_is_kept_if_wanted(
    gateway: str, redis_url: str, save_on_error: bool
) -> None:
    with site(gateway, redis_url, options=SessionOptions(save_on_error=save_on_error)) as shop:
        browser = Browser(shop)
        browser.get("/write?v=fine")
        assert browser.get("/crash").status == 500
        assert browser.get("/read").json() == ("crashed" if save_on_error else "fine")


# Who is logged in where.


def test_a_user_is_logged_out_everywhere(browser: Browser) -> None:
    shop = browser.site
    phone, laptop, bob = Browser(shop), Browser(shop), Browser(shop)
    for each in (phone, laptop):
        each.get("/login")
    bob.get("/login?user=bob")
    listed = shop.do("list", "alice")
    assert [(entry.ip, entry.agent, entry.current) for entry in listed] == [
        ("192.0.2.7", "browser", False)
    ] * 2
    assert shop.do("revoke_id", listed[0].handle, user="bob") is False
    assert shop.do("revoke_id", listed[0].handle, user="alice") is True
    assert len(shop.do("list", "alice")) == 1
    assert shop.do("revoke", "alice") == 1
    assert [each.get("/dump").json() for each in (phone, laptop)] == [{}, {}]
    assert bob.get("/dump").json() == {"user_id": "bob"}
    assert shop.do("revoke", "alice") == 0


def test_a_logout_leaves_the_list(browser: Browser) -> None:
    browser.get("/login")
    assert len(browser.site.do("list", "alice")) == 1
    browser.get("/logout")
    assert browser.site.do("list", "alice") == []


def test_who_is_under_way_during_a_revocation_does_not_come_back(browser: Browser) -> None:
    browser.get("/login")
    before = dict(browser.jar)
    browser.get("/rotate", meanwhile=lambda: browser.site.do("revoke", "alice"))
    assert browser.get("/dump").json() == {}
    assert Browser(browser.site, before).get("/dump").json() == {}
