"""Checks ready to use: each function makes one, to be given to what `lbkit.check` returns:

    lbkit.check("database")(checks.sqlalchemy(engine))
    lbkit.check("cache", critical=False)(checks.redis("redis://cache:6379/0"))

A library is imported when a check is made that needs it; MissingExtra names the extra if it is not there.
Nothing connects before the first run. `timeout` is in seconds; give the check itself one that is longer.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, TypeAlias

import psutil

from lbkit.errors import ConfigError, MissingExtra
from lbkit.health.outcome import Outcome

__all__ = ["disk", "dns", "event_loop", "http", "redis", "sqlalchemy", "tcp", "worker_threads"]

Blocking: TypeAlias = Callable[[], Outcome]
Awaiting: TypeAlias = Callable[[], Coroutine[Any, Any, Outcome]]

FINE = frozenset(range(200, 400))


def redis(url: str, *, timeout: float = 0.5) -> Blocking:
    """A Redis server that answers PING. `url` is redis://, rediss:// or unix://."""
    library = _library("redis", extra="redis")
    _positive("timeout", timeout)
    try:
        client = library.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    except ValueError:
        # Without its value: there may be a password in it.
        raise ConfigError("need a Redis URL such as redis://cache:6379/0") from None

    def ping() -> Outcome:
        client.ping()
        return Outcome.healthy()

    return ping


def sqlalchemy(engine: Any) -> Blocking | Awaiting:
    """A database that answers a query. `engine` is an Engine or an AsyncEngine; its own pool is used."""
    library = _library("sqlalchemy", extra="checks")
    select = library.select(1)
    if isinstance(engine, library.Engine):

        def query() -> Outcome:
            with engine.connect() as connection:
                connection.execute(select)
            return Outcome.healthy()

        return query
    if not isinstance(engine, _library("sqlalchemy.ext.asyncio", extra="checks").AsyncEngine):
        raise ConfigError(f"need a SQLAlchemy Engine or AsyncEngine, got {type(engine).__name__}")

    async def query_async() -> Outcome:
        async with engine.connect() as connection:
            await connection.execute(select)
        return Outcome.healthy()

    return query_async


def http(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    expect: Collection[int] = FINE,
    timeout: float = 0.8,
) -> Blocking:
    """An HTTP server that answers with one of the `expect`ed status codes. Redirects are not followed."""
    library = _library("httpx", extra="checks")
    _positive("timeout", timeout)
    if not url.startswith(("http://", "https://")):
        raise ConfigError("need a URL that begins with http:// or https://")
    client = library.Client(timeout=timeout, headers=headers, follow_redirects=False)

    def ask() -> Outcome:
        status: int = client.request(method, url).status_code
        return Outcome.healthy() if status in expect else Outcome.unhealthy(f"answered {status}")

    return ask


def tcp(host: str, port: int, *, timeout: float = 0.5) -> Blocking:
    """A server that accepts a connection."""
    _positive("timeout", timeout)
    if not 0 < port < 65536:
        raise ConfigError(f"need 0 < port < 65536, got port={port}")

    def connect() -> Outcome:
        with socket.create_connection((host, port), timeout=timeout):
            return Outcome.healthy()

    return connect


def dns(name: str) -> Blocking:
    """A name that resolves. The resolver has no timeout of its own: the check's bounds the answer."""
    if not name:
        raise ConfigError("need a name to look up, got an empty one")

    def resolve() -> Outcome:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return Outcome.healthy(f"{len(found)} addresses")

    return resolve


def disk(path: str, *, max_percent: float = 90.0) -> Blocking:
    """A file system that is less full than `max_percent`, as `df` counts it."""
    if not 0 < max_percent <= 100:
        raise ConfigError(f"need 0 < max_percent <= 100, got max_percent={max_percent}")

    def measure() -> Outcome:
        used: float = psutil.disk_usage(path).percent
        text = f"{used:.1f} % used"
        return Outcome.healthy(text) if used < max_percent else Outcome.unhealthy(text)

    return measure


def event_loop(*, max_lag: float = 0.1) -> Awaiting:
    """The app's event loop, degraded while it comes to a waiting task more than `max_lag` seconds late."""
    _positive("max_lag", max_lag)
    nap = 0.01

    async def measure() -> Outcome:
        lag = 0.0
        for _ in range(5):
            before = time.perf_counter()
            await asyncio.sleep(nap)
            lag = max(lag, time.perf_counter() - before - nap)
        text = f"{lag * 1000:.0f} ms late"
        return Outcome.healthy(text) if lag <= max_lag else Outcome.degraded(text)

    return measure


def worker_threads(*, max_share: float = 1.0) -> Awaiting:
    """The threads that Starlette and FastAPI run plain functions on, degraded while `max_share` are busy.

    An `async` health endpoint is green while this pool is dead: every `def` endpoint waits for it.
    """
    if not 0 < max_share <= 1:
        raise ConfigError(f"need 0 < max_share <= 1, got max_share={max_share}")
    to_thread = _library("anyio.to_thread", extra="starlette")

    async def count() -> Outcome:
        limiter = to_thread.current_default_thread_limiter()
        text = f"{limiter.borrowed_tokens} of {limiter.total_tokens:g} threads busy"
        busy = limiter.borrowed_tokens >= max_share * limiter.total_tokens
        return Outcome.degraded(text) if busy else Outcome.healthy(text)

    return count


def _library(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingExtra(name.partition(".")[0], extra=extra) from None


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"need {name} > 0 seconds, got {name}={value}")
