"""A replica that is cut off from a service: its connections there break, and new ones are refused.

The others go on. Python's audit events tell who connects where, whatever library does it; uvloop raises
none. An audit hook cannot be taken out again: it is put in with the first cluster that may need it, and does
nothing when no cluster is up.
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from lbkit.errors import ConfigError
from lbkit.testkit.spaces import Space, current

__all__ = ["NETWORK", "Partition", "Place"]

PORTS = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432, "mysql": 3306, "amqp": 5672}


@dataclass(frozen=True, slots=True)
class Place:
    """A service, as far as addresses tell: hosts (each name and number of it) and a port, or a path."""

    text: str
    hosts: frozenset[str] = frozenset()
    port: int | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """`redis://127.0.0.1:6379/0`, `db.internal:5432`, `redis`, or `/run/redis.sock`."""
        if text.startswith(("/", "unix:")):
            return cls(text, path=text.removeprefix("unix:").removeprefix("//"))
        url = urlsplit(text if "://" in text else f"//{text}")
        try:
            port = url.port or PORTS.get(url.scheme)
        except ValueError as error:
            raise ConfigError(f"need a port from 0 to 65535 in {text!r}") from error
        if not url.hostname:
            raise ConfigError(f"need a host, such as redis, redis:6379 or a URL, got {text!r}")
        return cls(text, frozenset({url.hostname, *_numbers(url.hostname)}), port)

    def __contains__(self, address: object) -> bool:
        if isinstance(address, (str, bytes)):
            return self.path is not None and address in (self.path, self.path.encode())
        if not (isinstance(address, tuple) and len(address) >= 2):
            return False
        return address[0] in self.hosts and self.port in (None, address[1])


def _numbers(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()


class Partition:
    """One replica without one service. Ends with `stop()`, or with the block as a context manager."""

    def __init__(self, space: Space, place: Place) -> None:
        self.space = space
        self.place = place
        NETWORK.cut(self)

    def stop(self) -> None:
        NETWORK.mend(self)

    def __enter__(self) -> Partition:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


class Network:
    """Which replica has which connections, and who is cut off from what."""

    def __init__(self) -> None:
        self._hooked = False
        self._watched = 0
        self._connections: WeakKeyDictionary[Any, tuple[Space, object]] = WeakKeyDictionary()
        self._partitions: list[Partition] = []

    def watch(self) -> None:
        if not self._hooked:
            sys.addaudithook(self._heard)
            self._hooked = True
        self._watched += 1

    def unwatch(self) -> None:
        self._watched -= 1
        if not self._watched:
            self._connections.clear()
            self._partitions.clear()

    def cut(self, partition: Partition) -> None:
        self._partitions.append(partition)
        for connection, (space, address) in list(self._connections.items()):
            if space is partition.space and address in partition.place:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def mend(self, partition: Partition) -> None:
        if partition in self._partitions:
            self._partitions.remove(partition)

    def heal(self, space: Space) -> None:
        """Give this replica all of its services back."""
        self._partitions = [each for each in self._partitions if each.space is not space]

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not self._watched or (space := current()) is None:
            return
        connection, address = args
        for each in self._partitions:
            if each.space is space and address in each.place:
                raise ConnectionRefusedError(
                    errno.ECONNREFUSED, f"{space.name} is cut off from {each.place.text}"
                )
        self._connections[connection] = (space, address)


NETWORK = Network()
