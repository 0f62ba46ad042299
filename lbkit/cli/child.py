"""The process of a `lbkit.children.Child`: one app under one uvicorn, at a socket that it was given.

python -m lbkit.cli.child TARGET --fd N [--factory] [--app-dir FOLDER]
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import uvicorn

from lbkit.asgi.forwarded import ForwardedMiddleware
from lbkit.asgi.replica import as_asgi
from lbkit.cli.target import App, find, one_line, parse, where
from lbkit.errors import LbkitError
from lbkit.forwarded import TrustedProxies
from lbkit.types import ASGIApp

__all__ = ["main", "serve"]

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept. Longer than the balancer does: it must be the one to close."""


@click.command()
@click.argument("target")
@click.option("--fd", required=True, type=int)
@click.option("--factory", is_flag=True)
@click.option("--app-dir", type=click.Path(path_type=Path))
def main(target: str, fd: int, factory: bool, app_dir: Path | None) -> None:
    serve(target, fd=fd, factory=factory, app_dir=app_dir)


def serve(
    target: str,
    *,
    fd: int,
    factory: bool = False,
    app_dir: Path | None = None,
    around: Callable[[App], ASGIApp] = as_asgi,
) -> None:
    """Make the app and serve it until SIGTERM. `around` puts something around it."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        app = find(parse(target, app_dir=app_dir), factory=factory).make()
    except LbkitError as error:
        click.echo(f"Error: {one_line(error)}", err=True)
        sys.exit(2)
    except Exception as error:  # the factory's own
        said = f"{type(error).__name__}: {error} ({where(error)})"
        click.echo(f"Error: {one_line(said)}", err=True)
        sys.exit(2)
    config = uvicorn.Config(
        # Only the balancer can reach this socket, so it is the one hop that is believed.
        ForwardedMiddleware(around(app), TrustedProxies(["unix", "127.0.0.1"])),
        interface="asgi3",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[socket.socket(fileno=fd)])
    if not server.started:
        sys.exit(3)


def _end_with_the_parent() -> None:
    """Our stdin ends when the parent does, also when it was killed."""
    while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
