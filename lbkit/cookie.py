"""What the cookies of ours have in common: a name, attributes, and the keys that sign them.

Browsers drop without a word a cookie that breaks a rule of theirs, so each is checked where it is configured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from lbkit.errors import ConfigError

__all__ = ["SHORTEST_KEY", "SameSite", "attributes", "checked_path", "signing_keys", "values"]

SHORTEST_KEY = 16

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
RESERVED = re.compile(r"AWSALB", re.IGNORECASE)
PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,=:@%/-]*", re.ASCII)
DOMAIN = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*", re.ASCII | re.IGNORECASE)

SameSite: TypeAlias = Literal["Lax", "Strict", "None"]


def attributes(
    name: str, *, max_age: int | None, secure: bool, same_site: SameSite, path: str, domain: str | None
) -> str:
    """What follows the value in Set-Cookie. Raises ConfigError for what a browser would not take."""
    _refuse_nonsense(name, max_age, secure, same_site, domain)
    checked_path(path, "path")
    if name.startswith("__Host-") and (path != "/" or domain is not None):
        raise ConfigError(f"need path='/' and no domain for the cookie {name}")
    parts = [f"; Path={path}"]
    if domain is not None:
        parts.append(f"; Domain={domain}")
    if max_age is not None:
        parts.append(f"; Max-Age={max_age}")
    if secure:
        parts.append("; Secure")
    return "".join([*parts, "; HttpOnly", f"; SameSite={same_site}"])


def values(name: str) -> Callable[[str], list[str]]:
    """A function that finds the values of this cookie in a Cookie header, in their order."""
    return re.compile(rf"(?:^|;)[ \t]*{re.escape(name)}=([^;]*)").findall


def signing_keys(keys: Iterable[str | bytes]) -> list[str | bytes]:
    """The keys, if they are some. No message repeats a key."""
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise ConfigError(f"need secret_keys as a list, the newest first, got one {type(keys).__name__}")
    given = list(keys)
    if not given:
        raise ConfigError("need at least one secret key, got none")
    for number, key in enumerate(given):
        if not isinstance(key, (str, bytes)):
            raise ConfigError(f"need secret keys as text or bytes, got {type(key).__name__} at {number}")
        if (length := len(key.encode() if isinstance(key, str) else key)) < SHORTEST_KEY:
            raise ConfigError(f"need secret keys of {SHORTEST_KEY} bytes or more, got {length} at {number}")
    return given


def checked_path(text: str, name: str) -> str:
    if not (isinstance(text, str) and PATH.fullmatch(text)):
        raise ConfigError(f"need {name} as a path that begins with '/', got {text!r}")
    return text


def _refuse_nonsense(
    name: str, max_age: int | None, secure: bool, same_site: str, domain: str | None
) -> None:
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        rule = "1 to 64 letters, digits, '_' or '-'"
        raise ConfigError(f"need a cookie name of {rule}, got {name!r}")
    if RESERVED.match(name):
        raise ConfigError(f"need a cookie name that AWS does not reserve, got {name!r}")
    if max_age is not None and not (type(max_age) is int and max_age >= 1):
        raise ConfigError(f"need max_age as whole seconds >= 1 or None, got max_age={max_age!r}")
    if same_site not in ("Lax", "Strict", "None"):
        raise ConfigError(f"need same_site 'Lax', 'Strict' or 'None', got {same_site!r}")
    if same_site == "None" and not secure:
        raise ConfigError("need secure=True with same_site='None': browsers refuse such a cookie otherwise")
    if domain is not None and not (isinstance(domain, str) and DOMAIN.fullmatch(domain)):
        raise ConfigError(f"need domain as a host name without a port, got {domain!r}")
    if name.startswith(("__Host-", "__Secure-")) and not secure:
        raise ConfigError(f"need secure=True for the cookie {name}")
