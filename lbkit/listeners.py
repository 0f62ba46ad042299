"""The listening sockets of this process: nothing new gets in, and what waits inside is still served.

A server that stops accepting but keeps its socket open lets the kernel complete handshakes into a queue that
nobody reads, and resets them at the end. A filter that drops every packet which arrives for the socket keeps
the queue from growing; connections that exist are not touched. A client's SYN is sent again after a second,
and by then the socket is closed and says so. Linux only, and no privilege is needed.

See packet(7) and filter.txt of the kernel: SO_ATTACH_FILTER acts on the socket, so on all processes that
share it.
"""

from __future__ import annotations

import array
import os
import socket
import stat
import struct
from pathlib import Path

__all__ = ["Listeners"]

SO_ATTACH_FILTER = 26
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # one instruction: return 0 bytes of the packet
TCP_INFO_SIZE = 104
UNACKED_AT = 24
"""Of a socket that listens, `tcpi_unacked` is how many connections wait to be accepted."""


class Listeners:
    """Copies of the TCP sockets that listen in this process. Close it; the server's own are left alone."""

    def __init__(self) -> None:
        self._sockets = _listening()

    def shut(self) -> None:
        """Let nothing new in. Raises OSError where the kernel has no such filter, or nothing listens here."""
        if not self._sockets:
            raise OSError("no socket listens in this process")
        program = array.array("B", DROP_ALL)
        for each in self._sockets:
            each.setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, program.buffer_info()[0])
            )

    @property
    def waiting(self) -> int:
        """How many connections nobody has accepted yet."""
        return sum(map(_unaccepted, self._sockets))

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()


def _listening() -> list[socket.socket]:
    fds = Path("/proc/self/fd")
    found: dict[int, socket.socket] = {}
    for name in os.listdir(fds) if fds.is_dir() else []:
        try:
            there = os.fstat(int(name))
            # By inode: a number that was listed may be one of our own copies by now.
            if not stat.S_ISSOCK(there.st_mode) or there.st_ino in found:
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # it was closed meanwhile
            continue
        if _listens(copy):
            found[there.st_ino] = copy
        else:
            copy.close()
    return list(found.values())


def _listens(candidate: socket.socket) -> bool:
    if candidate.family not in (socket.AF_INET, socket.AF_INET6) or candidate.type != socket.SOCK_STREAM:
        return False
    return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _unaccepted(listener: socket.socket) -> int:
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    except OSError:  # its server has closed it: nobody waits
        return 0
    return int.from_bytes(info[UNACKED_AT : UNACKED_AT + 4], "little")
