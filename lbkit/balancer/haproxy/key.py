"""What HAProxy hashes of a request, and how: `source`, `uri`, `url_param`, `hdr`, and the `hash-type`.

Sources: src/backend.c and src/hash.c of 2.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address

from lbkit.balancer.exchange import Request
from lbkit.balancer.haproxy.hashed import FUNCTIONS
from lbkit.balancer.hashing import full_hash
from lbkit.errors import ConfigError

__all__ = ["fetch", "hashed_of"]

METHODS = ("map-based", "consistent")
Hashed = Callable[[Request], "int | None"]
Key = Callable[[Request], "bytes | None"]


def hashed_of(balance: str, hash_type: str) -> Hashed | None:
    """The hash of a request, None for one without a key. No function for algorithms that look at no key."""
    words = hash_type.split()
    if unknown := [word for word in words if word not in (*METHODS, *FUNCTIONS, "avalanche")]:
        known = ", ".join((*METHODS, *FUNCTIONS, "avalanche"))
        raise ConfigError(f"need a hash-type of HAProxy ({known}), got {unknown[0]!r}")
    function = next((word for word in words if word in FUNCTIONS), "")
    raw = _source if balance == "source" else _keyed(balance, FUNCTIONS[function or "sdbm"])
    if raw is None or not ("avalanche" in words or ("consistent" in words and not function)):
        return raw
    plain = raw

    def avalanche(request: Request) -> int | None:
        value = plain(request)
        return None if value is None else full_hash(value)

    return avalanche


def fetch(expression: str) -> Callable[[Request], str]:
    """A sample fetch that a stick table is keyed by: src, path, hdr(NAME), cook(NAME), url_param(NAME)."""
    name, _, argument = expression.removeprefix("req.").removesuffix(")").partition("(")
    if name == "src":
        return lambda request: request.client
    if name == "path":
        return lambda request: request.target.partition("?")[0]
    if name in ("hdr", "fhdr") and argument:
        return lambda request: request.header(argument.lower()).partition("\n")[0]
    if name == "cook" and argument:
        return lambda request: request.cookie(argument)
    if name in ("url_param", "urlp") and argument:
        return lambda request: request.argument(argument) or ""
    known = "src, path, hdr(NAME), cook(NAME), url_param(NAME)"
    raise ConfigError(f"need what a stick table is keyed by ({known}), got {expression!r}")


def _keyed(balance: str, function: Callable[[bytes], int]) -> Hashed | None:
    key_of = _key(balance)
    if key_of is None:
        return None

    def hashed(request: Request) -> int | None:
        key = key_of(request)
        return None if key is None else function(key)

    return hashed


def _key(balance: str) -> Key | None:
    words = balance.split()
    if words[:1] == ["uri"]:
        return _uri(words[1:])
    if words[:1] == ["url_param"] and len(words) > 1:
        return lambda request: _encoded(request.argument(words[1]))
    if found := re.fullmatch(r"hdr\(([^)]+)\)( use_domain_only)?", balance):
        return _header(found[1].lower(), domain_only=bool(found[2]))
    return None


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _source(request: Request) -> int | None:
    return _address(request.client)


@lru_cache(4096)
def _address(client: str) -> int | None:
    """The xor of its 32-bit words. A client without an address (a unix socket) takes turns."""
    try:
        packed = ip_address(client).packed
    except ValueError:
        return None
    value = 0
    for at in range(0, len(packed), 4):
        value ^= int.from_bytes(packed[at : at + 4], "big")
    return value


def _uri(words: list[str]) -> Key:
    whole = "whole" in words
    limits = {name: _number(words, name) for name in ("len", "depth") if name in words}

    def key(request: Request) -> bytes:
        text = request.target[: limits.get("len") or None]
        if not whole:
            text = text.partition("?")[0]
        if "depth" in limits:
            text = "/".join(text.split("/")[: limits["depth"] + 1])
        return text.encode()

    return key


def _number(words: list[str], name: str) -> int:
    try:
        return int(words[words.index(name) + 1])
    except (IndexError, ValueError) as error:
        raise ConfigError(f"need a whole number after {name!r}, got 'uri {' '.join(words)}'") from error


def _header(name: str, *, domain_only: bool) -> Key:
    """The first value of the first line: a comma ends it. `use_domain_only`: `shop` of `www.shop.example`."""

    def key(request: Request) -> bytes | None:
        value = request.header(name).partition("\n")[0].partition(",")[0].strip()
        if domain_only and "." in value:
            value = value.split(".")[-2]
        return value.encode() or None

    return key
