"""Sessions in the memory of each replica: who runs several without sticky cookies is told so, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from lbkit.sessions.store import Delta
from lbkit.stores import AsyncMemoryStore, MemoryStore
from lbkit.stores.memory import ENDED
from tests.sessions.sites import SITES, Browser

CLOCK = 1_800_000_000.0


class Wall:
    """Unix time, as a test wants it."""

    now = CLOCK

    def __call__(self) -> float:
        return self.now


class Replicas:
    """Two of one app, each with the sessions in its own memory, and a browser that is sent to either."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name, self.stack = name, stack
        self.wall = Wall()
        self.one, self.other = self.started(), self.started()
        self.browser = Browser(self.one)
        self.wall.now += 5

    def started(self) -> Any:
        store: Any = MemoryStore(wall=self.wall)
        given = AsyncMemoryStore(store) if self.name in ("asgi", "starlette") else store
        site = SITES[self.name](given, None, {"wall": self.wall})
        return self.stack.enter_context(closing(site))

    def get(self, site: Any, path: str) -> Any:
        self.browser.site = site
        return self.browser.get(path)


@pytest.fixture(params=SITES)
def replicas(request: pytest.FixtureRequest) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(request.param, stack)


def test_a_client_that_comes_with_another_replicas_cookie_is_warned_of_once(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    replicas.get(replicas.one, "/write")
    for _ in range(3):
        assert replicas.get(replicas.other, "/read").json() is None
    (warned,) = caplog.records
    assert "the cookie of another one" in warned.getMessage()


def test_a_client_that_stays_with_its_replica_is_not(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    replicas.get(replicas.one, "/write")
    before = replicas.browser.cookie
    replicas.get(replicas.one, "/login")
    assert replicas.get(replicas.one, "/read").json() == "1"
    late = replicas.browser.get("/read", cookie=f"__Host-sid={before}")  # it left before the login
    assert late.json() is None
    kept = replicas.browser.cookie
    replicas.get(replicas.one, "/logout")
    assert replicas.browser.get("/read", cookie=f"__Host-sid={kept}").json() is None
    assert caplog.records == []


def test_a_restart_ends_sessions_without_being_taken_for_another_replica(
    replicas: Replicas, caplog: pytest.LogCaptureFixture
) -> None:
    replicas.get(replicas.one, "/write")
    replicas.wall.now += 0.5
    assert replicas.get(replicas.started(), "/read").json() is None
    assert caplog.records == []


def test_of_sessions_that_ended_long_ago_nothing_is_claimed(caplog: pytest.LogCaptureFixture) -> None:
    wall = Wall()
    store = MemoryStore(wall=wall)
    for number in range(ENDED + 1):
        created_and_ended(store, f"key {number}")
        wall.now += 1
    store.missed("key 0", signed_at=CLOCK)
    store.missed("key 1", signed_at=CLOCK + 1)
    assert (caplog.records, len(store._ended)) == ([], ENDED)
    store.missed("another", signed_at=CLOCK + 1)
    assert len(caplog.records) == 1


def created_and_ended(store: MemoryStore, key: str) -> None:
    store.commit(key, Delta(60.0, sets={b"a": b"1"}, create=True))
    assert store.delete(key) == 1
