"""The typed JSON of sessions: what goes in comes out, exactly, or is refused by name; junk is an answer."""

from __future__ import annotations

import json
import math
import pickle
from collections import OrderedDict, namedtuple
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

from lbkit.errors import SessionTypeError
from lbkit.sessions import codec, json_text
from lbkit.sessions.codec import DEEPEST, Undecodable, decode, encode, field_of, key_of

LIBRARIES = {library.name: library for library in json_text.installed()}
ZONES = st.sampled_from(
    [
        None,
        timezone.utc,
        timezone(timedelta(hours=-3, minutes=-30)),
        timezone(timedelta(seconds=1, microseconds=5)),
        timezone(timedelta(hours=1), "MEZ"),
        ZoneInfo("Europe/Berlin"),
        ZoneInfo("UTC"),
    ]
)
TEXT = st.text(st.characters(exclude_categories=[]))
HASHABLE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | TEXT
    | st.binary()
    | st.datetimes(timezones=ZONES, allow_imaginary=True)
    | st.dates()
    | st.times(timezones=ZONES)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | TEXT.map(Markup)
)
KEYS = HASHABLE | st.tuples(HASHABLE, HASHABLE)
VALUES = st.recursive(
    KEYS | st.frozensets(KEYS, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(KEYS, max_size=4)
        | st.dictionaries(KEYS | TEXT, inner, max_size=4)
        | st.dictionaries(TEXT.map(lambda text: f"${text}"), inner, max_size=1)
    ),
    max_leaves=12,
)


def image(value: Any) -> Any:
    """The value with all that `==` overlooks: types, fold, zones, NaN, the sign of zero, order."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [image(item) for item in value]
    if kind in (set, frozenset):
        return kind, sorted(repr(image(item)) for item in value)
    if kind is dict:
        return kind, [(image(key), image(item)) for key, item in value.items()]
    if kind in (datetime, time):
        return kind, value.replace(tzinfo=None), value.fold, type(value.tzinfo), repr(value.tzinfo)
    if kind in (float, Decimal):
        return kind, repr(value)
    return kind, value


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(codec, "JSON", LIBRARIES[request.param])
    return str(request.param)


def with_each_library(check: Any) -> None:
    for library in LIBRARIES.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec, "JSON", library)
            check()


def test_all_three_libraries_are_tested() -> None:
    assert list(LIBRARIES) == ["orjson", "msgspec", "json"]


@given(VALUES)
@example({"$tuple": [1]})
@example({"$dict": {"$dict": []}})
@example({"\udc80": "\ud83d\ude00"})
@example([-0.0, 0.0, math.nan, math.inf, -math.inf, 1e16, 5e-324])
@example([2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64, 10**5000])
@example([Decimal("-sNaN12"), Decimal("NaN"), Decimal("-0E+7"), Decimal("-Infinity")])
def test_what_is_stored_comes_back_exactly(value: Any) -> None:
    def check() -> None:
        assert image(decode(encode("k", value))) == image(value)

    with_each_library(check)


@given(VALUES)
def test_each_library_reads_what_the_others_wrote(value: Any) -> None:
    written = {}
    for name, library in LIBRARIES.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec, "JSON", library)
            written[name] = encode("k", value)

    def check() -> None:
        assert all(image(decode(data)) == image(value) for data in written.values())

    with_each_library(check)


@given(st.recursive(st.integers(-(2**63), 2**63 - 1) | st.text(), st.lists))
def test_integers_and_text_are_the_same_bytes_by_each_library(value: Any) -> None:
    packed = codec._packed(value, 0)
    assert len({library.dumps(packed) for library in LIBRARIES.values()}) == 1


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_the_decimal_text_that_redis_adds_to(number: int) -> None:
    assert encode("k", number) == str(number).encode()


def test_a_set_is_written_in_one_order() -> None:
    names = [f"name{number}" for number in range(50)]
    assert encode("k", set(names)) == encode("k", {*names[25:], *names[:25]})


@given(st.binary())
@example(b"NaN")
@example(b"1e999")
@example(b"[" * 100_000)
@example(b'{"$list":' * 100_000)
@example(b'{"$tuple":[' * 190 + b"]}" * 190)
@example(b"9" * 5000)
@example(b"\xff\xfe1\x00")
@example(b'"\\udc80"')
@example(pickle.dumps({"a": 1}))
def test_any_bytes_are_a_value_or_undecodable(data: bytes) -> None:
    def check() -> None:
        with suppress(Undecodable):
            decode(data)

    with_each_library(check)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(codec.UNPACK)) | st.text(), inner, max_size=2)
        | st.tuples(st.sampled_from(sorted(codec.UNPACK)), inner).map(lambda pair: dict([pair]))
    ),
    max_leaves=8,
)


@given(JUNK)
@example({"$int": "f" * 100_000})
@example({"$decimal": "1E+9999999999999999999999"})
@example({"$timedelta": [10**30, 0, 0]})
@example({"$datetime": ["2026-01-01T00:00:00", 7, None]})
@example({"$datetime": ["2026-01-01T00:00:00", 0, "../../etc/passwd"]})
@example({"$time": ["12:00:00", 0, [10**30]]})
@example({"$set": [[1]]})
@example({"$dict": [[{"$dict": []}, 1]]})
@example({"$uuid": "{" * 9})
@example({"$date": "2026-13-01"})
@example({"$bytes": "é"})
def test_a_tag_with_anything_in_it_is_a_value_or_undecodable(junk: Any) -> None:
    test_any_bytes_are_a_value_or_undecodable.hypothesis.inner_test(json.dumps(junk).encode())  # type: ignore[attr-defined]


class Thing:
    pass


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Thing(), "session['k']: cannot hold a value of type "),
        ({"items": [1, Thing()]}, "session['k']['items'][1]: cannot hold a value of type "),
        (({"a": {2: object()}},), "session['k'][0]['a'][2]: cannot hold a value of type object"),
        ({Thing: 1}, "cannot hold a value of type type"),
        ([1, {Colour.RED}], "session['k'][1]: cannot hold a value of type "),
        (Point(1, 2), "Point"),
        (OrderedDict(a=1), "cannot hold a value of type collections.OrderedDict"),
        (bytearray(b"x"), "cannot hold a value of type bytearray"),
        (1j, "cannot hold a value of type complex"),
        (
            [datetime(2026, 1, 1, tzinfo=type("Zone", (timezone.__base__,), {})())],
            "session['k'][0]: cannot hold",
        ),  # type: ignore[misc]
    ],
)
@pytest.mark.usefixtures("library")
def test_what_cannot_come_back_is_refused_by_key_place_and_type(value: Any, message: str) -> None:
    with pytest.raises(SessionTypeError) as caught:
        encode("k", value)
    assert message in str(caught.value)
    assert caught.value.key == "k"


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {1: x}, lambda x: {"k": x}])
@pytest.mark.usefixtures("library")
def test_values_nest_to_the_limit_and_no_deeper(wrap: Any) -> None:
    value: Any = 1
    for _ in range(DEEPEST):
        value = wrap(value)
    assert decode(encode("k", value)) == value
    with pytest.raises(SessionTypeError, match="more than 64 levels"):
        encode("k", wrap(value))


@pytest.mark.usefixtures("library")
def test_a_list_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SessionTypeError, match="or itself"):
        encode("k", loop)


@given(TEXT.filter(lambda text: not text.startswith("\0")))
def test_a_key_comes_back_from_its_field(key: str) -> None:
    assert key_of(field_of(key)) == key


@given(st.binary())
def test_any_field_is_a_key_or_undecodable(field: bytes) -> None:
    try:
        key = key_of(field)
    except Undecodable:
        return
    assert key.encode("utf-8", "surrogatepass") == field


@pytest.mark.parametrize("key", ["\0c", 1, None, b"k", Markup("k")])
def test_a_key_that_would_be_another_is_refused(key: object) -> None:
    with pytest.raises(SessionTypeError, match="key"):
        field_of(key)


def test_the_text_in_the_store_is_readable() -> None:
    assert encode("k", {"id": UUID(int=5), "due": date(2026, 1, 2)}) == (
        b'{"id":{"$uuid":"00000000-0000-0000-0000-000000000005"},"due":{"$date":"2026-01-02"}}'
    )
