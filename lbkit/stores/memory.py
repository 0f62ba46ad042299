"""Sessions in the memory of this process: for development, for tests, and for an app of one process.

Values are kept as the bytes that Redis would hold, so nothing is shared by reference, and a delta means here
what it means there: both run the same contract in the tests. Other processes do not see these sessions, and
a restart ends them all.
"""

from __future__ import annotations

import heapq
import logging
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from threading import RLock

from lbkit.errors import ConfigError
from lbkit.sessions.store import (
    FORWARD,
    LARGEST_COUNTER,
    Committed,
    Delta,
    Entry,
    Fields,
    Result,
    refuse_nonsense,
)
from lbkit.types import Clock

__all__ = ["AsyncMemoryStore", "MemoryStore"]

log = logging.getLogger("lbkit.sessions")

COUNTER = re.compile(rb"0|-?[1-9][0-9]{0,15}")

ENDED = 10_000
"""How many of the sessions that have ended are remembered, to tell them from those of another process."""


class MemoryStore:
    """`max_sessions` bounds it: when one more is created, the one that would expire first goes."""

    shared = False

    def __init__(
        self, *, max_sessions: int = 100_000, clock: Clock = time.monotonic, wall: Clock = time.time
    ) -> None:
        if max_sessions < 1:
            raise ConfigError(f"need max_sessions >= 1, got max_sessions={max_sessions}")
        self._warned = _warn_of_other_workers(os.environ)
        self.max_sessions = max_sessions
        self._clock = clock
        self._sessions: dict[str, dict[bytes, bytes]] = {}
        self._expires_at: dict[str, float] = {}
        # An entry whose time is not the session's any more is stale, and skipped when it comes up.
        self._heap: list[tuple[float, str]] = []
        self._users: dict[str, dict[str, float]] = {}
        self._most_users = 64
        self._locks: dict[str, tuple[str, float]] = {}
        self._wall = wall
        self._ended: dict[str, float] = {}
        self._remembers_since = wall()
        self._lock = RLock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_sessions={self.max_sessions})"

    def load(self, key: str) -> Fields | None:
        with self._lock:
            self._expire()
            found = self._sessions.get(key)
            return None if found is None else dict(found)

    def commit(self, key: str, delta: Delta) -> Committed:
        refuse_nonsense(key, delta)
        with self._lock:
            self._expire()
            if (refusal := self._refused(key, delta)) is not None:
                return refusal
            if delta.listing is not None:
                user, now, expires_at = delta.listing
                entry = None if expires_at is None else Entry(key, expires_at)
                self.index(user, now=now, add=entry, remove=() if entry else [key])
            return self._apply(key, delta)

    def delete(self, *keys: str) -> int:
        with self._lock:
            self._expire()
            return sum(self._end(key) for key in keys)

    def look(self, keys: Sequence[str], fields: Sequence[bytes]) -> list[Fields | None]:
        with self._lock:
            self._expire()
            return [_some(self._sessions.get(key), fields) for key in keys]

    def index(self, user: str, *, now: float, add: Entry | None = None, remove: Collection[str] = ()) -> None:
        with self._lock:
            noted = {key: at for key, at in self._users.get(user, {}).items() if key not in remove}
            if add is not None:
                noted[add.key] = add.expires_at
            if kept := {key: at for key, at in noted.items() if at > now}:
                self._users[user] = kept
            else:
                self._users.pop(user, None)
            if len(self._users) > self._most_users:
                self._forget_users(now)

    def sessions_of(self, *users: str, now: float) -> list[Entry]:
        with self._lock:
            noted = [item for user in users for item in self._users.get(user, {}).items()]
        return sorted((Entry(key, at) for key, at in noted if at > now), key=_by_end)

    def scan(self, *, limit: int) -> list[str]:
        with self._lock:
            self._expire()
            return list(self._sessions)[:limit]

    def lock(self, key: str, token: str, *, ttl: float) -> bool:
        now = self._clock()
        with self._lock:
            if key in self._locks and self._locks[key][1] > now:
                return False
            self._locks[key] = (token, now + ttl)
            return True

    def unlock(self, key: str, token: str) -> bool:
        now = self._clock()
        with self._lock:
            held_by, until = self._locks.get(key, ("", 0.0))
            if held_by != token or until <= now:
                return False
            del self._locks[key]
            return True

    def ping(self) -> None:
        """It is here."""

    def close(self) -> None:
        """There is no connection; the sessions stay as long as the store."""

    def missed(self, key: str, *, signed_at: float) -> None:
        """A genuine cookie, signed at this Unix time, names a session that is not here.

        If none of ours was ever called so, another process has given it out: that is said once, in the log.
        """
        with self._lock:
            ours = key in self._sessions or key in self._ended or signed_at <= self._remembers_since
            if ours or self._warned:
                return
            self._warned = True
        log.warning(
            "sessions are in the memory of each replica and worker, and a client has come with the cookie of "
            "another one: here it is logged out; use redis:// sessions, or bind clients with a sticky cookie"
        )

    def _forget_users(self, now: float) -> None:
        """Those who have not come back since their last session ended."""
        self._users = {user: noted for user, noted in self._users.items() if max(noted.values()) > now}
        self._most_users = 64 + 2 * len(self._users)

    def _refused(self, key: str, delta: Delta) -> Committed | None:
        held = self._sessions.get(key)
        if (held is not None) == delta.create:
            return Committed(Result.TAKEN if delta.create else Result.GONE)
        fields = held or {}
        if FORWARD in fields:
            return Committed(Result.MOVED, moved_to=fields[FORWARD].decode())
        for field, value in delta.expect.items():
            if fields.get(field) != value:
                return Committed(Result.CONFLICT, field=field)
        if delta.whole and len(fields) != sum(value is not None for value in delta.expect.values()):
            return Committed(Result.CONFLICT)
        return _miscounted({} if delta.drop else fields, delta)

    def _apply(self, key: str, delta: Delta) -> Committed:
        fields = {} if delta.drop else self._sessions.get(key, {})
        for field in delta.dels:
            fields.pop(field, None)
        fields.update(delta.sets)
        counters = {field: int(fields.get(field, b"0")) + by for field, by in delta.incrs.items()}
        fields.update((field, b"%d" % value) for field, value in counters.items())
        if not fields:  # as in Redis, where an empty hash is none
            self._end(key)
            return Committed(Result.OK)
        if delta.create:
            self._make_room()
        self._sessions[key] = fields
        if delta.ttl is not None:
            self._expire_at(key, self._clock() + delta.ttl)
        return Committed(Result.OK, counters)

    def _make_room(self) -> None:
        while len(self._sessions) >= self.max_sessions:
            at, key = heapq.heappop(self._heap)
            if self._expires_at.get(key) == at:
                self._end(key)
                log.warning("the memory store is full (%d sessions): one ended early", self.max_sessions)

    def _expire_at(self, key: str, at: float) -> None:
        self._expires_at[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 64 + 2 * len(self._expires_at):
            self._heap = [(at, key) for key, at in self._expires_at.items()]
            heapq.heapify(self._heap)

    def _expire(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._expires_at.get(key) == at:
                self._end(key)

    def _end(self, key: str) -> bool:
        self._expires_at.pop(key, None)
        if self._sessions.pop(key, None) is None:
            return False
        self._ended[key] = self._wall()
        if len(self._ended) > ENDED:  # of cookies that are older than the one forgotten, nothing is known
            forgotten = self._ended.pop(next(iter(self._ended)))
            self._remembers_since = max(self._remembers_since, forgotten)
        return True


class AsyncMemoryStore:
    """The same store, awaited. Give it a MemoryStore to share its sessions with a WSGI app."""

    shared = False
    detached = True

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store!r})"

    async def load(self, key: str) -> Fields | None:
        return self.store.load(key)

    async def commit(self, key: str, delta: Delta) -> Committed:
        return self.store.commit(key, delta)

    async def delete(self, *keys: str) -> int:
        return self.store.delete(*keys)

    async def look(self, keys: Sequence[str], fields: Sequence[bytes]) -> list[Fields | None]:
        return self.store.look(keys, fields)

    async def index(
        self, user: str, *, now: float, add: Entry | None = None, remove: Collection[str] = ()
    ) -> None:
        self.store.index(user, now=now, add=add, remove=remove)

    async def sessions_of(self, *users: str, now: float) -> list[Entry]:
        return self.store.sessions_of(*users, now=now)

    async def scan(self, *, limit: int) -> list[str]:
        return self.store.scan(limit=limit)

    async def lock(self, key: str, token: str, *, ttl: float) -> bool:
        return self.store.lock(key, token, ttl=ttl)

    async def unlock(self, key: str, token: str) -> bool:
        return self.store.unlock(key, token)

    async def ping(self) -> None:
        self.store.ping()

    async def close(self) -> None:
        self.store.close()

    def missed(self, key: str, *, signed_at: float) -> None:
        self.store.missed(key, signed_at=signed_at)


def _miscounted(fields: Mapping[bytes, bytes], delta: Delta) -> Committed | None:
    """The refusal of an increment that cannot be done, as the deletes and sets leave its field."""
    for field, by in delta.incrs.items():
        kept = None if field in delta.dels else fields.get(field)
        value = delta.sets.get(field, b"0" if kept is None else kept)
        before = int(value) if COUNTER.fullmatch(value) else LARGEST_COUNTER + 1
        if max(abs(before), abs(by), abs(before + by)) > LARGEST_COUNTER:
            return Committed(Result.NOT_INT, field=field)
    return None


def _some(held: Mapping[bytes, bytes] | None, fields: Sequence[bytes]) -> Fields | None:
    return None if held is None else {field: held[field] for field in fields if field in held}


def _by_end(entry: Entry) -> tuple[float, str]:
    return entry.expires_at, entry.key


def _warn_of_other_workers(environ: Mapping[str, str]) -> bool:
    workers = environ.get("WEB_CONCURRENCY", "")
    if not (workers.isdecimal() and int(workers) > 1):
        return False
    log.warning(
        "sessions are in the memory of each process, and WEB_CONCURRENCY=%s starts several: "
        "a client is logged out whenever another one answers; use redis:// sessions",
        workers,
    )
    return True
