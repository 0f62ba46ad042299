"""Who is logged in where: the sessions of one user, listed and revoked.

==================  =============================  ===========================
the session's id    its user's index               is written
==================  =============================  ===========================
has no tag          lies anywhere                  before the session
ends with a tag     lies in the tag's slot         with the session, as one
==================  =============================  ===========================

So a revocation either finds a session or precedes the login. An entry whose session has ended does no harm:
it is passed over, and expires. `SessionOptions.tag_users` gives new ids a tag; both indexes are always read.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.errors import SessionUnavailable
from lbkit.sessions.account import as_user
from lbkit.sessions.codec import Undecodable, decode
from lbkit.sessions.cookie import SessionCookie, index_by_tag, tag_of
from lbkit.sessions.line import Flow, Line
from lbkit.sessions.store import CREATED, DEVICE, TOUCHED, USER, Delta, Entry, Fields, Listing, slot_of
from lbkit.types import Clock

__all__ = ["Roster", "SessionEntry"]

ROUNDS = 4
"""A user who logs in faster than we look is not looked for for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEntry:
    """One of a user's sessions. Instants are Unix time in seconds."""

    handle: str
    """Names the session to `revoke_id`. It opens nothing."""

    created_at: float
    seen_at: float
    ip: str | None
    agent: str | None
    current: bool
    """Is it the one of this request?"""


class Roster:
    """The store knows users by a keyed hash. With several secret keys there are as many places to look."""

    def __init__(self, line: Line, cookie: SessionCookie, *, wall: Clock, tagging: bool) -> None:
        self._line = line
        self._names = cookie.users
        self._wall = wall
        self._tagging = tagging

    def tag(self, fields: Fields) -> str:
        """What the id of a session that begins with these fields must end with."""
        users = self._users(fields) if self._tagging else []
        return tag_of(users[0]) if users else ""

    def fits(self, fields: Fields, key: str) -> bool:
        """Is the session its user's, if it has a tag? One that is not could not be found to be revoked."""
        return not slot_of(key) or bool(self._indexes(fields, key))

    def outdated(self, fields: Fields, key: str) -> bool:
        """Was its tag made by an older secret key? When that is dropped, it fits no more."""
        users = self._users(fields) if slot_of(key) else []
        return bool(users) and tag_of(users[0]) != slot_of(key)

    def enter(self, fields: Fields, key: str, ends_at: float) -> Flow[Listing | None]:
        """Note the session of a user, or say what the delta that begins or extends it must note."""
        names, now = self._indexes(fields, key), self._wall()
        if not names:
            return None
        if slot_of(key):
            return Listing(names[0], now, ends_at)
        yield from self._line.ask("index", names[0], now=now, add=Entry(key, ends_at))
        return None

    def enter_again(self, fields: Fields, key: str, ends_at: float) -> Flow[bool]:
        """Note under the newest secret key what an older one has signed: when that is gone, it is not found.

        A session with a tag is left to its renewal. False: the store did not answer.
        """
        try:
            yield from self.enter(fields, key, ends_at)
        except SessionUnavailable:
            return False
        return True

    def leave(self, fields: Fields, key: str, ending: Delta) -> Delta:
        """The delta that ends this session, and takes it out of the index that was written with it."""
        names = self._indexes(fields, key) if slot_of(key) else []
        return ending._replace(listing=Listing(names[0], self._wall()) if names else None)

    def strike(self, fields: Fields, key: str) -> Flow[None]:
        """Tidy up after a session, where the delta that ended it did not."""
        if not slot_of(key):
            yield from self._strike(fields, key)

    def listed(self, user: str, *, current: str | None) -> Flow[list[SessionEntry]]:
        """The sessions in which this user is logged in, the one that was used last in front."""
        keys = yield from self._keys(user)
        looked = (yield from self._line.ask("look", keys, (CREATED, TOUCHED, DEVICE))) if keys else []
        found = [_entry(key, fields, current) for key, fields in zip(keys, looked, strict=True)]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.seen_at)

    def revoke(self, user: str, *, keep: str | None) -> Flow[int]:
        """End all sessions of this user, but for the one with this key; how many there were.

        We look twice, and until there is no new one: one that gets a new id meanwhile is not missed. No entry
        is removed, for its session may be about to begin.
        """
        ended, seen = 0, {keep}
        for number in range(ROUNDS):
            keys = [key for key in (yield from self._keys(user)) if key not in seen]
            if keys:
                ended += yield from self._line.ask("delete", *keys)
            elif number:
                break
            seen.update(keys)
        self._line.count("revocations")
        return ended

    def revoke_id(self, handle: str, *, user: str | None) -> Flow[bool]:
        """End the session with this handle, if it is the user's; None for whosever it is."""
        (fields,) = yield from self._line.ask("look", [handle], (USER,))
        if fields is None or (user is not None and as_user(fields.get(USER, b"\0")) != user):
            return False
        ended = yield from self._line.ask("delete", handle)
        yield from self._strike(fields, handle)
        return bool(ended)

    def _keys(self, user: str) -> Flow[list[str]]:
        names = [name for each in self._names(user) for name in (each, index_by_tag(each))]
        entries: list[Entry] = yield from self._line.ask("sessions_of", *names, now=self._wall())
        return list(dict.fromkeys(entry.key for entry in entries))  # noted under two secret keys, it is one

    def _strike(self, fields: Fields, key: str) -> Flow[None]:
        """The entry is stale anyway, so a failure does no harm."""
        try:
            for name in self._indexes(fields, key):
                yield from self._line.ask("index", name, now=self._wall(), remove=[key])
        except SessionUnavailable:
            return

    def _indexes(self, fields: Fields, key: str) -> list[str]:
        """Where the session may be noted; with a tag there is one place, and none if it is not its user's."""
        slot, users = slot_of(key), self._users(fields)
        return [index_by_tag(user) for user in users if tag_of(user) == slot] if slot else users

    def _users(self, fields: Fields) -> list[str]:
        """What the store calls the user, by each secret key, the newest first; nothing for nobody."""
        user = fields.get(USER)
        return [] if user is None else self._names(as_user(user))


def _entry(key: str, fields: Fields | None, current: str | None) -> SessionEntry | None:
    try:
        fields = fields or {}
        device = decode(fields.get(DEVICE, b"{}"))
        created_at, seen_at = float(fields[CREATED]), float(fields[TOUCHED])
        ip, agent = device.get("ip"), device.get("agent")
    except (KeyError, ValueError, AttributeError, Undecodable):
        return None  # what is there is no session: it has ended, or points to another one
    return SessionEntry(
        handle=key, created_at=created_at, seen_at=seen_at, ip=ip, agent=agent, current=key == current
    )
