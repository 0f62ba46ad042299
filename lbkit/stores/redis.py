"""Sessions in Redis: on one server, where Sentinel says, in a cluster, or through a client of the app's.

A single server is asked over connections of our own where that can be (`wire.fits`), all else through
redis-py. Nothing is inherited from its defaults, by which a hung server holds a request for 5 to 59 seconds:
`timeout` bounds the connecting and each answer, in seconds, and a command is sent a second time only if the
connection broke and nothing can come of it. A client that the app brings keeps its own timeouts and retries.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from itertools import islice
from threading import Lock
from typing import Any, TypeAlias
from urllib.parse import urlencode

from lbkit.errors import ConfigError, MissingExtra, StoreUnavailable
from lbkit.sessions.store import Committed, Delta, Entry, Fields
from lbkit.stores import location
from lbkit.stores.carriers import Carriers
from lbkit.stores.dialogue import Broken, Call, Dialogue, NoScript, WrongType, arun, refused, run
from lbkit.stores.direct import Direct
from lbkit.stores.location import Location
from lbkit.stores.pipe import Pipe
from lbkit.stores.wire import fits

try:
    import redis
    import redis.asyncio
    import redis.asyncio.cluster
    import redis.asyncio.retry
    import redis.asyncio.sentinel
    import redis.backoff
    import redis.cluster
    import redis.connection
    import redis.retry
    import redis.sentinel
except ModuleNotFoundError as error:
    raise MissingExtra("redis", extra="redis") from error

__all__ = ["AsyncRedisStore", "RedisStore"]

CONNECTIONS = 1000
"""More than there are threads, or requests at once: something else bounds them."""

redis_py: Any = redis  # only some of it is annotated

SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}

# By name: a client may come from redis-py, from a fork of it, and in any of their versions.
FAILURES = {"RedisError", "RedisClusterException", "ValkeyError", "ValkeyClusterException"}
BROKEN = {"ConnectionError", "ConnectionResetError", "ConnectionAbortedError", "BrokenPipeError"}


Client: TypeAlias = "tuple[Any, Sequence[Any]]"
"""One of redis-py's clients, and those it asks for the way: they are closed with it."""


class RedisStore:
    """A store that blocks. `where` is a URL, or a client such as `redis.Redis(...)`, which you close."""

    shared = True

    def __init__(self, where: Any, *, prefix: str = "lbkit:", timeout: float = 0.25) -> None:
        self.dialogue = Dialogue(prefix=prefix)
        self._carrier = _blocking(where, timeout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._carrier.name!r}, prefix={self.dialogue.prefix!r})"

    def load(self, key: str) -> Fields | None:
        return run(self.dialogue.load(key), self._carrier.ask)

    def commit(self, key: str, delta: Delta) -> Committed:
        return run(self.dialogue.commit(key, delta), self._carrier.ask)

    def delete(self, *keys: str) -> int:
        return run(self.dialogue.delete(*keys), self._carrier.ask)

    def look(self, keys: Sequence[str], fields: Sequence[bytes]) -> list[Fields | None]:
        return run(self.dialogue.look(keys, fields), self._carrier.ask)

    def index(self, user: str, *, now: float, add: Entry | None = None, remove: Collection[str] = ()) -> None:
        run(self.dialogue.index(user, now=now, add=add, remove=remove), self._carrier.ask)

    def sessions_of(self, *users: str, now: float) -> list[Entry]:
        return run(self.dialogue.sessions_of(*users, now=now), self._carrier.ask)

    def scan(self, *, limit: int) -> list[str]:
        keys: list[str] = []
        for pattern in self.dialogue.sessions:
            keys += map(self.dialogue.key_of, self._carrier.scan(pattern, limit - len(keys)))
        return keys

    def lock(self, key: str, token: str, *, ttl: float) -> bool:
        return run(self.dialogue.lock(key, token, ttl=ttl), self._carrier.ask)

    def unlock(self, key: str, token: str) -> bool:
        return run(self.dialogue.unlock(key, token), self._carrier.ask)

    def ping(self) -> None:
        run(self.dialogue.ping(), self._carrier.ask)

    def close(self) -> None:
        self._carrier.close()


class AsyncRedisStore:
    """The same, awaited. A client such as `redis.asyncio.Redis(...)` belongs to one event loop."""

    shared = True

    def __init__(self, where: Any, *, prefix: str = "lbkit:", timeout: float = 0.25) -> None:
        self.dialogue = Dialogue(prefix=prefix)
        self.name, make, self.detached = _awaiting(where, timeout)
        self._carriers: Carriers[Awaiting | Pipe] = Carriers(make)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, prefix={self.dialogue.prefix!r})"

    async def load(self, key: str) -> Fields | None:
        return await arun(self.dialogue.load(key), self._ask)

    async def commit(self, key: str, delta: Delta) -> Committed:
        return await arun(self.dialogue.commit(key, delta), self._ask)

    async def delete(self, *keys: str) -> int:
        return await arun(self.dialogue.delete(*keys), self._ask)

    async def look(self, keys: Sequence[str], fields: Sequence[bytes]) -> list[Fields | None]:
        return await arun(self.dialogue.look(keys, fields), self._ask)

    async def index(
        self, user: str, *, now: float, add: Entry | None = None, remove: Collection[str] = ()
    ) -> None:
        await arun(self.dialogue.index(user, now=now, add=add, remove=remove), self._ask)

    async def sessions_of(self, *users: str, now: float) -> list[Entry]:
        return await arun(self.dialogue.sessions_of(*users, now=now), self._ask)

    async def scan(self, *, limit: int) -> list[str]:
        carrier = await self._carriers.here()
        keys: list[str] = []
        for pattern in self.dialogue.sessions:
            keys += map(self.dialogue.key_of, await carrier.scan(pattern, limit - len(keys)))
        return keys

    async def lock(self, key: str, token: str, *, ttl: float) -> bool:
        return await arun(self.dialogue.lock(key, token, ttl=ttl), self._ask)

    async def unlock(self, key: str, token: str) -> bool:
        return await arun(self.dialogue.unlock(key, token), self._ask)

    async def ping(self) -> None:
        await arun(self.dialogue.ping(), self._ask)

    async def close(self) -> None:
        await self._carriers.close()

    def _ask(self, call: Call) -> Awaitable[Any]:
        """Not a coroutine, as most of the time there is nothing to wait for before the asking."""
        carrier = self._carriers.known()
        return self._ask_first(call) if carrier is None else carrier.ask(call)

    async def _ask_first(self, call: Call) -> Any:
        return await (await self._carriers.here()).ask(call)


class Blocking:
    """Carries calls by a client of redis-py that blocks."""

    def __init__(self, name: str, make: Callable[[], Client], *, own: bool) -> None:
        self.name = name
        self._make = make
        self._own = own
        self._client: Any = None
        self._sentinels: Sequence[Any] = ()
        self._lock = Lock()
        # A client of the app's may be one that decodes what it reads.
        self._options = {} if own else {"NEVER_DECODE": True}

    def ask(self, call: Call) -> Any:
        try:
            client = self._client or self._connect()
            if len(call.commands) == 1:
                return client.execute_command(*call.commands[0], **self._options)
            with client.pipeline(transaction=False) as pipeline:
                for command in call.commands:
                    pipeline.execute_command(*command, **self._options)
                return [_answer(reply) for reply in pipeline.execute(raise_on_error=False)]
        except Exception as error:
            raise _translated(error, self.name) from error

    def scan(self, pattern: str, limit: int) -> list[bytes]:
        try:
            client = self._client or self._connect()
            return _distinct(islice(client.scan_iter(match=pattern, count=1000), limit))
        except Exception as error:
            raise _translated(error, self.name) from error

    def close(self) -> None:
        client, self._client = self._client, None
        if self._own and client is not None:
            for each in (client, *self._sentinels):
                each.close()

    def _connect(self) -> Any:
        """The client of a cluster connects as it is made: that is part of the first question."""
        with self._lock:
            if self._client is None:
                self._client, self._sentinels = self._make()
            return self._client


class Awaiting:
    """Carries calls by a client of redis-py that is awaited, on one event loop."""

    def __init__(self, name: str, client: Client, *, own: bool) -> None:
        self.name = name
        self._client, self._sentinels = client
        self._own = own
        self._options = {} if own else {"NEVER_DECODE": True}

    async def ask(self, call: Call) -> Any:
        try:
            if len(call.commands) == 1:
                return await self._client.execute_command(*call.commands[0], **self._options)
            async with self._client.pipeline(transaction=False) as pipeline:
                for command in call.commands:
                    pipeline.execute_command(*command, **self._options)
                return [_answer(reply) for reply in await pipeline.execute(raise_on_error=False)]
        except Exception as error:
            raise _translated(error, self.name) from error

    async def scan(self, pattern: str, limit: int) -> list[bytes]:
        names: list[bytes] = []
        try:
            async for name in self._client.scan_iter(match=pattern, count=1000):
                if len(names) >= limit:
                    break
                names.append(name)
        except Exception as error:
            raise _translated(error, self.name) from error
        return _distinct(names)

    async def close(self) -> None:
        if self._own:
            for each in (self._client, *self._sentinels):
                await each.aclose()


def _blocking(where: Any, timeout: float) -> Blocking | Direct:
    if not isinstance(where, str):
        client = _given(where, awaited=False)
        return Blocking(type(where).__name__, lambda: (client, ()), own=False)
    place = _place(where, timeout)
    if fits(place):
        return Direct(place, timeout=timeout)
    retry = redis_py.retry.Retry(redis_py.backoff.NoBackoff(), 0)
    options = {"max_connections": CONNECTIONS, **_options(place, timeout), "retry": retry}

    def make() -> Client:
        if place.kind == "cluster":
            nodes = [redis_py.cluster.ClusterNode(*host) for host in place.hosts]
            return redis_py.cluster.RedisCluster(
                startup_nodes=nodes, require_full_coverage=False, **options
            ), ()
        if place.kind == "sentinel":
            sentinel = redis_py.sentinel.Sentinel(
                place.hosts, sentinel_kwargs=_of_sentinels(place, options), **options
            )
            return sentinel.master_for(place.service), sentinel.sentinels
        return redis_py.Redis.from_url(place.url, **options), ()

    return Blocking(str(place), make, own=True)


def _awaiting(where: Any, timeout: float) -> tuple[str, Callable[[], Awaiting | Pipe], bool]:
    """Its name, how to make the carrier, and whether that one does what it was asked by who has left."""
    if not isinstance(where, str):
        client = _given(where, awaited=True)
        return type(where).__name__, lambda: Awaiting(type(where).__name__, (client, ()), own=False), False
    place = _place(where, timeout)
    if fits(place):
        return str(place), lambda: Pipe(place, timeout=timeout), True
    retry = redis_py.asyncio.retry.Retry(redis_py.backoff.NoBackoff(), 0)
    options = {"max_connections": CONNECTIONS, **_options(place, timeout), "retry": retry}

    def make() -> Client:
        if place.kind == "cluster":
            nodes = [redis_py.asyncio.cluster.ClusterNode(*host) for host in place.hosts]
            return redis_py.asyncio.cluster.RedisCluster(
                startup_nodes=nodes, require_full_coverage=False, **options
            ), ()
        if place.kind == "sentinel":
            sentinel = redis_py.asyncio.sentinel.Sentinel(
                place.hosts, sentinel_kwargs=_of_sentinels(place, options), **options
            )
            return sentinel.master_for(place.service), sentinel.sentinels
        return redis_py.asyncio.Redis.from_url(place.url, **options), ()

    return str(place), lambda: Awaiting(str(place), make(), own=True), False


def _place(url: str, timeout: float) -> Location:
    if not timeout > 0:
        raise ConfigError(f"need timeout > 0 seconds, got timeout={timeout}")
    place = location.parse(url)
    if place.kind == "memory":
        raise ConfigError("need a Redis URL, got memory://")
    return place


def _options(place: Location, timeout: float) -> dict[str, Any]:
    """What the client is told. The URL's own options win, and are checked now, not at the first request."""
    try:
        given: dict[str, Any] = redis_py.connection.parse_url(f"redis://localhost?{urlencode(place.options)}")
        for name in ("host", "port", "db", *SENTINELS):
            given.pop(name, None)
        redis_py.connection.Connection(**{name: given[name] for name in given if not name.startswith("ssl")})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sessions {str(place)!r}: {error}") from None
    usual = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 30,
        "protocol": 3,
    }
    if place.kind not in ("sentinel", "cluster"):
        return usual | given
    known: dict[str, Any] = {"username": place.username, "password": place.password, "ssl": place.tls or None}
    if place.kind == "sentinel":
        known["db"] = place.db
    return usual | {name: value for name, value in known.items() if value is not None} | given


def _of_sentinels(place: Location, options: dict[str, Any]) -> dict[str, Any]:
    """What the clients of the sentinels are told: a user and a password of their own, the rest alike."""
    alike = {name: value for name, value in options.items() if name not in ("username", "password", "db")}
    return alike | {SENTINELS[name]: place.options[name] for name in SENTINELS if name in place.options}


def _given(client: Any, *, awaited: bool) -> Any:
    """The app's own client, if it is one of the kind that is needed. By what it can do: there are forks."""
    execute = getattr(client, "execute_command", None)
    if not callable(execute) or not callable(getattr(client, "pipeline", None)):
        raise ConfigError(f"need sessions as a URL, a store or a Redis client, got {type(client).__name__}")
    if inspect.iscoroutinefunction(execute) is not awaited:
        need = "redis.asyncio.Redis(...)" if awaited else "redis.Redis(...)"
        raise ConfigError(
            f"need a client like {need} here, got {type(client).__module__}.{type(client).__name__}"
        )
    return client


def _answer(reply: Any) -> Any:
    """One reply out of a pipeline."""
    if not isinstance(reply, Exception):
        return reply
    if isinstance(told := _translated(reply, ""), WrongType):
        return told
    raise reply


def _translated(error: Exception, name: str) -> Exception:
    """What a flow understands. An error that is not about Redis stays as it is: it is a mistake of ours."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    told = f"{name}: {type(error).__name__}: {error}"
    if type(error).__name__ in BROKEN:
        return Broken(told)
    if "NoScriptError" in kinds:
        return NoScript(str(error))
    if "ResponseError" in kinds:
        return refused(str(error), name)
    if kinds & FAILURES or isinstance(error, (OSError, asyncio.TimeoutError)):
        return StoreUnavailable(told)
    return error


def _distinct(names: Iterable[bytes]) -> list[bytes]:
    """SCAN may name a key twice."""
    return list(dict.fromkeys(names))
