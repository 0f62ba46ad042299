"""Several pools behind one door: each request goes to the pool that its route names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from lbkit.balancer.routes import Route, Routes
from lbkit.types import Environ, StartResponse
from lbkit.wsgi.balancer import Balancer
from lbkit.wsgi.request import request_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RoutedBalancer"]

NOT_FOUND = b"404 Not Found: no route takes the request\n"


class RoutedBalancer:
    """A WSGI app over balancers by name.

    `RoutedBalancer({"api": a, "web": b}, routes=["/api/*=api", "*=web"])`.

    The first route that a request meets decides; one that meets none is answered with 404. Routes that can
    never be reached, and pools that no route leads to, are refused. Each pool is a balancer of its own, with
    its own profile, cookies and `on_dispatch`.
    """

    def __init__(self, pools: Mapping[str, Balancer], *, routes: Iterable[Route | str]) -> None:
        self.pools = dict(pools)
        self.routes = Routes.over(tuple(self.pools), routes)

    def start(self) -> None:
        """Start the pools; those before one that fails are closed again."""
        with ExitStack() as started:
            for pool in self.pools.values():
                started.enter_context(pool)
            started.pop_all()

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        route = self.routes.match(request_of(environ))
        if route is not None:
            return self.pools[route.pool](environ, start_response)
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(NOT_FOUND)))]
        start_response("404 Not Found", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else NOT_FOUND]
