"""Routes: which pool a request goes to, by its path, host, method, headers and cookies. The first match wins.

====================  =================================================================================
a condition           is met by
====================  =================================================================================
`/cart`               this path alone, as the replica sees it: percent-decoded, without the query
`/api/*`              every path that begins with `/api/`; `/api` itself does not
`host:shop.example`   this host, on any port, in upper or lower case
`host:*.example.org`  every host that ends with `.example.org`, at any depth; not `example.org`
`GET,HEAD`            one of these methods
`header:X-Beta`       a request that has the header; `header:X-Beta=1`: that has it with this value
`cookie:beta`         the same for a cookie
`*`                   anything; alone it is the catch-all
====================  =================================================================================

All conditions of a route have to be met. A request that meets no route belongs to no pool: its answer is 404.
A route that can never be reached is a mistake, and refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from lbkit.balancer.exchange import Request
from lbkit.errors import ConfigError

__all__ = ["Route", "Routes"]

TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
METHODS = re.compile(r"[A-Z]+(,[A-Z]+)*")
POOL = re.compile(r"[A-Za-z0-9_-]{1,63}")
HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
SHAPE = "such as '/api/*=api', 'host:*.example.org GET,HEAD=tenants', 'cookie:beta=1=canary' or '*=web'"
Words = Mapping[str, "str | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The conditions under which a request goes to `pool`. What is empty does not matter.

    `headers` and `cookies` map a name to the value that it must have, or to None when it must only be there.
    """

    pool: str
    path: str = ""
    host: str = ""
    methods: frozenset[str] = frozenset()
    headers: Words = field(default_factory=dict)
    cookies: Words = field(default_factory=dict)
    text: str = field(default="", compare=False)
    """How it was written, for messages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", self.host.lower())
        object.__setattr__(self, "headers", {name.lower(): text for name, text in self.headers.items()})
        object.__setattr__(self, "text", self.text or self._written())
        self._refuse_nonsense()

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read `CONDITION ...=POOL`, as `--route` takes it. The pool is what follows the last `=`."""
        conditions, equals, pool = text.strip().rpartition("=")
        if not equals or not conditions.strip() or not pool.strip():
            raise ConfigError(f"need a route CONDITION=POOL, {SHAPE}; got {text!r}")
        read = Reading(text)
        for word in conditions.split():
            read.word(word)
        return cls(
            pool=pool.strip(),
            path=read.path,
            host=read.host,
            methods=frozenset(read.methods),
            headers=read.headers,
            cookies=read.cookies,
            text=text.strip(),
        )

    def matches(self, request: Request) -> bool:
        return all(check(request) for check in self.checks())

    def checks(self) -> tuple[Callable[[Request], bool], ...]:
        """One function for each condition, those first that are refused soonest."""
        found: list[Callable[[Request], bool]] = []
        if self.methods:
            found.append(lambda request: request.method in self.methods)
        if self.path:
            found.append(_path(self.path))
        if self.host:
            found.append(_host(self.host))
        found.extend(_header(name, value) for name, value in self.headers.items())
        found.extend(_cookie(name, value) for name, value in self.cookies.items())
        return tuple(found)

    def covers(self, other: Route) -> bool:
        """Does every request of `other` meet this route as well?"""
        return (
            _within(other.path, self.path, whole=_path_covers)
            and _within(other.host, self.host, whole=_host_covers)
            and (not self.methods or (bool(other.methods) and other.methods <= self.methods))
            and _asks_less(self.headers, other.headers)
            and _asks_less(self.cookies, other.cookies)
        )

    def _written(self) -> str:
        words = [",".join(sorted(self.methods)), self.path, self.host and f"host:{self.host}"]
        for kind, pairs in (("header", self.headers), ("cookie", self.cookies)):
            words += [f"{kind}:{name}" + ("" if v is None else f"={v}") for name, v in pairs.items()]
        return f"{' '.join(filter(None, words)) or '*'}={self.pool}"

    def _refuse_nonsense(self) -> None:
        rules = (
            (POOL.fullmatch(self.pool), "a pool's name of 1 to 63 letters, digits, '_' or '-'", self.pool),
            (_is_path(self.path), "a path that begins with '/' and has a '*' at its end only", self.path),
            (not self.host or HOST.fullmatch(self.host), "a host without a port, or *.HOST", self.host),
        )
        for holds, rule, got in rules:
            if not holds:
                raise ConfigError(f"need {rule}, got {got!r} in the route {self.text!r}")
        for name in (*self.headers, *self.cookies):
            if not TOKEN.fullmatch(name):
                raise ConfigError(
                    f"need a header's or cookie's name, got {name!r} in the route {self.text!r}"
                )


class Reading:
    """What the words of a route have said so far."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.path = self.host = ""
        self.methods: list[str] = []
        self.headers: dict[str, str | None] = {}
        self.cookies: dict[str, str | None] = {}

    def word(self, word: str) -> None:
        kind, colon, rest = word.partition(":")
        if word == "*":
            return
        if word.startswith("/"):
            self.path = self._once("path", self.path, word)
        elif METHODS.fullmatch(word):
            self._once("list of methods", ",".join(self.methods), word)
            self.methods = word.split(",")
        elif colon and rest and kind == "host":
            self.host = self._once("host", self.host, rest)
        elif colon and rest and kind in ("header", "cookie"):
            self._pair(kind, rest)
        else:
            kinds = "/PATH, host:NAME, METHOD, header:NAME[=VALUE], cookie:NAME[=VALUE] or *"
            raise ConfigError(f"need a condition {kinds}, got {word!r} in the route {self.text!r}")

    def _pair(self, kind: str, rest: str) -> None:
        name, equals, value = rest.partition("=")
        pairs = self.headers if kind == "header" else self.cookies
        name = name.lower() if kind == "header" else name
        if name in pairs:
            raise ConfigError(f"need {kind} {name!r} once, got it twice in the route {self.text!r}")
        pairs[name] = value if equals else None

    def _once(self, what: str, before: str, now: str) -> str:
        if before:
            raise ConfigError(f"need one {what}, got {before!r} and {now!r} in the route {self.text!r}")
        return now


class Routes:
    """Routes in their order. `pools`: the names that there are; a route to another one is refused."""

    def __init__(self, routes: Iterable[Route | str], *, pools: Collection[str] = ()) -> None:
        self.routes = tuple(each if isinstance(each, Route) else Route.parse(each) for each in routes)
        if not self.routes:
            raise ConfigError(f"need at least one route, {SHAPE}; got none")
        self._refuse_unknown(pools)
        self._refuse_unreachable()
        self._compiled = [(route.checks(), route) for route in self.routes]

    @classmethod
    def over(cls, pools: Collection[str], routes: Iterable[Route | str]) -> Routes:
        """Routes to exactly these pools: one that no route leads to is a mistake as well."""
        made = cls(routes, pools=pools)
        idle = [pool for pool in pools if pool not in {route.pool for route in made.routes}]
        if idle:
            raise ConfigError(f"need a route to each pool, got none to {', '.join(idle)}")
        return made

    def match(self, request: Request) -> Route | None:
        """The first route that the request meets. None: it belongs to no pool, and its answer is 404."""
        for checks, route in self._compiled:
            for check in checks:
                if not check(request):
                    break
            else:
                return route
        return None

    def _refuse_unknown(self, pools: Collection[str]) -> None:
        for route in self.routes:
            if pools and route.pool not in pools:
                known = ", ".join(pools)
                raise ConfigError(f"need the name of a pool ({known}), got {route.pool!r} in {route.text!r}")

    def _refuse_unreachable(self) -> None:
        for number, route in enumerate(self.routes):
            for earlier in self.routes[:number]:
                if earlier.covers(route):
                    raise ConfigError(
                        f"need routes that can be reached: the first match wins, and {earlier.text!r} takes "
                        f"every request of {route.text!r} after it"
                    )


# -- one condition


def _path(pattern: str) -> Callable[[Request], bool]:
    prefix = pattern[:-1]
    if pattern.endswith("*"):
        return lambda request: _path_of(request).startswith(prefix)
    return lambda request: _path_of(request) == pattern


def _path_of(request: Request) -> str:
    path = request.target.partition("?")[0]
    return unquote(path) if "%" in path else path


def _host(pattern: str) -> Callable[[Request], bool]:
    if pattern.startswith("*"):
        return lambda request: _host_of(request).endswith(pattern[1:])
    return lambda request: _host_of(request) == pattern


def _host_of(request: Request) -> str:
    """Without its port, and without the dot that ends an absolute name."""
    host = request.header("host").lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].removesuffix(".")


def _header(name: str, value: str | None) -> Callable[[Request], bool]:
    if value is None:
        return lambda request: name in request.headers
    return lambda request: value in request.header(name).split("\n")


def _cookie(name: str, value: str | None) -> Callable[[Request], bool]:
    if value is None:
        return lambda request: any(name == key for key, _ in request.cookies())
    return lambda request: (name, value) in request.cookies()


# -- which condition takes all that another one takes


def _within(inner: str, outer: str, *, whole: Callable[[str, str], bool]) -> bool:
    return not outer or (bool(inner) and whole(inner, outer))


def _path_covers(inner: str, outer: str) -> bool:
    return inner.startswith(outer[:-1]) if outer.endswith("*") else inner == outer


def _host_covers(inner: str, outer: str) -> bool:
    return inner.endswith(outer[1:]) if outer.startswith("*") else inner == outer


def _asks_less(outer: Words, inner: Words) -> bool:
    return all(name in inner and value in (None, inner[name]) for name, value in outer.items())


def _is_path(path: str) -> bool:
    return not path or (path.startswith("/") and "*" not in path[:-1])
