"""Which apps are the replicas, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from lbkit.balancer.replica import Replica
from lbkit.errors import ConfigError, StartupError

__all__ = ["make", "named"]

T = TypeVar("T")


def named(apps: Mapping[str, T] | Iterable[T]) -> dict[str, T]:
    """The apps under their names: the mapping's own, or web1, web2, ... for a plain sequence."""
    if isinstance(apps, Mapping):
        return dict(apps)
    try:
        return {name_of(number): app for number, app in enumerate(apps, start=1)}
    except TypeError as error:
        raise ConfigError(f"need a sequence of apps, such as [app] * 3, got {apps!r}") from error


def make(factory: Callable[[], T], *, replicas: int) -> dict[str, T]:
    """Call the factory once for each replica. Raises StartupError with the name of the one it failed for."""
    if replicas < 1:
        raise ConfigError(f"need replicas >= 1, got replicas={replicas}")
    return {name: _made(factory, name) for name in map(name_of, range(1, replicas + 1))}


def name_of(number: int) -> str:
    return Replica(f"web{number}").name


def _made(factory: Callable[[], T], name: str) -> T:
    try:
        return factory()
    except Exception as error:
        raise StartupError(name, f"{type(error).__name__}: {error}") from error
