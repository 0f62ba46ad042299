"""The notebook: notes in one SQLite file, which all replicas open.

Each method is one transaction, committed before it returns. So the answer goes out after the write
is visible to everybody, and the client's next request may read it on another replica.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Change", "Draft", "Note", "Notebook", "Notes", "Outdated"]

SCHEMA = """
    CREATE TABLE IF NOT EXISTS notes (
        id INTEGER PRIMARY KEY AUTOINCREMENT, version INTEGER NOT NULL, updated_at TEXT NOT NULL,
        title TEXT NOT NULL, body TEXT NOT NULL, pinned INTEGER NOT NULL);
"""
ONE_LINE = r"^[^\x00-\x1f\x7f]*$"
LINES = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"
LARGEST = 2**63 - 1  # SQLite's integers


class Draft(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, Field(min_length=1, max_length=200, pattern=ONE_LINE)]
    body: Annotated[str, Field(max_length=20_000, pattern=LINES)] = ""
    pinned: bool = False


class Change(Draft):
    version: Annotated[int, Field(ge=1, le=LARGEST)]
    """The version that was read before the change was made."""


class Note(Draft):
    id: int
    version: int
    updated_at: datetime


class Notes(BaseModel):
    total: int
    """How many there are, of which this may be one page."""
    notes: list[Note]


class Outdated(Exception):
    """Somebody else changed the note in between. `current` is what it is now."""

    def __init__(self, current: Note) -> None:
        super().__init__(f"note {current.id} is at version {current.version} now")
        self.current = current


class Notebook:
    """One connection to the file, for one request."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @staticmethod
    def create(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(SCHEMA)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Notebook]:
        # mode=rw: SQLite's default would answer for a lost file with a new, empty one.
        # FastAPI may enter, use and leave a dependency on three threads, never on two at once.
        address = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=5.0, check_same_thread=False)) as db:
            db.row_factory = sqlite3.Row
            # SQLite's own LIKE knows upper and lower case of ASCII alone.
            db.create_function("folded", 1, str.casefold, deterministic=True)
            yield cls(db)

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM notes").fetchone()[0])

    def search(self, text: str, *, limit: int, offset: int) -> Notes:
        """The notes with `text` in title or body: pinned first, then the latest changed."""
        found = "FROM notes WHERE instr(folded(title || char(10) || body), folded(:text)) > 0"
        page = "ORDER BY pinned DESC, updated_at DESC, id DESC LIMIT :limit OFFSET :offset"
        values = {"text": text, "limit": limit, "offset": offset}
        rows = self._db.execute(f"SELECT * {found} {page}", values).fetchall()
        total = self._db.execute(f"SELECT count(*) {found}", {"text": text}).fetchone()[0]
        return Notes(total=total, notes=[as_note(row) for row in rows])

    def find(self, number: int) -> Note | None:
        row = self._db.execute("SELECT * FROM notes WHERE id = ?", (number,)).fetchone()
        return as_note(row) if row else None

    def add(self, draft: Draft) -> Note:
        query = "INSERT INTO notes (version, updated_at, title, body, pinned) VALUES (1, ?, ?, ?, ?)"
        at = datetime.now(timezone.utc)
        with self._db:
            values = (at.isoformat(), draft.title, draft.body, draft.pinned)
            number = self._db.execute(query, values).lastrowid or 0
        return Note(id=number, version=1, updated_at=at, **draft.model_dump())

    def change(self, number: int, change: Change) -> Note | None:
        """The changed note, or None when there is none. Outdated: the version is not the one it has."""
        query = """UPDATE notes SET version = version + 1, updated_at = ?, title = ?, body = ?, pinned = ?
                   WHERE id = ? AND version = ?"""
        at = datetime.now(timezone.utc).isoformat()
        with self._db:
            values = (at, change.title, change.body, change.pinned, number, change.version)
            changed = self._db.execute(query, values).rowcount
            note = self.find(number)
        if note and not changed:
            raise Outdated(note)
        return note

    def remove(self, number: int) -> bool:
        with self._db:
            return self._db.execute("DELETE FROM notes WHERE id = ?", (number,)).rowcount == 1


def as_note(row: sqlite3.Row) -> Note:
    return Note(**dict(row))
