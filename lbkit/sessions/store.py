"""What a session store is: fields for each session, changed by deltas that apply whole or not at all.

A store knows nothing of cookies, ids or users. It is given three kinds of text, and puts its own prefix
before each:

=======  ===============================================================================================
`key`    names a session: url-safe text made from a hash of its id, so that a store never learns the id
`user`   names the index of one user's sessions: url-safe text made from a keyed hash of the user
`token`  names who holds a lock: chance, never the same twice
=======  ===============================================================================================

A `key` and a `user` may have a dot. What stands before it is their slot: those of one slot lie together, on
one server of a cluster too, so that one delta changes a session and the index that it is in.

Fields and values are bytes. A field that begins with NUL is the session's own account of itself (`CREATED`,
`TOUCHED`, ...); the others are what the app stored. Durations are float seconds; `now` and `..._at` are Unix
time in float seconds, by the clock of the caller. Every method raises `StoreUnavailable`, and nothing else,
when the store cannot be asked or cannot take what it is given; a commit that raised may have been done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

from lbkit.errors import ConfigError

__all__ = [
    "CREATED",
    "DEVICE",
    "FORWARD",
    "ISSUED",
    "LARGEST_COUNTER",
    "OWN",
    "ROOT",
    "TOUCHED",
    "USER",
    "AsyncStore",
    "Committed",
    "Delta",
    "Entry",
    "Fields",
    "Listing",
    "Result",
    "SyncStore",
    "refuse_nonsense",
    "slot_of",
]

OWN = b"\0"
CREATED = b"\0c"
TOUCHED = b"\0t"
USER = b"\0u"
ISSUED = b"\0i"
DEVICE = b"\0m"
ROOT = b"\0e"
"""The id by which the values were encrypted first, sealed for who comes with the one that followed."""

FORWARD = b"\0r"
"""The key under which the session goes on: a hash that has it takes no delta and answers MOVED."""

LARGEST_COUNTER = 2**53 - 1
"""Counters lie between its negative and it: beyond, the numbers of Redis' Lua and of JavaScript round."""

Fields: TypeAlias = Mapping[bytes, bytes]

NOTHING: Mapping[bytes, Any] = MappingProxyType({})


class Listing(NamedTuple):
    """Whether a session is in the index of a user, to be written with the session as one."""

    user: str
    now: float
    expires_at: float | None = None
    """None: it is not, or no longer."""


class Delta(NamedTuple):
    """What one request did to a session. All checks come first; then deletes, then sets, then increments."""

    ttl: float | None = None
    """Seconds until the session expires unless it is touched again; None leaves that as it was.

    With `create` or `drop` there is nothing to leave: they need one, unless no field remains.
    """

    sets: Mapping[bytes, bytes] = NOTHING
    incrs: Mapping[bytes, int] = NOTHING
    """Added to the decimal integers that the fields hold; a missing one counts from 0."""

    dels: Collection[bytes] = ()

    expect: Mapping[bytes, bytes | None] = NOTHING
    """Compare and set: the bytes that each of these must still hold, None for one that must be absent."""

    create: bool = False
    """The session must not exist yet: TAKEN if it does. Without it, the session must: GONE if it does not."""

    whole: bool = False
    """`expect` names every field there is: one more in the store is a conflict, too."""

    drop: bool = False
    """Remove whatever the session holds before `sets`: alone, it ends the session once all checks hold."""

    listing: Listing | None = None
    """As `index` would write it, where `key` and `user` are of one slot."""


def slot_of(name: str) -> str:
    """What stands before the dot in a key or a user, "" where there is none."""
    return name.rpartition(".")[0]


def refuse_nonsense(key: str, delta: Delta) -> None:
    """Raise ConfigError for a session that would never expire, or an index that lies elsewhere."""
    if delta.ttl is None and (delta.create or delta.drop) and (delta.sets or delta.incrs):
        raise ConfigError("need a ttl in a delta with create or drop: the session would never expire")
    if delta.listing is None:
        return
    slot, user = slot_of(key), delta.listing.user
    if not slot or slot_of(user) != slot:
        raise ConfigError(f"need a key and a user of one slot, got {key!r} and {user!r}")


class Result(Enum):
    OK = "done"
    GONE = "no session with this key: logged out, rotated or expired, so the delta is void"
    MOVED = "renewed meanwhile: the session goes on under the key in `moved_to`"
    CONFLICT = "`field` is not what was expected"
    TAKEN = "there is a session with this key already"
    NOT_INT = "`field` is no integer, or would leave the range of counters"


class Committed(NamedTuple):
    """What became of a delta. Anything but OK means that nothing at all was changed."""

    result: Result
    counters: Mapping[bytes, int] = NOTHING
    """With OK: what each field of `incrs` holds now."""

    field: bytes | None = None
    """With CONFLICT and NOT_INT. None when a `whole` session has more fields than were expected."""

    moved_to: str | None = None


class Entry(NamedTuple):
    """A session among those of one user."""

    key: str
    expires_at: float


class SyncStore(Protocol):
    """A store that blocks. Threads may share it; processes too, that fork before its first use."""

    shared: bool
    """Do other processes see the same sessions?"""

    def load(self, key: str) -> Fields | None:
        """All fields, None when there is no such session. One round trip."""

    def commit(self, key: str, delta: Delta) -> Committed:
        """Apply the delta as one: nobody sees a part of it. One round trip."""

    def delete(self, *keys: str) -> int:
        """End these sessions; how many there were."""

    def look(self, keys: Sequence[str], fields: Sequence[bytes]) -> list[Fields | None]:
        """These fields of several sessions, as far as there are any; None for one that is not there."""

    def index(self, user: str, *, now: float, add: Entry | None = None, remove: Collection[str] = ()) -> None:
        """Note that a session is the user's, or no longer is; forget those that have expired by `now`."""

    def sessions_of(self, *users: str, now: float) -> list[Entry]:
        """The sessions in these indexes that have not expired, the one that expires first in front.

        One of them may have ended all the same: `look` tells, and `delete` of it does no harm.
        """

    def scan(self, *, limit: int) -> list[str]:
        """Keys of any sessions, `limit` at most. It walks the store: for an operator, not for a request."""

    def lock(self, key: str, token: str, *, ttl: float) -> bool:
        """Take the session's lock for `ttl` seconds, if it is free. It is advice: no commit asks for it."""

    def unlock(self, key: str, token: str) -> bool:
        """Give the lock back; False when it had run out, and may be somebody else's now."""

    def ping(self) -> None:
        """Return, if the store answers."""

    def close(self) -> None:
        """Close the connections that the store opened itself. A second time does nothing."""


class AsyncStore(Protocol):
    """The same store, awaited. It belongs to the event loop that used it first."""

    shared: bool

    detached: bool
    """Once a commit is asked for, is it done although who asked is cancelled? Then it needs no task."""

    async def load(self, key: str) -> Fields | None: ...

    async def commit(self, key: str, delta: Delta) -> Committed: ...

    async def delete(self, *keys: str) -> int: ...

    async def look(self, keys: Sequence[str], fields: Sequence[bytes]) -> list[Fields | None]: ...

    async def index(
        self, user: str, *, now: float, add: Entry | None = None, remove: Collection[str] = ()
    ) -> None: ...

    async def sessions_of(self, *users: str, now: float) -> list[Entry]: ...

    async def scan(self, *, limit: int) -> list[str]: ...

    async def lock(self, key: str, token: str, *, ttl: float) -> bool: ...

    async def unlock(self, key: str, token: str) -> bool: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...
