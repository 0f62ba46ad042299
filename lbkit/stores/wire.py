"""What our own connections to a single Redis server need: whether there can be one, and how it begins.

Both kinds, `Pipe` and `Direct`, parse with hiredis and pack with it. Where that is missing, and for TLS,
Sentinel, clusters and options of redis-py, there is redis-py.
"""

from __future__ import annotations

import importlib
import select
import socket
from typing import Any

from lbkit.stores.dialogue import Command, WrongType
from lbkit.stores.location import Location

__all__ = ["PROTOCOL_3", "failure", "fits", "greeting", "hiredis", "keep_alive"]

PROTOCOL_3: Command = ("HELLO", 3)
"""It answers HGETALL with a map, which spares us making one. A server may refuse it."""

# An idle connection that a firewall has forgotten is found dead before somebody waits for it.
KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def hiredis() -> Any:
    return importlib.import_module("hiredis")


def fits(place: Location) -> bool:
    """Can a connection of ours lead there?"""
    if place.kind not in ("server", "socket") or place.tls or place.options:
        return False
    try:
        return hasattr(hiredis(), "pack_command") and hasattr(select, "poll")
    except ModuleNotFoundError:
        return False


def greeting(place: Location) -> list[Command]:
    """What is said first, each word of which must be accepted."""
    commands: list[Command] = []
    if place.password is not None:
        user = () if place.username is None else (place.username,)
        commands.append(("AUTH", *user, place.password))
    if place.db:
        commands.append(("SELECT", place.db))
    return commands


def keep_alive(connected: socket.socket) -> None:
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def failure(replies: list[Any]) -> Exception | None:
    """What to raise for the replies to several commands: a WrongType stays where it is."""
    for reply in replies:
        if isinstance(reply, Exception) and not isinstance(reply, WrongType):
            return reply
    return None
