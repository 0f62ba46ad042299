"""What a balancer was asked to be: which profile decides, over which replicas, in which words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, TypedDict

from lbkit.balancer.checking import ActiveCheck, SlowStart
from lbkit.balancer.dispatch import Dispatch
from lbkit.balancer.exchange import Model
from lbkit.balancer.haproxy.health import slow_start
from lbkit.balancer.haproxy.node import SCALE
from lbkit.balancer.policy import KeyedPolicy, Policy
from lbkit.balancer.profile import Options, Place, profile_named
from lbkit.errors import ConfigError
from lbkit.sticky import Sticky
from lbkit.types import Clock

__all__ = ["Arrangement", "arranged", "check_of", "slow_start_of"]

PLAIN = "plain"


class Arrangement(TypedDict, total=False):
    """The options of a `Balancer`, for whoever hands them on."""

    profile: str | Model | None
    policy: str | Policy | KeyedPolicy | None
    weights: Mapping[str, int] | None
    backups: Iterable[str]
    max_conns: int | Mapping[str, int]
    retry: str
    read_timeout: float | None
    check: str | ActiveCheck | None
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
    retry: str,
    sticky: str | Sticky | None,
    rng: Random | None,
    allow_linear: bool,
) -> Model | None:
    """The model that decides; None for the pool's own turns, which are the profile `plain`.

    `addresses` has, for each replica's name, the text that rings and tables hash.
    """
    backups = [backups] if isinstance(backups, str) else list(backups)
    if profile is None or profile == PLAIN:
        _refuse_without_a_profile(
            policy=policy if policy != "round_robin" else None,
            weights=weights,
            backups=backups,
            max_conns=max_conns,
            retry=retry,
            sticky=sticky,
        )
        return None
    if not isinstance(profile, str):
        _refuse_beside_a_model(policy, weights, backups, max_conns, retry, sticky)
        if sorted(profile.names) != sorted(addresses):
            need, got = ", ".join(addresses), ", ".join(profile.names)
            raise ConfigError(f"need a model of {need}, got one of {got}")
        return profile
    if isinstance(sticky, Sticky):
        raise ConfigError(
            f"need the name of a cookie as sticky under the profile {profile}, which writes its own cookie"
        )
    if not (policy is None or isinstance(policy, str)):
        raise ConfigError(f"need a policy in the words of the profile {profile}, got {policy!r}")
    limits = max_conns if isinstance(max_conns, Mapping) else dict.fromkeys(addresses, max_conns)
    weights = weights or {}
    _refuse_unknown(addresses, weights=weights, backups=backups, max_conns=limits)
    places = [
        Place(
            name=name,
            address=address,
            weight=weights.get(name, 1),
            backup=name in backups,
            max_conns=limits.get(name, 0),
        )
        for name, address in addresses.items()
    ]
    return profile_named(profile).model(
        places,
        policy=policy or "",
        rng=rng,
        allow_linear=allow_linear,
        options=Options(sticky=sticky or "", retry=retry),
    )


def slow_start_of(profile: str | Model | None, seconds: float) -> SlowStart:
    """How replicas that come back rise under this profile. Raises ConfigError where they do not."""
    if not seconds:
        return SlowStart(0.0, _linear)
    if profile is None or profile == PLAIN:
        raise ConfigError(f"need a profile, such as profile='nginx', for slow_start={seconds}")
    name = profile if isinstance(profile, str) else type(profile).__name__.lower()
    family = name.partition("@")[0]
    if family not in RAMPS:
        raise ConfigError(f"{name} has no slow start: need slow_start=0, got slow_start={seconds}")
    return SlowStart(seconds, RAMPS[family])


def check_of(check: str | ActiveCheck | None) -> ActiveCheck | None:
    """What is asked of the replicas; a text is the path."""
    return ActiveCheck(path=check) if isinstance(check, str) else check


def _linear(seconds: float, window: float) -> float:
    return max(0.01, seconds / window)


def _sixteenths(seconds: float, window: float) -> float:
    return slow_start(seconds, max(1, round(window))) / SCALE


def _from_a_tenth(seconds: float, window: float) -> float:
    return max(0.1, seconds / window)


RAMPS = {"nginx": _linear, "haproxy": _sixteenths, "envoy": _from_a_tenth}
"""NGINX Plus from nothing, HAProxy in steps of a sixteenth, Envoy from its least percentage."""


def _refuse_without_a_profile(**given: Any) -> None:
    for option, value in given.items():
        in_words = isinstance(value, str)
        if (option in ("policy", "sticky") and not in_words) or not value:
            continue
        raise ConfigError(f"need a profile, such as profile='nginx', for {option}={value!r}")


def _refuse_beside_a_model(*given: object) -> None:
    if any(given):
        raise ConfigError(
            "need no policy, weights, backups, max_conns, retry and sticky beside a model, which has its own"
        )


def _refuse_unknown(names: Mapping[str, str], **given: Iterable[str]) -> None:
    for option, used in given.items():
        for name in used:
            if name not in names:
                raise ConfigError(
                    f"need the name of a replica ({', '.join(names)}) in {option}, got {name!r}"
                )
