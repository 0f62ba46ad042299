"""`lbkit explain`: where a request goes and why, and what moves when a replica is removed."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from random import Random

import click

from lbkit.balancer.exchange import Model, Request
from lbkit.balancer.explain import Decision, Moves, decide, moves
from lbkit.balancer.profile import PROFILES, Place, Profile, profile_named
from lbkit.cli.words import known, pairs, whole
from lbkit.errors import ConfigError

__all__ = ["explain"]

SEED = 1
"""Where a real balancer rolls dice, `explain` rolls the same ones each time."""


@click.command()
@click.argument("path", default="/")
@click.option("--profile", default="nginx", show_default=True, help=f"One of {', '.join(PROFILES)}.")
@click.option("--policy", default="", help="In the words of that balancer; its default when left out.")
@click.option("--replicas", default=3, show_default=True, type=click.IntRange(min=1), help="web1, web2, ...")
@click.option("--address", multiple=True, metavar="NAME=TEXT", help="What rings hash; else the name.")
@click.option("--weight", multiple=True, metavar="NAME=N", help="Again for each replica that has one.")
@click.option("--down", multiple=True, metavar="NAME", help="Again for each replica that is down.")
@click.option("--backup", multiple=True, metavar="NAME", help="Again for each replica that is a backup.")
@click.option("--method", default="GET", show_default=True)
@click.option("--client", default="127.0.0.1", show_default=True, help="The client's address.")
@click.option("--header", multiple=True, metavar="NAME:VALUE", help="Again for each header.")
@click.option("--times", default=1, show_default=True, type=click.IntRange(min=1), help="How often it comes.")
@click.option("--without", default="", metavar="NAME", help="Say what moves when this replica is removed.")
def explain(
    path: str,
    profile: str,
    policy: str,
    replicas: int,
    address: tuple[str, ...],
    weight: tuple[str, ...],
    down: tuple[str, ...],
    backup: tuple[str, ...],
    method: str,
    client: str,
    header: tuple[str, ...],
    times: int,
    without: str,
) -> None:
    """Say where a request for PATH goes, and why the other replicas do not get it."""
    chosen = profile_named(profile)
    places = _places(replicas, address, weight, down, backup)
    request = Request(method, path, _address(client), _headers(header))
    policy = chosen.policy_of(places, policy)
    model = _model(chosen, places, policy)
    click.echo(f"{chosen.name} ({chosen.equivalence}), {policy}")
    for decision in [decide(model, request, rule=chosen.rule(policy)) for _ in range(times)]:
        click.echo(f"{method} {path} -> {_said(decision)}")
    for reason, names in _grouped(decision):
        click.echo(f"  not {', '.join(names)}: {reason}")
    if without:
        found = moves(lambda some: _model(chosen, some, policy), places, without, request)
        click.echo(_moved(found, without, sum(not (each.down or each.backup) for each in places)))


def _model(profile: Profile, places: Sequence[Place], policy: str) -> Model:
    return profile.model(places, policy=policy, rng=Random(SEED))  # noqa: S311 - no secret


def _grouped(decision: Decision) -> list[tuple[str, list[str]]]:
    """The reasons, each with all the replicas that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in decision.skipped.items():
        names.setdefault(reason, []).append(name)
    return list(names.items())


def _said(decision: Decision) -> str:
    if decision.replica is not None:
        return decision.replica
    return "waits in the queue" if decision.status is None else f"nobody: the client gets {decision.status}"


def _moved(found: Moves, without: str, count: int) -> str:
    share = 100 * found.moved / found.keys
    owned = 100 * found.owned / found.keys
    consistent = "only its own" if found.moved == found.owned else f"it had {owned:.1f} % of them"
    fair = f"1/{count} is {100 / count:.1f} %"
    return f"without {without}: {share:.1f} % of {found.keys} keys move ({consistent}; {fair})"


def _places(
    replicas: int,
    address: Sequence[str],
    weight: Sequence[str],
    down: Sequence[str],
    backup: Sequence[str],
) -> list[Place]:
    names = [f"web{number}" for number in range(1, replicas + 1)]
    addresses, weights = pairs(address, "--address", names), pairs(weight, "--weight", names)
    known([*down, *backup], names)
    return [
        Place(
            name=name,
            address=addresses.get(name, ""),
            weight=whole(weights.get(name, "1")),
            backup=name in backup,
            down=name in down,
        )
        for name in names
    ]


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise ConfigError(f"need an address for --client, such as 10.0.0.1, got {text!r}") from error


def _headers(texts: Sequence[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f"need --header NAME:VALUE, such as --header X-User:ada, got {text!r}")
        key = name.strip().lower()
        headers[key] = f"{headers[key]}\n{value.strip()}" if key in headers else value.strip()
    return headers
