"""The profiles by name, what each of them has, and how close it is to the real one.

===========  ==============  ===========================================================================
profile      equivalence     policies, in that product's own words
===========  ==============  ===========================================================================
nginx        exact           (none: smooth weighted round robin), ip_hash, hash KEY [consistent],
                             least_conn, least_time header|last_byte, random [two]
nginx@1.22   exact           the same without least_time
haproxy@2.6  exact           roundrobin, static-rr, leastconn, first, source, uri, url_param NAME,
                             hdr(NAME), random(N); a hash-type after a semicolon
envoy        exact up to     ROUND_ROBIN, LEAST_REQUEST, RING_HASH HEADER, MAGLEV HEADER, RANDOM
             the start
caddy@2.6    exact; random   round_robin, first, least_conn, ip_hash, uri_hash, header NAME, random,
             where it is     random_choose N, cookie NAME [SECRET]
traefik@3    exact for an    wrr, p2c, hrw, leasttime
             order
plain        nobody's        round_robin, weighted, least_conn, p2c, peak_ewma, random, source,
                             rendezvous KEY, ketama KEY, maglev KEY, bounded KEY PERCENT
===========  ==============  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from lbkit.balancer.check import CheckRules
from lbkit.balancer.exchange import Model
from lbkit.balancer.plain import POLICIES as PLAIN
from lbkit.balancer.plain import QUICK
from lbkit.balancer.profile import build
from lbkit.balancer.profile.build import Build, Setup
from lbkit.balancer.profile.place import FEATURES, Options, Place
from lbkit.errors import ConfigError

__all__ = ["PROFILES", "Options", "Profile", "profile_named"]

PLACEHOLDERS = ("KEY", "NAME", "HEADER", "N", "PERCENT")
LINEAR_LIMIT = 10_000
"""Above it, a pick that looks at every replica takes longer than most requests."""


@dataclass(frozen=True, slots=True, repr=False)
class Profile:
    """A balancer that lbkit decides like: what it has, and how close to it that is."""

    name: str
    equivalence: str
    """How close to the real one: what must be known beside the configuration for the picks to be the same."""

    rules: Mapping[str, str]
    """Each policy, as it is written (words in capitals are yours to fill in), and whom it picks. The first is
    the default."""

    build: Build
    has: frozenset[str]
    """What a place may ask for: weights, backups, max_conns, max_fails, slow_start."""

    quick: tuple[str, ...] = ()
    """The first words of the policies that do not look at every replica for each pick."""

    unweighted: tuple[str, str] | None = None
    """A default that does not look at weights, and the policy to take in its place when there are some."""

    checks: CheckRules = field(default_factory=CheckRules)
    """How it checks its replicas when it is asked to."""

    def __repr__(self) -> str:
        return f"<Profile {self.name}: {self.equivalence}>"

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(self.rules)

    def rule(self, policy: str) -> str:
        """Whom that policy picks, for people who ask why it was not another one."""
        policy = policy or self.policies[0]
        fitting = [each for each in self.rules if _fits(each, policy)]
        alike = [each for each in self.rules if _first_word(each) == _first_word(policy)]
        return self.rules[(fitting or alike)[0]] if fitting or alike else policy

    def policy_of(self, places: Sequence[Place], policy: str = "") -> str:
        """The policy that is meant when this one is asked for; empty: the default, which honours weights."""
        if policy or self.unweighted is None:
            return policy or self.policies[0]
        plain, weighted = self.unweighted
        return weighted if any(place.weight != 1 for place in places) else plain

    def model(
        self,
        places: Sequence[Place],
        *,
        policy: str = "",
        rng: Random | None = None,
        allow_linear: bool = False,
        options: Options | None = None,
    ) -> Model:
        """A balancer of this kind. Raises ConfigError for what the real one does not have."""
        self._refuse_nonsense(places)
        if self.unweighted is not None:
            policy = self.policy_of(places, policy)
        self._refuse_linear(places, policy, allow_linear=allow_linear)
        return self.build(Setup(places, policy, rng or Random(), options or Options()))

    def _refuse_nonsense(self, places: Sequence[Place]) -> None:
        if not places:
            raise ConfigError("need at least one replica, got none")
        names = [place.name for place in places]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(
                f"need a name of its own for each replica, got {', '.join(twice)} more than once"
            )
        for feature, (asks, without) in FEATURES.items():
            if feature not in self.has and any(map(asks, places)):
                raise ConfigError(f"{self.name} has no {feature}: need {without} for every replica")

    def _refuse_linear(self, places: Sequence[Place], policy: str, *, allow_linear: bool) -> None:
        word = _first_word(policy or self.policies[0])
        if len(places) > LINEAR_LIMIT and word not in self.quick and not allow_linear:
            raise ConfigError(
                f"need at most {LINEAR_LIMIT} replicas for {word!r}, which looks at every one of them for "
                f"each pick, got {len(places)}: allow_linear=True does it all the same"
            )


def _first_word(policy: str) -> str:
    """`hdr` of `hdr(x-key); hash-type consistent`."""
    return policy.partition(" ")[0].partition("(")[0].rstrip(";")


def _fits(pattern: str, policy: str) -> bool:
    """Is it that policy, with something else for the words in capitals?"""
    wanted, given = pattern.split(), policy.split()
    if len(wanted) != len(given):
        return False
    heads = (
        (one.partition("(")[0], other.partition("(")[0]) for one, other in zip(wanted, given, strict=True)
    )
    return all(one == other or (one in PLACEHOLDERS and at > 0) for at, (one, other) in enumerate(heads))


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises ConfigError with the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"need a profile ({', '.join(PROFILES)}), got {name!r}")
    return PROFILES[name]


NGINX_1_22 = {
    "round_robin": "the highest current weight (smooth weighted round robin)",
    "ip_hash": "where the hash of the client's network falls among the weights",
    "hash KEY": "where the hash of the key falls among the weights",
    "hash KEY consistent": "the next point on the ring after the hash of the key",
    "least_conn": "the fewest connections per weight",
    "random": "drawn by weight",
    "random two": "of two drawn by weight, the one with fewer connections",
}
NGINX = {
    **NGINX_1_22,
    "least_time header": "the least (average time to the header, in steps of 20 ms) x (1 + connections)",
    "least_time last_byte": "the least (average time to the end, in steps of 20 ms) x (1 + connections)",
}
HAPROXY = {
    "roundrobin": "whose position comes first (weighted round robin)",
    "static-rr": "the next slot of the map",
    "leastconn": "the fewest connections per weight, idle ones in turn",
    "first": "the lowest number with a free slot",
    "source": "the slot of the client's address",
    "uri": "the slot of the URI's hash",
    "url_param NAME": "the slot of the parameter's hash",
    "hdr(NAME)": "the slot of the header's hash",
    "random(2)": "of so many draws, the least loaded",
}
ENVOY = {
    "ROUND_ROBIN": "the next index; with weights, the earliest deadline",
    "LEAST_REQUEST": "of two draws, the one with fewer requests; with weights, the earliest deadline",
    "RING_HASH HEADER": "the next point on the ring after the header's hash",
    "MAGLEV HEADER": "the slot of the header's hash in the table",
    "RANDOM": "drawn",
}
CADDY = {
    "random": "drawn",
    "round_robin": "the next one, counted before it is picked",
    "first": "the first available one",
    "least_conn": "the fewest requests, a tie is drawn",
    "ip_hash": "the highest hash of client and upstream",
    "uri_hash": "the highest hash of URI and upstream",
    "header NAME": "the highest hash of header and upstream",
    "random_choose N": "of N drawn, the one with the fewest requests",
    "cookie NAME": "the one whose signature the cookie holds, else drawn",
}
TRAEFIK = {
    "wrr": "the earliest deadline",
    "p2c": "of two draws, the one with fewer requests",
    "hrw": "the highest score of client and server",
    "leasttime": "the least (average time) x (1 + requests) per weight, and 0 without a sample",
}
PLAIN_RULES = dict(
    zip(
        PLAIN,
        (
            "the next one",
            "the highest current weight (smooth weighted round robin)",
            "the fewest requests per weight",
            "of two drawn, the one with fewer requests per weight",
            "of two drawn, the one with the lower latency x (1 + requests) per weight",
            "drawn by weight",
            "the highest score of client and replica",
            "the highest score of key and replica",
            "the next point on the ring after the hash of the key",
            "the slot of the key in the table",
            "the highest score of key and replica among those below their share",
        ),
        strict=True,
    )
)

WEIGHED = frozenset({"weights", "backups", "max_conns"})
PLUS = CheckRules(rise=1, fall=1, inter=5.0)
HAPROXY_QUICK = ("roundrobin", "leastconn", "source", "uri", "url_param", "hdr", "random")
ENVOY_QUICK = ("ROUND_ROBIN", "LEAST_REQUEST", "RING_HASH", "RANDOM")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "nginx",
            "exact, for one worker process",
            NGINX,
            build.nginx,
            WEIGHED | {"max_fails"},
            quick=("ip_hash", "hash", "random"),
            checks=PLUS,
        ),
        Profile(
            "nginx@1.22",
            "exact, for one worker process",
            NGINX_1_22,
            build.nginx_1_22,
            WEIGHED | {"max_fails"},
            quick=("ip_hash", "hash", "random"),
            checks=PLUS,
        ),
        Profile(
            "haproxy@2.6",
            "exact, for one thread group",
            HAPROXY,
            build.haproxy,
            WEIGHED | {"slow_start"},
            quick=HAPROXY_QUICK,
        ),
        Profile(
            "envoy",
            "exact, up to the random start of each process",
            ENVOY,
            build.envoy,
            frozenset({"weights", "backups", "max_fails", "slow_start"}),
            quick=ENVOY_QUICK,
            checks=CheckRules(statuses=(200, 200), inter=5.0, begins_up=False),
        ),
        Profile(
            "caddy@2.6",
            "exact; random where Caddy is",
            CADDY,
            build.caddy,
            frozenset({"max_conns", "max_fails"}),
            quick=("round_robin", "first"),
            checks=CheckRules(statuses=(200, 299), rise=1, fall=1, inter=30.0, timeout=5.0),
        ),
        Profile(
            "traefik@3",
            "exact, for the order of insertion",
            TRAEFIK,
            build.traefik,
            frozenset({"weights", "max_fails"}),
            quick=("wrr",),
            checks=CheckRules(rise=1, fall=1, inter=30.0, timeout=5.0),
        ),
        Profile(
            "plain",
            "nobody's: the field's own",
            PLAIN_RULES,
            build.plain,
            WEIGHED,
            quick=QUICK,
            unweighted=("round_robin", "weighted"),
        ),
    )
}
