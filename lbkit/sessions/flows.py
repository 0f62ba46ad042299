"""How a session is opened, kept, given a new id and ended: one text for Flask and for ASGI.

Each flow yields the calls that it makes to the store; `lbkit.flow.run` and `arun` drive it. What a request
does to the store when its head is about to leave:

=====================================  ===========================================================
the request                            the store, and the browser
=====================================  ===========================================================
did not use its session                is asked nothing
has read                               nothing; a note of its use after the answer, once a minute
has changed something                  one delta, in one round trip; no cookie, it has the right one
has put something into an empty one    a new id, and its cookie
has changed a watched key, or rotated  a new id with everything; the old one ends at once
has cleared it                         the session ends, and the cookie goes
=====================================  ===========================================================

A delta to a session that has ended meanwhile is void: it is counted, and no cookie is sent. Nobody is logged
in again by a request that was late, and nobody is logged out by a store that did not answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from lbkit.errors import SessionConflict, SessionError, SessionLocked, SessionTypeError, SessionUnavailable
from lbkit.sessions.account import PERMANENT_FIELD, Account
from lbkit.sessions.codec import field_of, key_of
from lbkit.sessions.contents import Contents, Seal
from lbkit.sessions.cookie import SessionCookie, key_of_id, new_id
from lbkit.sessions.encryption import Encryption
from lbkit.sessions.line import Flow, Line, Pause
from lbkit.sessions.options import SessionOptions
from lbkit.sessions.roster import Roster
from lbkit.sessions.session import Session
from lbkit.sessions.store import (
    CREATED,
    FORWARD,
    ROOT,
    TOUCHED,
    Committed,
    Delta,
    Fields,
    Result,
)
from lbkit.types import Clock

__all__ = ["SessionFlows"]

logger = logging.getLogger("lbkit.sessions")

HOPS = 4
"""Renewals that a request may have slept through."""

ATTEMPTS = 4
"""How often a new id is begun again because somebody wrote meanwhile."""

LOCK_TTL = 30.0
LOCK_PAUSE = 0.02


class Begun(NamedTuple):
    """A session under a new id, as it was sent to the store."""

    sid: str
    key: str
    root: str
    seal: Seal | None
    delta: Delta
    done: Committed


class Missed(Protocol):
    """Wants to know of genuine cookies whose session is not in the store."""

    def __call__(self, key: str, *, signed_at: float) -> None: ...


class SessionFlows:
    """What is decided about the sessions of one app. `wall` is Unix time in seconds."""

    def __init__(
        self,
        cookie: SessionCookie,
        options: SessionOptions,
        *,
        line: Line,
        wall: Clock,
        encryption: Encryption | None = None,
        chance: Callable[[], str] = new_id,
    ) -> None:
        self.cookie = cookie
        self.options = options
        self.account = Account(options)
        self.roster = Roster(line, cookie, wall=wall, tagging=options.tag_users)
        self.missed: Missed | None = None
        self._line = line
        self._ask = line.ask
        self._wall = wall
        self._encryption = encryption
        self._chance = chance
        self._watched = [field_of(key) for key in options.watch]
        self._strict = options.conflict == "raise"

    # Opening.

    def load(self, session: Session) -> Flow[None]:
        """Find the session that the cookie names. A store that does not answer becomes its `outage`."""
        presented = self.cookie.read(session._cookies)
        if presented is None:
            session._begin(None, Contents({}))
            return
        session._presented = presented
        try:
            key, fields, first = yield from self._found(presented.key)
        except SessionUnavailable as error:
            session._outage = error
            return
        if fields is None or not (self.account.lives(fields, self._wall()) and self.roster.fits(fields, key)):
            self._line.count("missed")
            if fields is None and self.missed is not None:
                self.missed(presented.key, signed_at=presented.signed_at)
            session._begin(None, Contents({}))
            return
        # Who comes with an id that has been renewed is not told the new one.
        session._sid = presented.sid if key == presented.key else None
        if self._encryption is not None:
            session._root = self._encryption.root(presented.sid, first or {})
        session._begin(key, Contents(fields, seal=self._seal(session._root)))

    def reload(self, session: Session) -> Flow[None]:
        """Read again what others have written. What this request has changed stays changed."""
        contents = session._contents
        if contents is None or session._key is None:
            return
        session._key, fields, _ = yield from self._found(session._key)
        contents.forget_expectations()
        contents.renew(fields or {})

    def _found(self, key: str) -> Flow[tuple[str, Fields | None, Fields | None]]:
        """The key that it leads to, what is there, and what was found first."""
        first: Fields | None = None
        for _ in range(HOPS):
            fields: Fields | None = yield from self._ask("load", key)
            first = fields if first is None else first
            if fields is None or FORWARD not in fields:
                return key, fields, first
            key = fields[FORWARD].decode("ascii", "replace")
        return key, None, first

    # Keeping.

    def save(self, session: Session) -> Flow[None]:
        """Keep what the request has changed; `session._cookie_due` is then what the browser must get."""
        contents = session._contents
        if contents is None:
            return
        changed = contents.changed
        if self._strict:
            contents.expect_written()
        if session._outage is not None:
            self._lose(contents, "unavailable")
        elif session._key is None:
            session._settle()
            if changed:
                yield from self._create(session, contents)
        elif session._cleared or session._rotating or (changed and any(map(contents.altered, self._watched))):
            yield from self._part(session, contents)
        elif self._renewable(session, contents):
            yield from self._renew(session, contents)
        elif changed or session._touching:
            yield from self._commit(session, contents)
        else:
            yield from self._sign_again(session, contents)

    def unfinished(self, session: Session) -> bool:
        """After the answer: is there something left to keep?"""
        contents = session._contents
        if contents is None or session._void or session._outage is not None:
            return False
        return session.modified or self._stale(session, contents)

    def finish(self, session: Session) -> Flow[None]:
        """As `save`, for what was left until the answer was over: also that the session was used at all."""
        if session._contents is not None and self._stale(session, session._contents):
            session._touching = True
        yield from self.save(session)

    def _stale(self, session: Session, contents: Contents) -> bool:
        return session._key is not None and self.account.stale(contents.raw, self._wall())

    def _create(self, session: Session, contents: Contents) -> Flow[None]:
        self._refuse_late(session)
        now = self._wall()
        for _ in range(2):
            begun = yield from self._begin(session, contents, now, created_at=now)
            if begun.done.result is Result.OK:
                self._settle(session, contents, begun, now)
                self._line.count("created")
                return
        self._refuse(begun.done)

    def _begin(
        self, session: Session, contents: Contents, now: float, *, created_at: float, root: str | None = None
    ) -> Flow[Begun]:
        """Store everything under a new id. The index comes first or with it, so no revocation misses it."""
        self.account.weigh(contents)
        own = self.account.opened(contents, session._device, now, created_at=created_at)
        sid = self._chance() + self.roster.tag(own)
        key = key_of_id(sid)
        listing = yield from self.roster.enter(own, key, self.account.ends_at(now, created_at))
        if self._encryption is not None and root is not None:
            own[ROOT] = self._encryption.sealed_root(root, sid)
        root = root or sid
        seal = self._seal(root)
        delta = contents.everything(own, self.account.ttl(contents, now, created_at), seal=seal)
        delta = delta._replace(listing=listing)
        # Where nothing was written before it, it is the only step unless an old id must end.
        done = yield from self._ask("commit", key, delta, last=session._key is None)
        return Begun(sid, key, root, seal, delta, done)

    def _settle(self, session: Session, contents: Contents, begun: Begun, now: float) -> None:
        contents.begun(begun.delta, begun.seal)
        session._key, session._sid, session._root = begun.key, begun.sid, begun.root
        session._settle()
        self._tell(session, contents, now)

    def _part(self, session: Session, contents: Contents) -> Flow[None]:
        """This id is over: because the session is, or because it may do something else from now on."""
        if next(iter(contents), None) is None and (session._cleared or not session._rotating):
            yield from self._end(session, contents)
            return
        self._refuse_late(session)
        if not (yield from self._move(session, contents, grace=False)):
            self._lose(contents, "gone")

    def _renew(self, session: Session, contents: Contents) -> Flow[None]:
        """Under a new id, if others leave us the time."""
        moved = yield from self._move(session, contents, grace=True)
        if moved is None:
            yield from self._commit(session, contents)
        elif not moved:
            self._lose(contents, "gone")

    def _renewable(self, session: Session, contents: Contents) -> bool:
        if session._departed or session._key is None or session._sid is None:
            return False  # who has followed an old id must not be told another new one
        outdated = self.roster.outdated(contents.raw, session._key)
        return self.account.renewable(contents.raw, self._wall(), outdated=outdated)

    def _move(self, session: Session, contents: Contents, *, grace: bool) -> Flow[bool | None]:
        """Begin the session under a new id, then end the old one if nobody has written meanwhile.

        False: it had ended, and so has the new one. None, with `grace` only: it may as well be done later.
        """
        now, before, old = self._wall(), contents.raw, session._key or ""
        fresh = session._cleared or any(map(contents.altered, self._watched))
        for attempt in range(ATTEMPTS):
            if (broken := contents.broken_expectation()) is not None:
                self._line.count("conflicts")
                raise SessionConflict(broken)
            created_at = now if fresh else int(contents.raw.get(CREATED, b"0"))
            root = session._root if grace else None
            begun = yield from self._begin(session, contents, now, created_at=created_at, root=root)
            # Where others write all the time, a login is more than what they have written last.
            whole = grace or not (session._cleared or attempt == ATTEMPTS - 1)
            ending = self._ending(contents, begun, grace=grace, whole=whole)
            over = yield from self._ask("commit", old, self.roster.leave(before, old, ending))
            if over.result is Result.OK:
                self._settle(session, contents, begun, now)
                self._line.count("renewed" if grace else "rotated")
                yield from self.roster.strike(before, old)
                return True
            undoing = self.roster.leave(begun.delta.sets, begun.key, Delta(drop=True))
            yield from self._ask("commit", begun.key, undoing)
            if over.result is Result.GONE:
                return False
            old, fields, _ = yield from self._found(over.moved_to or old)
            if fields is None:
                return False
            contents.renew(fields)
            if over.result is Result.MOVED:
                session._key, session._sid = old, None
                if grace:  # somebody else has renewed it, and tells the browser
                    return None
        return None

    def _ending(self, contents: Contents, begun: Begun, *, grace: bool, whole: bool) -> Delta:
        """What ends the old id; with `whole`, if what was carried over is still all that there is."""
        expect: Mapping[bytes, bytes | None] = contents.raw if whole else {}
        if not grace:
            return Delta(expect=expect, whole=whole, drop=True)
        sets = {FORWARD: begun.key.encode("ascii")}
        if ROOT in contents.raw:
            sets[ROOT] = contents.raw[ROOT]
        return Delta(self.options.renewal_grace, sets, expect=expect, whole=whole, drop=True)

    def _commit(self, session: Session, contents: Contents) -> Flow[None]:
        self.account.weigh(contents)
        now = self._wall()
        lasting = contents.altered(PERMANENT_FIELD)
        raw = contents.raw
        created_at = int(raw.get(CREATED, b"0"))
        ttl = self.account.ttl(contents, now, created_at)
        delta = contents.delta({TOUCHED: b"%d" % now}, ttl)
        if self.account.extends(raw, now):
            ends_at = self.account.ends_at(now, created_at)
            listing = yield from self.roster.enter(raw, session._key or "", ends_at)
            delta = delta._replace(listing=listing)
        done = yield from self._apply(session, contents, delta, last=True)
        if done.result is Result.GONE:
            self._lose(contents, "gone")
            return
        self._refuse(done)
        contents.kept(delta, done.counters)
        session._settle()
        yield from self._sign_again(session, contents)
        if lasting:
            self._tell(session, contents, now)

    def _apply(
        self, session: Session, contents: Contents, delta: Delta, *, last: bool = False
    ) -> Flow[Committed]:
        """Commit where the session is now, should it have been renewed meanwhile."""
        for _ in range(HOPS):
            if delta.drop:
                delta = self.roster.leave(contents.raw, session._key or "", delta)
            done: Committed = yield from self._ask("commit", session._key, delta, last=last)
            if done.result is not Result.MOVED:
                return done
            session._key, session._sid, delta = done.moved_to, None, delta._replace(listing=None)
        return Committed(Result.GONE)

    def _end(self, session: Session, contents: Contents) -> Flow[None]:
        """Log out. Not by a delete: if it was renewed meanwhile, the session is somewhere else."""
        before = contents.raw
        done = yield from self._apply(session, contents, Delta(drop=True))
        self._line.count("ended")
        yield from self.roster.strike(before, session._key or "")
        session._begin(None, Contents({}))
        session._contents, session._sid = session._loaded, None
        session._settle()
        # Of one that had ended before, the browser may have the successor's cookie by now.
        if done.result is Result.OK and not session._departed:
            session._cookie_due = self.cookie.unset_cookie()

    def _refuse_late(self, session: Session) -> None:
        if session._departed:
            raise SessionError("a session with a new id needs a cookie, and the head of the answer has left")

    def _refuse(self, done: Committed) -> None:
        key = "" if done.field is None else key_of(done.field)
        if done.result is Result.NOT_INT:
            raise SessionTypeError(key, "", "a counter: it is no integer, or too large")
        if done.result is Result.CONFLICT:
            self._line.count("conflicts")
            raise SessionConflict(key)
        if done.result is not Result.OK:
            raise SessionUnavailable(f"no new session: {done.result.value}")

    def _lose(self, contents: Contents, why: str) -> None:
        """What the request has changed is void. Its client is not told: somebody has ended the session."""
        if contents.changed:
            self._line.count(f"lost_{why}")
            logger.debug("what a request has put into its session is lost: %s", why)

    def _seal(self, root: str | None) -> Seal | None:
        if self._encryption is None or root is None:
            return None
        return self._encryption.of(root, key_of_id(root))

    # Cookies.

    def _tell(self, session: Session, contents: Contents, now: float) -> None:
        """The browser gets the id that the session has now."""
        if session._sid is not None and not session._departed:
            max_age = int(self.options.remember) if self.account.permanent(contents) else None
            session._cookie_due = self.cookie.set_cookie(session._sid, now, max_age=max_age)

    def _sign_again(self, session: Session, contents: Contents) -> Flow[None]:
        """An old key has signed the cookie, or a quarter of its life is over."""
        presented = session._presented
        if presented is None or session._sid != presented.sid or session._departed:
            return
        now, raw = self._wall(), contents.raw
        if presented.signer:
            ends_at = self.account.ends_at(now, int(raw.get(CREATED, b"0")))
            if not (yield from self.roster.enter_again(raw, presented.key, ends_at)):
                return
        ageing = now - presented.signed_at > self.options.remember / 4
        if presented.signer or (ageing and self.account.permanent(contents)):
            self._tell(session, contents, now)

    # Locks.

    def lock(self, session: Session, *, timeout: float) -> Flow[str]:
        """Wait for the session's lock, then read again what others have written. Returns its token."""
        token, deadline = self._chance(), self._line.clock() + timeout
        if session.new:
            return token  # nobody else knows it
        while not (yield from self._ask("lock", session._key, token, ttl=LOCK_TTL)):
            if self._line.clock() >= deadline:
                raise SessionLocked(f"the session's lock was not free within {timeout:g} s")
            yield Pause(LOCK_PAUSE)
        yield from self.reload(session)
        return token

    def unlock(self, session: Session, token: str, *, keep: bool) -> Flow[None]:
        """Keep what was changed under the lock, then give it back."""
        key = session._key
        try:
            if keep:
                yield from self.save(session)
        finally:
            if key is not None and not (yield from self._ask("unlock", key, token)):
                logger.warning("a session was locked for more than %g s: its lock had run out", LOCK_TTL)
