"""A replica of the ASGI balancer: an app of either kind, a process of its own, or a URL."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from lbkit.asgi.bridge import WSGIBridge
from lbkit.asgi.lifespan import Lifespan
from lbkit.asgi.upstream import Upstream
from lbkit.balancer.members import Member
from lbkit.balancer.replica import ReplicaState
from lbkit.children import Child
from lbkit.errors import ReplicaRefused, StartupError
from lbkit.interface import Interface, interface_of
from lbkit.types import ASGIApp, Receive, Scope, Send, WSGIApp

__all__ = ["ASGIMember", "ChildApp", "Runnable", "as_asgi"]

Runnable: TypeAlias = "ASGIApp | WSGIApp | str | Child"
"""What a replica may be; a text is a URL such as `http://10.0.0.11:8000` or `unix:/run/web1.sock`."""

CHILD_IDLE = 60.0
"""Seconds that an idle connection to a child is kept; its own server keeps it for 75."""


class ASGIMember(Member[ASGIApp]):
    """A replica as this carrier sees it: what to call, and how to name it to the client."""

    def __init__(self, state: ReplicaState, app: Runnable, header: str | None) -> None:
        if isinstance(app, Child):
            app.called(state.replica.name)
        super().__init__(state, as_asgi(app), refuse=refused)
        self.lifespan = Lifespan(self.name, self.own)
        self.header = (header.lower().encode("ascii"), self.name.encode("ascii")) if header else None

    def replace(self, app: ASGIApp) -> None:
        """Serve with another app from now on. Its lifespan is a new one, and not started yet."""
        super().replace(app)
        self.lifespan = Lifespan(self.name, app)


async def refused(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    raise ReplicaRefused("the replica is stopped")


class ChildApp:
    """A process of its own as an ASGI app: it lives as long as the lifespan does."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._upstream = Upstream(child.address, idle=CHILD_IDLE) if child.port != 0 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._upstream is None:
            raise ReplicaRefused("the process has not been started")
        else:
            await self._upstream(scope, receive, send)

    async def start(self) -> None:
        await asyncio.to_thread(self.child.start)
        if self._upstream is None:  # a free port is known from now on, and stays
            self._upstream = Upstream(self.child.address, idle=CHILD_IDLE)

    async def stop(self) -> None:
        if self._upstream is not None:
            await self._upstream.aclose()
        await asyncio.to_thread(self.child.stop)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except StartupError as error:
            await send({"type": "lifespan.startup.failed", "message": error.reason})
            return
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        finally:
            await self.stop()
        await send({"type": "lifespan.shutdown.complete"})


def as_asgi(app: Runnable) -> ASGIApp:
    """The app itself, or a bridge to it. Raises ConfigError for what is no app."""
    if isinstance(app, str):
        return Upstream(app)
    if isinstance(app, Child):
        return ChildApp(app)
    if interface_of(app) is Interface.WSGI:
        return WSGIBridge(app)  # type: ignore[arg-type]
    return app  # type: ignore[return-value]
