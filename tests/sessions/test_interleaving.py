"""Any interleaving of requests over one session equals the model: the last writer of a key has its way.

The model is two dicts: what a request has seen and done so far, and what is stored. A login, a rotation or a
logout ends the id at once, so what was under way with it changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lbkit.sessions import SessionOptions
from lbkit.stores import MemoryStore
from lbkit.wsgi import Sessions
from lbkit.wsgi.sessions import Session
from tests.sessions.sites import KEYS

KEY = st.sampled_from(["a", "b", "c", "hits"])
VALUE = st.one_of(st.integers(-5, 5), st.text("xyz", max_size=2), st.lists(st.integers(0, 3), max_size=2))


class Request:
    """One request that is under way, and what it should see and leave behind."""

    def __init__(self, session: Session, stored: dict[str, Any], *, generation: int) -> None:
        self.session = session
        self.seen = {key: _copy(value) for key, value in stored.items()}
        self.generation = generation
        self.written: dict[str, Any] = {}
        self.counted: dict[str, int] = {}
        self.parts: str | None = None


class Interleaving(RuleBasedStateMachine):
    """`generation` counts the ids: only a request that came with the present one may change anything."""

    tag_users = False
    first: Mapping[str, Any] = {"a": 0}
    """What a session begins with."""

    @initialize()
    def begin(self) -> None:
        self.now, self.renewals = 1_800_000_000.0, 0
        # The store's clock stands still: what a renewal leaves behind stays for as long as a test needs it.
        store = MemoryStore(clock=lambda: 0.0)
        options = SessionOptions(renewal=600.0, tag_users=self.tag_users)
        self.sessions = Sessions(store, secret_keys=KEYS, options=options, wall=lambda: self.now)
        self.environ: dict[str, str] = {}
        self.generation = 0
        self.stored: dict[str, Any] = {}
        self.running: list[Request] = []
        opened = self.sessions.open({})
        opened.update(self.first)
        opened.save()
        self._take(opened)
        self.stored = dict(self.first)

    def _take(self, session: Session) -> None:
        self.environ = {"HTTP_COOKIE": str(session._cookie_due).partition(";")[0]}

    @precondition(lambda self: len(self.running) < 3)
    @rule()
    def a_request_comes(self) -> None:
        session = self.sessions.open(self.environ)
        assert dict(session) == self.stored
        self.running.append(Request(session, self.stored, generation=self.generation))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), key=KEY, value=VALUE)
    def it_writes(self, which: int, key: str, value: Any) -> None:
        request = self._one(which)
        request.session[key] = _copy(value)
        request.written[key] = _copy(value)
        request.seen[key] = _copy(value)
        request.counted.pop(key, None)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), key=KEY)
    def it_drops(self, which: int, key: str) -> None:
        request = self._one(which)
        had = key in request.seen
        assert (request.session.pop(key, None) is not None) == (had and request.seen[key] is not None)
        if had:
            request.written[key] = None
            del request.seen[key]
            request.counted.pop(key, None)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), by=st.integers(-2, 3))
    def it_counts(self, which: int, by: int) -> None:
        request = self._one(which)
        if type(request.seen.get("hits", 0)) is not int:
            return
        request.session.incr("hits", by)
        request.counted["hits"] = request.counted.get("hits", 0) + by
        request.seen["hits"] = request.seen.get("hits", 0) + by
        assert request.session["hits"] == request.seen["hits"]

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), key=KEY, item=st.integers(0, 3))
    def it_changes_a_list_in_place(self, which: int, key: str, item: int) -> None:
        request = self._one(which)
        if type(request.seen.get(key)) is not list:
            return
        request.session[key].append(item)
        request.seen[key] = [*request.seen[key], item]
        request.written[key] = _copy(request.seen[key])

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), how=st.sampled_from(["rotate", "clear"]))
    def it_parts_with_its_id(self, which: int, how: str) -> None:
        request = self._one(which)
        getattr(request.session, how)()
        if how == "clear":
            request.written = dict.fromkeys([*self.stored, *request.seen, *request.written])
            request.seen, request.counted = {}, {}
        request.parts = "clear" if "clear" in (how, request.parts) else how

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2))
    def it_ends(self, which: int) -> None:
        request = self._one(which)
        self.running.remove(request)
        if request.generation == self.generation:
            if self._miscounts(request):
                self._refused(request)
                return
            self._apply(request)
        request.session.save()
        if request.generation == self.generation and request.parts:
            self.generation += 1
            if request.session._key is None:
                self.begin_anew()
            else:
                self._take(request.session)
        elif request.generation == self.generation and request.session._cookie_due:
            self._take(request.session)  # it was renewed
        else:
            assert request.session._cookie_due is None
        if not self.running:
            self.renewals = 0

    def begin_anew(self) -> None:
        """The session is over; the next request finds none, and begins another."""
        assert dict(self.sessions.open(self.environ)) == {}
        session = self.sessions.open({})
        session.update(self.first)
        session.save()
        self._take(session)
        self.stored = dict(self.first)

    @precondition(lambda self: self.renewals < 3)
    @rule()
    def time_passes(self) -> None:
        """The id has served for long enough. Nobody sleeps through more than three renewals."""
        self.now += 601
        self.renewals += 1

    def _one(self, which: int) -> Request:
        return self.running[which % len(self.running)]

    def _miscounts(self, request: Request) -> bool:
        """Somebody has put something else where this request counts, and it has not cleared that away."""
        if "hits" not in request.counted or "hits" in request.written or request.parts == "clear":
            return False
        return type(self.stored.get("hits", 0)) is not int

    def _refused(self, request: Request) -> None:
        try:
            request.session.save()
        except TypeError:
            return
        raise AssertionError("what is no counter was counted")

    def _apply(self, request: Request) -> None:
        if request.parts == "clear":
            self.stored = {}
        for key, value in request.written.items():
            if value is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = _copy(value)
        for key, by in request.counted.items():
            self.stored[key] = self.stored.get(key, 0) + by

    @invariant()
    def what_is_stored_is_what_the_model_says(self) -> None:
        if self.environ:
            assert dict(self.sessions.open(self.environ)) == self.stored

    @invariant()
    def who_is_logged_in_is_listed(self) -> None:
        if self.environ:
            listed = self.sessions.list("alice")
            assert len(listed) == ("user_id" in self.stored)
            assert all(("." in entry.handle) == self.tag_users for entry in listed)

    @invariant()
    def each_request_sees_what_it_has_done(self) -> None:
        for request in self.running:
            assert dict(request.session) == request.seen


def _copy(value: Any) -> Any:
    return list(value) if type(value) is list else value


class TaggedInterleaving(Interleaving):
    """The same, of a user who is logged in, by an id with a tag; one that was cleared has none."""

    tag_users = True
    first: Mapping[str, Any] = {"a": 0, "user_id": "alice"}


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestTaggedInterleaving = TaggedInterleaving.TestCase
TestTaggedInterleaving.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
