"""Who is logged in where: the sessions of one user, listed and revoked.

The index of a user is written before the session is, so a revocation either finds the session or precedes the
login. An entry whose session has ended does no harm: it is passed over, and expires.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.errors import SessionUnavailable
from lbkit.sessions.account import as_user
from lbkit.sessions.codec import Undecodable, decode
from lbkit.sessions.cookie import SessionCookie
from lbkit.sessions.line import Flow, Line
from lbkit.sessions.store import CREATED, DEVICE, TOUCHED, USER, Entry, Fields
from lbkit.types import Clock

__all__ = ["Roster", "SessionEntry"]


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

    def __init__(self, line: Line, cookie: SessionCookie, *, wall: Clock) -> None:
        self._line = line
        self._names = cookie.users
        self._wall = wall

    def enter(self, user: bytes, entry: Entry) -> Flow[None]:
        name = self._names(as_user(user))[0]
        yield from self._line.ask("index", name, now=self._wall(), add=entry)

    def strike(self, fields: Fields, key: str) -> Flow[None]:
        """Tidy up after a session. The entry is stale anyway, so a failure does no harm."""
        user = fields.get(USER)
        try:
            for name in () if user is None else self._names(as_user(user)):
                yield from self._line.ask("index", name, now=self._wall(), remove=[key])
        except SessionUnavailable:
            return

    def listed(self, user: str, *, current: str | None) -> Flow[list[SessionEntry]]:
        """The sessions in which this user is logged in, the one that was used last in front."""
        found: list[SessionEntry | None] = []
        for name in self._names(user):
            if keys := (yield from self._keys(name)):
                looked = yield from self._line.ask("look", keys, (CREATED, TOUCHED, DEVICE))
                found += [_entry(key, fields, current) for key, fields in zip(keys, looked, strict=True)]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.seen_at)

    def revoke(self, user: str, *, keep: str | None) -> Flow[int]:
        """End all sessions of this user, but for the one with this key; how many there were."""
        ended = 0
        for name in self._names(user):
            keys = [key for key in (yield from self._keys(name)) if key != keep]
            if keys:
                ended += yield from self._line.ask("delete", *keys)
                yield from self._line.ask("index", name, now=self._wall(), remove=keys)
        self._line.count("revocations")
        return ended

    def revoke_id(self, handle: str, *, user: str | None) -> Flow[bool]:
        """End the session with this handle, if it is the user's; None for whosever it is."""
        (fields,) = yield from self._line.ask("look", [handle], (USER,))
        if fields is None or (user is not None and as_user(fields.get(USER, b"\0")) != user):
            return False
        ended = yield from self._line.ask("delete", handle)
        yield from self.strike(fields, handle)
        return bool(ended)

    def _keys(self, name: str) -> Flow[list[str]]:
        entries: list[Entry] = yield from self._line.ask("sessions_of", name, now=self._wall())
        return [entry.key for entry in entries]


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
