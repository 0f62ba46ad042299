"""JSON as bytes, by the fastest library that is installed: orjson, msgspec, else the standard library's.

They are given exact Unicode text, 64-bit integers, finite floats, True, False, None, lists and objects, and
write the same bytes for all of them but some floats; each reads what any other wrote.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

__all__ = ["Library", "installed"]


class Library(NamedTuple):
    name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]
    """Raises ValueError or RecursionError, and nothing else, for what is no JSON."""


def installed() -> list[Library]:
    """The libraries that there are, the fastest in front."""
    return [library for make in (_orjson, _msgspec, _standard) if (library := make())]


def _orjson() -> Library | None:
    try:
        orjson = importlib.import_module("orjson")
    except ModuleNotFoundError:
        return None
    return Library("orjson", orjson.dumps, orjson.loads)


def _msgspec() -> Library | None:
    try:
        msgspec = importlib.import_module("msgspec")
    except ModuleNotFoundError:
        return None
    decoder = msgspec.json.Decoder()

    def loads(data: bytes) -> Any:
        try:
            return decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error

    return Library("msgspec", msgspec.json.Encoder().encode, loads)


def _standard() -> Library:
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)
    decoder = json.JSONDecoder(parse_constant=_refuse)
    return Library(
        "json", lambda value: encoder.encode(value).encode(), lambda data: decoder.decode(data.decode())
    )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
