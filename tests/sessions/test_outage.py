"""A Redis that is killed, held or slow: who has to know, and who does not. Through every gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lbkit.health.status import Status
from lbkit.sessions import SessionOptions
from tests.redis_servers import Server, server, until
from tests.sessions.sites import SITES, Browser, site


class Clock:
    """The breaker's clock, as a test wants it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


hasty = partial(site, patient=False)
"""With the timeouts that users have."""


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is killed and started again, with its data."""
    folder: Path = tmp_path_factory.mktemp("sick")
    with server(folder, "--appendonly", "yes", "--appendfsync", "always") as running:
        yield running


@pytest.fixture
def redis_server(sick: Server) -> Iterator[Server]:
    yield sick
    sick.kill()
    sick.start()


@pytest.fixture(params=SITES)
def gateway(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_only_who_uses_the_session_is_told_and_nobody_is_logged_out(
    gateway: str, redis_server: Server
) -> None:
    clock = Clock()
    with hasty(gateway, redis_server.url, clock=clock) as shop:
        browser = Browser(shop)
        browser.get("/login")
        before = dict(browser.jar)
        redis_server.kill()
        assert browser.get("/untouched").status == 200
        for path in ("/read", "/write?v=2", "/logout", "/dump"):
            reply = browser.get(path)
            assert (reply.status, reply.all("retry-after"), reply.set_cookies) == (503, ["1"], [])
            assert reply.all("cache-control") == ["no-store"]
            assert "127.0.0.1" not in reply.body
        assert browser.jar == before
        assert shop.do("check").status is Status.DEGRADED
        assert shop.sessions.counts["refused"] >= 1  # the breaker is open: Redis is left alone
        redis_server.start()
        assert browser.get("/read").status == 503
        clock.now += 1.0
        assert browser.get("/dump").json() == {"user_id": "alice"}
        assert shop.do("check").status is Status.HEALTHY
        assert browser.jar == before


def test_the_health_check_finds_that_the_store_is_back_where_nobody_comes(
    gateway: str, redis_server: Server
) -> None:
    clock = Clock()
    with hasty(gateway, redis_server.url, clock=clock) as shop:
        browser = Browser(shop)
        browser.get("/write")
        redis_server.kill()
        assert [browser.get("/read").status for _ in range(3)] == [503] * 3
        clock.now += 1.0
        assert shop.do("check").status is Status.DEGRADED
        redis_server.start()
        assert shop.do("check").status is Status.DEGRADED  # its time is not over
        clock.now += 2.0
        assert shop.do("check").status is Status.HEALTHY


@pytest.mark.parametrize("on_unavailable", ["503", "anonymous"])
def test_a_view_that_is_broken_for_another_reason_stays_a_500(
    gateway: str, redis_server: Server, on_unavailable: Any
) -> None:
    options = SessionOptions(on_unavailable=on_unavailable)
    with hasty(gateway, redis_server.url, options=options, clock=Clock()) as shop:
        browser = Browser(shop)
        browser.get("/write")
        redis_server.kill()
        assert browser.get("/broken").status == 500
        assert browser.get("/crash").status == (503 if on_unavailable == "503" else 500)


def test_a_redis_that_hangs_costs_each_of_three_a_quarter_of_a_second_and_the_others_nothing(
    gateway: str, redis_server: Server
) -> None:
    with hasty(gateway, redis_server.url, clock=Clock()) as shop:
        browser = Browser(shop)
        browser.get("/write")
        redis_server.hold()
        began = time.monotonic()
        for _ in range(60):
            assert browser.get("/read").status == 503
        assert shop.sessions.counts["unavailable"] == 3
        assert shop.sessions.counts["refused"] == 57
        # Sixty timeouts would be 15 s; a machine that is busy is given the benefit of the doubt.
        assert time.monotonic() - began < 10
        redis_server.resume()


def test_a_commit_that_fails_is_503_for_the_view_has_promised_what_is_not_kept(
    gateway: str, redis_server: Server
) -> None:
    with hasty(gateway, redis_server.url, clock=Clock()) as shop:
        browser = Browser(shop)
        browser.get("/write?v=kept")
        reply = browser.get("/write?v=lost", meanwhile=redis_server.kill)
        assert (reply.status, reply.set_cookies) == (503, [])
        assert Browser(shop).get("/write").status == 503  # a new one cannot begin either
        redis_server.start()
        assert browser.get("/read").json() == "kept"


def test_a_commit_that_fails_may_be_a_line_in_the_log(
    gateway: str, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with hasty(gateway, redis_server.url, options=SessionOptions(commit_errors="log"), clock=Clock()) as shop:
        browser = Browser(shop)
        browser.get("/write?v=kept")
        reply = browser.get("/write?v=lost", meanwhile=redis_server.kill)
        assert (reply.status, reply.body, reply.set_cookies) == (200, "ok", [])
        assert "could not be kept" in caplog.text
        assert shop.sessions.counts["lost_unavailable"] == 1


def test_anonymous_goes_on_with_an_empty_session_that_keeps_nothing(
    gateway: str, redis_server: Server
) -> None:
    options = SessionOptions(on_unavailable="anonymous")
    with hasty(gateway, redis_server.url, options=options, clock=Clock()) as shop:
        browser = Browser(shop)
        browser.get("/login")
        before = dict(browser.jar)
        redis_server.kill()
        reply = browser.get("/dump")
        assert (reply.status, reply.json(), reply.set_cookies) == (200, {}, [])
        reply = browser.get("/write")
        assert (reply.status, reply.set_cookies) == (200, [])
        assert shop.sessions.counts["lost_unavailable"] == 1
        assert browser.jar == before
        redis_server.start()


def test_raise_lets_the_app_decide(gateway: str, redis_server: Server) -> None:
    options = SessionOptions(on_unavailable="raise")
    with hasty(gateway, redis_server.url, options=options, clock=Clock()) as shop:
        browser = Browser(shop)
        browser.get("/write")
        redis_server.kill()
        reply = browser.get("/read")
        assert reply.status == 500  # an app without a handler
        assert browser.get("/untouched").status == 200


def test_a_full_redis_refuses_what_is_new_and_still_reads(gateway: str, redis_server: Server) -> None:
    with hasty(gateway, redis_server.url, clock=Clock()) as shop, redis_server.client() as client:
        browser = Browser(shop)
        browser.get("/write?v=7")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1")
        assert Browser(shop).get("/write").status == 503
        assert browser.get("/read").json() == "7"
        client.config_set("maxmemory", "0")
        until(lambda: browser.get("/write").status == 200, "it takes something again")


def test_a_late_write_that_fails_is_a_line_in_the_log(
    gateway: str, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with hasty(gateway, redis_server.url, clock=Clock()) as shop:
        browser = Browser(shop)
        browser.get("/write")
        redis_server.kill()
        shop.sessions.line.breaker.failures = 100
        assert browser.get("/untouched").status == 200
        assert caplog.text == ""
