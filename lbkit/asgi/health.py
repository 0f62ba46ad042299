"""Health endpoints in front of an ASGI app: no Host check, redirect or login stands before them."""

from __future__ import annotations

from lbkit.health.access import Caller
from lbkit.health.lifecycle import State
from lbkit.health.routes import Route
from lbkit.monitor import Health
from lbkit.probes import wait_async
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HealthMiddleware"]


class HealthMiddleware:
    """Answers the health endpoints; everything else goes to the app untouched."""

    def __init__(self, app: ASGIApp, health: Health) -> None:
        self.app = app
        self.health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self.health.cold:  # a server without lifespan
                self.health.start()
            route = self.health.route(_path(scope))
            if route is not None:
                await self._answer(route, scope, send)
                return
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _answer(self, route: Route, scope: Scope, send: Send) -> None:
        health = self.health
        method = scope["method"]
        query = scope["query_string"].decode("latin-1")
        accept = _accept(scope)
        level = health.level(_caller(scope)) if health.gate.asks else health.gate.unproven
        if method in ("GET", "HEAD") and (waits := health.awaited(route, query, accept, level)):
            await wait_async(waits, budget=health.budget)
        reply = health.answer(route, method, query, accept, level)
        headers = reply.asgi_headers
        if health.source.state is State.DRAINING and scope.get("http_version", "").startswith("1"):
            headers = (*headers, (b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.code, "headers": headers})
        body = b"" if method == "HEAD" else reply.body(health.wall())
        await send({"type": "http.response.body", "body": body})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app's lifespan, and learn from it whether the app has started."""
        lifecycle = self.health.lifecycle
        up = False

        async def watching(message: Message) -> None:
            nonlocal up
            if message["type"] == "lifespan.startup.complete" and not up:
                up = True
                lifecycle.ready()
                self.health.start()
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
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _accept(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"accept":
            return str(value, "latin-1")
    return ""


def _caller(scope: Scope) -> Caller:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    client = scope.get("client")
    return Caller(client[0] if client else None, headers)
