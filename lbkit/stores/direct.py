"""Blocking connections to one Redis server: each is one thread's while it asks, and lies idle in between.

A connection on which anything went wrong, in time or in the protocol, is closed: the next reply on it could
be the answer to another question.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from lbkit.errors import StoreUnavailable
from lbkit.stores.dialogue import Broken, Call, Command, refused, run, scanned
from lbkit.stores.location import Location
from lbkit.stores.wire import PROTOCOL_3, failure, greeting, hiredis, keep_alive

__all__ = ["Direct"]

CHUNK = 65536


class Direct:
    """Carries calls over its own connections. `timeout` bounds the connecting and each answer, in seconds."""

    def __init__(self, place: Location, *, timeout: float) -> None:
        self.name = str(place)
        self._place = place
        self._timeout = timeout
        self._idle: deque[Connection] = deque()
        self._process = os.getpid()

    def ask(self, call: Call) -> Any:
        connection = self._free() or self._opened()
        try:
            reply = connection.ask(call.commands)
        except BaseException:  # also whatever stops a worker in the middle
            connection.close()
            raise
        self._idle.append(connection)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def scan(self, pattern: str, limit: int) -> list[bytes]:
        return run(scanned(pattern, limit), self.ask)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _free(self) -> Connection | None:
        """An idle connection that still stands, the one that was used last in front."""
        if self._process != os.getpid():  # forked: the connections are the parent's
            self._process = os.getpid()
            self.close()
        try:
            while (connection := self._idle.pop()).fallen:
                connection.close()
        except IndexError:
            return None
        return connection

    def _opened(self) -> Connection:
        connection = Connection(self._place, self.name, self._timeout)
        try:
            for command in greeting(self._place):
                if isinstance(refusal := connection.ask((command,)), Exception):
                    raise refusal
            connection.ask((PROTOCOL_3,))
        except BaseException:
            connection.close()
            raise
        return connection


class Connection:
    def __init__(self, place: Location, name: str, timeout: float) -> None:
        library = hiredis()
        self._name = name
        self._timeout = timeout
        self._pack = library.pack_command
        self._reader = library.Reader()
        self._error: type[Exception] = library.ReplyError
        self._protocol_error: type[Exception] = library.ProtocolError
        try:
            self._socket = _connected(place, timeout)
        except OSError as error:
            raise self._failed(error) from error
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    @property
    def fallen(self) -> bool:
        """Between two questions there is nothing to be read but the end."""
        return bool(self._poll.poll(0))

    def ask(self, commands: Sequence[Command]) -> Any:
        """The reply, or the error that the server replied with. Raises when the connection is of no use."""
        try:
            if len(commands) == 1:
                self._socket.sendall(self._pack(commands[0]))
                return self._reply()
            self._socket.sendall(b"".join(map(self._pack, commands)))
            replies = [self._reply() for _ in commands]
        except OSError as error:
            raise self._failed(error) from error
        except self._protocol_error as error:
            raise StoreUnavailable(f"{self._name}: {error}") from error
        return failure(replies) or replies

    def close(self) -> None:
        self._socket.close()

    def __del__(self) -> None:
        """A WSGI app has no end at which it would close its store."""
        if (connected := getattr(self, "_socket", None)) is not None:
            connected.close()

    def _reply(self) -> Any:
        reply, deadline = self._reader.gets(), None
        while reply is False:
            if not (data := self._socket.recv(CHUNK)):
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(data)
            reply = self._reader.gets()
            # Each piece of a large reply comes in time; all of them together must, too.
            if reply is False:
                now = time.monotonic()
                deadline = deadline or now + self._timeout
                if now > deadline:
                    raise TimeoutError
        return refused(str(reply), self._name) if isinstance(reply, self._error) else reply

    def _failed(self, error: OSError) -> StoreUnavailable:
        if isinstance(error, TimeoutError):
            return StoreUnavailable(f"{self._name}: no answer within {self._timeout:g} s")
        return Broken(f"{self._name}: {error}")


def _connected(place: Location, timeout: float) -> socket.socket:
    if place.kind == "socket":
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(timeout)
        try:
            connected.connect(place.path)
        except BaseException:
            connected.close()
            raise
        return connected
    connected = socket.create_connection(place.hosts[0], timeout)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(connected)
    return connected
