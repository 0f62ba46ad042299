"""The session cookie: itsdangerous' TimestampSigner is the oracle."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner

from lbkit.errors import ConfigError
from lbkit.sessions import SessionOptions
from lbkit.sessions.cookie import (
    LONGEST,
    SALT,
    USER_SALT,
    SessionCookie,
    index_by_tag,
    key_of_id,
    new_id,
    tag_of,
)
from lbkit.sessions.store import slot_of

OLD, NEW = "old " * 8, "new " * 8
NOW = 1_800_000_000.0

cookie = SessionCookie(secret_keys=[NEW, OLD])


def oracle(key: str) -> TimestampSigner:
    return TimestampSigner(key, SALT, key_derivation="hmac", digest_method=hashlib.sha256)


@given(st.text("ABCabc019-_", min_size=1, max_size=43), st.integers(0, 2**33))
def test_itsdangerous_reads_what_we_sign(sid: str, now: int) -> None:
    value, signed_at = oracle(NEW).unsign(cookie.sign(sid, now), return_timestamp=True)
    assert (value.decode(), signed_at) == (sid, datetime.fromtimestamp(now, timezone.utc))


def test_we_read_what_itsdangerous_signs_and_know_by_which_key() -> None:
    sid = new_id()
    for number, key in enumerate((NEW, OLD)):
        presented = cookie.verify(oracle(key).sign(sid).decode())
        assert presented is not None
        assert (presented.sid, presented.key, presented.signer) == (sid, key_of_id(sid), number)
    assert cookie.verify(oracle("other " * 8).sign(sid).decode()) is None
    assert cookie.verify(TimestampSigner(NEW, b"lbkit.sticky").sign(sid).decode()) is None


@given(st.text("ABCabc019-_.=", max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{42,55}", fullmatch=True))
def test_of_what_we_have_signed_only_an_id_is_one_with_a_tag_or_without(text: str) -> None:
    presented = cookie.verify(cookie.sign(text, NOW))
    if len(text) not in (43, 54) or set(text) & {".", "="}:
        assert presented is None
        return
    assert presented is not None
    assert (presented.sid, slot_of(presented.key)) == (text, text[43:])


@given(st.text())
def test_a_tag_is_the_beginning_of_a_keyed_hash_of_the_user(user: str) -> None:
    """Its bytes are those of HMAC with the newest key; 11 characters have 66 bits."""
    names, tag = cookie.users(user), tag_of(cookie.users(user)[0])
    derived = oracle(NEW).derive_key()
    expected = hmac.digest(derived, USER_SALT + user.encode("utf-8", "surrogatepass"), "sha256")
    assert urlsafe_b64decode(f"{tag}A")[:8] == expected[:8]
    assert index_by_tag(names[0]) == f"{tag}.{names[0][11:]}"
    assert tag_of(names[1]) != tag
    sid = new_id() + tag
    assert len(cookie.sign(sid, 2**40)) < LONGEST
    assert slot_of(key_of_id(sid)) == slot_of(index_by_tag(names[0])) == tag


@given(st.integers(0, 10_000), st.characters(codec="ascii"))
def test_a_character_that_is_another_one_is_no_cookie(at: int, other: str) -> None:
    value = cookie.sign("A" * 43, NOW)
    at %= len(value)
    changed = value[:at] + other + value[at + 1 :]
    presented = cookie.verify(changed)
    # In the last character of a signature some bits mean nothing; it is the same signature then.
    assert changed == value or presented is None or (at == len(value) - 1 and presented.sid == "A" * 43)


@given(st.text(max_size=300))
def test_anything_may_come_and_nothing_is_raised(value: str) -> None:
    assert cookie.verify(value) is None


def test_of_several_cookies_the_first_genuine_one_counts() -> None:
    genuine = f"{cookie.name}={cookie.sign('A' * 43, NOW)}"
    forged = f"{cookie.name}=x"
    for header in (genuine, f"{forged}; {genuine}", f"a=b;{forged};{genuine} ; c=d"):
        presented = cookie.read(header)
        assert presented is not None
        assert presented.sid == "A" * 43
    assert cookie.read("; ".join([forged] * 8 + [genuine])) is None  # nobody makes us check a hundred
    assert cookie.read(f"x{genuine}") is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "__Host-sid"),
        ({"secure": False}, "sid"),
        ({"domain": "example.com"}, "sid"),
        ({"path": "/shop"}, "sid"),
        ({"name": "shop"}, "shop"),
    ],
)
def test_the_name_has_the_prefix_that_a_browser_would_take(options: dict[str, object], name: str) -> None:
    assert SessionCookie(secret_keys=[NEW], **options).name == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "__Host-sid", "path": "/shop"}, "need path='/' and no domain"),
        ({"name": "__Host-sid", "secure": False}, "need secure=True for the cookie __Host-sid"),
        ({"same_site": "None", "secure": False}, "need secure=True with same_site='None'"),
        ({"secret_keys": "one text"}, "need secret_keys as a list, the newest first, got one str"),
        ({"secret_keys": []}, "need at least one secret key"),
        ({"secret_keys": ["short"]}, "need secret keys of 16 bytes or more, got 5 at 0"),
    ],
)
def test_what_a_browser_or_an_attacker_would_profit_from_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SessionCookie(**{"secret_keys": [NEW], **options})  # type: ignore[arg-type]


def test_no_repr_shows_a_key_and_ids_are_256_bits() -> None:
    assert "new" not in repr(cookie)
    assert {len(new_id()) for _ in range(100)} == {43}
    assert len({new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"idle": 0}, "need idle in seconds, more than 0, got idle=0"),
        ({"absolute": -1}, "need absolute in seconds"),
        ({"soft_limit": 10, "hard_limit": 5}, "need 0 < soft_limit <= hard_limit, got soft_limit=10"),
        ({"watch": "user"}, "need watch as a tuple of keys, got watch='user'"),
        ({"conflict": "merge"}, "need conflict to be one of"),
    ],
)
def test_options_that_break_a_rule_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SessionOptions(**options)  # type: ignore[arg-type]
