"""The service that a recording of Traefik describes, in each of the orders it may have been built in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice, permutations
from typing import Any

from lbkit.balancer.exchange import Standing
from lbkit.balancer.recorded.nginx import seconds
from lbkit.balancer.replay import Guided, NotModelled, Recording, Start
from lbkit.balancer.traefik import Cookie, Member, PassiveCheck, Traefik

__all__ = ["starts"]

ORDERS = 5040  # of seven servers


def starts(recording: Recording) -> Iterator[Start]:
    if recording.equivalence == "documented":
        raise NotModelled(
            "its picks depend on response times of less than a millisecond, which are not recorded"
        )
    if recording.kind == "traefik_sched":
        yield _start(Traefik(_members(recording.servers)), Guided())
        return
    http = json.loads(recording.config)["http"]
    balancer = http["services"]["be"]["loadBalancer"]
    for order in islice(permutations(_servers(recording, balancer)), ORDERS):
        guide = Guided()
        yield _start(_service(order, balancer, http.get("middlewares") or {}, guide), guide)


def _start(model: Traefik, guide: Guided) -> Start:
    return Start(
        model=model,
        guide=guide,
        status=lambda name, up: model.tell(name, Standing(up=up)),
        refused_count=False,
    )


def _servers(recording: Recording, balancer: dict[str, Any]) -> list[dict[str, Any]]:
    names = {f"http://{server['address']}": server["name"] for server in recording.servers}
    return [
        {"name": names[server["url"]], "address": server["url"], "weight": server.get("weight", 1)}
        for server in balancer["servers"]
    ]


def _members(servers: Sequence[dict[str, Any]]) -> list[Member]:
    return [Member(server["name"], server["address"], server["weight"]) for server in servers]


def _service(
    order: Sequence[dict[str, Any]], balancer: dict[str, Any], middlewares: dict[str, Any], guide: Guided
) -> Traefik:
    retry: dict[str, Any] = next((each["retry"] for each in middlewares.values() if "retry" in each), {})
    passive = balancer.get("passiveHealthCheck")
    sticky = (balancer.get("sticky") or {}).get("cookie")
    return Traefik(
        _members(order),
        strategy=balancer.get("strategy", "wrr"),
        retries=retry.get("attempts", 0),
        passive=PassiveCheck(window=seconds(passive["failureWindow"]), attempts=passive["maxFailedAttempts"])
        if passive
        else None,
        cookie=Cookie(name=sticky["name"], attributes=_attributes(sticky)) if sticky else None,
        chance=guide,
    )


def _attributes(sticky: dict[str, Any]) -> str:
    text = f"; Path={sticky.get('path', '/')}"
    if "domain" in sticky:
        text += f"; Domain={sticky['domain']}"
    if "maxAge" in sticky:
        text += f"; Max-Age={sticky['maxAge']}"
    text += "; HttpOnly" * bool(sticky.get("httpOnly")) + "; Secure" * bool(sticky.get("secure"))
    if same := sticky.get("sameSite"):
        text += f"; SameSite={same.capitalize()}"
    return text
