"""Health endpoints in front of an ASGI app: no Host check, redirect or login stands before them."""

from __future__ import annotations

from collections.abc import Sequence

from lbkit.health.access import Caller, Level
from lbkit.health.lifecycle import State
from lbkit.health.reply import Reply
from lbkit.monitor import Health
from lbkit.probes import wait_async
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HealthMiddleware"]


class HealthMiddleware:
    """Answers the health endpoints; everything else goes to the app untouched."""

    def __init__(self, app: ASGIApp, health: Health) -> None:
        self.app = app
        self.health = health
        self._wall, self._recall = health.wall, health.recall
        self._asks_who = health.gate.asks
        # Every path is looked at until the first request has come: see `_start`.
        self._prefixes: tuple[str, ...] = ("",)
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _path(scope) if scope.get("root_path") else scope["path"]
            if path.startswith(self._prefixes):
                if not self._started:
                    self._start()
                wall = self._wall()
                reply = self._kept(path, scope, wall)
                if reply is None:
                    reply = await self._made(path, scope)
                    wall = self._wall()
                if reply is not None:
                    headers = _closing(reply, scope) if reply.draining else reply.asgi_headers
                    await send({"type": "http.response.start", "status": reply.code, "headers": headers})
                    body = b"" if scope["method"] == "HEAD" else reply.body(wall)
                    await send({"type": "http.response.body", "body": body})
                    return
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _kept(self, path: str, scope: Scope, wall: float) -> Reply | None:
        """What most probes get: a rendering that is less than a second old."""
        full = self._asks_who and self.health.level(_caller(scope)) is Level.FULL
        question = (path, scope["method"], scope["query_string"], _accept(scope), full)
        return self._recall(question, wall)

    async def _made(self, path: str, scope: Scope) -> Reply | None:
        health = self.health
        route = health.route(path)
        if route is None:
            return None
        method, query, accept = scope["method"], scope["query_string"], _accept(scope)
        level = health.level(_caller(scope)) if self._asks_who else health.gate.unproven
        if method in ("GET", "HEAD") and (waits := health.awaited(route)):
            await wait_async(waits, budget=health.budget)
        question = (path, method, query, accept, level is Level.FULL)
        texts = query.decode("latin-1"), accept.decode("latin-1")
        return health.answer(route, method, *texts, level, question=question)

    def _start(self) -> None:
        """Without a lifespan, the app serves from its first request on."""
        self._started = True
        self._prefixes = self.health.prefixes
        self.health.start()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app's lifespan, and learn from it whether the app has started."""
        lifecycle = self.health.lifecycle
        up = False

        async def watching(message: Message) -> None:
            nonlocal up
            if message["type"] == "lifespan.startup.complete" and not up:
                up = True
                lifecycle.ready()
                self._start()
            await send(message)

        lifecycle.begin()
        try:
            await self.app(scope, receive, watching)
        finally:
            lifecycle.end(was_up=up)
            if up and lifecycle.state is State.STOPPED:
                self.health.stop()


def _path(scope: Scope) -> str:
    """The path below the mount point of the app."""
    path: str = scope["path"]
    root: str = scope["root_path"]
    return path[len(root) :] if path.startswith(f"{root}/") else path


def _closing(reply: Reply, scope: Scope) -> Sequence[tuple[bytes, bytes]]:
    """HTTP/2 and later have no such header: there the server says it."""
    if scope.get("http_version", "").startswith("1"):
        return (*reply.asgi_headers, (b"connection", b"close"))
    return reply.asgi_headers


def _accept(scope: Scope) -> bytes:
    for header in scope["headers"]:
        if header[0] == b"accept":
            value: bytes = header[1]
            return value
    return b""


def _caller(scope: Scope) -> Caller:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    client = scope.get("client")
    return Caller(client[0] if client else None, headers)
