"""What the memory store does beyond the contract: it is bounded, forgets in time, and warns of workers."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest

from lbkit.sessions.store import Delta, Entry, Result
from lbkit.stores.memory import MemoryStore


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def created(store: MemoryStore, key: str, *, ttl: float) -> None:
    assert store.commit(key, Delta(ttl, sets={b"a": b"1"}, create=True)).result is Result.OK


def there(store: MemoryStore, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if store.load(key)]


def test_a_full_store_ends_the_session_that_would_expire_first(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore(max_sessions=3)
    for key, ttl in (("late", 300), ("early", 100), ("touched", 50)):
        created(store, key, ttl=ttl)
    store.commit("touched", Delta(200))
    created(store, "new", ttl=100)
    assert there(store, ["late", "early", "touched", "new"]) == ["late", "touched", "new"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_session_ends_when_its_time_is_over_and_not_before() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    created(store, "short", ttl=10)
    created(store, "long", ttl=20)
    clock.now += 9.9
    assert there(store, ["short", "long"]) == ["short", "long"]
    store.commit("short", Delta(30))
    clock.now += 10.1
    assert there(store, ["short", "long"]) == ["short"]


def test_users_who_never_come_back_take_no_memory() -> None:
    store, most = MemoryStore(), 0
    for now in range(5000):
        store.index(f"user{now}", now=now, add=Entry("key", now + 100))
        most = max(most, len(store._users))
        assert store.sessions_of(f"user{max(0, now - 99)}", now=now) == [Entry("key", max(100, now + 1))]
    assert most < 300


def test_touching_for_ever_takes_no_memory() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    created(store, "key", ttl=10)
    for _ in range(5000):
        clock.now += 1
        store.commit("key", Delta(10))
    assert store.load("key")
    assert len(store._heap) < 200


def test_a_session_under_an_old_key_is_not_ended_by_the_end_of_the_first() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    created(store, "key", ttl=10)
    store.delete("key")
    created(store, "key", ttl=100)
    clock.now += 50
    assert store.load("key")


def test_what_is_loaded_is_a_copy() -> None:
    store = MemoryStore()
    created(store, "key", ttl=10)
    loaded = store.load("key")
    assert isinstance(loaded, dict)
    loaded[b"a"] = b"2"
    assert store.load("key") == {b"a": b"1"}


@pytest.mark.parametrize(("workers", "warned"), [("4", True), ("1", False), ("", False), ("many", False)])
def test_several_workers_are_warned_of(
    workers: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    with caplog.at_level(logging.WARNING, "lbkit.sessions"):
        MemoryStore()
    assert bool(caplog.records) is warned
