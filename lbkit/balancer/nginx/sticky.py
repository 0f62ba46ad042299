"""`sticky` of nginx: the cookie, the route and the learnt session that bind a client to a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lbkit.balancer.exchange import Outcome, Request
from lbkit.balancer.hashing import md5_hex
from lbkit.balancer.nginx.variable import compiled

__all__ = ["Binding", "Sticky"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sticky:
    """`sticky cookie`, `sticky route` or `sticky learn`, free since 1.29.6."""

    mode: str
    name: str = ""
    attributes: str = ""
    """What follows the value in Set-Cookie, in nginx' order and lower case."""

    sources: tuple[str, ...] = ()
    """route: the variables in which the route is looked for, the first one that is not empty wins.
    learn: the variables with the session's id."""

    create: tuple[str, ...] = ()
    """learn: the cookies of the answer that open a session."""

    timeout: float = 600.0


class Binding:
    """Who is bound to which sid."""

    def __init__(self, sticky: Sticky) -> None:
        self.sticky = sticky
        self._sources = [compiled(text) for text in sticky.sources]
        self._learnt: dict[str, tuple[str, float]] = {}

    def hint(self, request: Request, now: float) -> str:
        """The sid to which the request is bound; empty for none."""
        if self.sticky.mode == "cookie":
            return request.cookie(self.sticky.name)
        found = self._found(request)
        if self.sticky.mode == "route" or not found:
            return found
        sid, until = self._learnt.get(md5_hex(found), ("", now))
        return sid if until > now else ""

    def learn(self, request: Request, sid: str, outcome: Outcome) -> None:
        """A session is opened by the answer's cookie, and refreshed by whoever brings its id."""
        if self.sticky.mode != "learn":
            return
        self._forget(outcome.at)
        created = (_cookie_value(outcome.set_cookie, name) for name in self.sticky.create)
        if opened := next(filter(None, created), ""):
            self._write(md5_hex(opened), sid, outcome.at)
        elif (found := md5_hex(self._found(request))) in self._learnt:
            self._write(found, sid, outcome.at)

    def cookies(self, sid: str) -> tuple[str, ...]:
        """What every answer of a bound server carries."""
        return (f"{self.sticky.name}={sid}{self.sticky.attributes}",) if self.sticky.mode == "cookie" else ()

    def _found(self, request: Request) -> str:
        return next(filter(None, (source(request) for source in self._sources)), "")

    def _write(self, session: str, sid: str, now: float) -> None:
        self._learnt.pop(session, None)
        self._learnt[session] = (sid, now + self.sticky.timeout)

    def _forget(self, now: float) -> None:
        """The oldest ones that are over. A session is written anew at its end, so they stand in front."""
        while self._learnt and (oldest := next(iter(self._learnt.items())))[1][1] <= now:
            del self._learnt[oldest[0]]


def _cookie_value(lines: Sequence[str], name: str) -> str:
    for line in lines:
        key, _, value = line.partition(";")[0].partition("=")
        if key.strip() == name:
            return value.strip()
    return ""
