"""What may be said: the rules for rooms, names, texts and ids that come from outside."""

from __future__ import annotations

import re
from unicodedata import category

__all__ = ["Refused", "read_id", "read_name", "read_room", "read_text"]

ROOM = re.compile(r"[a-z0-9-]{1,32}")
LONGEST_NAME = 32
LONGEST_TEXT = 2000


class Refused(ValueError):
    """The words of somebody outside break a rule. The message names the rule, for them."""


def read_room(value: str) -> str:
    if not ROOM.fullmatch(value):
        raise Refused(f"need a room of 1 to 32 letters a-z, digits and dashes, got {value[:40]!r}")
    return value


def read_name(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(name := value.strip()) <= LONGEST_NAME or hidden(name):
        raise Refused(f"need a name of 1 to {LONGEST_NAME} visible characters, got {str(value)[:40]!r}")
    return name


def read_text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused(f"need a text message, got {type(value).__name__}")
    text = value.strip()
    if not 1 <= len(text) <= LONGEST_TEXT:
        raise Refused(f"need a text of 1 to {LONGEST_TEXT} characters, got {len(text)}")
    if hidden(text.replace("\n", "")):
        raise Refused("need a text without control characters")
    return text


def hidden(text: str) -> bool:
    # Control characters and lone surrogates. Not `isprintable`: it refuses the joiner inside an emoji.
    return any(category(character) in ("Cc", "Cs") for character in text)


def read_id(value: str | None) -> int | None:
    """The id of an event that we gave out; anything else is as good as none, and begins anew."""
    # 18 digits fit into SQLite's 64 bits.
    if value is None or not (value.isascii() and value.isdecimal() and len(value) <= 18):
        return None
    return int(value)
