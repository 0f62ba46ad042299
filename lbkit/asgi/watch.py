"""Active checks of the ASGI balancer: a task for each replica, which asks its own health endpoint."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lbkit.balancer.check import CheckRules
from lbkit.balancer.checked import LOOK, Checked, Reply
from lbkit.balancer.operated import Served
from lbkit.balancer.replica import Mode, ReplicaState
from lbkit.types import Message, Scope

if TYPE_CHECKING:
    from lbkit.asgi.replica import ASGIMember

__all__ = ["Watch"]

LONGEST = 8 * 1024
"""Bytes of an answer that are looked at."""

HEADERS = [
    (b"host", b"localhost"),
    (b"user-agent", b"lbkit-check"),
    (b"accept", b"application/json, text/plain"),
]


class Watch:
    """Asks each replica while it runs, and tells the balancer. Who is in maintenance is left alone."""

    def __init__(self, balancer: Served[ASGIMember], check: CheckRules) -> None:
        self.balancer = balancer
        self.check = check

    async def run(self) -> None:
        await asyncio.gather(*map(self._watch, self.balancer.replicas.values()))

    async def _watch(self, member: ASGIMember) -> None:
        state, checked = member.state, Checked(self.check)
        self.balancer.judge(member.name, up=checked.up)
        while True:
            if state.life != checked.life:
                checked = Checked(self.check, life=state.life)
            reply = await self._ask(member) if state.mode is not Mode.MAINT else None
            if state.mode is not Mode.MAINT and state.life == checked.life:
                checked.heard(reply)
                self.balancer.judge(member.name, up=checked.up, share=checked.share)
            await self._pause(checked, state)

    async def _pause(self, checked: Checked, state: ReplicaState) -> None:
        """Until the next check, which is at once for a replica that comes back."""
        left = checked.next_after
        while left > 0 and state.life == checked.life:
            await asyncio.sleep(min(left, LOOK))
            left -= LOOK

    async def _ask(self, member: ASGIMember) -> Reply | None:
        answer = Answer()
        scope = self._scope(member.lifespan.state)
        asking = asyncio.ensure_future(self._call(member, scope, answer))
        try:
            # Not wait_for: until Python 3.12 it swallows a cancellation that comes with the answer.
            await asyncio.wait({asking}, timeout=self.check.timeout)
        finally:
            asking.cancel()
        return answer.reply()

    async def _call(self, member: ASGIMember, scope: Scope, answer: Answer) -> None:
        try:
            await member.app(scope, answer.receive, answer.send)
        except Exception:
            answer.failed = True  # whatever it was: that is what a check is for

    def _scope(self, state: dict[str, Any]) -> Scope:
        path, _, query = self.check.path.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": list(HEADERS),
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 80),
        }
        return {**scope, "state": dict(state)} if state else scope


class Answer:
    """Both ends of the check's own connection."""

    def __init__(self) -> None:
        self._status = 0
        self._body = bytearray()
        self._over = asyncio.Event()
        self._asked = False
        self.failed = False

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")[: LONGEST - len(self._body)]
            if not message.get("more_body", False):
                self._over.set()

    def reply(self) -> Reply | None:
        if self.failed or not self._over.is_set():
            return None
        return Reply(self._status, self._body.decode(errors="replace"))
