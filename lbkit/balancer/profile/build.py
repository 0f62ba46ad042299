"""From places, a policy and a retry rule to the model of one balancer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from lbkit.balancer.caddy import Caddy, Passive, Upstream
from lbkit.balancer.chance import Chance
from lbkit.balancer.envoy import Envoy, HeaderHash, Host, Outlier, OutlierRules, Session, SlowStart
from lbkit.balancer.envoy.cluster import Source
from lbkit.balancer.envoy.policy import (
    Chooser,
    LeastRequest,
    Maglev,
    RandomChoice,
    Ring,
    RoundRobin,
    TwoDraws,
)
from lbkit.balancer.exchange import Model
from lbkit.balancer.haproxy import Cookie as HaproxyCookie
from lbkit.balancer.haproxy import Haproxy
from lbkit.balancer.haproxy import Server as HaproxyServer
from lbkit.balancer.nginx import Nginx, Sticky
from lbkit.balancer.nginx import Server as NginxServer
from lbkit.balancer.plain import Member as PlainMember
from lbkit.balancer.plain import Plain
from lbkit.balancer.profile import retry
from lbkit.balancer.profile.place import Options, Place
from lbkit.balancer.traefik import Cookie as TraefikCookie
from lbkit.balancer.traefik import Member, PassiveCheck, Traefik
from lbkit.errors import ConfigError

__all__ = ["Build", "Setup", "caddy", "envoy", "haproxy", "nginx", "nginx_1_22", "plain", "traefik"]

SESSION = 3600
"""Seconds that a session cookie of Envoy holds."""


@dataclass(frozen=True, slots=True)
class Setup:
    places: Sequence[Place]
    policy: str
    rng: Random
    options: Options

    @property
    def retry(self) -> str:
        return self.options.retry

    @property
    def sticky(self) -> str:
        return self.options.sticky

    def shared(self, name: str, default: float) -> float | None:
        """What has to be the same for all places. None when none of them says it."""
        values = {getattr(place, name) for place in self.places}
        if len(values) > 1:
            said = ", ".join(sorted(map(str, values)))
            raise ConfigError(f"need one {name} for the whole pool, got {said}")
        (value,) = values
        return default if value is None else float(value)

    def failing(self, fails: int, seconds: float) -> tuple[int, float] | None:
        """`max_fails` and `fail_timeout` of the whole pool, None when nobody asks for them."""
        if all(place.max_fails is None and place.fail_timeout is None for place in self.places):
            return None
        return int(self.shared("max_fails", fails) or 0), self.shared("fail_timeout", seconds) or 0.0


Build = Callable[[Setup], Model]


def nginx(setup: Setup) -> Model:
    servers = [
        NginxServer(
            name=place.name,
            address=place.hashed,
            weight=place.weight,
            backup=place.backup,
            down=place.down,
            max_conns=place.max_conns,
            max_fails=1 if place.max_fails is None else place.max_fails,
            fail_timeout=10.0 if place.fail_timeout is None else place.fail_timeout,
        )
        for place in setup.places
    ]
    return Nginx(
        servers,
        method=setup.policy,
        passing=retry.of_nginx(setup.retry),
        sticky=Sticky(mode="cookie", name=setup.sticky) if setup.sticky else None,
        rng=setup.rng,
    )


def nginx_1_22(setup: Setup) -> Model:
    if setup.policy.startswith("least_time") or setup.sticky:
        word = "sticky" if setup.sticky else "least_time"
        raise ConfigError(f"need nginx 1.31 or later for {word}: nginx@1.22 does not have it")
    return nginx(setup)


def haproxy(setup: Setup) -> Model:
    balance, _, hash_type = setup.policy.partition(";")
    servers = [
        HaproxyServer(
            name=place.name,
            address=place.hashed,
            id=number,
            weight=place.weight,
            backup=place.backup,
            disabled=place.down,
            maxconn=place.max_conns,
            cookie=place.name,
            slowstart=place.slow_start,
        )
        for number, place in enumerate(setup.places, start=1)
    ]
    return Haproxy(
        servers,
        balance=balance.strip() or "roundrobin",
        hash_type=hash_type.strip().removeprefix("hash-type").strip() or "map-based",
        retries=retry.of_haproxy(setup.retry),
        cookie=HaproxyCookie(name=setup.sticky, mode="insert", indirect=True, nocache=True)
        if setup.sticky
        else None,
        rng=setup.rng,
    )


def envoy(setup: Setup) -> Model:
    word, _, header = (setup.policy or "ROUND_ROBIN").partition(" ")
    if word in ("RING_HASH", "MAGLEV") and not header:
        raise ConfigError(f"need the header that {word} hashes, such as '{word} x-user', got none")
    hosts = [
        Host(
            name=place.name,
            address=place.hashed,
            weight=place.weight,
            priority=int(place.backup),
            healthy=not place.down,
        )
        for place in setup.places
    ]
    chance = Chance(setup.rng)
    window = setup.shared("slow_start", 0.0)
    return Envoy(
        hosts,
        chooser=_envoy_chooser(word, setup.rng, chance),
        hashing=[HeaderHash(header.lower())] if header else [],
        retries=retry.of_envoy(setup.retry),
        outlier=_outlier(setup, hosts),
        session=Session(name=setup.sticky, ttl=SESSION) if setup.sticky else None,
        slow_start=SlowStart(window=window) if window else None,
        chance=chance,
    )


def _outlier(setup: Setup, hosts: list[Host]) -> Outlier | None:
    failing = setup.failing(5, 30.0)
    if failing is None or not failing[0]:
        return None
    fails, seconds = failing
    return Outlier(hosts, OutlierRules(consecutive_5xx=fails, base_ejection_time=seconds))


def _envoy_chooser(word: str, rng: Random, chance: Chance) -> Callable[[list[Host], Source], Chooser]:
    start = rng.getrandbits(32)  # Envoy draws it once, when the process starts
    turns: dict[Source, Iterator[int]] = defaultdict(lambda: count(start))

    def least_request(hosts: list[Host], _: Source) -> Chooser:
        steady = len({host.weight for host in hosts}) == 1 and all(host.factor == 1 for host in hosts)
        return TwoDraws(hosts, chance=chance) if steady else LeastRequest(hosts, start=start)

    choosers: dict[str, Callable[[list[Host], Source], Chooser]] = {
        "ROUND_ROBIN": lambda hosts, source: RoundRobin(hosts, turns=turns[source], start=start),
        "LEAST_REQUEST": least_request,
        "RING_HASH": lambda hosts, _: Ring(hosts),
        "MAGLEV": lambda hosts, _: Maglev(hosts),
        "RANDOM": lambda hosts, _: RandomChoice(hosts, chance=chance),
    }
    if word not in choosers:
        raise ConfigError(f"need a policy of Envoy ({', '.join(choosers)}), got {word!r}")
    return choosers[word]


def caddy(setup: Setup) -> Model:
    if setup.sticky and setup.policy:
        raise ConfigError(f"Caddy is sticky by its policy cookie: need no other one, got {setup.policy!r}")
    upstreams = [Upstream(place.name, place.hashed, limit=place.max_conns) for place in setup.places]
    for upstream, place in zip(upstreams, setup.places, strict=True):
        upstream.healthy = not place.down
    failing = setup.failing(1, 0.0)
    passive = Passive(max_fails=failing[0], fail_duration=failing[1]) if failing and failing[0] else None
    return Caddy(
        upstreams,
        policy=f"cookie {setup.sticky}" if setup.sticky else setup.policy or "random",
        passive=passive,
        retrying=retry.of_caddy(setup.retry),
        chance=Chance(setup.rng),
    )


def traefik(setup: Setup) -> Model:
    members = [Member(p.name, p.hashed, p.weight, up=not p.down) for p in setup.places]
    failing = setup.failing(1, 10.0)
    if setup.sticky and setup.policy == "hrw":
        raise ConfigError(f"need another policy than hrw for the cookie {setup.sticky!r}: Traefik ignores it")
    return Traefik(
        members,
        strategy=setup.policy or "wrr",
        retries=retry.of_traefik(setup.retry),
        cookie=TraefikCookie(name=setup.sticky) if setup.sticky else None,
        passive=PassiveCheck(attempts=failing[0], window=failing[1]) if failing and failing[0] else None,
        chance=Chance(setup.rng),
    )


def plain(setup: Setup) -> Model:
    if setup.retry or setup.sticky:
        raise ConfigError("the profile plain has no sticky and no retry of its own")
    if setup.policy == "round_robin" and any(place.weight != 1 for place in setup.places):
        raise ConfigError("round_robin takes each in turn, whatever it weighs: need the policy weighted")
    members = [
        PlainMember(p.name, p.hashed, weight=p.weight, limit=p.max_conns, backup=p.backup)
        for p in setup.places
    ]
    for member, place in zip(members, setup.places, strict=True):
        member.up = not place.down
    return Plain(members, policy=setup.policy or "round_robin", rng=setup.rng)
