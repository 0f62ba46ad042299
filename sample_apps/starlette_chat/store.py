"""What all replicas share: one SQLite file with the events of every room and who is in it.

Blocking, and safe to call from any thread. SQLite lets one writer in at a time, so ids become
visible in their order and `id > after` never skips one. (A database server does not promise that:
there, a lower id may commit after a higher one was read.)
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

__all__ = ["Event", "Store"]

SCHEMA = """
    CREATE TABLE IF NOT EXISTS events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, room TEXT NOT NULL, kind TEXT NOT NULL,
        author TEXT NOT NULL, text TEXT NOT NULL, via TEXT NOT NULL, at REAL NOT NULL);
    CREATE INDEX IF NOT EXISTS events_of_room ON events (room, id);
    CREATE TABLE IF NOT EXISTS seats (
        seat TEXT PRIMARY KEY, room TEXT NOT NULL, name TEXT NOT NULL,
        via TEXT NOT NULL, seen_at REAL NOT NULL);
"""


@dataclass(frozen=True)
class Event:
    id: int
    room: str
    kind: str
    """message, joined or left"""
    author: str
    text: str
    via: str
    """Which instance of the app wrote it."""
    at: float
    """Unix seconds."""


class Store:
    """`instance` names this replica. An instance not heard of for `expiry` seconds has crashed."""

    def __init__(
        self,
        path: Path,
        *,
        instance: str,
        keep: int = 10_000,
        expiry: float = 15.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.instance = instance
        self.keep = keep
        self.expiry = expiry
        self.clock = clock
        self._beat_at = clock()
        self._lock = Lock()
        # WAL: who reads does not wait for who writes. Each `with self._write()` is one transaction.
        self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        """Also the end of every seat of this instance, as nobody will refresh it any more."""
        with self._write():
            self._end_seats("via = ?", self.instance)
        with self._lock:
            self._db.close()

    def check(self) -> None:
        """Raise unless the file is where a new replica would find it."""
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True)) as db:
            db.execute("SELECT max(id) FROM events").fetchone()

    def head(self) -> int:
        """The newest id in any room; 0 when nothing was ever said."""
        with self._lock:
            return int(self._db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])

    def after(self, room: str, last: int, *, limit: int = 200) -> list[Event]:
        query = "SELECT * FROM events WHERE room = ? AND id > ? ORDER BY id LIMIT ?"
        with self._lock:
            return [Event(*row) for row in self._db.execute(query, (room, last, limit))]

    def latest(self, room: str, *, limit: int = 50) -> list[Event]:
        query = "SELECT * FROM events WHERE room = ? ORDER BY id DESC LIMIT ?"
        with self._lock:
            return [Event(*row) for row in self._db.execute(query, (room, limit))][::-1]

    def say(self, room: str, author: str, text: str) -> Event:
        with self._write():
            return self._append(room, "message", author, text, self.instance)

    def join(self, seat: str, room: str, name: str) -> None:
        """Take a seat: one connection of one person. The room is told of a person's first."""
        with self._write():
            first = not self._present(room, name)
            row = (seat, room, name, self.instance, self.clock())
            self._db.execute("INSERT INTO seats VALUES (?, ?, ?, ?, ?)", row)
            if first:
                self._append(room, "joined", name, "", self.instance)

    def leave(self, seat: str) -> None:
        with self._write():
            self._end_seats("seat = ?", seat)

    def people(self, room: str) -> list[tuple[str, str]]:
        """(name, instance) of every seat in the room."""
        query = "SELECT DISTINCT name, via FROM seats WHERE room = ? ORDER BY name, via"
        with self._lock:
            return self._db.execute(query, (room,)).fetchall()

    def beat(self) -> None:
        """Say that this instance lives, and end the seats of those that no longer say so."""
        now = self.clock()
        with self._write():
            self._db.execute("UPDATE seats SET seen_at = ? WHERE via = ?", (now, self.instance))
            # After a sleep of the whole machine we have heard of nobody, and judge nobody.
            if now - self._beat_at < self.expiry:
                self._end_seats("seen_at < ?", now - self.expiry)
        self._beat_at = now

    def _end_seats(self, which: str, value: str | float) -> None:
        ended = self._db.execute(f"SELECT room, name, via FROM seats WHERE {which}", (value,)).fetchall()
        self._db.execute(f"DELETE FROM seats WHERE {which}", (value,))
        for room, name, via in dict.fromkeys(ended):
            if not self._present(room, name):
                self._append(room, "left", name, "", via)

    def _present(self, room: str, name: str) -> bool:
        query = "SELECT 1 FROM seats WHERE room = ? AND name = ?"
        return self._db.execute(query, (room, name)).fetchone() is not None

    def _append(self, room: str, kind: str, author: str, text: str, via: str) -> Event:
        query = "INSERT INTO events (room, kind, author, text, via, at) VALUES (?, ?, ?, ?, ?, ?)"
        at = self.clock()
        number = self._db.execute(query, (room, kind, author, text, via, at)).lastrowid or 0
        self._db.execute("DELETE FROM events WHERE id <= ?", (number - self.keep,))
        return Event(number, room, kind, author, text, via, at)

    @contextmanager
    def _write(self) -> Iterator[None]:
        with self._lock:
            # IMMEDIATE: a transaction that reads first and writes later could be refused in the middle.
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
