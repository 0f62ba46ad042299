"""Sticky sessions: a cookie that says which replica a client belongs to, and that only we can write.

    lb=web1.aRr2dg.Vf9fLk0mXJx3bE7tV3v2o0iM2nE
       id   when    signature

The id stands in front of the first dot, so any balancer can route on it; the rest is itsdangerous'
`TimestampSigner`, byte for byte. `Sticky` reads and writes the cookie. `Stick` decides, for the replicas
that there are, whether a client stays:

==============================================  ========================================================
the cookie                                      the client
==============================================  ========================================================
names a replica that takes its clients          stays; the cookie is renewed when its key or age is old
names one that is gone, down or not ours        moves, and stays where it lands, also when that returns
forged, expired, misshapen, too long            is balanced as a new one, and counted by the reason
==============================================  ========================================================

Nothing here reads a clock: `now` is Unix time in seconds, because the cookie outlives the process.
"""

from __future__ import annotations

import base64
import hmac
import os
import platform
import re
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from itsdangerous import TimestampSigner

from lbkit.balancer.replica import Replica
from lbkit.cookie import SameSite, attributes, checked_path, signing_keys, values
from lbkit.errors import ConfigError

__all__ = ["Keep", "Move", "Reason", "Route", "SameSite", "Stick", "Sticky", "own_replica_id"]

SALT = b"lbkit.sticky"

LONGEST = 200

# Somebody who sets cookies on our domain could otherwise make us check a hundred signatures a request.
MOST = 8

CACHED = 4096

# Replicas sign by clocks of their own.
LEEWAY = 60

SHAPE = re.compile(r"(([A-Za-z0-9_-]{1,63})\.([A-Za-z0-9_-]{6,8}))\.([A-Za-z0-9_-]{27})", re.ASCII)
UNFIT = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)


class Reason(Enum):
    """Why a client is not where its cookie says."""

    ABSENT = "no cookie"
    OVERSIZED = "longer than any cookie of ours"
    MALFORMED = "not in the shape of a cookie of ours"
    FORGED = "not signed with a key of ours"
    EXPIRED = "older than max_age"
    FUTURE = "signed later than now: two clocks differ"
    UNKNOWN = "names a replica that is not here"
    DOWN = "names a replica that takes no requests"


# Tuples, because each request makes one and a frozen dataclass costs a microsecond more.
class Route(NamedTuple):
    """What a genuine cookie says."""

    tag: str
    """The replica's id, or what stands for it when the topology must not show."""

    signed_at: int
    key: int
    """Which of the keys signed it: 0 is the newest."""


class Keep(NamedTuple):
    replica: str
    renew: bool = False
    """Send the cookie again: an old key signed it, or half of its life is over."""


class Move(NamedTuple):
    reason: Reason


class Sticky:
    """How the cookie is signed and what its attributes are. Keys are a list, the newest first.

    The newest key signs and all of them verify, so a rollout that adds a key logs nobody out: put the new one
    behind the old one everywhere, then in front, then drop the old. A key has 16 bytes or more.

    `cookie` is its name; nginx cannot address one with a '-' in it. `max_age` is the life of a cookie in
    seconds, None for as long as the browser is open. `opaque` puts an id derived from the key in place of the
    replica's: `tag` tells it to whoever configures a balancer. Answers to `quiet` paths, and to what is below
    them, set no cookie.
    """

    def __init__(
        self,
        *,
        secret_keys: Iterable[str | bytes],
        cookie: str = "lb",
        max_age: int | None = None,
        secure: bool = True,
        same_site: SameSite = "Lax",
        path: str = "/",
        domain: str | None = None,
        opaque: bool = False,
        quiet: Iterable[str] = ("/health",),
    ) -> None:
        self._keys = tuple(Key(key) for key in signing_keys(secret_keys))
        self.cookie = cookie
        self.max_age = max_age
        self.opaque = opaque
        self.quiet = tuple(checked_path(each, "quiet") for each in _listed(quiet))
        self._attributes = attributes(
            cookie, max_age=max_age, secure=secure, same_site=same_site, path=path, domain=domain
        )
        # A client that stays comes with the same text each time: its signature is checked once.
        self._verified = lru_cache(CACHED)(self._verify)
        self._assigned = f"{cookie}="
        self._values = values(cookie)

    def __repr__(self) -> str:
        """Without the keys: a repr ends up in logs."""
        return f"Sticky(cookie={self.cookie!r}, {len(self._keys)} keys, max_age={self.max_age})"

    def tag(self, replica: str, *, key: int = 0) -> str:
        """What stands in front of the dot for this replica; `key` counts from the newest."""
        if not self.opaque:
            return replica
        return self._keys[key].signature(f"id:{replica}")[:16]

    def encode(self, replica: str, now: float) -> str:
        """The value of the cookie that names this replica."""
        seconds = int(now)
        signed_at = seconds.to_bytes(max(4, (seconds.bit_length() + 7) // 8), "big")
        body = f"{self.tag(replica)}.{_base64(signed_at)}"
        return f"{body}.{self._keys[0].signature(body)}"

    def decode(self, value: str, now: float) -> Route | Reason:
        """What the cookie says, or why it says nothing. Never raises."""
        if len(value) > LONGEST:
            return Reason.OVERSIZED
        route = self._verified(value)
        if self.max_age is None or isinstance(route, Reason):
            return route
        age = now - route.signed_at
        if age > self.max_age:
            return Reason.EXPIRED
        return route if age >= -LEEWAY else Reason.FUTURE

    def _verify(self, value: str) -> Route | Reason:
        match = SHAPE.fullmatch(value)
        if match is None:
            return Reason.MALFORMED
        body, tag, signed_at, signature = match.groups()
        # As text: in the last character of a signature two bits mean nothing, and four texts would be one.
        for number, key in enumerate(self._keys):
            if hmac.compare_digest(key.signature(body), signature):
                return Route(tag, _integer(signed_at), number)
        return Reason.FORGED

    def read(self, cookies: str, now: float) -> Route | Reason:
        """Find our cookie in a Cookie header. Of several with the name, the first genuine one counts."""
        if self._assigned not in cookies:
            return Reason.ABSENT
        first: Reason = Reason.ABSENT
        for value in self._values(cookies)[:MOST]:
            answer = self.decode(value.rstrip(), now)
            if isinstance(answer, Route):
                return answer
            first = answer if first is Reason.ABSENT else first
        return first

    def ageing(self, route: Route, now: float) -> bool:
        """Is it time for a new cookie, although this one is good?"""
        return route.key > 0 or (self.max_age is not None and now - route.signed_at > self.max_age / 2)

    def set_cookie(self, replica: str, now: float) -> str:
        """The value of the Set-Cookie header that makes a client stay with this replica."""
        return f"{self._assigned}{self.encode(replica, now)}{self._attributes}"

    def speaks_on(self, path: str) -> bool:
        """May an answer to this path set the cookie?"""
        return not any(path == quiet or path.startswith(f"{quiet}/") for quiet in self.quiet)


class Key:
    """One key of the list. What itsdangerous derives from it and our salt is derived once."""

    def __init__(self, key: str | bytes) -> None:
        self._mac = hmac.new(TimestampSigner(key, salt=SALT).derive_key(), digestmod="sha1")

    def signature(self, body: str) -> str:
        mac = self._mac.copy()
        mac.update(body.encode("ascii"))
        return _base64(mac.digest())


class Stick:
    """Where clients belong, among the replicas that there are. Safe to share between threads.

    An app knows one replica, itself; a balancer knows the whole pool.
    """

    def __init__(self, sticky: Sticky, replicas: Iterable[str]) -> None:
        self.sticky = sticky
        names = [Replica(name).name for name in replicas]
        keys = range(len(sticky._keys))
        self._names = {(key, sticky.tag(name, key=key)): name for key in keys for name in names}
        self._moves = dict.fromkeys(Reason, 0)
        self._lock = Lock()

    @property
    def moves(self) -> dict[Reason, int]:
        """How many requests were not where their cookie said, by the reason."""
        with self._lock:
            return dict(self._moves)

    def decide(self, cookies: str, now: float, *, down: Collection[str] = ()) -> Keep | Move:
        """Does this client stay? `cookies` is its Cookie header, `down` the replicas that take nobody."""
        answer = self.sticky.read(cookies, now)
        if isinstance(answer, Reason):
            return self._move(answer)
        name = self._names.get((answer.key, answer.tag))
        if name is None:
            return self._move(Reason.UNKNOWN)
        if name in down:
            return self._move(Reason.DOWN)
        return Keep(name, self.sticky.ageing(answer, now))

    def settle(self, decision: Keep | Move, replica: str, now: float) -> str | None:
        """The Set-Cookie for an answer that this replica gives, None when the client has what it needs."""
        if isinstance(decision, Keep) and decision.replica == replica and not decision.renew:
            return None
        return self.sticky.set_cookie(replica, now)

    def _move(self, reason: Reason) -> Move:
        with self._lock:
            self._moves[reason] += 1
        return Move(reason)


def own_replica_id(given: str | None = None, *, environ: Mapping[str, str] = os.environ) -> str:
    """This replica's id: the one given, else LBKIT_REPLICA_ID, else what can be used of the host name.

    Raises ConfigError for an id that breaks the rule; a host name is made to fit: up to its first dot.
    """
    if given is None:
        given = environ.get("LBKIT_REPLICA_ID") or _fitting(platform.node())
    return Replica(given).name


def _fitting(host: str) -> str:
    return UNFIT.sub("-", host.partition(".")[0])[:63] or "localhost"


# RFC 9110, section 15.1, and 304: a cache that asked for news puts its headers onto what it has stored.
HEURISTIC = frozenset({200, 203, 204, 206, 300, 301, 304, 308, 404, 405, 410, 414, 501})
UNSHARED = frozenset({"no-store", "no-cache", "private"})
SHARED = ("public", "s-maxage", "proxy-revalidate")
FRESH = ("public", "max-age", "s-maxage")


def kept_private(method: str, status: int, cache_control: str, *, expires: bool) -> str | None:
    """The Cache-Control for an answer with our cookie, None when no shared cache would store it anyway.

    A shared cache that stored the answer would hand one client's route to all. `expires`: has the answer
    an Expires header?
    """
    directives = [each for part in cache_control.split(",") if (each := part.strip())]
    names = [each.partition("=")[0].strip().lower() for each in directives]
    plain = {each.lower() for each in directives}
    explicit = expires or not set(FRESH).isdisjoint(names)
    if method not in ("GET", "HEAD") or not plain.isdisjoint(UNSHARED):
        return None
    if status not in HEURISTIC and not explicit:
        return None
    kept = [each for each, name in zip(directives, names, strict=True) if name not in SHARED]
    return ", ".join(["private", *kept])


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _integer(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(f"{text}=="), "big")


def _listed(paths: Iterable[str]) -> list[str]:
    if isinstance(paths, (str, bytes)) or not isinstance(paths, Iterable):
        raise ConfigError(f"need quiet as a list of paths, got {paths!r}")
    return list(paths)
