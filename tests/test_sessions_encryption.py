"""Encrypted values: without the id and a secret key nobody reads one, and none can be moved or changed."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.errors import ConfigError, MissingExtra
from lbkit.sessions.codec import Undecodable
from lbkit.sessions.encryption import Encryption, FieldCipher

OLD, NEW = "old " * 8, b"new " * 8
encryption = Encryption(secret_keys=[NEW, OLD])
cipher = encryption.of("sid", "key")


def refuses(cipher: FieldCipher, field: bytes, sealed: bytes) -> bool:
    try:
        cipher.open(field, sealed)
    except Undecodable:
        return True
    return False


@given(st.binary(), st.binary(), st.text(), st.text())
def test_what_is_sealed_is_opened(field: bytes, data: bytes, sid: str, key: str) -> None:
    sealed = encryption.of(sid, key).seal(field, data)
    assert encryption.of(sid, key).open(field, sealed) == data
    assert len(sealed) == len(data) + 29


def test_a_value_is_sealed_in_another_way_each_time_and_shows_nothing() -> None:
    sealed = {cipher.seal(b"card", b"4111 1111 1111 1111") for _ in range(100)}
    assert len(sealed) == 100
    assert not any(b"4111" in each for each in sealed)


def test_a_value_that_was_moved_is_no_value() -> None:
    sealed = cipher.seal(b"role", b'"admin"')
    assert not refuses(cipher, b"role", sealed)
    assert refuses(cipher, b"name", sealed)
    assert refuses(encryption.of("sid", "other"), b"role", sealed)
    assert refuses(encryption.of("other", "key"), b"role", sealed)


def test_no_flipped_bit_and_no_shortened_value_is_opened() -> None:
    sealed = cipher.seal(b"a", b"1")
    for at in range(len(sealed)):
        assert refuses(cipher, b"a", sealed[:at])
        for bit in range(8):
            assert refuses(cipher, b"a", sealed[:at] + bytes([sealed[at] ^ (1 << bit)]) + sealed[at + 1 :])


@given(st.binary())
def test_any_bytes_are_refused(data: bytes) -> None:
    assert refuses(cipher, b"a", data)
    assert refuses(cipher, b"a", b"\x01" + data)


def test_what_somebody_wrote_without_a_key_is_refused() -> None:
    for plain in (b"1", b'"admin"', b"", b"null"):
        assert refuses(cipher, b"_user_id", plain)


def test_an_older_key_still_opens_and_one_that_is_gone_does_not() -> None:
    sealed = Encryption(secret_keys=[OLD]).of("sid", "key").seal(b"a", b"1")
    assert [cipher.open(b"a", sealed) for _ in range(3)] == [b"1"] * 3
    assert refuses(Encryption(secret_keys=[NEW]).of("sid", "key"), b"a", sealed)
    again = cipher.seal(b"a", b"1")
    assert Encryption(secret_keys=[NEW]).of("sid", "key").open(b"a", again) == b"1"


def test_a_secret_key_alone_is_of_no_use_and_neither_is_an_id_alone() -> None:
    sealed = cipher.seal(b"a", b"1")
    assert refuses(Encryption(secret_keys=["else " * 8]).of("sid", "key"), b"a", sealed)
    assert refuses(encryption.of("", "key"), b"a", sealed)


def test_keys_are_a_list() -> None:
    for keys in ("one " * 8, b"one " * 8, [], ["short"], [7]):
        with pytest.raises(ConfigError):
            Encryption(secret_keys=keys)  # type: ignore[arg-type]


def test_without_cryptography_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtra, match=r"lbkit-web\[crypto\]"):
        Encryption(secret_keys=[NEW])
