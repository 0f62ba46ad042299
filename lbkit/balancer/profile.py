"""Profiles: the balancers that lbkit decides like, by name and version.

===========  ==============  ===========================================================================
profile      equivalence     policies, in that product's own words
===========  ==============  ===========================================================================
nginx        exact           (none: smooth weighted round robin), ip_hash, hash KEY [consistent],
                             least_conn, least_time header, random [two]
nginx@1.22   exact           the same without least_time
haproxy@2.6  exact           roundrobin, static-rr, leastconn, first, source, uri, url_param NAME,
                             hdr(NAME), random(N); a hash-type after a semicolon
envoy        exact up to     ROUND_ROBIN, LEAST_REQUEST, RING_HASH HEADER, MAGLEV HEADER, RANDOM
             the start
caddy@2.6    exact; random   round_robin, first, least_conn, ip_hash, uri_hash, header NAME, random,
             where it is     random_choose N
traefik@3    exact for an    wrr, p2c, hrw, leasttime
             order
plain        exact           round_robin
===========  ==============  ===========================================================================

`sticky` is the name of a cookie, whose value and attributes are that balancer's own. `retry` is what it calls
by these names:

=======  ==============================================================================================
nginx    the words of `proxy_next_upstream`; "error timeout" unless given
haproxy  the words of `retry-on`, and `redispatch` for the option of that name; "conn-failure" unless given
envoy    the words of `retry_on`, for one retry; none unless given
caddy    `lb_try_duration` in seconds; 0 unless given
traefik  the `attempts` of its retry middleware; 0 unless given
=======  ==============================================================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from lbkit.balancer.caddy import Caddy, Retrying, Upstream
from lbkit.balancer.chance import Chance
from lbkit.balancer.envoy import Envoy, HeaderHash, Host
from lbkit.balancer.envoy.cluster import Retries as EnvoyRetries
from lbkit.balancer.envoy.cluster import Session, Source
from lbkit.balancer.envoy.policy import (
    Chooser,
    LeastRequest,
    Maglev,
    RandomChoice,
    Ring,
    RoundRobin,
    TwoDraws,
)
from lbkit.balancer.exchange import (
    Answer,
    Attempt,
    Fault,
    Flow,
    Model,
    Request,
    Standing,
    Wait,
    attempt,
    relay,
)
from lbkit.balancer.haproxy import Cookie as HaproxyCookie
from lbkit.balancer.haproxy import Haproxy, Retries
from lbkit.balancer.haproxy import Server as HaproxyServer
from lbkit.balancer.nginx import NextUpstream, Nginx, Sticky
from lbkit.balancer.nginx import Server as NginxServer
from lbkit.balancer.replica import Mode
from lbkit.balancer.traefik import Cookie as TraefikCookie
from lbkit.balancer.traefik import Member, Traefik
from lbkit.errors import ConfigError

__all__ = ["PROFILES", "Options", "Place", "Profile", "profile_named"]

LINEAR_LIMIT = 10_000
"""Above it, a pick that looks at every replica takes longer than most requests."""

HEAVIEST = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A replica as a balancer's configuration has it. `address` is the text that rings and tables hash."""

    name: str
    address: str = ""
    weight: int = 1
    backup: bool = False
    down: bool = False
    max_conns: int = 0
    """Requests inside at the same time; 0 for no limit."""

    def __post_init__(self) -> None:
        if self.max_conns < 0:
            raise ConfigError(f"need max_conns >= 0, got max_conns={self.max_conns} for {self.name}")
        if not 1 <= self.weight <= HEAVIEST:
            got = f"weight={self.weight} for {self.name}"
            raise ConfigError(
                f"need 1 <= weight <= {HEAVIEST}, got {got}; to take a replica out, mark it down"
            )

    @property
    def hashed(self) -> str:
        return self.address or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a balancer's configuration says beside its servers; empty is that balancer's default."""

    sticky: str = ""
    retry: str = ""


Build = Callable[[Sequence[Place], str, Random, Options], Model]


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    equivalence: str
    """How close to the real one: what must be known beside the configuration for the picks to be the same."""

    policies: tuple[str, ...]
    """How to write them; words in capitals are yours to fill in. The first one is the default."""

    build: Build
    quick: tuple[str, ...] = ()
    """The first words of the policies that do not look at every replica for each pick."""

    weighted: bool = True
    backups: bool = False
    limits: bool = True
    """Whether a replica's `max_conns` is something that this balancer knows."""

    optional: bool = True
    """Whether it knows `sticky` and `retry`."""

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
        self._refuse_nonsense(places, policy, allow_linear=allow_linear)
        if not self.optional and options not in (None, Options()):
            raise ConfigError(f"the profile {self.name} has no sticky and no retry of its own")
        return self.build(places, policy, rng or Random(), options or Options())

    def _refuse_nonsense(self, places: Sequence[Place], policy: str, *, allow_linear: bool) -> None:
        if not places:
            raise ConfigError("need at least one replica, got none")
        names = [place.name for place in places]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ConfigError(
                f"need a name of its own for each replica, got {', '.join(twice)} more than once"
            )
        if not self.weighted and any(place.weight != 1 for place in places):
            raise ConfigError(f"{self.name} has no weights: need weight=1 for every replica")
        if not self.backups and any(place.backup for place in places):
            raise ConfigError(f"{self.name} has no backups: need backup=False for every replica")
        if not self.limits and any(place.max_conns for place in places):
            raise ConfigError(f"{self.name} has no limit for a replica: need max_conns=0 for every replica")
        word = (policy or self.policies[0]).partition(" ")[0]
        if len(places) > LINEAR_LIMIT and word not in self.quick and not allow_linear:
            raise ConfigError(
                f"need at most {LINEAR_LIMIT} replicas for {word!r}, which looks at every one of them for "
                f"each pick, got {len(places)}: allow_linear=True does it all the same"
            )


def profile_named(name: str) -> Profile:
    if name not in PROFILES:
        raise ConfigError(f"need a profile ({', '.join(PROFILES)}), got {name!r}")
    return PROFILES[name]


def _nginx(places: Sequence[Place], policy: str, rng: Random, options: Options) -> Model:
    servers = [
        NginxServer(
            name=place.name,
            address=place.hashed,
            weight=place.weight,
            backup=place.backup,
            down=place.down,
            max_conns=place.max_conns,
        )
        for place in places
    ]
    return Nginx(
        servers,
        method="" if policy == "round_robin" else policy,
        passing=NextUpstream(on=_words(options.retry, NEXT_UPSTREAM)) if options.retry else None,
        sticky=Sticky(mode="cookie", name=options.sticky) if options.sticky else None,
        rng=rng,
    )


def _nginx_1_22(places: Sequence[Place], policy: str, rng: Random, options: Options) -> Model:
    if policy.startswith("least_time") or options.sticky:
        word = "sticky" if options.sticky else "least_time"
        raise ConfigError(f"need nginx 1.31 or later for {word}: nginx@1.22 does not have it")
    return _nginx(places, policy, rng, options)


def _words(text: str, known: Sequence[str]) -> frozenset[str]:
    words = text.replace(",", " ").split()
    if unknown := [word for word in words if word not in known and not word.isdigit()]:
        raise ConfigError(f"need words of {', '.join(known)} for retry, got {unknown[0]!r}")
    return frozenset(words)


def _haproxy_retries(text: str) -> Retries:
    words = _words(text, RETRY_ON) if text else frozenset({"conn-failure"})
    redispatch = -1 if "redispatch" in words else 0
    return Retries(redispatch=redispatch, on=words - {"redispatch"} or frozenset({"conn-failure"}))


def _haproxy(places: Sequence[Place], policy: str, rng: Random, options: Options) -> Model:
    balance, _, hash_type = policy.partition(";")
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
        )
        for number, place in enumerate(places, start=1)
    ]
    return Haproxy(
        servers,
        balance=balance.strip() or "roundrobin",
        hash_type=hash_type.strip().removeprefix("hash-type").strip() or "map-based",
        retries=_haproxy_retries(options.retry),
        cookie=HaproxyCookie(name=options.sticky, mode="insert", indirect=True, nocache=True)
        if options.sticky
        else None,
        rng=rng,
    )


def _envoy(places: Sequence[Place], policy: str, rng: Random, options: Options) -> Model:
    word, _, header = (policy or "ROUND_ROBIN").partition(" ")
    if word in ("RING_HASH", "MAGLEV") and not header:
        raise ConfigError(f"need the header that {word} hashes, such as '{word} x-user', got none")
    hosts = [
        Host(name=p.name, address=p.hashed, weight=p.weight, priority=int(p.backup), healthy=not p.down)
        for p in places
    ]
    chance = Chance(rng)
    chooser = _envoy_chooser(word, rng, chance)
    hashing = [HeaderHash(header.lower())] if header else []
    return Envoy(
        hosts,
        chooser=chooser,
        hashing=hashing,
        chance=chance,
        retries=EnvoyRetries(on=_words(options.retry, ENVOY_RETRY_ON)),
        session=Session(name=options.sticky, ttl=3600) if options.sticky else None,
    )


def _envoy_chooser(word: str, rng: Random, chance: Chance) -> Callable[[list[Host], Source], Chooser]:
    start = rng.getrandbits(32)  # Envoy draws it once, when the process starts
    turns: dict[Source, Iterator[int]] = defaultdict(lambda: count(start))

    def least_request(hosts: list[Host], _: Source) -> Chooser:
        equal = len({host.weight for host in hosts}) == 1
        return TwoDraws(hosts, chance=chance) if equal else LeastRequest(hosts, start=start)

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


def _caddy(places: Sequence[Place], policy: str, rng: Random, options: Options) -> Model:
    if options.sticky and policy:
        raise ConfigError(f"Caddy is sticky by its policy cookie: need no other one, got {policy!r}")
    policy = f"cookie {options.sticky}" if options.sticky else policy
    retrying = Retrying(duration=_number(options.retry, "seconds of lb_try_duration"))
    upstreams = [Upstream(place.name, place.hashed, most=place.max_conns) for place in places]
    for upstream, place in zip(upstreams, places, strict=True):
        upstream.healthy = not place.down
    return Caddy(upstreams, policy=policy or "random", retrying=retrying, chance=Chance(rng))


def _number(text: str, what: str) -> float:
    try:
        return float(text or 0)
    except ValueError as error:
        raise ConfigError(f"need {what} as a number for retry, got {text!r}") from error


def _traefik(places: Sequence[Place], policy: str, rng: Random, options: Options) -> Model:
    members = [Member(place.name, place.hashed, place.weight, up=not place.down) for place in places]
    return Traefik(
        members,
        strategy=policy or "wrr",
        retries=int(_number(options.retry, "attempts of the retry middleware")),
        cookie=TraefikCookie(name=options.sticky) if options.sticky else None,
        chance=Chance(rng),
    )


class Plain:
    """Each replica that is not down in turn; nothing is retried."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._all = [place.name for place in places]
        self._skipped = {place.name: "down" for place in places if place.down}
        self._names = [name for name in self._all if name not in self._skipped]
        self._turns = count()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._all)

    def serve(self, request: Request, *, now: float) -> Flow:
        if not self._names:
            return Answer(status=503, replica=None, attempts=("-",))
        name = self._names[next(self._turns) % len(self._names)]
        outcome = yield from attempt(Attempt(name))
        if outcome.fault is not None:
            status = 504 if outcome.fault is Fault.TIMEOUT else 502
            return Answer(status=status, replica=None, attempts=(name,))
        answer = Answer(status=outcome.status, replica=name, attempts=(name,), set_cookie=outcome.set_cookie)
        return (yield from relay(answer, outcome))

    def tell(self, name: str, standing: Standing) -> None:
        reason = "" if standing.mode is Mode.READY else standing.mode.value
        self._skipped.pop(name, None)
        if reason or not standing.up:
            self._skipped[name] = reason or "down"
        self._names = [each for each in self._all if each not in self._skipped]

    def woken(self) -> list[Wait]:
        return []

    def explain(self, now: float) -> dict[str, str]:
        return dict(self._skipped)


def _plain(places: Sequence[Place], policy: str, _: Random, __: Options) -> Model:
    if policy not in ("", "round_robin"):
        raise ConfigError(f"need the policy round_robin for the profile plain, got {policy!r}")
    return Plain(places)


NEXT_UPSTREAM = (
    "error",
    "timeout",
    "invalid_header",
    "http_500",
    "http_502",
    "http_503",
    "http_504",
    "http_403",
    "http_404",
    "http_429",
    "non_idempotent",
    "off",
)
RETRY_ON = ("conn-failure", "empty-response", "response-timeout", "redispatch", "none")
ENVOY_RETRY_ON = ("5xx", "gateway-error", "connect-failure", "reset")
NGINX = (
    "round_robin",
    "ip_hash",
    "hash KEY",
    "hash KEY consistent",
    "least_conn",
    "random",
    "random two",
    "least_time header",
)
HAPROXY = (
    "roundrobin",
    "static-rr",
    "leastconn",
    "first",
    "source",
    "uri",
    "url_param NAME",
    "hdr(NAME)",
    "random(2)",
)
ENVOY = ("ROUND_ROBIN", "LEAST_REQUEST", "RING_HASH HEADER", "MAGLEV HEADER", "RANDOM")
CADDY = (
    "random",
    "round_robin",
    "first",
    "least_conn",
    "ip_hash",
    "uri_hash",
    "header NAME",
    "random_choose N",
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("nginx", "exact, for one worker process", NGINX, _nginx, backups=True),
        Profile("nginx@1.22", "exact, for one worker process", NGINX[:-1], _nginx_1_22, backups=True),
        Profile("haproxy@2.6", "exact, for one thread group", HAPROXY, _haproxy, backups=True),
        Profile(
            "envoy",
            "exact, up to the random start of each process",
            ENVOY,
            _envoy,
            backups=True,
            limits=False,
        ),
        Profile("caddy@2.6", "exact; random where Caddy is", CADDY, _caddy, weighted=False),
        Profile(
            "traefik@3",
            "exact, for the order of insertion",
            ("wrr", "p2c", "hrw", "leasttime"),
            _traefik,
            limits=False,
        ),
        Profile(
            "plain",
            "exact",
            ("round_robin",),
            _plain,
            ("round_robin",),
            weighted=False,
            limits=False,
            optional=False,
        ),
    )
}
