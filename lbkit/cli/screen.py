"""What `lbkit serve` shows: the table at the start, and a line for each request."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from urllib.parse import quote

import click
from rich import box
from rich.console import Console
from rich.table import Table

from lbkit.balancer import Dispatch, Pool
from lbkit.cli.target import Source
from lbkit.interface import Interface

__all__ = ["access_line", "announce", "show_access"]


def announce(source: Source, interface: Interface, pool: Pool, url: str) -> None:
    """The table of the replicas, and what one needs to know to use and to stop them."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(source, interface, [replica.name for replica in pool.replicas]))
    if not source.factory and len(pool.replicas) > 1:
        console.print(
            "  One app object serves all replicas: they share its memory. A factory gives each its own.\n"
        )
    console.print(f"  [bold]{url}[/bold]   policy: {_words(type(pool.policy).__name__)}   stop: Ctrl-C\n")


def show_access(dispatch: Dispatch) -> None:
    """Print the line of one request. Never raises: a closed pipe must not fail the request."""
    line = access_line(dispatch, time.strftime("%H:%M:%S"))
    try:
        click.secho(line, fg=_colour(dispatch.status))
    except (OSError, ValueError):
        return


def access_line(dispatch: Dispatch, clock: str) -> str:
    """`12:00:01  web2  GET /cart  200  3.1 ms`; an answer that was cut says so."""
    request = f"{dispatch.method} {_printable(dispatch.path)}"
    status = "-" if dispatch.status is None else str(dispatch.status)
    cut = "" if dispatch.complete else "  cut"
    return f"{clock}  {dispatch.replica or '-'}  {request}  {status}  {dispatch.seconds * 1000:.1f} ms{cut}"


def _table(source: Source, interface: Interface, replicas: Sequence[str]) -> Table:
    table = Table("replica", "app", "interface", "memory", box=box.SIMPLE_HEAD)
    for replica in replicas:
        app = f"{source.name}()" if source.factory else source.name
        table.add_row(replica, app, interface.value, "its own" if source.factory else "shared")
    return table


def _words(class_name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", class_name).lower()


def _printable(path: str) -> str:
    """A client may send a newline, or a terminal's escape code, as a part of the path."""
    return path if path.isprintable() else "".join(c if c.isprintable() else quote(c) for c in path)


def _colour(status: int | None) -> str | None:
    return {4: "yellow", 5: "red"}.get((status or 500) // 100)
