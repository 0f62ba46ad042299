"""Where sessions are kept: in the memory of one process, or in Redis for all replicas."""

from __future__ import annotations

from typing import Any, cast

from lbkit.errors import ConfigError
from lbkit.sessions.store import AsyncStore, SyncStore
from lbkit.stores import location
from lbkit.stores.memory import AsyncMemoryStore, MemoryStore

__all__ = ["AsyncMemoryStore", "MemoryStore", "astore_from", "store_from"]


def store_from(where: Any, *, prefix: str = "lbkit:", timeout: float = 0.25) -> SyncStore:
    """The store at a URL (`lbkit.stores.location` lists them), of a Redis client, or the store that is given.

    Nothing connects before the first use. `timeout` bounds the connecting and each answer, in seconds.
    """
    if callable(getattr(where, "commit", None)):
        return cast(SyncStore, where)
    if isinstance(where, str) and (place := location.parse(where)).kind == "memory":
        return _memory(place)
    from lbkit.stores.redis import RedisStore

    return RedisStore(where, prefix=prefix, timeout=timeout)


def astore_from(where: Any, *, prefix: str = "lbkit:", timeout: float = 0.25) -> AsyncStore:
    """The same store, awaited: for ASGI."""
    if isinstance(where, MemoryStore):
        return AsyncMemoryStore(where)
    if callable(getattr(where, "commit", None)):
        return cast(AsyncStore, where)
    if isinstance(where, str) and (place := location.parse(where)).kind == "memory":
        return AsyncMemoryStore(_memory(place))
    from lbkit.stores.redis import AsyncRedisStore

    return AsyncRedisStore(where, prefix=prefix, timeout=timeout)


def _memory(place: location.Location) -> MemoryStore:
    options = dict(place.options)
    most = options.pop("max_sessions", "100000")
    if options or not most.isdecimal():
        raise ConfigError(f"memory:// takes ?max_sessions=N alone, got {place.url!r}")
    return MemoryStore(max_sessions=int(most))
