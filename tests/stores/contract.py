"""What every session store must do, wherever it keeps them. Each rule is given a store that blocks.

An awaited store is driven: a rule need not know. Keys are new in each rule, so that all can share one server.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lbkit.errors import ConfigError
from lbkit.sessions.store import (
    CREATED,
    FORWARD,
    LARGEST_COUNTER,
    Committed,
    Delta,
    Entry,
    Listing,
    Result,
    SyncStore,
)
from tests.redis_servers import until

OK = Committed(Result.OK)
GONE = Committed(Result.GONE)
HOUR = 3600.0


class Driven:
    """An awaited store, one call at a time."""

    def __init__(self, store: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self.loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *given, **named: self.loop.run_until_complete(found(*given, **named))


def fresh() -> str:
    return secrets.token_urlsafe(32)


def begun(store: SyncStore, **fields: bytes) -> str:
    """The key of a new session with these fields."""
    key = fresh()
    sets = {name.encode(): value for name, value in fields.items()} | {CREATED: b"1"}
    assert store.commit(key, Delta(HOUR, sets=sets, create=True)) == OK
    return key


def slotted() -> tuple[str, str]:
    """The key of a session, and the user whose index is in the same slot."""
    slot = fresh()[:11]
    return f"{slot}.{fresh()}", f"{slot}.{fresh()}"


def listed(store: SyncStore, user: str, now: float) -> dict[str, float]:
    return {key: round(at - now) for key, at in store.sessions_of(user, now=now)}


def held(store: SyncStore, key: str) -> dict[bytes, bytes] | None:
    """What the session holds, without its own account of itself."""
    fields = store.load(key)
    return None if fields is None else {name: value for name, value in fields.items() if name[:1] != b"\0"}


def what_is_committed_is_loaded(store: SyncStore) -> None:
    odd = {b"": b"", b"\xff\0": b"\xfe" * 100, "ключ".encode(): b"[1]", b"\0c": b"1"}
    key = fresh()
    assert store.load(key) is None
    assert store.commit(key, Delta(HOUR, sets=odd, create=True)) == OK
    assert store.load(key) == odd


def a_delta_changes_the_fields_that_it_names_and_no_other(store: SyncStore) -> None:
    key = begun(store, a=b"1", b=b"2", c=b"3")
    assert store.commit(key, Delta(sets={b"b": b"22", b"d": b"4"}, dels=[b"c", b"none"])) == OK
    assert held(store, key) == {b"a": b"1", b"b": b"22", b"d": b"4"}


def an_id_is_given_out_once(store: SyncStore) -> None:
    key = begun(store, a=b"1")
    assert store.commit(key, Delta(HOUR, sets={b"a": b"2"}, create=True)) == Committed(Result.TAKEN)
    assert held(store, key) == {b"a": b"1"}


def a_session_that_has_ended_does_not_come_back(store: SyncStore) -> None:
    key = begun(store, a=b"1")
    assert store.delete(key) == 1
    assert store.commit(key, Delta(HOUR, sets={b"a": b"2"}, incrs={b"n": 1})) == GONE
    assert store.load(key) is None
    assert store.delete(key) == 0


def several_end_at_once(store: SyncStore) -> None:
    keys = [begun(store, a=b"1") for _ in range(20)]
    assert store.delete() == 0
    assert store.delete(*keys, fresh()) == 20
    assert {store.load(key) for key in keys} == {None}


def a_session_expires(store: SyncStore) -> None:
    key = fresh()
    store.commit(key, Delta(0.05, sets={b"a": b"1"}, create=True))
    until(lambda: store.load(key) is None, "the session has expired")
    assert store.commit(key, Delta(HOUR, sets={b"a": b"1"})) == GONE


def a_delta_with_a_ttl_puts_the_end_off_and_one_without_does_not(store: SyncStore) -> None:
    put_off, as_it_was = begun(store), begun(store)
    for key, later in ((put_off, HOUR), (as_it_was, None)):
        assert store.commit(key, Delta(0.2, sets={b"a": b"1"})) == OK
        assert store.commit(key, Delta(later, sets={b"a": b"2"})) == OK
    until(lambda: store.load(as_it_was) is None, "the one has expired")
    assert held(store, put_off) == {b"a": b"2"}


def a_delta_of_nothing_but_a_ttl_touches(store: SyncStore) -> None:
    key = begun(store, a=b"1")
    assert store.commit(key, Delta(0.05)) == OK
    until(lambda: store.load(key) is None, "the session has expired")
    assert store.commit(key, Delta(HOUR)) == GONE


def no_session_is_made_that_never_expires(store: SyncStore) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        store.commit(fresh(), Delta(sets={b"a": b"1"}, create=True))
    with pytest.raises(ConfigError, match="ttl"):
        store.commit(fresh(), Delta(sets={b"a": b"1"}, drop=True))


def counters_add_up(store: SyncStore) -> None:
    key = begun(store, n=b"40")
    answer = store.commit(key, Delta(incrs={b"n": 2, b"new": -5}))
    assert answer == Committed(Result.OK, {b"n": 42, b"new": -5})
    assert held(store, key) == {b"n": b"42", b"new": b"-5"}


def an_increment_sees_the_delete_and_the_set_of_its_delta(store: SyncStore) -> None:
    key = begun(store, set=b"x", deleted=b"7")
    delta = Delta(sets={b"set": b"1"}, dels=[b"deleted"], incrs={b"set": 1, b"deleted": 1})
    assert store.commit(key, delta).counters == {b"set": 2, b"deleted": 1}
    dropped = store.commit(key, Delta(HOUR, incrs={b"set": 1}, drop=True))
    assert dropped.counters == {b"set": 1}
    assert held(store, key) == {b"set": b"1"}


def what_is_no_counter_refuses_the_whole_delta(store: SyncStore) -> None:
    for value in (
        b'"x"',
        b"1.5",
        b"01",
        b"-0",
        b"+1",
        b" 1",
        b"",
        b"1e3",
        b"true",
        b"9" * 17,
        b"9007199254740992",
    ):
        key = begun(store, x=value, n=b"1")
        answer = store.commit(key, Delta(0.05, sets={b"a": b"1"}, dels=[b"n"], incrs={b"x": 1}))
        assert answer == Committed(Result.NOT_INT, field=b"x"), value
        assert held(store, key) == {b"x": value, b"n": b"1"}


def a_counter_stays_where_numbers_are_exact(store: SyncStore) -> None:
    key = begun(store, n=b"%d" % (LARGEST_COUNTER - 1))
    assert store.commit(key, Delta(incrs={b"n": 1})).counters == {b"n": LARGEST_COUNTER}
    for by in (1, 2, 2**60, -(2**54)):
        assert store.commit(key, Delta(incrs={b"n": by})) == Committed(Result.NOT_INT, field=b"n"), by
    assert store.commit(key, Delta(incrs={b"n": -LARGEST_COUNTER})).counters == {b"n": 0}


def expectations_are_kept_or_nothing_is_done(store: SyncStore) -> None:
    key = begun(store, a=b"1", big=b"x" * 5000)
    good = {b"a": b"1", b"big": b"x" * 5000, b"none": None}
    assert store.commit(key, Delta(sets={b"a": b"2"}, expect=good)) == OK
    for field, value in ((b"a", b"1"), (b"a", None), (b"none", b"")):
        answer = store.commit(key, Delta(sets={b"a": b"3"}, expect={b"big": b"x" * 5000, field: value}))
        assert answer == Committed(Result.CONFLICT, field=field)
    assert store.load(key) == {b"a": b"2", b"big": b"x" * 5000, CREATED: b"1"}


def a_whole_session_is_compared_with_all_its_fields(store: SyncStore) -> None:
    key = begun(store, a=b"1")
    seen = {b"a": b"1", CREATED: b"1", b"none": None}
    assert store.commit(key, Delta(sets={b"b": b"2"}, expect=seen, whole=True)) == OK
    assert store.commit(key, Delta(dels=[b"a"], expect=seen, whole=True)) == Committed(Result.CONFLICT)
    assert held(store, key) == {b"a": b"1", b"b": b"2"}


def a_session_can_be_dropped_for_what_is_set(store: SyncStore) -> None:
    key = begun(store, a=b"1", b=b"2")
    assert store.commit(key, Delta(HOUR, sets={b"c": b"3"}, drop=True)) == OK
    assert store.load(key) == {b"c": b"3"}
    assert store.commit(key, Delta(drop=True, expect={b"c": b"4"})).result is Result.CONFLICT
    assert store.commit(key, Delta(drop=True, expect={b"c": b"3"})) == OK
    assert store.load(key) is None


def who_comes_late_to_a_renewed_session_is_sent_after_it(store: SyncStore) -> None:
    old, new = begun(store, a=b"1"), begun(store, a=b"1")
    seen = dict(store.load(old) or {})
    forward = Delta(30, sets={FORWARD: new.encode()}, drop=True, expect=seen, whole=True)
    assert store.commit(old, forward) == OK
    assert store.load(old) == {FORWARD: new.encode()}
    assert store.commit(old, Delta(HOUR, sets={b"a": b"2"})) == Committed(Result.MOVED, moved_to=new)
    assert store.commit(old, Delta(HOUR, sets={b"a": b"2"}, create=True)).result is Result.TAKEN
    assert store.load(old) == {FORWARD: new.encode()}


def thousands_of_fields_are_one_delta(store: SyncStore) -> None:
    many = {b"f%d" % number: b"%d" % number for number in range(9000)}
    key = fresh()
    assert store.commit(key, Delta(HOUR, sets=many, create=True)) == OK
    assert store.load(key) == many
    assert store.commit(key, Delta(dels=list(many)[1:], expect=many, whole=True)) == OK
    assert store.load(key) == {b"f0": b"0"}


def a_session_without_fields_is_none(store: SyncStore) -> None:
    key = fresh()
    store.commit(key, Delta(HOUR, sets={b"a": b"1"}, create=True))
    assert store.commit(key, Delta(HOUR, dels=[b"a"])) == OK
    assert store.load(key) is None
    assert store.commit(key, Delta(HOUR, create=True)) == OK
    assert store.load(key) is None


def fifty_writers_of_fifty_keys_lose_nothing(store: SyncStore) -> None:
    key = begun(store, hits=b"0")
    deltas = [Delta(HOUR, sets={b"k%d" % number: b"1"}, incrs={b"hits": 1}) for number in range(50)]
    if isinstance(store, Driven):
        together = asyncio.wait_for(_gathered(store.store, key, deltas), 20)
        answers = store.loop.run_until_complete(together)
    else:
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda delta: store.commit(key, delta), deltas))
    assert sorted(answer.counters[b"hits"] for answer in answers) == list(range(1, 51))
    assert held(store, key) == {b"k%d" % number: b"1" for number in range(50)} | {b"hits": b"50"}


async def _gathered(store: Any, key: str, deltas: list[Delta]) -> list[Committed]:
    return list(await asyncio.gather(*(store.commit(key, delta) for delta in deltas)))


def several_sessions_are_looked_at_without_their_values(store: SyncStore) -> None:
    one, other = begun(store, a=b"1", b=b"2"), begun(store)
    assert store.look([one, fresh(), other], [b"a", CREATED]) == [
        {b"a": b"1", CREATED: b"1"},
        None,
        {CREATED: b"1"},
    ]
    assert store.look([other, fresh()], [b"a"]) == [{}, None]
    assert store.look([one], []) == [{}]
    assert store.look([], [b"a"]) == []


def the_sessions_of_a_user_are_found_until_they_expire(store: SyncStore) -> None:
    user, now = fresh(), time.time()
    store.index(user, now=now, add=Entry("late", now + 200))
    store.index(user, now=now, add=Entry("early", now + 100))
    store.index(user, now=now, add=Entry("removed", now + 300))
    store.index(user, now=now, remove=["removed", "none"])
    found = store.sessions_of(user, now=now)
    assert [entry.key for entry in found] == ["early", "late"]
    assert [entry.expires_at for entry in found] == pytest.approx([now + 100, now + 200], abs=0.001)
    assert [entry.key for entry in store.sessions_of(user, now=now + 100.5)] == ["late"]
    store.index(user, now=now + 150, add=Entry("late", now + 400))
    assert store.sessions_of(user, now=now) == [Entry("late", pytest.approx(now + 400, abs=0.001))]
    assert store.sessions_of(fresh(), now=now) == []


def an_index_may_lose_its_last_session(store: SyncStore) -> None:
    user, now = fresh(), time.time()
    store.index(user, now=now, add=Entry("one", now + 100))
    store.index(user, now=now, remove=[f"none{number}" for number in range(3000)] + ["one"])
    assert store.sessions_of(user, now=now) == []


def the_indexes_of_a_user_are_looked_at_together(store: SyncStore) -> None:
    (_, tagged), user, now = slotted(), fresh(), time.time()
    store.index(user, now=now, add=Entry("early", now + 100))
    store.index(tagged, now=now, add=Entry("between", now + 200))
    store.index(user, now=now, add=Entry("late", now + 300))
    found = store.sessions_of(fresh(), tagged, user, fresh(), now=now)
    assert [entry.key for entry in found] == ["early", "between", "late"]
    assert store.sessions_of(now=now) == []


def a_session_with_a_slot_is_one_like_any_other(store: SyncStore) -> None:
    (one, _), (other, _) = slotted(), slotted()
    plain = begun(store, a=b"0")
    for key in (one, other):
        assert store.commit(key, Delta(HOUR, sets={b"a": b"1"}, create=True)) == OK
    assert store.commit(one, Delta(incrs={b"a": 1})).counters == {b"a": 2}
    assert store.look([one, plain, other], [b"a"]) == [{b"a": b"2"}, {b"a": b"0"}, {b"a": b"1"}]
    assert {one, plain, other} <= set(store.scan(limit=1_000_000))
    assert store.lock(one, "mine", ttl=HOUR)
    assert not store.lock(one, "yours", ttl=HOUR)
    assert store.lock(one.partition(".")[2], "yours", ttl=HOUR)  # that is another one
    assert store.unlock(one, "mine")
    assert store.delete(one, plain, other) == 3
    assert store.load(one) is None


def a_session_and_its_index_are_written_as_one(store: SyncStore) -> None:
    (key, user), now = slotted(), time.time()
    store.index(user, now=now, add=Entry("expired", now + 10))
    begin = Delta(HOUR, sets={b"a": b"1"}, create=True, listing=Listing(user, now + 20, now + 100))
    assert store.commit(key, begin) == OK
    assert listed(store, user, now) == {key: 100}
    assert store.commit(key, Delta(HOUR, sets={b"a": b"2"}, listing=Listing(user, now, now + 200))) == OK
    assert listed(store, user, now) == {key: 200}
    assert store.commit(key, Delta(HOUR, sets={b"a": b"3"})) == OK
    assert listed(store, user, now) == {key: 200}
    assert store.commit(key, Delta(drop=True, listing=Listing(user, now))) == OK
    assert (store.load(key), listed(store, user, now)) == (None, {})


def a_session_that_is_renewed_leaves_the_index_to_the_one_that_follows(store: SyncStore) -> None:
    (old, user), now = slotted(), time.time()
    new = f"{old}2"
    for key in (old, new):
        store.commit(key, Delta(HOUR, sets={b"a": b"1"}, create=True, listing=Listing(user, now, now + 100)))
    forward = {FORWARD: new.encode()}
    assert store.commit(old, Delta(30, sets=forward, drop=True, listing=Listing(user, now))) == OK
    assert (store.load(old), listed(store, user, now)) == (forward, {new: 100})


def a_delta_that_is_refused_leaves_the_index_as_it_was(store: SyncStore) -> None:
    (key, user), now = slotted(), time.time()
    none, moved = f"{key}1", f"{key}2"
    store.commit(key, Delta(HOUR, sets={b"a": b"x"}, create=True, listing=Listing(user, now, now + 100)))
    store.commit(moved, Delta(HOUR, sets={FORWARD: key.encode()}, create=True))
    add, remove = Listing(user, now, now + 900), Listing(user, now)
    refused = {
        Result.TAKEN: [(key, Delta(HOUR, sets={b"a": b"y"}, create=True))],
        Result.GONE: [(none, Delta(HOUR, sets={b"a": b"y"})), (none, Delta(drop=True))],
        Result.CONFLICT: [(key, Delta(drop=True, expect={b"a": b"z"})), (key, Delta(drop=True, whole=True))],
        Result.NOT_INT: [(key, Delta(HOUR, incrs={b"a": 1}))],
        Result.MOVED: [(moved, Delta(HOUR, sets={b"a": b"y"})), (moved, Delta(drop=True))],
    }
    for result, deltas in refused.items():
        for name, delta in deltas:
            for listing in (add, remove):
                assert store.commit(name, delta._replace(listing=listing)).result is result
                assert listed(store, user, now) == {key: 100}, delta
    assert held(store, key) == {b"a": b"x"}


def an_index_that_lies_elsewhere_cannot_be_written_with_a_session(store: SyncStore) -> None:
    (key, user), (other, stranger), now = slotted(), slotted(), time.time()
    for name, whose in ((key, stranger), (other, user), (key, fresh()), (fresh(), user), (fresh(), fresh())):
        with pytest.raises(ConfigError, match="need a key and a user of one slot"):
            store.commit(name, Delta(HOUR, sets={b"a": b"1"}, create=True, listing=Listing(whose, now, now)))
        assert store.load(name) is None


def an_operator_sees_keys_and_no_more_than_asked_for(store: SyncStore) -> None:
    mine = {begun(store) for _ in range(5)}
    assert mine <= set(store.scan(limit=1_000_000))
    assert len(store.scan(limit=3)) == 3


def a_lock_is_held_once_and_given_back_by_its_holder(store: SyncStore) -> None:
    key = fresh()
    assert store.lock(key, "one", ttl=HOUR)
    assert not store.lock(key, "other", ttl=HOUR)
    assert not store.unlock(key, "other")
    assert store.unlock(key, "one")
    assert not store.unlock(key, "one")
    assert store.lock(key, "other", ttl=0.05)
    until(lambda: store.lock(key, "one", ttl=HOUR), "the lock has run out")
    assert not store.unlock(key, "other")


def it_says_that_it_is_there_and_shows_no_secret(store: SyncStore) -> None:
    store.ping()
    store.ping()
    assert "secret" not in repr(getattr(store, "store", store))
    assert isinstance(store.shared, bool)


RULES: list[Callable[[SyncStore], None]] = [
    what_is_committed_is_loaded,
    a_delta_changes_the_fields_that_it_names_and_no_other,
    an_id_is_given_out_once,
    a_session_that_has_ended_does_not_come_back,
    several_end_at_once,
    a_session_expires,
    a_delta_with_a_ttl_puts_the_end_off_and_one_without_does_not,
    a_delta_of_nothing_but_a_ttl_touches,
    no_session_is_made_that_never_expires,
    counters_add_up,
    an_increment_sees_the_delete_and_the_set_of_its_delta,
    what_is_no_counter_refuses_the_whole_delta,
    a_counter_stays_where_numbers_are_exact,
    expectations_are_kept_or_nothing_is_done,
    a_whole_session_is_compared_with_all_its_fields,
    a_session_can_be_dropped_for_what_is_set,
    who_comes_late_to_a_renewed_session_is_sent_after_it,
    thousands_of_fields_are_one_delta,
    a_session_without_fields_is_none,
    fifty_writers_of_fifty_keys_lose_nothing,
    several_sessions_are_looked_at_without_their_values,
    the_sessions_of_a_user_are_found_until_they_expire,
    an_index_may_lose_its_last_session,
    the_indexes_of_a_user_are_looked_at_together,
    a_session_with_a_slot_is_one_like_any_other,
    a_session_and_its_index_are_written_as_one,
    a_session_that_is_renewed_leaves_the_index_to_the_one_that_follows,
    a_delta_that_is_refused_leaves_the_index_as_it_was,
    an_index_that_lies_elsewhere_cannot_be_written_with_a_session,
    an_operator_sees_keys_and_no_more_than_asked_for,
    a_lock_is_held_once_and_given_back_by_its_holder,
    it_says_that_it_is_there_and_shows_no_secret,
]
