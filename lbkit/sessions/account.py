"""What a session notes of itself, and what follows: whether it still lives, for how long, and whose it is.

Instants are whole seconds of Unix time, as decimal text. A session without them is none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from lbkit.errors import SessionTooLarge
from lbkit.sessions.codec import encode, field_of
from lbkit.sessions.contents import Contents
from lbkit.sessions.options import SessionOptions
from lbkit.sessions.session import PERMANENT
from lbkit.sessions.store import CREATED, DEVICE, ISSUED, TOUCHED, USER, Fields

__all__ = ["PERMANENT_FIELD", "Account", "as_user"]

logger = logging.getLogger("lbkit.sessions")

PERMANENT_FIELD = field_of(PERMANENT)
BIGGEST = 3


class Account:
    """The rules of `SessionOptions`, applied to the fields of one session after another."""

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self._touch_after = options.touch_after
        self._longest = max(options.idle, options.remember)

    def lives(self, fields: Fields, now: float) -> bool:
        """Is it a session, and not too old?"""
        try:
            created_at, _ = int(fields[CREATED]), int(fields[TOUCHED])
        except (KeyError, ValueError):
            return False
        return self.options.absolute is None or now < created_at + self.options.absolute

    def stale(self, fields: Fields, now: float) -> bool:
        """Is it time to note that the session is used?"""
        return now - int(fields.get(TOUCHED, b"0")) > self._touch_after

    def renewable(self, fields: Fields, now: float, *, outdated: bool) -> bool:
        """Has its id served for long enough? One that is outdated has, if it is not just new: while the keys
        are being changed, two replicas may not agree."""
        renewal = self.options.renewal_grace if outdated else self.options.renewal
        return renewal is not None and now - int(fields.get(ISSUED, b"0")) > renewal

    def opened(
        self, contents: Contents, device: Mapping[str, str], now: float, *, created_at: float
    ) -> dict[bytes, bytes]:
        """The fields of a session that gets an id now."""
        instant = b"%d" % now
        own = {CREATED: b"%d" % created_at, TOUCHED: instant, ISSUED: instant}
        user = self.user(contents)
        if user is not None:
            own[USER] = user.encode("utf-8", "surrogatepass")
            own[DEVICE] = encode("device", dict(device))
        return own

    def user(self, contents: Contents) -> str | None:
        """Who is logged in: the first of the watched keys that says so."""
        for key in self.options.watch:
            if key in contents and (user := contents.get(key)) is not None:
                return str(user)
        return None

    def permanent(self, contents: Contents) -> bool:
        return PERMANENT in contents and bool(contents.get(PERMANENT))

    def ttl(self, contents: Contents, now: float, created_at: float) -> float:
        """Seconds that the session lasts from now on, if it is not used again."""
        options = self.options
        idle = options.remember if self.permanent(contents) else options.idle
        if options.absolute is not None:
            idle = min(idle, created_at + options.absolute - now)
        return max(1.0, idle)

    def ends_at(self, now: float, created_at: float) -> float:
        """The latest moment at which a session can still be there, for the index of its user."""
        options = self.options
        if options.absolute is not None:
            return created_at + options.absolute
        return now + 1.5 * self._longest

    def extends(self, fields: Fields, now: float) -> bool:
        """Must the index be told of a later end? Without an absolute age a session may be used for ever, so
        it is told once in half a life, of an end that is half a life late."""
        half = self._longest / 2
        before = int(fields.get(TOUCHED, b"0"))
        return self.options.absolute is None and USER in fields and before // half != now // half

    def weigh(self, contents: Contents) -> None:
        """Raises SessionTooLarge; a session of more than the soft limit is only logged."""
        options = self.options
        if contents.size() <= options.soft_limit:
            return
        sizes = contents.sizes()
        total = sum(sizes.values())
        if total <= options.soft_limit:
            return
        biggest = sorted(sizes, key=lambda key: -sizes[key])[:BIGGEST]
        named = ", ".join(f"{key[:64]!r}: {sizes[key]}" for key in biggest)
        if total > options.hard_limit:
            rule = f"need a session of {options.hard_limit} bytes at most"
            raise SessionTooLarge(f"{rule}, got {total}; the biggest keys are {named}")
        logger.warning("a session of %d bytes, more than %d: %s", total, options.soft_limit, named)


def as_user(field: bytes) -> str:
    return field.decode("utf-8", "surrogatepass")
