"""Sessions with a slot: what they are called in Redis, and that a cluster takes one with its index."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from lbkit.errors import ConfigError, StoreUnavailable
from lbkit.sessions import SessionOptions
from lbkit.sessions.store import Delta, Listing
from lbkit.stores import astore_from, store_from
from lbkit.stores.dialogue import Dialogue
from tests.redis_servers import Cluster, Server, server
from tests.sessions.sites import Browser, site
from tests.stores.contract import HOUR, Driven, begun, fresh, listed, slotted

PATIENCE = 5.0
LOGIN = Delta(HOUR, sets={b"a": b"1"}, create=True)


def names(prefix: str, key: str, user: str) -> list[str]:
    """What Redis is told of a session, its index and its lock."""
    dialogue = Dialogue(prefix=prefix)
    delta = LOGIN._replace(listing=Listing(user, 0.0, 1.0))
    (commit,) = next(dialogue.commit(key, delta)).commands
    (lock,) = next(dialogue.lock(key, "token", ttl=1.0)).commands
    assert commit[2] == 2
    return [str(name) for name in (*commit[3:5], lock[1])]


def test_what_is_of_one_slot_is_called_so() -> None:
    assert names("lbkit:", "slot.key", "slot.user") == [
        "lbkit:{slot}s:key",
        "lbkit:{slot}u:user",
        "lbkit:{slot}l:key",
    ]


PREFIXES = st.from_regex(r"[a:{}]{0,6}", fullmatch=True)
SLOTS = st.from_regex(r"[A-Za-z0-9_-]{1,11}", fullmatch=True)


@given(PREFIXES, SLOTS)
def test_a_cluster_finds_all_of_a_slot_on_one_server_whatever_the_prefix(prefix: str, slot: str) -> None:
    """redis-py's function is the oracle. Braces of the prefix's own come first, so it may be another slot."""
    try:
        found = names(prefix, f"{slot}.key", f"{slot}.user")
    except ConfigError:
        assert "{}" in prefix
        return
    assert len({key_slot(name.encode()) for name in found}) == 1
    if "{" not in prefix:
        assert key_slot(found[0].encode()) == key_slot(slot.encode())


@given(PREFIXES, SLOTS, st.booleans())
def test_a_key_is_read_back_from_its_name(prefix: str, slot: str, tagged: bool) -> None:
    key = f"{slot}.s:es" if tagged else "s:es"
    try:
        dialogue = Dialogue(prefix=prefix)
    except ConfigError:
        return
    (asked,) = next(dialogue.load(key)).commands
    for name in (str(asked[1]), str(asked[1]).encode()):
        assert dialogue.key_of(name) == key


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("slots")) as running:
        yield running


@pytest.mark.parametrize("way", ["blocking", "awaited"])
def test_where_the_index_cannot_be_written_neither_is_the_session(
    own: Server, way: str, loop: asyncio.AbstractEventLoop
) -> None:
    store: Any = store_from(own.url, timeout=PATIENCE)
    if way == "awaited":
        store = Driven(astore_from(own.url, timeout=PATIENCE), loop)
    (key, user), (other, stranger), now = slotted(), slotted(), time.time()
    kept, keeper = slotted()
    begun_now = LOGIN._replace(listing=Listing(keeper, now, now + 100))
    store.commit(kept, begun_now)
    slot, _, rest = user.partition(".")
    with own.client() as client:
        client.set(f"lbkit:{{{slot}}}u:{rest}", "somebody else's")
        for listing in (Listing(user, now, now + 100), Listing(user, now)):
            with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
                store.commit(key, LOGIN._replace(listing=listing))
        for users in ([user], [keeper, user]):  # to find nobody would be to revoke nothing, and say so
            with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
                store.sessions_of(*users, now=now)
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match=r"OOM|memory"):
            store.commit(other, LOGIN._replace(listing=Listing(stranger, now, now + 100)))
        assert [store.load(each) for each in (key, other)] == [None, None]
        assert store.sessions_of(stranger, now=now) == []
        assert store.commit(kept, Delta(drop=True, listing=Listing(keeper, now))).result.name == "OK"
    store.close()


def test_a_server_that_forgot_the_script_is_told_it_with_both_keys(many: Cluster) -> None:
    """Each server of a cluster has to be told, and a failover forgets it."""
    store, now = store_from(many.url, timeout=PATIENCE), time.time()
    for _ in range(12):
        for node in many.nodes:
            with node.client() as client:
                client.script_flush()
        key, user = slotted()
        for at in (100, 200):
            delta = Delta(HOUR, sets={b"a": b"1"}, create=at == 100, listing=Listing(user, now, now + at))
            assert store.commit(key, delta).result.name == "OK"
        assert listed(store, user, now) == {key: 200}
    store.close()


def test_an_operator_finds_both_kinds_and_those_of_no_other_prefix(own: Server) -> None:
    shop, other = store_from(own.url, prefix="shop:"), store_from(own.url, prefix="shop:2:")
    key, user = slotted()
    shop.commit(key, LOGIN._replace(listing=Listing(user, time.time(), time.time() + 100)))
    shop.lock(key, "mine", ttl=HOUR)
    plain = begun(shop)
    theirs = [begun(other), fresh()]
    other.commit(f"{theirs[1]}.x", LOGIN)
    assert sorted(shop.scan(limit=10)) == sorted([key, plain])
    assert [len(shop.scan(limit=limit)) for limit in (1, 2)] == [1, 2]
    assert len(other.scan(limit=10)) == 2
    shop.close()
    other.close()


@pytest.mark.parametrize("gateway", ["flask", "asgi"])
def test_a_user_logs_in_moves_on_and_is_logged_out_in_a_cluster(many: Cluster, gateway: str) -> None:
    """Twelve users, so that each server has some of them; all of one user's is on one."""
    users = [f"{gateway}{number}" for number in range(12)]
    with site(gateway, many.url, options=SessionOptions(tag_users=True)) as shop:
        phones, laptops = ([Browser(shop) for _ in users] for _ in range(2))
        for user, *devices in zip(users, phones, laptops, strict=True):
            for browser in devices:
                browser.get("/nest?v=tea")
                browser.get(f"/login?user={user}")
                browser.get("/rotate")
            assert len(shop.do("list", user)) == 2
        homes = [home(many, shop, user) for user in users]
        assert set(homes) == {node.port for node in many.nodes}
        phones[0].get("/logout")
        assert len(shop.do("list", users[0])) == 1
        assert shop.do("revoke_id", shop.do("list", users[1])[0].handle, user=users[1]) is True
        assert [shop.do("revoke", user) for user in users] == [1, 1, *[2] * 10]
        assert [browser.get("/dump").json() for browser in phones + laptops] == [{}] * 24


def home(many: Cluster, shop: Any, user: str) -> int:
    """The one server that holds both sessions of the user, and their index."""
    (slot,) = {entry.handle.partition(".")[0] for entry in shop.do("list", user)}
    found = {}
    for node in many.nodes:
        with node.client() as client:
            found[node.port] = len(client.keys(f"lbkit:{{{slot}}}*"))
    (port,) = (port for port, count in found.items() if count == 3)
    return port
