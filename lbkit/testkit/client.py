"""The clients of a cluster: the test client of the app's own framework, put in front of the balancer.

No framework is imported here unless the app has brought it along. Each client has cookies and a name of its
own in the trace: client1, client2, ...
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lbkit.asgi.bridge import WSGIBridge
from lbkit.errors import ConfigError
from lbkit.testkit.marks import CLIENT, PIN
from lbkit.testkit.websocket import Websocket, limited
from lbkit.types import ASGIApp, Environ, Receive, Scope, Send, StartResponse

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["Visitor", "aclient", "client", "read_out", "visitor_of"]

BASE_URL = "http://testserver"


class Visitor:
    """One client as the cluster sees it. `pin` names the only replica that it reaches; None: the balancer."""

    lbkit_spreads = True
    """So that `pytest --replicas`, which puts itself under test clients, leaves ours alone."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.pin: str | None = None

    @property
    def app(self) -> Any:
        return self.wsgi if self.cluster.is_wsgi else self.asgi

    @cached_property
    def asgi(self) -> ASGIApp:
        return WSGIBridge(self.wsgi) if self.cluster.is_wsgi else self._asgi

    def wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return self.cluster.wsgi({**environ, **self._marks()}, start_response)

    async def _asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.cluster.asgi({**scope, **self._marks()}, receive, send)

    def _marks(self) -> dict[str, str]:
        return {CLIENT: self.name} if self.pin is None else {CLIENT: self.name, PIN: self.pin}

    @contextmanager
    def on(self, replica: str) -> Iterator[None]:
        """Reach only this replica for a while."""
        before, self.pin = self.pin, self.cluster[replica].name
        try:
            yield
        finally:
            self.pin = before


class Pinned:
    """What each of our clients has beside its framework's own methods."""

    lbkit: Visitor

    def on(self, replica: str) -> Any:
        """A context in which this client reaches only that replica."""
        return self.lbkit.on(replica)


class Sync(Pinned):
    websocket_patience = 2.0
    """Seconds that Starlette's own `websocket_connect` waits for a message."""

    def websocket_connect(self, *arguments: Any, **options: Any) -> Any:
        session = super().websocket_connect(*arguments, **options)  # type: ignore[misc]
        visitor = self.lbkit
        return limited(session, visitor.cluster, visitor.name, timeout=self.websocket_patience)

    def ws(self, path: str, *, replica: str | None = None, timeout: float = 2.0, **headers: str) -> Websocket:
        """Open a websocket, with this client's cookies. Nothing waits for a message longer than `timeout`."""
        visitor = self.lbkit
        request = self.build_request("GET", path, headers=headers)  # type: ignore[attr-defined]
        pin = visitor.pin if replica is None else visitor.cluster[replica].name
        return Websocket(visitor.cluster, request, client=visitor.name, pin=pin, timeout=timeout)


def visitor_of(client: object) -> Visitor:
    """Who this client is. Raises ConfigError for one that no cluster has made."""
    visitor = getattr(client, "lbkit", None)
    if not isinstance(visitor, Visitor):
        raise ConfigError(f"need a client of cluster.client(), such as the fixture lb_client, got {client!r}")
    return visitor


def client(cluster: Cluster, visitor: Visitor, **options: Any) -> Any:
    if cluster.is_wsgi:
        return _wsgi_client(visitor, next(iter(cluster)).inner, options)
    testclient = _module("starlette.testclient", "a client for ASGI apps")
    kind = type("Client", (Sync, testclient.TestClient), {"lbkit": visitor})
    made = kind(visitor.asgi, **options)
    made.__enter__()  # one loop for all its requests, and not a new one for each
    cluster.on_close(lambda: made.__exit__(None, None, None))
    return made


def _wsgi_client(visitor: Visitor, app: Any, options: dict[str, Any]) -> Any:
    werkzeug = _module("werkzeug.test", "a client for WSGI apps")
    own = {"lbkit": visitor}
    if not callable(getattr(app, "test_client", None)):
        return type("Client", (Reading, werkzeug.Client), own)(visitor.wsgi, **options)
    theirs = getattr(app, "test_client_class", None) or _module("flask.testing", "Flask's client").FlaskClient
    return type("Client", (Reading, theirs), own)(Face(visitor, app), app.response_class, **options)


class Face:
    """The cluster to whoever calls it, and one replica's Flask app to whoever looks at its attributes."""

    lbkit_spreads = True

    def __init__(self, visitor: Visitor, app: Any) -> None:
        self._visitor = visitor
        self._app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return self._visitor.wsgi(environ, start_response)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class Reading(Pinned):
    """Reads an answer whose length is known, as a server sends it whether or not the client looks at it."""

    def run_wsgi_app(self, environ: Environ, buffered: bool = False) -> Any:
        return read_out(*super().run_wsgi_app(environ, buffered))  # type: ignore[misc]


def read_out(chunks: Iterable[bytes], status: str, headers: Any) -> tuple[Iterable[bytes], str, Any]:
    return (_read(chunks) if "content-length" in headers else chunks), status, headers


def _read(body: Iterable[bytes]) -> list[bytes]:
    try:
        return list(body)
    finally:
        if close := getattr(body, "close", None):
            close()


def aclient(cluster: Cluster, visitor: Visitor, **options: Any) -> Any:
    httpx = _module("httpx", "an async client")
    kind = type("AsyncClient", (Pinned, httpx.AsyncClient), {"lbkit": visitor})
    transport = httpx.ASGITransport(app=visitor.asgi)
    made = kind(**{"transport": transport, "base_url": BASE_URL, **options})
    cluster.on_close(lambda: cluster.run(made.aclose()))
    return made


def _module(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"need {name.partition('.')[0]} to be installed for {what}") from error
