"""What one session holds during one request: the fields as they were read, and what has changed since.

A value is decoded when it is asked for and encoded when it is set, so a mistake is told at the line that
made it, and a large neighbour costs nothing. A container that was handed out may be changed where we cannot
see it: it is encoded again at the end, and kept if its bytes are other ones.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from lbkit.errors import SessionTypeError
from lbkit.sessions.codec import Undecodable, decode, encode, field_of, key_of
from lbkit.sessions.store import LARGEST_COUNTER, OWN, Delta, Fields

__all__ = ["Contents", "Seal"]

logger = logging.getLogger("lbkit.sessions")

CONTAINERS = frozenset({list, dict, set, tuple})

Pending: TypeAlias = tuple[Mapping[bytes, bytes], Collection[bytes], Mapping[bytes, int]]


class Seal(Protocol):
    """How values are encrypted in the store: with a key that belongs to one session."""

    def seal(self, field: bytes, data: bytes, /) -> bytes: ...

    def open(self, field: bytes, sealed: bytes, /) -> bytes:
        """Raises Undecodable for what was not sealed for this field of this session."""


class Contents:
    """`raw` are the fields as the store has them, the session's own among them."""

    __slots__ = (
        "_dels", "_emptied", "_expected", "_handed", "_incrs", "_seal", "_sent", "_sets", "_values", "raw",
        "unreadable",
    )  # fmt: skip

    def __init__(self, raw: Fields, *, seal: Seal | None = None) -> None:
        self.raw: dict[bytes, bytes] = raw if type(raw) is dict else dict(raw)
        self._seal = seal
        self._values: dict[str, Any] = {}
        self._sets: dict[bytes, bytes] = {}
        self._dels: set[bytes] = set()
        self._incrs: dict[bytes, int] = {}
        self._handed: set[str] = set()
        self._expected: dict[bytes, bytes | None] = {}
        self._emptied = False
        self._sent: Pending = ({}, frozenset(), {})
        self.unreadable: set[bytes] = set()
        """Fields that are as if they were not there. They stay stored: a newer release may know them."""

    # What a mapping does.

    def get(self, key: str) -> Any:
        """Raises KeyError."""
        values = self._values
        if key in values:
            return values[key]
        value = self._decoded(key)
        values[key] = value
        if type(value) in CONTAINERS:
            self._handed.add(key)
        return value

    def set(self, key: str, value: object) -> None:
        field = field_of(key)
        self._sets[field] = encode(key, value)
        if self._incrs:
            self._incrs.pop(field, None)
        self._values[key] = value
        if type(value) in CONTAINERS:
            self._handed.add(key)
        else:
            self._handed.discard(key)

    def delete(self, key: str) -> None:
        """Raises KeyError."""
        if key not in self:
            raise KeyError(key)
        field = field_of(key)
        for pending in (self._sets, self._incrs):
            pending.pop(field, None)
        self._values.pop(key, None)
        self._handed.discard(key)
        if self.raw:  # of a session that is stored; also what we have not seen there may be there now
            self._dels.add(field)

    def clear(self) -> None:
        for pending in (self._sets, self._incrs, self._values, self._handed):
            pending.clear()
        self._emptied = True
        self._delete_all()

    def __contains__(self, key: object) -> bool:
        if type(key) is not str:
            return False
        if key in self._values:
            return True
        field = key.encode("utf-8", "surrogatepass")
        if field not in self.raw and field not in self._sets and field not in self._incrs:
            return False
        try:
            self.get(key)
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """Each key that has a value, so each value is looked at."""
        for field in self._fields():
            try:
                key = key_of(field)
            except Undecodable:
                continue
            if key in self:
                yield key

    # What a session can do besides.

    def add(self, key: str, by: int) -> None:
        """Add to a counter where it is stored, so that no other request's addition is lost."""
        field = field_of(key)
        if type(by) is not int or abs(by) > LARGEST_COUNTER:
            raise SessionTypeError(key, "", f"a step of {by!r}: need an integer within 2**53")
        if self._seal is not None:
            raise SessionTypeError(key, "", "a counter: the store cannot add to what is encrypted")
        if key in self and type(self.get(key)) is not int:
            raise SessionTypeError(key, "", f"a counter beside a {type(self.get(key)).__name__}")
        self._values.pop(key, None)
        self._incrs[field] = self._incrs.get(field, 0) + by

    def expect(self, key: str) -> None:
        """Nothing is kept if another request changes this key before we are done."""
        field = field_of(key)
        self._expected[field] = self.raw.get(field)

    # What the flows ask.

    @property
    def changed(self) -> bool:
        """Is there anything to keep?"""
        if self._handed:
            self._look_into_containers()
        return bool(self._sets or self._dels or self._incrs)

    def altered(self, field: bytes) -> bool:
        """Has this request changed what this field holds?"""
        if field in self._sets:
            return self._sets[field] != self._stored(field)
        return field in self._dels and field in self.raw

    def expect_written(self) -> None:
        """Each key that this request writes must be as it was read."""
        for field in (*self._sets, *self._dels):
            self._expected.setdefault(field, self.raw.get(field))

    def delta(self, own: Fields, ttl: float | None) -> Delta:
        """What this request has changed."""
        self._sent = sets, dels, incrs = dict(self._sets), set(self._dels), dict(self._incrs)
        sealed = sets if self._seal is None else _sealed(sets, self._seal)
        return Delta(ttl, {**sealed, **own}, incrs, dels, dict(self._expected))

    def everything(self, own: Fields, ttl: float, *, seal: Seal | None) -> Delta:
        """All that there is, to begin another session with."""
        self._sent = dict(self._sets), set(self._dels), dict(self._incrs)
        plain = {field: data for field in self._fields() if (data := self._now(field)) is not None}
        return Delta(ttl, {**(plain if seal is None else _sealed(plain, seal)), **own}, create=True)

    def broken_expectation(self) -> str | None:
        """The key that is no more what it was when it was expected to stay so."""
        for field, data in self._expected.items():
            if self.raw.get(field) != data:
                return key_of(field)
        return None

    def renew(self, raw: Fields) -> None:
        """Put what the store has now below what this request has changed."""
        self._look_into_containers()
        self.raw = dict(raw)
        if self._emptied:
            self._delete_all()
        for key in [key for key in self._values if field_of(key) not in self._sets]:
            del self._values[key]
            self._handed.discard(key)

    def forget_expectations(self) -> None:
        self._expected = {}

    def kept(self, delta: Delta, counters: Mapping[bytes, int]) -> None:
        """The store has what `delta` says."""
        for field in delta.dels:
            self.raw.pop(field, None)
        self.raw.update(delta.sets)
        for field, value in counters.items():
            self.raw[field] = b"%d" % value
            self._values.pop(key_of(field), None)
        self._settle()

    def begun(self, delta: Delta, seal: Seal | None) -> None:
        """Another session has begun, with everything that there was."""
        self.raw = dict(delta.sets)
        self._seal = seal
        for field in self._sent[2]:
            self._values.pop(key_of(field), None)
        self._settle()

    def _settle(self) -> None:
        """What was sent is done. What was changed while we waited is not."""
        sets, dels, incrs = self._sent
        for field, data in sets.items():
            if self._sets.get(field) is data:
                del self._sets[field]
        self._dels.difference_update(dels)
        for field, by in incrs.items():
            self._incrs[field] = self._incrs.get(field, by) - by
            if not self._incrs[field]:
                del self._incrs[field]
        self._expected = {}
        self._emptied = False

    def _delete_all(self) -> None:
        self._dels = {field for field in self.raw if not field.startswith(OWN)}

    def size(self) -> int:
        """Bytes, at most: what is replaced counts twice."""
        return sum(map(len, self.raw.values())) + sum(map(len, self._sets.values()))

    def sizes(self) -> dict[str, int]:
        """Bytes of each key, with its name."""
        sizes = {field: len(data) for field in self._fields() if (data := self._now(field)) is not None}
        return {field.decode("utf-8", "replace"): len(field) + size for field, size in sizes.items()}

    def _fields(self) -> list[bytes]:
        """All that there are now, but for the session's own, in the order in which they came."""
        kept = (field for field in self.raw if field not in self._dels or field in self._sets)
        every = dict.fromkeys((*kept, *self._sets, *self._incrs))
        return [field for field in every if not field.startswith(OWN)]

    def _look_into_containers(self) -> None:
        for key in self._handed:
            field = field_of(key)
            data = encode(key, self._values[key])
            if field in self._sets:
                self._sets[field] = data
                continue
            before = self._stored(field)
            # The second look is for bytes that another JSON library wrote: to read must not be to write.
            if before is None or (data != before and data != encode(key, decode(before))):
                self._sets[field] = data

    def _decoded(self, key: object) -> Any:
        if type(key) is not str or key.startswith("\0"):
            raise KeyError(key)
        field = key.encode("utf-8", "surrogatepass")
        if field in self.unreadable and field not in self._sets:
            raise KeyError(key)
        try:
            data = self._sets.get(field) or (None if field in self._dels else self._stored(field))
            value = None if data is None else decode(data)
        except Undecodable as error:
            logger.warning("session[%r] is dropped: %s", key, error)
            self.unreadable.add(field)
            raise KeyError(key) from None
        if field in self._incrs:
            if data is not None and type(value) is not int:  # another request has put it there meanwhile
                raise SessionTypeError(key, "", f"a counter beside a {type(value).__name__}")
            return self._incrs[field] + (value or 0)
        if data is None:
            raise KeyError(key)
        return value

    def _stored(self, field: bytes) -> bytes | None:
        data = self.raw.get(field)
        return data if data is None or self._seal is None else self._seal.open(field, data)

    def _now(self, field: bytes) -> bytes | None:
        """What this field holds, as it would be stored without a seal; None if that cannot be read."""
        if field in self._incrs:
            return encode("", self.get(key_of(field)))
        if field in self._sets:
            return self._sets[field]
        try:
            return self._stored(field)
        except Undecodable:
            return None


def _sealed(fields: Mapping[bytes, bytes], seal: Seal) -> dict[bytes, bytes]:
    return {field: seal.seal(field, data) for field, data in fields.items()}
