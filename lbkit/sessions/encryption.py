"""Values encrypted where they are stored, each session by a key of its own: AES-256-GCM, from `cryptography`.

The key is made of the secret key and the session's id, and the store knows but the hash of the id. So neither
who reads the store, nor who has the app's secret as well, can read a value: that takes the browser's cookie.
A value is bound to its session and its field: moved elsewhere, it is no value.

    01  nonce, 12 bytes  ciphertext and tag, 16 bytes more than the value

What the session notes of itself stays readable: when it was used, and whose it is. An id that is renewed
keeps the key of the first one, its `root`, which the new session holds sealed: the old id can be followed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lbkit.cookie import signing_keys
from lbkit.errors import MissingExtra
from lbkit.sessions.codec import Undecodable
from lbkit.sessions.cookie import key_of_id
from lbkit.sessions.store import ROOT

__all__ = ["Encryption", "FieldCipher"]

VERSION = b"\x01"
NONCE = 12
INFO = b"lbkit.session.encryption"


class Encryption:
    """`secret_keys`: the newest first; the newest encrypts, and all of them decrypt."""

    def __init__(self, *, secret_keys: Iterable[str | bytes]) -> None:
        keys = signing_keys(secret_keys)
        self._secrets = [key.encode() if isinstance(key, str) else key for key in keys]
        try:
            self._aead: Any = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
            self._hashes: Any = importlib.import_module("cryptography.hazmat.primitives.hashes")
            self._hkdf: Any = importlib.import_module("cryptography.hazmat.primitives.kdf.hkdf")
            self._invalid: type[Exception] = importlib.import_module("cryptography.exceptions").InvalidTag
        except ModuleNotFoundError:
            raise MissingExtra("cryptography", extra="crypto") from None

    def of(self, sid: str, key: str) -> FieldCipher:
        """For the session with this id, which the store calls `key`. Makes no key before one is needed."""
        return FieldCipher(self, sid, key)

    def root(self, sid: str, fields: Mapping[bytes, bytes]) -> str:
        """The id by which the values are encrypted, for who comes with `sid` and finds these fields first."""
        if ROOT not in fields:
            return sid
        try:
            return self.of(sid, key_of_id(sid)).open(ROOT, fields[ROOT]).decode("ascii")
        except (Undecodable, UnicodeDecodeError):
            return sid

    def sealed_root(self, root: str, sid: str) -> bytes:
        """The root, for nobody but who comes with `sid`."""
        return self.of(sid, key_of_id(sid)).seal(ROOT, root.encode("ascii"))

    def ciphers(self, sid: str) -> Iterator[Any]:
        """One cipher for each secret key, the newest first, made as they are asked for."""
        for secret in self._secrets:
            derive = self._hkdf.HKDF(self._hashes.SHA256(), length=32, salt=sid.encode(), info=INFO)
            yield self._aead.AESGCM(derive.derive(secret))

    def opened(self, cipher: Any, nonce: bytes, sealed: bytes, bound: bytes) -> bytes | None:
        try:
            plain: bytes = cipher.decrypt(nonce, sealed, bound)
        except self._invalid:
            return None
        return plain


class FieldCipher:
    """Seals and opens the fields of one session, during one request."""

    __slots__ = ("_encryption", "_key", "_made", "_others")

    def __init__(self, encryption: Encryption, sid: str, key: str) -> None:
        self._encryption = encryption
        self._key = key.encode()
        self._made: list[Any] = []
        self._others = encryption.ciphers(sid)

    def seal(self, field: bytes, data: bytes, /) -> bytes:
        nonce = os.urandom(NONCE)
        sealed: bytes = self._newest().encrypt(nonce, data, self._bound(field))
        return VERSION + nonce + sealed

    def open(self, field: bytes, sealed: bytes, /) -> bytes:
        """Raises Undecodable for what was not sealed for this field of this session."""
        nonce, rest = sealed[1 : 1 + NONCE], sealed[1 + NONCE :]
        if sealed[:1] == VERSION and len(nonce) == NONCE:
            for cipher in self._all():
                if (data := self._encryption.opened(cipher, nonce, rest, self._bound(field))) is not None:
                    return data
        raise Undecodable("not encrypted for this field of this session, or by a key that is gone")

    def _bound(self, field: bytes) -> bytes:
        return self._key + b"\0" + field

    def _newest(self) -> Any:
        return next(self._all())

    def _all(self) -> Iterator[Any]:
        """The newest first. Most values need no other, so the others are made when one does."""
        yield from self._made
        for cipher in self._others:
            self._made.append(cipher)
            yield cipher
