"""NAME=VALUE on the command line, for options that are given once for each replica."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from lbkit.errors import ConfigError

__all__ = ["known", "pairs", "whole"]


def pairs(texts: Sequence[str], option: str, names: Collection[str]) -> dict[str, str]:
    """The values by name. Raises ConfigError for a text of another shape, and for a name that is none."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ConfigError(f"need {option} NAME=VALUE, such as {option} web1=3, got {text!r}")
        found[name] = value
    known(found, names)
    return found


def known(given: Iterable[str], names: Collection[str]) -> None:
    for name in given:
        if name not in names:
            raise ConfigError(f"need the name of a replica ({', '.join(names)}), got {name!r}")


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"need a whole number for a weight, got {text!r}") from error
