"""`lbkit sessions list`, `inspect` and `revoke`: an operator's view of the sessions in Redis.

It needs the store alone, and no secret key: a user's sessions are found by walking through all of them.
Values are shown only to who asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import islice
from typing import Any, NamedTuple

import click

from lbkit.errors import ConfigError, LbkitError
from lbkit.sessions.codec import Undecodable, decode
from lbkit.sessions.store import CREATED, DEVICE, FORWARD, OWN, TOUCHED, USER, Fields, SyncStore
from lbkit.stores import store_from

__all__ = ["sessions"]

NOTES = (CREATED, TOUCHED, USER, DEVICE)
PATIENCE = 5.0
HANDLES = {"ignore_unknown_options": True}
"""One handle in 64 begins with a dash, and is no option for that."""

MOST = 10_000_000
AT_ONCE = 500


class Row(NamedTuple):
    """What a session notes of itself, as text to be shown."""

    handle: str
    user: str
    created: str
    seen: str
    ip: str
    agent: str


@click.group()
def sessions() -> None:
    """List, inspect and revoke sessions in Redis."""


def where(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where the sessions are."""
    store = click.option(
        "--store",
        "url",
        metavar="URL",
        envvar="LBKIT_SESSIONS",
        required=True,
        help="redis://host:6379/0, ...",
    )
    prefix = click.option("--prefix", default="lbkit:", show_default=True, help="What the keys begin with.")
    return store(prefix(command))


@sessions.command("list")
@where
@click.option("--user", help="Only the sessions in which this user is logged in.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="At most so many.")
def list_(url: str, prefix: str, user: str | None, limit: int) -> None:
    """A line for each session.

    Its handle, its user, when it began, when it was last used, and from where.
    """
    with opened(url, prefix) as store:
        found = list(islice(_rows(store, user), limit + 1))
    for row in found[:limit]:
        click.echo("  ".join(each for each in row if each))
    if len(found) > limit:
        click.echo(f"there are more than {limit}; --limit shows them", err=True)


@sessions.command(context_settings=HANDLES)
@where
@click.option("--values", is_flag=True, help="Show what the keys hold as well.")
@click.argument("handle")
def inspect(url: str, prefix: str, values: bool, handle: str) -> None:
    """One session and its keys.

    What it notes of itself, and each key with the size of its value in bytes.
    """
    with opened(url, prefix) as store:
        fields = store.load(handle)
    if fields is None:
        raise LbkitError(f"there is no session with the handle {handle}")
    if FORWARD in fields:
        click.echo(f"renewed: it goes on as {_printable(fields[FORWARD].decode())}")
        return
    for name, text in zip(Row._fields, _row(handle, fields), strict=True):
        click.echo(f"{name:8} {text or '-'}")
    for field, value in sorted(fields.items()):
        if not field.startswith(OWN):
            shown = f"  {_value(value)}" if values else ""
            click.echo(f"  {_printable(field.decode('utf-8', 'replace'))}  {len(value)} bytes{shown}")


@sessions.command(context_settings=HANDLES)
@where
@click.option("--user", help="All sessions in which this user is logged in.")
@click.argument("handles", nargs=-1, metavar="[HANDLE]...")
def revoke(url: str, prefix: str, user: str | None, handles: tuple[str, ...]) -> None:
    """End sessions by handle or user.

    At once, and for good: what is answered in them at this moment is lost with them.
    """
    if (user is None) is not bool(handles):
        raise ConfigError("need handles or --user, and not both")
    with opened(url, prefix) as store:
        doomed = handles if user is None else [row.handle for row in _rows(store, user)]
        ended = sum(store.delete(*some) for some in _chunks(doomed))
    click.echo(f"ended {ended} session{'' if ended == 1 else 's'}")


@contextmanager
def opened(url: str, prefix: str) -> Iterator[SyncStore]:
    store = store_from(url, prefix=prefix, timeout=PATIENCE)
    if not store.shared:
        raise ConfigError("need a Redis URL: memory:// is in the memory of the app's own process")
    try:
        yield store
    finally:
        store.close()


def _rows(store: SyncStore, user: str | None) -> Iterator[Row]:
    wanted = None if user is None else user.encode("utf-8", "surrogatepass")
    for keys in _chunks(store.scan(limit=MOST)):
        for key, fields in zip(keys, store.look(keys, NOTES), strict=True):
            if fields and CREATED in fields and wanted in (None, fields.get(USER)):
                yield _row(key, fields)


def _row(handle: str, fields: Fields) -> Row:
    try:
        device = decode(fields.get(DEVICE, b"{}"))
        ip, agent = str(device.get("ip") or ""), str(device.get("agent") or "")
    except (Undecodable, AttributeError):
        ip = agent = ""
    user = fields.get(USER, b"-").decode("utf-8", "replace")
    return Row(
        handle,
        _printable(user),
        _instant(fields.get(CREATED)),
        _instant(fields.get(TOUCHED)),
        _printable(ip),
        _printable(agent),
    )


def _instant(seconds: bytes | None) -> str:
    try:
        return datetime.fromtimestamp(float(seconds or b""), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "-"


def _value(value: bytes) -> str:
    try:
        return _printable(repr(decode(value)))
    except Undecodable:
        return "(encrypted, or not readable)"


def _printable(text: str) -> str:
    """Clients choose some of this, and a terminal obeys what it is shown."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    left = iter(keys)
    while some := list(islice(left, AT_ONCE)):
        yield some
