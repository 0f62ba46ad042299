"""A replica of the WSGI balancer: an app, a process of its own, or a URL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from lbkit.children import Child
from lbkit.errors import ConfigError, ReplicaRefused
from lbkit.interface import Interface, interface_of
from lbkit.types import Environ, StartResponse, WSGIApp
from lbkit.wsgi.upstream import Upstream

__all__ = ["ChildApp", "Runnable", "as_wsgi", "refused"]

Runnable: TypeAlias = "WSGIApp | str | Child"
"""What a replica may be; a text is a URL such as `http://10.0.0.11:8000` or `unix:/run/web1.sock`."""

CHILD_IDLE = 60.0
"""Seconds that an idle connection to a child is kept; its own server keeps it for 75."""


class ChildApp:
    """A process of its own as a WSGI app: it lives from `start` to `close`."""

    def __init__(self, child: Child, *, read_timeout: float | None) -> None:
        self.child = child
        self._read_timeout = read_timeout
        self._upstream: Upstream | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._upstream is None:
            raise ReplicaRefused("the process has not been started")
        return self._upstream(environ, start_response)

    def start(self) -> None:
        self.child.start()
        if self._upstream is None:
            self._upstream = Upstream(self.child.address, idle=CHILD_IDLE, read_timeout=self._read_timeout)

    def close(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        self.child.stop()


def as_wsgi(app: Runnable, *, read_timeout: float | None = None) -> WSGIApp:
    """The app itself, or what reaches it. Raises ConfigError for what is no WSGI app."""
    if isinstance(app, str):
        return Upstream(app, read_timeout=read_timeout)
    if isinstance(app, Child):
        return ChildApp(app, read_timeout=read_timeout)
    if interface_of(app) is Interface.ASGI:
        raise ConfigError(f"need WSGI apps, got the ASGI app {app!r}: lbkit.asgi.Balancer takes both kinds")
    return app


def refused(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:  # noqa: ARG001
    raise ReplicaRefused("the replica is stopped")
