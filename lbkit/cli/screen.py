"""What `lbkit serve` shows: the table at the start, and a line for each request."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lbkit.balancer import Dispatch
from lbkit.cli.door import Door
from lbkit.cli.target import Source
from lbkit.interface import Interface

__all__ = ["access_line", "announce", "show_access"]


def announce(
    source: Source, interface: Interface | None, door: Door, url: str, *, apart: bool = False
) -> None:
    """The table of the replicas, and what one needs to know to use and to stop them."""
    console = Console(highlight=False, soft_wrap=True)
    replicas = [name for names in door.pools.values() for name in names]
    memory = "its own process" if apart else "its own" if source.factory else "shared"
    console.print(_table(source, interface, replicas, door.weights_by_name, memory=memory))
    if memory == "shared" and len(replicas) > 1:
        console.print(
            "  One app object serves all replicas: they share its memory. A factory gives each its own.\n"
        )
    for route in door.routes:
        console.print(f"  route {route}", markup=False)
    facts = "   ".join(f"{name}: {escape(fact)}" for name, fact in door.facts.items())
    console.print(f"  [bold]{url}[/bold]   {facts}   stop: Ctrl-C\n")


def show_access(dispatch: Dispatch) -> None:
    """Print the line of one request. Never raises: a closed pipe must not fail the request."""
    line = access_line(dispatch, time.strftime("%H:%M:%S"))
    try:
        click.secho(line, fg=_colour(dispatch.status))
    except (OSError, ValueError):
        return


def access_line(dispatch: Dispatch, clock: str) -> str:
    """`12:00:01  web2  GET /cart  200  3.1 ms`; an answer that was cut says so.

    Who was tried in vain stands before the one that answered: `web1 refused, web2`.
    """
    request = f"{dispatch.method} {_printable(dispatch.path)}"
    status = "-" if dispatch.status is None else str(dispatch.status)
    cut = "" if dispatch.complete else "  cut"
    return f"{clock}  {_who(dispatch)}  {request}  {status}  {dispatch.seconds * 1000:.1f} ms{cut}"


def _who(dispatch: Dispatch) -> str:
    in_vain = [f"{each.replica} {each.outcome}" for each in dispatch.attempts[:-1]]
    return ", ".join([*in_vain, dispatch.replica or "-"])


def _table(
    source: Source,
    interface: Interface | None,
    replicas: Sequence[str],
    weights: Mapping[str, int],
    *,
    memory: str,
) -> Table:
    """With a column of weights when one of them has one."""
    table = Table("replica", *["weight"] * bool(weights), "app", "interface", "memory", box=box.SIMPLE_HEAD)
    for replica in replicas:
        weight = [str(weights.get(replica, 1))] * bool(weights)
        app = f"{source.name}()" if source.factory else source.name
        table.add_row(replica, *weight, app, interface.value if interface else "-", memory)
    return table


def _printable(path: str) -> str:
    """A client may send a newline, or a terminal's escape code, as a part of the path."""
    return path if path.isprintable() else "".join(c if c.isprintable() else quote(c) for c in path)


def _colour(status: int | None) -> str | None:
    return {4: "yellow", 5: "red"}.get((status or 500) // 100)
