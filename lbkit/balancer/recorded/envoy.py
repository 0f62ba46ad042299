"""The cluster that a recording of Envoy describes, in each of the states in which it may have begun.

What a recording cannot tell: the random start of a rotation, when the interval timer of outlier detection
first fired, how many milliseconds a change took from the main thread to the worker, the client's port (part
of a generated cookie), and the time of day.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count, product
from math import lcm
from typing import Any

from lbkit.balancer.envoy import (
    CookieHash,
    Envoy,
    HeaderHash,
    Host,
    Outlier,
    OutlierRules,
    ParameterHash,
    Retries,
    Session,
    SlowStart,
)
from lbkit.balancer.envoy.cluster import Source
from lbkit.balancer.envoy.policy import (
    FUNCTIONS,
    Bounded,
    Chooser,
    FullScan,
    LeastRequest,
    Maglev,
    RandomChoice,
    Ring,
    RoundRobin,
    TwoDraws,
)
from lbkit.balancer.hashing import xxh64
from lbkit.balancer.recorded.nginx import seconds
from lbkit.balancer.replay import Guided, NotModelled, Recording, Start
from lbkit.balancer.retry import Budget

__all__ = ["starts"]

Make = Callable[[list[Host], Source], Chooser]
PHASES = 10
LAGS = (0.0, 0.05)
PORTS = range(1024, 65536)
DRAWING = ("ROUND_ROBIN", "LEAST_REQUEST")


def starts(recording: Recording) -> Iterator[Start]:
    resources = json.loads(recording.config)["static_resources"]
    cluster = next(each for each in resources["clusters"] if each["name"] == "be")
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    session = _session(manager["http_filters"])
    detects = "outlier_detection" in cluster
    phases, lags = (range(PHASES), LAGS) if detects else (range(1), LAGS[:1])
    for lag, start, phase in product(lags, range(_rotations(recording, cluster)), phases):
        guide = Guided()
        hosts = _hosts(recording)
        model = Envoy(
            hosts,
            chooser=_chooser(cluster, start, guide),
            hashing=[_hash(rule) for rule in route.get("hash_policy", [])],
            retries=_retries(route.get("retry_policy", {}), _budget(cluster)),
            outlier=_outlier(cluster, hosts, phase / PHASES, lag),
            session=session,
            slow_start=_slow_start(cluster),
            panic_below=_panic(cluster),
            connection=_connection(recording, route),
            chance=guide,
        )
        timeout = seconds(route.get("timeout", "15s"))
        timeout = min(timeout, seconds(route.get("retry_policy", {}).get("per_try_timeout", f"{timeout}s")))
        yield Start(
            model=model, guide=guide, read_timeout=timeout, refused_count=False, now=_now(recording, session)
        )


def _rotations(recording: Recording, cluster: dict[str, Any]) -> int:
    if cluster["lb_policy"] not in DRAWING:
        return 1
    weights = [server["weight"] for server in recording.servers]
    # Equal weights: an index over lists of any length up to all of them. Unequal: some picks beforehand, and
    # as ties go first in, first out, the first turn may differ from all others.
    return lcm(*range(1, len(weights) + 1)) if len(set(weights)) == 1 else 2 * sum(weights)


def _hosts(recording: Recording) -> list[Host]:
    return [
        Host(
            name=server["name"],
            address=server["address"],
            weight=server["weight"],
            priority=server.get("priority", 0),
            healthy=server.get("health_status", "HEALTHY") != "UNHEALTHY",
        )
        for server in recording.servers
    ]


def _chooser(cluster: dict[str, Any], start: int, guide: Guided) -> Make:
    factor = cluster.get("common_lb_config", {}).get("consistent_hashing_lb_config", {})
    inner = _plain_chooser(cluster, start, guide)
    if "hash_balance_factor" not in factor:
        return inner
    return lambda hosts, source: Bounded(inner(hosts, source), hosts, factor=factor["hash_balance_factor"])


def _plain_chooser(cluster: dict[str, Any], start: int, guide: Guided) -> Make:
    policy = cluster["lb_policy"]
    if policy == "ROUND_ROBIN":
        turns: dict[Source, Iterator[int]] = defaultdict(lambda: count(start))
        return lambda hosts, source: RoundRobin(hosts, turns=turns[source], start=start)
    if policy == "LEAST_REQUEST":
        _refuse(cluster.get("least_request_lb_config", {}), {"choice_count": 2, "slow_start_config": None})
        return lambda hosts, _: _least_request(hosts, start, guide)
    if policy == "RING_HASH":
        ring = cluster.get("ring_hash_lb_config", {})
        return lambda hosts, _: Ring(
            hosts,
            minimum=ring.get("minimum_ring_size", 1024),
            maximum=ring.get("maximum_ring_size", 8 * 1024 * 1024),
            function=FUNCTIONS[ring.get("hash_function", "XX_HASH")],
        )
    if policy == "MAGLEV":
        return lambda hosts, _: Maglev(
            hosts, size=cluster.get("maglev_lb_config", {}).get("table_size", 65537)
        )
    if policy == "RANDOM":
        return lambda hosts, _: RandomChoice(hosts, chance=guide)
    if "FULL_SCAN" in json.dumps(cluster.get("load_balancing_policy", {})):
        return lambda hosts, _: FullScan(hosts, chance=guide)
    raise NotModelled(f"the policy {policy}")


def _refuse(given: dict[str, Any], known: dict[str, Any]) -> None:
    for key, value in given.items():
        if key not in known or known[key] not in (None, value):
            raise NotModelled(f"{key}: {value}")


def _least_request(hosts: list[Host], start: int, guide: Guided) -> Chooser:
    if len({host.weight for host in hosts}) == 1:
        return TwoDraws(hosts, chance=guide)
    return LeastRequest(hosts, start=start)


def _hash(rule: dict[str, Any]) -> HeaderHash | CookieHash | ParameterHash:
    if "header" in rule:
        return HeaderHash(rule["header"]["header_name"].lower(), bool(rule.get("terminal")))
    if "cookie" in rule:
        cookie = rule["cookie"]
        ttl = int(seconds(cookie["ttl"])) if "ttl" in cookie else None
        return CookieHash(cookie["name"], ttl, cookie.get("path", "/"), bool(rule.get("terminal")))
    if "query_parameter" in rule:
        return ParameterHash(rule["query_parameter"]["name"], bool(rule.get("terminal")))
    raise NotModelled(f"the hash policy {', '.join(rule)}")


def _retries(policy: dict[str, Any], budget: Budget) -> Retries:
    predicates = [each["name"] for each in policy.get("retry_host_predicate", [])]
    return Retries(
        on=frozenset(filter(None, policy.get("retry_on", "").split(","))),
        count=policy.get("num_retries", 1),
        previous_hosts="envoy.retry_host_predicates.previous_hosts" in predicates,
        draws=policy.get("host_selection_retry_max_attempts", 1),
        statuses=frozenset(policy.get("retriable_status_codes", [])),
        per_try_timeout=seconds(policy.get("per_try_timeout", "0")),
        budget=budget,
    )


def _budget(cluster: dict[str, Any]) -> Budget:
    """Of the default priority: `retry_budget` if there is one, else `max_retries`."""
    thresholds = cluster.get("circuit_breakers", {}).get("thresholds", [])
    given: dict[str, Any] = next(
        (each for each in thresholds if each.get("priority", "DEFAULT") == "DEFAULT"), {}
    )
    if budget := given.get("retry_budget"):
        percent = budget.get("budget_percent", {}).get("value", 20.0)
        return Budget(most=budget.get("min_retry_concurrency", 3), percent=percent)
    return Budget(most=given.get("max_retries", 3))


def _panic(cluster: dict[str, Any]) -> int:
    threshold = cluster.get("common_lb_config", {}).get("healthy_panic_threshold", {"value": 50})
    return int(threshold.get("value", 0))


def _slow_start(cluster: dict[str, Any]) -> SlowStart | None:
    own = cluster.get(f"{cluster['lb_policy'].lower()}_lb_config", {}).get("slow_start_config")
    if own is None:
        return None
    aggression = own.get("aggression", {}).get("default_value", 1.0)
    least = own.get("min_weight_percent", {}).get("value", 10.0)
    return SlowStart(window=seconds(own["slow_start_window"]), aggression=aggression, least=least)


def _outlier(cluster: dict[str, Any], hosts: list[Host], phase: float, lag: float) -> Outlier | None:
    given = cluster.get("outlier_detection")
    if given is None:
        return None
    window = cluster.get("common_lb_config", {}).get("update_merge_window", "1s")
    rules = OutlierRules(
        consecutive_5xx=given.get("consecutive_5xx", 5),
        interval=seconds(given.get("interval", "10s")),
        base_ejection_time=seconds(given.get("base_ejection_time", "30s")),
        max_ejection_time=seconds(given.get("max_ejection_time", "300s")),
        max_ejection_percent=given.get("max_ejection_percent", 10),
        merge_window=seconds(window),
    )
    return Outlier(hosts, rules, phase=phase * rules.interval, lag=lag)


def _session(filters: list[dict[str, Any]]) -> Session | None:
    for each in filters:
        if each["name"] == "envoy.filters.http.stateful_session":
            cookie = each["typed_config"]["session_state"]["typed_config"]["cookie"]
            return Session(name=cookie["name"], ttl=int(seconds(cookie["ttl"])), path=cookie.get("path", "/"))
    return None


def _cookies(recording: Recording) -> Iterator[str]:
    for detail in recording.detail:
        for line in (detail or {}).get("set_cookie") or []:
            if found := re.match(r'[^=]+="([^"]*)"', line):
                yield found[1]


def _connection(recording: Recording, route: dict[str, Any]) -> str:
    """The two ends of the client's connection: its port is the one that makes the first cookie recorded."""
    if not any("cookie" in rule for rule in route.get("hash_policy", [])):
        return ""
    made = next(_cookies(recording), None)
    texts = (f"127.0.0.1:{port}127.0.0.1:18001" for port in PORTS)
    return next((text for text in texts if f"{xxh64(text.encode()):x}" == made), "")


def _now(recording: Recording, session: Session | None) -> float:
    """The time of day, from the first session cookie: it says when it ends."""
    value = next(_cookies(recording), None)
    if session is None or value is None:
        return 0.5
    digits = b64decode(value)[2 + b64decode(value)[1] + 1 :]
    return sum((byte & 127) << (7 * at) for at, byte in enumerate(digits)) - session.ttl + 0.5
