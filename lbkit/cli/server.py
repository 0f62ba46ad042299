"""The uvicorn below `lbkit serve`: it starts, says where it is, and stops without a traceback."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import uvicorn
from uvicorn.supervisors import ChangeReload

from lbkit.children import Child
from lbkit.cli.door import Door
from lbkit.cli.screen import announce, show_access
from lbkit.cli.target import App, find, one_line, parse, where
from lbkit.errors import ConfigError, LbkitError, StartupError
from lbkit.interface import Interface, interface_of
from lbkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["STARTUP_FAILED", "Plan", "run", "run_again_and_again"]

STARTUP_FAILED = 3
"""The exit code when a replica's lifespan fails: uvicorn's own for that."""

PATIENCE = 3
"""Seconds that a running request, such as a stream without end, may take after Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for on the command line. It can be pickled: `--reload` hands it to a new process."""

    target: str
    door: Door
    host: str = "127.0.0.1"
    port: int = 8000
    factory: bool = False
    app_dir: Path | None = None
    apart: bool = False
    """Each replica in a process of its own."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"need 0 <= --port <= 65535, got {self.port}")
        if self.app_dir is not None and not self.app_dir.is_dir():
            raise ConfigError(f"need a folder as --app-dir, got {self.app_dir}")


def run(plan: Plan) -> None:
    """Serve until Ctrl-C. Raises LbkitError for a mistake, SystemExit(3) when a replica does not start."""
    _serve(plan, sockets=[_bind(plan)])


def run_again_and_again(plan: Plan) -> None:
    """Serve until Ctrl-C, each time in a new process when a source file has changed."""
    watched = parse(plan.target, app_dir=plan.app_dir).root
    _configure_logging(Quiet(starting=False))
    config = uvicorn.Config(
        "lbkit", reload=True, reload_dirs=[str(watched)], access_log=False, log_config=None
    )
    ChangeReload(config, target=partial(_serve_once, plan), sockets=[_bind(plan)]).run()


def _serve_once(plan: Plan, *, sockets: list[socket.socket]) -> None:
    """In a process of its own. A mistake ends it, and the one above waits for the next change."""
    try:
        _serve(plan, sockets=sockets)
    except LbkitError as error:
        click.echo(f"Error: {one_line(error)}", err=True)
        sys.exit(2)


def _serve(plan: Plan, *, sockets: list[socket.socket]) -> None:
    server = Server(plan)
    _configure_logging(server.quiet)
    try:
        server.run(sockets=sockets)
    except KeyboardInterrupt:  # uvicorn raises it again after its clean shutdown
        return
    except OSError as error:  # another program listened first, between our bind and our listen
        raise _cannot_bind(plan, error) from error
    finally:
        server.say_why_it_failed()


class Server(uvicorn.Server):
    """The plan's app under uvicorn. It is loaded in the running loop, as uvicorn does."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.quiet = Quiet(starting=True)
        self.failure: str | None = None
        self.interface: Interface | None = None
        super().__init__(
            uvicorn.Config(
                self._load,
                factory=True,
                interface="asgi3",
                lifespan="on",
                # The balancer is the first hop: nobody before it may name another client.
                proxy_headers=False,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=PATIENCE,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self.quiet.starting = False
            announce(self.source, self.interface, self.plan.door, _url(sockets[0]), apart=self.plan.apart)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        click.echo("stopping ...")
        await super().shutdown(sockets)

    def say_why_it_failed(self) -> None:
        if self.failure is not None:
            click.echo(f"Error: {one_line(self.failure)}", err=True)
            sys.exit(STARTUP_FAILED)

    def _load(self) -> ASGIApp:
        self.source = find(parse(self.plan.target, app_dir=self.plan.app_dir), factory=self.plan.factory)
        try:
            self.balancer = self.plan.door.open(
                self._child if self.plan.apart else self._make, on_dispatch=show_access
            )
        except StartupError as error:
            raise _explained(error) from error
        return self._app

    def _child(self) -> Child:
        """It finds out for itself what kind of app a factory makes: none is made here to look at."""
        self.interface = None if self.source.factory else interface_of(self.source.make())
        return Child(self.plan.target, factory=self.plan.factory, app_dir=self.plan.app_dir)

    def _make(self) -> App:
        app = self.source.make()
        self.interface = interface_of(app)
        return app

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            send = partial(self._note, send)
        await self.balancer(scope, receive, send)

    async def _note(self, send: Send, message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            self.failure = message.get("message", "")
        await send(message)


class Quiet(logging.Filter):
    """Drops what we say ourselves, in one line: why a start failed; and what nobody needs to hear: that a
    stream was cancelled because we are stopping."""

    def __init__(self, *, starting: bool) -> None:
        super().__init__()
        self.starting = starting

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return False
        return not self.starting or record.exc_info is not None


def _configure_logging(quiet: Quiet) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(quiet)
    for name in ("uvicorn", "lbkit"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.WARNING)
        logger.propagate = False


def _bind(plan: Plan) -> socket.socket:
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    # IPPROTO_TCP in full: asyncio turns Nagle's delay off (40 ms an answer) only for sockets that say it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((plan.host, plan.port))
    except OSError as error:
        listener.close()
        raise _cannot_bind(plan, error) from error
    listener.set_inheritable(True)
    return listener


def _cannot_bind(plan: Plan, error: OSError) -> ConfigError:
    return ConfigError(f"cannot listen on {plan.host} port {plan.port}: {error.strerror or error}")


def _explained(error: StartupError) -> LbkitError:
    """The same in words for the command line: with the place where it was raised."""
    cause = error.__cause__
    if cause is None or isinstance(cause, LbkitError):
        return StartupError(error.replica, str(cause or error.reason))
    return StartupError(error.replica, f"{error.reason} ({where(cause)})")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (shown, not bound)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
