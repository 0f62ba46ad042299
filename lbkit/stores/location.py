"""Where the sessions are, as a URL. What is wrong with one is said without the password in it.

================================================  ==========================================================
URL                                               is
================================================  ==========================================================
`memory://`                                       this process; `?max_sessions=N` bounds it
`redis://[user:password@]host[:port][/db]`        one server; `rediss://` is the same over TLS
`unix:///path/to/socket[?db=0]`                   one server on this machine
`redis+sentinel://host,host:port/service[/db]`    the primary that Sentinel names; there is `rediss+sentinel://`
`redis+cluster://host:port,host:port`             a cluster; there is `rediss+cluster://`
================================================  ==========================================================

Options after `?` are redis-py's: `socket_timeout=1`, `ssl_ca_certs=/path`, ... For the sentinels themselves
there are `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from lbkit.errors import ConfigError

__all__ = ["Location", "parse"]

SCHEMES = (
    "memory",
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
PORTS = {"sentinel": 26379, "cluster": 6379, "server": 6379}
SERVICE = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A URL, taken apart. Its repr shows no password."""

    kind: str
    """memory, server, socket, sentinel or cluster."""

    url: str = field(repr=False)
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    """The socket's."""

    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """To be shown: without user, password and options."""
        return _shown(self.url)


def parse(url: str) -> Location:
    """Take the URL apart. Raises ConfigError, which names the URL and the rule."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _refusal(url, str(error)) from None
    if parts.scheme not in SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise ConfigError(f"need sessions as a URL that begins with {_listed(SCHEMES)}, got {_shown(url)!r}")
    if parts.scheme == "memory":
        return Location(kind="memory", url=url, options=dict(parse_qsl(parts.query)))
    return _redis(url, parts)


def _redis(url: str, parts: SplitResult) -> Location:
    kind = parts.scheme.partition("+")[2] or ("socket" if parts.scheme == "unix" else "server")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    path = unquote(parts.path)
    *service, db = ["", ""] if kind == "socket" else _path(url, kind, path)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Location(
        kind=kind,
        url=url,
        tls=parts.scheme.startswith("rediss"),
        hosts=() if kind == "socket" else _hosts(url, kind, hosts),
        path=_socket(url, path) if kind == "socket" else "",
        service=service[0] if service else "",
        db=_number(url, "db", db or options.get("db", "0")),
        username=unquote(username) or None,
        password=unquote(password) or options.get("password"),
        options=options,
    )


def _path(url: str, kind: str, path: str) -> list[str]:
    """The service, for Sentinel, and the number of the database."""
    parts = path.strip("/").split("/")
    if kind == "sentinel":
        if not SERVICE.fullmatch(parts[0]) or len(parts) > 2:
            raise _refusal(
                url, "need the service's name behind the sentinels: redis+sentinel://host/service/0"
            )
        return [parts[0], parts[1] if len(parts) == 2 else ""]
    if len(parts) > 1:
        raise _refusal(url, "need no more than a database's number as the path")
    if kind == "cluster" and parts[0] not in ("", "0"):
        raise _refusal(url, "a cluster has database 0 alone")
    return parts


def _hosts(url: str, kind: str, text: str) -> tuple[tuple[str, int], ...]:
    hosts = []
    for each in text.split(","):
        try:
            parts = urlsplit(f"//{each}")
            hosts.append((parts.hostname or "localhost", parts.port or PORTS[kind]))
        except ValueError:
            raise _refusal(url, f"need host:port with a port of 1 to 65535, got {each!r}") from None
    if kind == "server" and len(hosts) > 1:
        raise _refusal(
            url, "one server has one host; there are redis+sentinel:// and redis+cluster:// as well"
        )
    return tuple(hosts)


def _socket(url: str, path: str) -> str:
    if not path:
        raise _refusal(url, "need the path of the socket: unix:///run/redis/redis.sock")
    return path


def _number(url: str, name: str, text: str) -> int:
    if not text.isdecimal() or not text.isascii():
        raise _refusal(url, f"need {name} as a whole number >= 0, got {text!r}")
    return int(text)


def _refusal(url: str, rule: str) -> ConfigError:
    return ConfigError(f"sessions {_shown(url)!r}: {rule}")


def _shown(url: str) -> str:
    return re.sub(r"//[^/?#]*@", "//***@", url.partition("?")[0])


def _listed(names: tuple[str, ...]) -> str:
    *most, last = (f"{name}://" for name in names)
    return f"{', '.join(most)} or {last}"
