"""The contract of stores, kept by each: in memory, and by a real Redis, a real cluster, real Sentinels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbkit.sessions.store import LARGEST_COUNTER, Delta, Entry, Listing, Result, SyncStore
from lbkit.stores import astore_from, store_from
from lbkit.stores.memory import MemoryStore
from tests.redis_servers import Server
from tests.stores.contract import RULES, Driven, fresh, slotted

PLACES: dict[str, Callable[[pytest.FixtureRequest], Any]] = {
    "memory": lambda _: "memory://",
    "redis": lambda request: request.getfixturevalue("one").url,
    "redis-py": lambda request: (
        f"{request.getfixturevalue('one').url}?client_name=test"
    ),  # an option is for it
    "socket": lambda request: f"unix://{request.getfixturevalue('one').folder}/redis.sock",
    "cluster": lambda request: request.getfixturevalue("many").url,
    "sentinel": lambda request: request.getfixturevalue("watched").url,
    "client": lambda request: redis.Redis.from_url(request.getfixturevalue("one").url, decode_responses=True),
    "async client": lambda request: redis.asyncio.Redis.from_url(
        request.getfixturevalue("one").url, decode_responses=True
    ),
}
PATIENCE = 5.0
"""Seconds for an answer: a busy machine is no failure."""

BLOCKING = ("memory", "redis", "redis-py", "socket", "cluster", "sentinel", "client")
AWAITED = ("memory", "redis", "redis-py", "socket", "cluster", "sentinel", "async client")


@pytest.fixture(scope="module", params=[*BLOCKING, *(f"awaited {name}" for name in AWAITED)])
def store(request: pytest.FixtureRequest) -> Iterator[SyncStore]:
    name = str(request.param)
    where = PLACES[name.removeprefix("awaited ")](request)
    if name.startswith("awaited "):
        loop = request.getfixturevalue("loop")
        driven: Any = Driven(astore_from(where, timeout=PATIENCE), loop)
        yield driven
        driven.close()
        if not isinstance(where, str):
            loop.run_until_complete(where.aclose())
        return
    blocking = store_from(where, timeout=PATIENCE)
    yield blocking
    blocking.close()
    if not isinstance(where, str):
        where.close()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_contract(store: SyncStore, rule: Callable[[SyncStore], None]) -> None:
    rule(store)


FIELDS = st.sampled_from([b"a", b"b", b"c", b"\0c"])
NUMBERS = st.sampled_from([0, 1, -1, 7, LARGEST_COUNTER, -LARGEST_COUNTER, LARGEST_COUNTER + 1])
BYTES = NUMBERS.map(lambda number: b"%d" % number) | st.sampled_from([b"", b'"x"', b"1.0", b"-0", b"\xff"])
SOON = st.integers(0, 9)
LISTINGS = st.builds(Listing, st.just(""), now=SOON, expires_at=SOON | st.none()) | st.none()
DELTAS = st.builds(
    Delta,
    ttl=st.just(3600.0),
    sets=st.dictionaries(FIELDS, BYTES, max_size=3),
    incrs=st.dictionaries(FIELDS, NUMBERS, max_size=2),
    dels=st.lists(FIELDS, unique=True, max_size=2),
    expect=st.dictionaries(FIELDS, BYTES | st.none(), max_size=2) | st.just({}),
    create=st.booleans(),
    whole=st.sampled_from([False, False, True]),
    drop=st.sampled_from([False, False, True]),
    listing=LISTINGS,
)


@given(st.lists(DELTAS, max_size=8))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_delta_means_the_same_in_memory_and_in_redis(one: Server, deltas: list[Delta]) -> None:
    memory, real, now = MemoryStore(), store_from(one.url, timeout=PATIENCE), round(time.time()) + 1000
    key, user = slotted()
    try:
        for given in (Delta(3600.0, sets={b"a": b"1", b"b": b"x"}, create=True), *deltas):
            delta = given._replace(listing=_moved(given.listing, user, now))
            assert memory.commit(key, delta) == real.commit(key, delta)
            assert memory.load(key) == real.load(key)
            assert memory.sessions_of(user, now=now) == real.sessions_of(user, now=now)
    finally:
        real.close()


def _moved(listing: Listing | None, user: str, by: float) -> Listing | None:
    """The listing of a user, so many seconds later."""
    if listing is None:
        return None
    ends = None if listing.expires_at is None else listing.expires_at + by
    return Listing(user, listing.now + by, ends)


def test_what_is_no_session_is_none(one: Server) -> None:
    """Somebody else's text under our name is no reason to fail until it expires."""
    store, key = store_from(one.url, timeout=PATIENCE), fresh()
    with one.client() as client:
        client.set(f"lbkit:s:{key}", "not a hash")
    assert store.load(key) is None
    assert store.commit(key, Delta(60, sets={b"a": b"1"})).result is Result.GONE
    assert store.commit(key, Delta(60, sets={b"a": b"1"}, create=True)).result is Result.TAKEN
    assert store.look([key], [b"a"]) == [None]
    store.close()


def test_a_server_that_forgot_the_script_is_told_it_again(one: Server) -> None:
    store, key = store_from(one.url, timeout=PATIENCE), fresh()
    for _ in range(2):
        with one.client() as client:
            client.script_flush()
        create = store.load(key) is None
        assert store.commit(key, Delta(60, sets={b"a": b"1"}, create=create)).result is Result.OK
    store.close()


def test_a_session_and_an_index_outlive_nobody(one: Server) -> None:
    """Whatever we leave in Redis has an end, or it would fill up."""
    store, now = store_from(one.url, prefix="ends:", timeout=PATIENCE), time.time()
    key, user = fresh(), fresh()
    store.commit(key, Delta(60, sets={b"a": b"1"}, create=True))
    store.index(user, now=now, add=Entry(key, now + 60))
    store.index(user, now=now, add=Entry("short", now + 5))
    store.lock(key, "mine", ttl=60)
    with one.client() as client:
        left = [client.pttl(name) for name in client.keys("ends:*")]
    assert len(left) == 3
    assert all(50_000 < each <= 60_001 for each in left)
    store.close()
