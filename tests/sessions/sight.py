"""What a test of sessions sees of Redis, and the time that it shows to the sessions."""

from __future__ import annotations

import time

from tests.redis_servers import Server

COMMANDS = ("hgetall", "evalsha", "eval", "del", "unlink", "zadd")


class Wall:
    """Unix time, as a test wants it. It begins as Redis' own, by which an index expires."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def __call__(self) -> float:
        return self.now


class Commands:
    """How often Redis was asked, from one look to the next."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.before = self._now()

    def _now(self) -> dict[str, int]:
        with self.server.client() as client:
            stats = client.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in COMMANDS}

    def since(self) -> dict[str, int]:
        before, self.before = self.before, self._now()
        return {name: n for name in COMMANDS if (n := self.before[name] - before[name])}


def keys(server: Server) -> set[str]:
    with server.client() as client:
        return {key.decode() for key in client.keys("*")}
