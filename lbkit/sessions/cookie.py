"""The session cookie: an id of 256 bits that only we can have given out.

    __Host-sid=Zm9v...43 characters.aRr2dg.Vf9f...43 characters
               id                   when   signature

With `SessionOptions(tag_users=True)` the id of who is logged in has 11 characters more, the user's tag.

Byte for byte what itsdangerous' `TimestampSigner` writes, with SHA-256. The signature is a shield, not the
secret: a cookie that we have not signed costs no question to the store. The store knows the hash of the id
alone, so who reads the store cannot be anybody.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from itsdangerous import BadSignature, Signer
from itsdangerous.encoding import base64_decode, bytes_to_int, int_to_bytes

from lbkit.cookie import SameSite, attributes, signing_keys, values

__all__ = ["Presented", "SessionCookie", "index_by_tag", "key_of_id", "new_id", "tag_of"]

SALT = b"lbkit.session"
USER_SALT = b"lbkit.session.user"
LONGEST = 200

CHANCE = 43
TAG = 11
"""Characters of what a user is called that are put behind an id: 66 bits, which tell nobody the user."""

ID = re.compile(rf"[A-Za-z0-9_-]{{{CHANCE}}}([A-Za-z0-9_-]{{{TAG}}})?", re.ASCII)

# Somebody who sets cookies on our domain could otherwise make us check a hundred signatures a request.
MOST = 8
CACHED = 4096


class Presented(NamedTuple):
    """A genuine cookie: which session it names, and how old it is."""

    sid: str
    key: str
    """What the store calls the session: the hash of the id, behind its tag if it has one."""

    signed_at: int
    signer: int
    """Which of the secret keys signed it: 0 is the newest."""


class SessionCookie:
    """How the cookie is signed, and its attributes. Keys are a list, the newest first; all of them verify.

    Without a `name` it is `__Host-sid`, and `sid` where that prefix is not allowed: without `secure`, with
    another path, with a domain.
    """

    def __init__(
        self,
        *,
        secret_keys: Iterable[str | bytes],
        name: str | None = None,
        secure: bool = True,
        same_site: SameSite = "Lax",
        path: str = "/",
        domain: str | None = None,
    ) -> None:
        keys = signing_keys(secret_keys)
        hosted = secure and path == "/" and domain is None
        self.name = name if name is not None else "__Host-sid" if hosted else "sid"
        self._attributes = attributes(
            self.name, max_age=None, secure=secure, same_site=same_site, path=path, domain=domain
        )
        # One signer for each key, to know which has signed: a list of keys would not tell.
        self._signers = [_signer(key) for key in keys]
        self._derived = [signer.derive_key() for signer in self._signers]
        self._mac = hmac.new(self._derived[0], digestmod="sha256")
        self._values = values(self.name)
        self._assigned = f"{self.name}="
        # A client comes with the same text each time: its signature is checked once.
        self._verified = lru_cache(CACHED)(self._verify)

    def __repr__(self) -> str:
        """Without the keys: a repr ends up in logs."""
        return f"SessionCookie(name={self.name!r}, {len(self._signers)} keys)"

    def read(self, cookies: str) -> Presented | None:
        """Find the session in a Cookie header. Of several with the name, the first genuine one counts."""
        if self._assigned not in cookies:
            return None
        for value in self._values(cookies)[:MOST]:
            presented = self.verify(value.rstrip())
            if presented is not None:
                return presented
        return None

    def verify(self, value: str) -> Presented | None:
        """What the value names, None unless one of our keys has signed it. Never raises."""
        if len(value) > LONGEST or not value.isascii():
            return None
        return self._verified(value)

    def sign(self, sid: str, now: float) -> str:
        """The value of the cookie for this id. `now` is Unix time in seconds."""
        body = f"{sid}.{_text(int_to_bytes(int(now)))}"
        mac = self._mac.copy()
        mac.update(body.encode("ascii"))
        return f"{body}.{_text(mac.digest())}"

    def set_cookie(self, sid: str, now: float, *, max_age: int | None = None) -> str:
        """The value of the Set-Cookie header; without `max_age` for as long as the browser is open."""
        kept = "" if max_age is None else f"; Max-Age={max_age}"
        return f"{self._assigned}{self.sign(sid, now)}{self._attributes}{kept}"

    def unset_cookie(self) -> str:
        """The Set-Cookie that makes the browser forget: after a logout, and never for another reason."""
        return f"{self._assigned}{self._attributes}; Max-Age=0"

    def users(self, user: str) -> list[str]:
        """What the store calls a user: hashed with each of the keys, the newest first."""
        return [_text(hmac.digest(key, USER_SALT + _bytes(user), "sha256")) for key in self._derived]

    def _verify(self, value: str) -> Presented | None:
        for number, signer in enumerate(self._signers):
            try:
                sid, _, when = signer.unsign(value).decode("ascii").rpartition(".")
                signed_at = bytes_to_int(base64_decode(when))
            except (BadSignature, ValueError):
                continue
            return Presented(sid, key_of_id(sid), signed_at, number) if ID.fullmatch(sid) else None
        return None


def new_id(chance: Callable[[int], str] = secrets.token_urlsafe) -> str:
    """256 bits that nobody can guess."""
    return chance(32)


def key_of_id(sid: str) -> str:
    """A tag stands before a dot, which tells the store what belongs together."""
    name, tag = _text(hashlib.sha256(sid.encode("ascii")).digest()), sid[CHANCE:]
    return f"{tag}.{name}" if tag else name


def tag_of(user: str) -> str:
    """What an id ends with: the beginning of what the store calls its user."""
    return user[:TAG]


def index_by_tag(user: str) -> str:
    """What the store calls the user's sessions that have the tag: the same text, with a dot behind that."""
    return f"{user[:TAG]}.{user[TAG:]}"


def _signer(key: str | bytes) -> Signer:
    return Signer(key, SALT, key_derivation="hmac", digest_method=hashlib.sha256)


def _text(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def _bytes(user: str) -> bytes:
    return user.encode("utf-8", "surrogatepass")
