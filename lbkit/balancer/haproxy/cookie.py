"""HAProxy's persistence cookies: insert, rewrite, prefix, and the dates of maxidle and maxlife.

Source: src/http_ana.c of 2.6. The letters are those of HAProxy's log:

==========================  ========================================================================
of the request              N none, V valid, I unknown, D its server is down, E idle too long, O too old
of the response             N none, I inserted, U date updated, P the app's own kept, D the app's own
                            deleted, R the app's own rewritten
==========================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from lbkit.balancer.exchange import Outcome, Request
from lbkit.balancer.haproxy.node import Node
from lbkit.balancer.hashing import xxh64

__all__ = ["Cookie", "Persistence", "dynamic_value", "stamp"]

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
DAY = 86400
CACHEABLE = frozenset({200, 203, 204, 206, 300, 301, 404, 405, 410, 414, 501})
"""RFC 9110, section 15.1: what a cache may keep without being told so."""

REMOVAL = "; Expires=Thu, 01-Jan-1970 00:00:01 GMT; path=/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookie:
    """A `cookie` line. `maxidle` and `maxlife` in seconds, 0 for none."""

    name: str
    mode: str
    indirect: bool = False
    nocache: bool = False
    postonly: bool = False
    preserve: bool = False
    httponly: bool = False
    secure: bool = False
    maxidle: int = 0
    maxlife: int = 0
    domains: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    persist: bool = False
    """`option persist`: even a server that is down keeps its clients."""


class Persistence:
    """What one request's cookie says, and what its response gets."""

    def __init__(self, cookie: Cookie, request: Request, nodes: Sequence[Node], now: float) -> None:
        self.cookie = cookie
        self.request = request
        self.letter = "N"
        self.node: Node | None = None
        """The server it is bound to and that may be used."""

        self.answer_letter = "N"
        self._now = int(now)
        self._last = self._first = 0
        self._read(nodes)

    def _read(self, nodes: Sequence[Node]) -> None:
        pairs = [pair for pair in self.request.cookies() if pair[0] == self.cookie.name]
        if not pairs:
            return
        value = pairs[0][1]
        if self.cookie.mode == "prefix":
            name, tilde, rest = value.partition("~")
            key: str | None = name
            self._forward(rest if tilde else value)
        else:
            key = self._dated(value)
            if self.cookie.indirect:
                self._forward(None)
        self._bind(key, nodes)

    def _dated(self, value: str) -> str | None:
        """The server's part of the value; None when the dates say that it is not to be looked at."""
        key, *dates = value.split("|")
        stamps = [_seconds(date) for date in dates[:2]] + [0, 0]
        self._last, self._first = stamps[0], stamps[1]
        too_old = self._first and self.cookie.maxlife and self._beyond(self._first, self.cookie.maxlife)
        idle = self._last and self.cookie.maxidle and self._beyond(self._last, self.cookie.maxidle)
        if not (too_old or idle):
            return key
        self.letter = "O" if too_old else "E"
        self._last = self._first = 0
        return None

    def _beyond(self, date: int, limit: int) -> bool:
        """Dates in the future are believed up to one day: clocks are wrong, but not for ever."""
        return self._now - date > limit or date - self._now > DAY

    def _bind(self, key: str | None, nodes: Sequence[Node]) -> None:
        found = next((node for node in nodes if key and node.cookie == key), None)
        if found is not None:
            self.letter = "D" if found.stopped else "V"
            self.node = found if not found.stopped or self.cookie.persist else None
        elif self.letter == "N":
            self.letter = "I"

    def _forward(self, value: str | None) -> None:
        """Put another value into the request's Cookie header; None takes the cookie out."""
        parts = []
        for part in self.request.header("cookie").split(";"):
            name = part.partition("=")[0].strip()
            if name != self.cookie.name:
                parts.append(part.strip())
            elif value is not None:
                parts.append(f"{name}={value}")
        headers = {name: text for name, text in self.request.headers.items() if name != "cookie"}
        if parts:
            headers["cookie"] = "; ".join(parts)
        self.request = replace(self.request, headers=headers)

    def moved(self) -> None:
        """The request was redispatched to another server."""
        if self.letter == "V":
            self.letter = "D"

    def response(self, node: Node, outcome: Outcome) -> tuple[str, ...]:
        """The Set-Cookie lines of the response."""
        lines = [self._own(line, node) for line in outcome.set_cookie]
        kept = [line for line in lines if line]
        if self._inserts(node):
            self.answer_letter = "U" if node.cookie and self.node is not None else "I"
            kept.append(self._text(node))
        return tuple(kept)

    def caching(self, outcome: Outcome) -> dict[str, str]:
        """`nocache`: what a cache would keep, and hand our cookie to others with, it is told not to."""
        asked = self.cookie.nocache and self.answer_letter in ("I", "U") and self.request.method == "GET"
        return {"cache-control": "private"} if asked and _would_be_kept(outcome) else {}

    def _own(self, line: str, node: Node) -> str:
        """What becomes of a cookie that the app sets itself; empty when it is deleted."""
        name, _, rest = line.partition("=")
        value, semicolon, attributes = rest.partition(";")
        if name.strip() != self.cookie.name:
            return line
        if self.cookie.preserve:
            self.answer_letter = "P"
            return line
        if self.cookie.mode == "insert":
            self.answer_letter = "D"
            return ""
        if not node.cookie:
            return line
        self.answer_letter = "R"
        ours = node.cookie if self.cookie.mode == "rewrite" else f"{node.cookie}~{value}"
        return f"{name}={ours}{semicolon}{attributes}"

    def _inserts(self, node: Node) -> bool:
        cookie = self.cookie
        if cookie.mode != "insert" or (cookie.preserve and self.answer_letter == "P"):
            return False
        if cookie.postonly and self.request.method != "POST":
            return False
        return (
            self.node is None
            or ((cookie.maxidle > 0 or self._last > 0) and self._last < self._now)
            or bool(cookie.maxlife) is not bool(self._first)
        )

    def _text(self, node: Node) -> str:
        cookie = self.cookie
        text = f"{cookie.name}={node.cookie}"
        if not node.cookie:
            text += REMOVAL
        else:
            if cookie.maxidle or cookie.maxlife:
                text += f"|{stamp(self._now)}"
            if cookie.maxlife:
                text += f"|{_digits(self._first >> 2) if self._first else stamp(self._now)}"
            text += "; path=/"
        text += "".join(f"; domain={domain}" for domain in cookie.domains)
        text += "; HttpOnly" * cookie.httponly + "; Secure" * cookie.secure
        return text + "".join(f"; {attribute}" for attribute in cookie.attributes)


def _would_be_kept(outcome: Outcome) -> bool:
    """By a cache that needs a reason, which is how long it holds or how to ask again, as 2.6 has it."""
    told = outcome.headers.get("cache-control", "")
    if outcome.status not in CACHEABLE or any(word in told for word in ("private", "no-store", "no-cache")):
        return False
    lasts = "max-age" in told or "s-maxage" in told or "expires" in outcome.headers
    return lasts or "etag" in outcome.headers or "last-modified" in outcome.headers


def stamp(seconds: float) -> str:
    """An instant as HAProxy writes it into a cookie: units of 4 s, rounded up, in 5 digits of 6 bits."""
    return _digits((int(seconds) + 3) >> 2)


def _digits(value: int) -> str:
    return "".join(ALPHABET[(value >> shift) & 63] for shift in (24, 18, 12, 6, 0))


def _seconds(text: str) -> int:
    """The instant in a cookie; 0 for what is none."""
    digits = [ALPHABET.find(char) for char in text[:5]]
    if len(digits) < 5 or min(digits) < 0:
        return 0
    value = 0
    for digit in digits:
        value = value << 6 | digit
    return value << 2


def dynamic_value(address: str, key: str) -> str:
    """The cookie of a server under `dynamic`: a hash of the key, its address and its port."""
    host, _, port = address.rpartition(":")
    return f"{xxh64(key.encode() + ip_address(host).packed + int(port).to_bytes(4, 'big')):016x}"
