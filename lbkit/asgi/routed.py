"""Several pools behind one door: each request goes to the pool that its route names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbkit.asgi.balancer import Balancer
from lbkit.asgi.exchange import answer
from lbkit.asgi.lifespan import Lifespan, Lifespans
from lbkit.asgi.request import request_of
from lbkit.balancer.routes import Route, Routes
from lbkit.types import Receive, Scope, Send

__all__ = ["RoutedBalancer"]


class RoutedBalancer:
    """An ASGI app over balancers by name.

    `RoutedBalancer({"api": a, "web": b}, routes=["/api/*=api", "*=web"])`.

    The first route that a request meets decides; one that meets none is answered with 404. Routes that can
    never be reached, and pools that no route leads to, are refused. Each pool is a balancer of its own, with
    its own profile, cookies and `on_dispatch`.
    """

    def __init__(self, pools: Mapping[str, Balancer], *, routes: Iterable[Route | str]) -> None:
        self.pools = dict(pools)
        self.routes = Routes.over(tuple(self.pools), routes)
        self._lifespans = {name: Lifespan(name, pool) for name, pool in self.pools.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Lifespans(lambda: self._lifespans).live(scope, receive, send)
            return
        route = self.routes.match(request_of(scope))
        if route is None:
            await answer(scope, send, 404, "no route takes the request")
        else:
            await self.pools[route.pool](scope, receive, send)
