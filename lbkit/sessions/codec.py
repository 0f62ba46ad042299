"""The typed JSON in which a session's values are stored: each comes back as it was, or is refused by name.

JSON's own types are written as they are, so a counter is decimal text that Redis can add to. What JSON cannot
hold is an object with one tag; an object of the app's that looks like one is written as `$dict`:

==================  ===================================  ==================================================
tag                 holds                                for
==================  ===================================  ==================================================
$tuple $set         a list                               tuple, set and frozenset, sets in a fixed order
$frozenset
$bytes              base64                               bytes
$str                base64 of UTF-8 with surrogates      text that is no Unicode: a lone surrogate is in it
$int                hexadecimal                          an integer of more than 64 bits
$float              nan, inf or -inf                     what JSON has no number for
$decimal $uuid      text                                 Decimal, UUID
$date               text                                 date
$datetime $time     text, fold, and null, [microseconds  naive, or with a timezone or a ZoneInfo
                    and a name] or a zone's name
$timedelta          days, seconds, microseconds          timedelta
$markup             text                                 markupsafe.Markup, which Flask's flash() is given
$dict               a list of pairs                      keys that are no text, or that look like a tag
==================  ===================================  ==================================================

Nothing else is ever written or read: no pickle, no import by a stored name, no call of what is stored.
"""

from __future__ import annotations

import base64
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from lbkit.errors import SessionTypeError
from lbkit.sessions import json_text

__all__ = ["DEEPEST", "Undecodable", "decode", "encode", "field_of", "key_of"]

DEEPEST = 64
"""Values nest no deeper, which also ends a list that holds itself. In JSON one level is three at most."""

INTEGERS = range(-(2**63), 2**63)

JSON = json_text.installed()[0]


class Undecodable(ValueError):
    """These bytes are not what `encode` or `field_of` writes."""


class Unfit(Exception):
    """What cannot be held, and on the way up, where it is."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.path: list[str] = []


def encode(key: str, value: object) -> bytes:
    """The value as bytes. Raises SessionTypeError, which names the key, the place below it and the type."""
    try:
        return JSON.dumps(_packed(value, 0))
    except Unfit as unfit:
        raise SessionTypeError(key, "".join(reversed(unfit.path)), unfit.kind) from None


def decode(data: bytes) -> Any:
    """The value that was encoded, of the same type. Raises Undecodable, whatever the bytes are."""
    try:
        return _unpacked(JSON.loads(data), 0)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise Undecodable(f"no session value: {type(error).__name__}") from error


def field_of(key: object) -> bytes:
    """The field for one of the session's keys. Raises SessionTypeError for what cannot be a key."""
    if type(key) is not str:
        raise SessionTypeError(key, "", f"a key of type {_name(type(key))}: session keys are text")
    if key.startswith("\0"):
        raise SessionTypeError(key, "", "a key that begins with NUL: those are its own")
    return key.encode("utf-8", "surrogatepass")


def key_of(field: bytes) -> str:
    """The key for a field. Raises Undecodable."""
    try:
        return field.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise Undecodable("no session key: not in UTF-8") from error


# -- writing ---------------------------------------------------------------------------------------------


def _packed(value: Any, depth: int) -> Any:
    """The value in JSON's own types."""
    if value is None or value is True or value is False:
        return value
    if depth > DEEPEST:
        raise Unfit(f"more than {DEEPEST} levels, or itself")
    return PACK.get(type(value), _pack_other)(value, depth)


def _pack_str(value: str, _: int) -> object:
    if _is_unicode(value):
        return value
    return {"$str": _base64(value.encode("utf-8", "surrogatepass"))}


def _pack_int(value: int, _: int) -> object:
    return value if value in INTEGERS else {"$int": hex(value)}


def _pack_float(value: float, _: int) -> object:
    return value if math.isfinite(value) else {"$float": repr(value)}


def _pack_tuple(value: tuple[Any, ...], depth: int) -> object:
    return {"$tuple": _pack_items(value, depth)}


def _pack_set(value: set[Any] | frozenset[Any], depth: int) -> object:
    packed = [_packed(item, depth + 1) for item in value]
    return {f"${type(value).__name__}": sorted(packed, key=JSON.dumps)}


def _pack_dict(value: dict[Any, Any], depth: int) -> object:
    packed = {}
    for key, item in value.items():
        if type(key) is not str or not _is_unicode(key):
            return _pack_pairs(value, depth)
        try:
            packed[key] = _packed(item, depth + 1)
        except Unfit as unfit:
            unfit.path.append(f"[{key!r}]")
            raise
    return _pack_pairs(value, depth) if len(packed) == 1 and next(iter(packed)).startswith("$") else packed


def _pack_pairs(value: dict[Any, Any], depth: int) -> object:
    pairs = []
    for key, item in value.items():
        try:
            pairs.append([_packed(key, depth + 1), _packed(item, depth + 1)])
        except Unfit as unfit:
            unfit.path.append(f"[{key!r}]")
            raise
    return {"$dict": pairs}


def _pack_datetime(value: datetime, _: int) -> object:
    return {
        "$datetime": [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _pack_zone(value.tzinfo)]
    }


def _pack_time(value: time, _: int) -> object:
    return {"$time": [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _pack_zone(value.tzinfo)]}


def _pack_zone(zone: tzinfo | None) -> object:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        usual = name == timezone(offset).tzname(None)
        return [offset // MICROSECOND] if usual else [offset // MICROSECOND, name]
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    raise Unfit(f"a time in a zone of type {_name(type(zone))}")


def _pack_items(value: Iterable[Any], depth: int) -> list[Any]:
    packed = []
    for at, item in enumerate(value):
        try:
            packed.append(_packed(item, depth + 1))
        except Unfit as unfit:
            unfit.path.append(f"[{at}]")
            raise
    return packed


def _pack_other(value: object, _: int) -> object:
    kind = type(value)
    if (kind.__module__, kind.__name__) == ("markupsafe", "Markup"):
        return {"$markup": _pack_str(str.__str__(value), 0)}
    raise Unfit(f"a value of type {_name(kind)}")


MICROSECOND = timedelta(microseconds=1)
PACK: Mapping[type, Callable[[Any, int], Any]] = {
    str: _pack_str,
    int: _pack_int,
    float: _pack_float,
    list: _pack_items,
    dict: _pack_dict,
    tuple: _pack_tuple,
    set: _pack_set,
    frozenset: _pack_set,
    bytes: lambda value, _: {"$bytes": _base64(value)},
    datetime: _pack_datetime,
    time: _pack_time,
    date: lambda value, _: {"$date": value.isoformat()},
    timedelta: lambda value, _: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value, _: {"$decimal": str(value)},
    UUID: lambda value, _: {"$uuid": str(value)},
}


# -- reading ---------------------------------------------------------------------------------------------


def _unpacked(value: Any, depth: int) -> Any:
    if depth > DEEPEST * 3 + 3:
        raise Undecodable("too many levels")
    if type(value) is list:
        return [_unpacked(item, depth + 1) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((tag, held),) = value.items()
        if tag.startswith("$"):
            return UNPACK[tag](_unpacked(held, depth + 1))
    return {key: _unpacked(item, depth + 1) for key, item in value.items()}


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Undecodable(f"need {_name(kind)}")
    return value


def _items(value: Any) -> list[Any]:
    items: list[Any] = _exactly(list, value)
    return items


def _text(value: Any) -> str:
    text: str = _exactly(str, value)
    return text


def _unpack_dict(pairs: Any) -> dict[Any, Any]:
    return dict(map(_items, _items(pairs)))


def _unpack_datetime(value: Any) -> datetime:
    text, fold, zone = _items(value)
    return datetime.fromisoformat(_text(text)).replace(fold=fold, tzinfo=_unpack_zone(zone))


def _unpack_time(value: Any) -> time:
    text, fold, zone = _items(value)
    return time.fromisoformat(_text(text)).replace(fold=fold, tzinfo=_unpack_zone(zone))


def _unpack_zone(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if type(zone) is str:
        return ZoneInfo(zone)
    offset, *name = _items(zone)
    return timezone(timedelta(microseconds=_exactly(int, offset)), *name)


def _unpack_markup(value: Any) -> Any:
    return importlib.import_module("markupsafe").Markup(_text(value))


UNPACK: Mapping[str, Callable[[Any], Any]] = {
    "$tuple": lambda value: tuple(_items(value)),
    "$set": lambda value: set(_items(value)),
    "$frozenset": lambda value: frozenset(_items(value)),
    "$bytes": lambda value: base64.b64decode(_text(value), validate=True),
    "$str": lambda value: base64.b64decode(_text(value), validate=True).decode("utf-8", "surrogatepass"),
    "$int": lambda value: int(_text(value), 16),
    "$float": lambda value: float(_text(value)),
    "$decimal": lambda value: Decimal(_text(value)),
    "$uuid": lambda value: UUID(_text(value)),
    "$date": lambda value: date.fromisoformat(_text(value)),
    "$datetime": _unpack_datetime,
    "$time": _unpack_time,
    "$timedelta": lambda value: timedelta(*map(_whole, _items(value))),
    "$markup": _unpack_markup,
    "$dict": _unpack_dict,
}


def _whole(value: Any) -> int:
    number: int = _exactly(int, value)
    return number


# -- both -----------------------------------------------------------------------------------------------


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
