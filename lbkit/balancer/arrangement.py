"""What a balancer was asked to be: which profile decides, over which replicas, in which words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypedDict

from lbkit.balancer.check import CheckRules
from lbkit.balancer.dispatch import Dispatch
from lbkit.balancer.exchange import Model
from lbkit.balancer.policy import KeyedPolicy, Policy
from lbkit.balancer.profile import PROFILES, Options, Place, profile_named
from lbkit.errors import ConfigError
from lbkit.sticky import Sticky
from lbkit.types import Clock

__all__ = ["Arrangement", "arranged", "rules_of"]

PLAIN = "plain"


class Arrangement(TypedDict, total=False):
    """The options of a `Balancer`, for whoever hands them on."""

    profile: str | Model | None
    policy: str | Policy | KeyedPolicy | None
    weights: Mapping[str, int] | None
    backups: Iterable[str]
    max_conns: int | Mapping[str, int]
    max_fails: int | None
    fail_timeout: float | None
    retry: str
    read_timeout: float | None
    check: str | CheckRules | None
    slow_start: float
    sticky: str | Sticky | None
    replica_header: str | None
    on_dispatch: Callable[[Dispatch], object] | None
    rng: Random | None
    allow_linear: bool
    clock: Clock
    wall: Clock


def arranged(
    addresses: Mapping[str, str],
    *,
    profile: str | Model | None,
    policy: str | Policy | KeyedPolicy | None,
    weights: Mapping[str, int] | None,
    backups: Iterable[str],
    max_conns: int | Mapping[str, int],
    max_fails: int | None,
    fail_timeout: float | None,
    retry: str,
    slow_start: float,
    sticky: str | Sticky | None,
    rng: Random | None,
    allow_linear: bool,
) -> Model | None:
    """The model that decides; None for the pool's own turns, or a policy of one's own over it.

    `addresses` has, for each replica's name, the text that rings and tables hash.
    """
    backups = [backups] if isinstance(backups, str) else list(backups)
    asked = {
        "policy": policy if isinstance(policy, str) and policy != "round_robin" else None,
        "weights": weights,
        "backups": backups,
        "max_conns": max_conns,
        "retry": retry,
        "slow_start": slow_start,
        "sticky": sticky if isinstance(sticky, str) else None,
    }
    given = {"max_fails": max_fails, "fail_timeout": fail_timeout}
    wanted = {option: value for option, value in asked.items() if value}
    wanted |= {option: value for option, value in given.items() if value is not None}
    if profile in (None, PLAIN) and not wanted:
        return None
    _refuse_two_minds(profile, policy, sticky, wanted)
    if not (profile is None or isinstance(profile, str)):
        _refuse_another_pool(profile, addresses)
        return profile
    shared = {"max_fails": max_fails, "fail_timeout": fail_timeout, "slow_start": slow_start}
    return profile_named(profile or PLAIN).model(
        _places(addresses, weights=weights or {}, backups=backups, max_conns=max_conns, shared=shared),
        policy=policy if isinstance(policy, str) else "",
        rng=rng,
        allow_linear=allow_linear,
        options=Options(sticky=sticky if isinstance(sticky, str) else "", retry=retry),
    )


def _places(
    addresses: Mapping[str, str],
    *,
    weights: Mapping[str, int],
    backups: Sequence[str],
    max_conns: int | Mapping[str, int],
    shared: Mapping[str, Any],
) -> list[Place]:
    limits = max_conns if isinstance(max_conns, Mapping) else dict.fromkeys(addresses, max_conns)
    _refuse_unknown(addresses, weights=weights, backups=backups, max_conns=limits)
    return [
        Place(
            name=name,
            address=address,
            weight=weights.get(name, 1),
            backup=name in backups,
            max_conns=limits.get(name, 0),
            **shared,
        )
        for name, address in addresses.items()
    ]


def rules_of(check: str | CheckRules | None, *, profile: str | Model | None) -> CheckRules | None:
    """What is asked of the replicas. A text is the path, and the rest is as the profile checks."""
    if not isinstance(check, str):
        return check
    ships = PROFILES[profile].checks if isinstance(profile, str) else CheckRules()
    return replace(ships, path=check)


def _refuse_two_minds(
    profile: str | Model | None,
    policy: str | Policy | KeyedPolicy | None,
    sticky: str | Sticky | None,
    wanted: Mapping[str, object],
) -> None:
    """Either a model decides, or a policy that is an object and our own cookie."""
    why = f"profile={profile!r}" if isinstance(profile, str) else ", ".join(wanted) or "a model"
    if isinstance(sticky, Sticky):
        raise ConfigError(
            f"need the name of a cookie as sticky beside {why}: its cookie is that balancer's own"
        )
    if not (policy is None or isinstance(policy, str)):
        raise ConfigError(f"need a policy in words beside {why}, got {policy!r}")
    if not (profile is None or isinstance(profile, str)) and wanted:
        raise ConfigError(f"need no {', '.join(wanted)} beside a model, which has its own")


def _refuse_another_pool(model: Model, addresses: Mapping[str, str]) -> None:
    if sorted(model.names) != sorted(addresses):
        raise ConfigError(f"need a model of {', '.join(addresses)}, got one of {', '.join(model.names)}")


def _refuse_unknown(names: Mapping[str, str], **given: Iterable[str]) -> None:
    for option, used in given.items():
        for name in used:
            if name not in names:
                raise ConfigError(
                    f"need the name of a replica ({', '.join(names)}) in {option}, got {name!r}"
                )
