"""The upstream group that a recording of nginx describes, read from its configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

from lbkit.balancer.nginx import NextUpstream, Nginx, Server, Sticky
from lbkit.balancer.replay import NotModelled, Recording, Start, same_shares

__all__ = ["SPECIAL", "group", "seconds", "starts"]

IGNORED = ("zone", "keepalive", "keepalive_requests", "keepalive_timeout", "keepalive_time", "resolver")
"""They change nothing for one worker process."""

DATE = re.compile(r"expires=[^;]*GMT")
METHODS = ("ip_hash", "hash", "least_conn", "random", "least_time")
UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def starts(recording: Recording) -> Iterator[Start]:
    directives = dict(_location(recording.config))
    yield Start(
        model=group(recording.config, recording.servers),
        read_timeout=seconds(directives.get("proxy_read_timeout", "60s")),
        client=lambda request: request.header("x-real-ip") or request.client,
        mask=DATE if re.search(r"\ssticky\s.*expires=\d", recording.config) else None,
    )


def _shares(recording: Recording) -> None:
    model = group(recording.config, recording.servers, rng=Random(1))
    same_shares(recording, model, (server["name"] for server in recording.servers))


SPECIAL: dict[str, Callable[[Recording], None]] = {"nginx_dist": _shares}


def group(config: str, servers: list[dict[str, str]], *, rng: Random | None = None) -> Nginx:
    names = {server["address"]: server["name"] for server in servers}
    lines = list(_directives(_block(config, "upstream")))
    location = dict(_location(config))
    method, sticky = "", None
    for word, rest in lines:
        if word in METHODS:
            # A method that comes after `sticky` replaces it: nginx only warns.
            method, sticky = f"{word} {rest}".strip(), None
        elif word == "sticky":
            sticky = _sticky(rest)
        elif word != "server" and word not in IGNORED:
            raise NotModelled(f"the directive {word!r}")
    return Nginx(
        [_server(rest, names) for word, rest in lines if word == "server"],
        method=method,
        passing=_passing(location),
        sticky=sticky,
        rng=rng,
    )


def _block(config: str, name: str) -> str:
    found = re.search(rf"\b{name}\b[^{{]*{{(.*?)}}", config, re.S)
    return found[1] if found else ""


def _directives(block: str) -> Iterator[tuple[str, str]]:
    for line in block.split(";"):
        if words := line.split():
            yield words[0], " ".join(words[1:])


def _location(config: str) -> Iterator[tuple[str, str]]:
    return _directives(_block(config, "location"))


def _server(rest: str, names: dict[str, str]) -> Server:
    address, *words = rest.split()
    options = dict(word.partition("=")[::2] for word in words)
    return Server(
        name=names[address],
        address=address,
        weight=int(options.get("weight", 1)),
        max_conns=int(options.get("max_conns", 0)),
        max_fails=int(options.get("max_fails", 1)),
        fail_timeout=seconds(options.get("fail_timeout", "10s")),
        backup="backup" in options,
        down="down" in options,
        drain="drain" in options,
        route=options.get("route", ""),
    )


def _passing(location: dict[str, str]) -> NextUpstream:
    return NextUpstream(
        on=frozenset(location.get("proxy_next_upstream", "error timeout").split()),
        tries=int(location.get("proxy_next_upstream_tries", 0)),
        timeout=seconds(location.get("proxy_next_upstream_timeout", "0")),
    )


def _sticky(rest: str) -> Sticky:
    mode, *words = rest.split()
    pairs = [word.partition("=")[::2] for word in words]
    options = dict(pairs)
    if mode == "cookie":
        return Sticky(mode=mode, name=words[0], attributes=_attributes(options))
    if mode == "route":
        return Sticky(mode=mode, sources=tuple(words))
    create = [value for name, value in pairs if name == "create"]
    if mode == "learn" and all(value.startswith("$upstream_cookie_") for value in create):
        return Sticky(
            mode=mode,
            create=tuple(value.removeprefix("$upstream_cookie_") for value in create),
            sources=tuple(value for name, value in pairs if name == "lookup"),
            timeout=seconds(options.get("timeout", "10m")),
        )
    raise NotModelled(f"sticky {rest}")


def _attributes(options: dict[str, str]) -> str:
    text = ""
    if expires := options.get("expires"):
        age = 315360000 if expires == "max" else int(seconds(expires))
        text += f"; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age={age}"
    for name in ("domain", "httponly", "secure", "samesite", "path"):
        if name in options:
            text += f"; {name}" + (f"={options[name]}" if options[name] else "")
    return text


def seconds(text: str) -> float:
    """A duration as nginx, HAProxy, Envoy and Caddy write it, in seconds."""
    found = re.fullmatch(r"([0-9.]+)(ms|s|m|h|d|)", text.strip())
    if not found:
        raise NotModelled(f"the duration {text!r}")
    return float(found[1]) * UNITS[found[2]]
