"""The accept-queue filter, on real sockets: nothing new gets in, and what waits is still served."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from lbkit.listeners import Listeners

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield listening


@pytest.fixture
def listeners(server: socket.socket) -> Iterator[Listeners]:  # noqa: ARG001
    found = Listeners()
    yield found
    found.close()


def test_what_waits_to_be_accepted_is_counted(server: socket.socket, listeners: Listeners) -> None:
    assert listeners.waiting == 0
    with socket.create_connection(server.getsockname()), socket.create_connection(server.getsockname()):
        assert listeners.waiting == 2
        server.accept()[0].close()
        assert listeners.waiting == 1


def test_nothing_new_gets_in_and_what_is_in_goes_on(server: socket.socket, listeners: Listeners) -> None:
    with socket.create_connection(server.getsockname()) as early, socket.socket() as late:
        listeners.shut()
        late.setblocking(False)
        late.connect_ex(server.getsockname())
        with server.accept()[0] as accepted:
            early.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
        # On the loopback a handshake is over when connect returns; this one has not even begun.
        assert listeners.waiting == 0
        with pytest.raises(OSError, match="not connected"):
            late.getpeername()


def test_our_copies_do_not_keep_the_socket_open(server: socket.socket, listeners: Listeners) -> None:
    address = server.getsockname()
    listeners.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_process_without_a_listening_socket_is_told_so() -> None:
    empty = Listeners()
    empty.close()
    with pytest.raises(OSError, match="no socket listens in this process"):
        empty.shut()
